"""Image size to patches and tokens, family by family, as the processors of transformers 5 do it.

Each class holds the settings of one kind of processor; ``layout(width, height)`` applies them to an
image of that many pixels.
"""

import math
from dataclasses import dataclass

import numpy as np

from energymodel.errors import InputError
from energymodel.media import Layout, Runs

MAX_ASPECT_RATIO = 200
"""Qwen-VL refuses longer or flatter images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A square of fixed size. ``side`` pixels are cut into ``patches``; ``features`` leave.

    ``extra`` rows pass the layers beside the patches: class tokens.
    """

    side: int
    patches: int
    features: int
    extra: int = 0

    def rows(self, number: int) -> dict[str, Runs]:
        """Rows of ``number`` tiles, each of which attends within itself."""
        return {
            "patches": ((number, self.patches),),
            "positions": ((number, self.patches + self.extra),),
            "features": ((number, self.features),),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class OneTile:
    """Every image is resized to one tile (LLaVA 1.5, Gemma 3 without pan-and-scan, PaliGemma).

    ``markers`` are tokens that the processor puts around it.
    """

    tile: Tile
    markers: int = 0

    def layout(self, _width: int, _height: int) -> Layout:
        """The same for all images."""
        return Layout(tokens=self.tile.features + self.markers, rows=self.tile.rows(1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """A square canvas of ``max_tiles`` tiles, padded to the full, in one sequence (Llama 3.2).

    ``padding`` rows bring each tile to a multiple of 8. Cross attention reads the features; the
    prompt holds one token.
    """

    tile: Tile
    max_tiles: int
    padding: int

    def layout(self, _width: int, _height: int) -> Layout:
        """The same for all images."""
        each = self.tile.patches + self.tile.extra
        rows = {
            "patches": ((self.max_tiles, self.tile.patches),),
            "tiles": ((self.max_tiles, each),),
            "positions": ((1, self.max_tiles * (each + self.padding)),),
            "features": ((self.max_tiles, self.tile.features),),
        }
        return Layout(tokens=1, rows=rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeGrid:
    """The image keeps its shape; sides become multiples of patch x merge (Qwen-VL, GLM-4V).

    Pixels stay within ``min_pixels`` to ``max_pixels``. ``merge`` x ``merge`` patches become one
    feature. ``window`` is the side in pixels of the squares that windowed layers attend within.
    """

    patch: int
    merge: int
    min_pixels: int
    max_pixels: int
    window: int | None = None

    def layout(self, width: int, height: int) -> Layout:
        """All patches of the image are one sequence, or the windows of one."""
        w, h = self._resized(width, height)
        features = (w // (self.patch * self.merge)) * (h // (self.patch * self.merge))
        patches = features * self.merge**2
        rows: dict[str, Runs] = {
            "patches": ((1, patches),),
            "positions": ((1, patches),),
            "features": ((1, features),),
        }
        if self.window is not None:
            rows["windows"] = self._windows(w, h)
        return Layout(tokens=features, rows=rows)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """``smart_resize`` of the Qwen-VL processors: pixels of the resized image."""
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise InputError(
                f"an image of {width:,} x {height:,} pixels is refused by this model: the longer "
                f"side must be at most {MAX_ASPECT_RATIO} times the shorter one"
            )
        factor = self.patch * self.merge
        w, h = (round(x / factor) * factor for x in (width, height))
        if w * h > self.max_pixels:
            beta = math.sqrt(width * height / self.max_pixels)
            w, h = (max(factor, math.floor(x / beta / factor) * factor) for x in (width, height))
        elif w * h < self.min_pixels:
            beta = math.sqrt(self.min_pixels / (width * height))
            w, h = (math.ceil(x * beta / factor) * factor for x in (width, height))
        return w, h

    def _windows(self, width: int, height: int) -> Runs:
        """Full windows, and the narrower ones at the right and the lower edge."""
        assert self.window is not None  # noqa: S101 (the caller has looked)
        unit = self.patch * self.merge
        side = max(self.window // unit, 1)  # windows hold whole features
        across, down = _pieces(width // unit, side), _pieces(height // unit, side)
        return tuple(
            (nx * ny, x * y * self.merge**2) for nx, x in across for ny, y in down if nx * ny
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGrid:
    """The image keeps its shape, at most ``longest`` pixels long; a token ends each row (Pixtral)."""

    patch: int
    merge: int
    longest: int

    def layout(self, width: int, height: int) -> Layout:
        """All patches of the image are one sequence."""
        ratio = max(width / self.longest, height / self.longest, 1.0)
        unit = self.patch * self.merge
        columns, lines = (max(-(-math.floor(x / ratio) // unit), 1) for x in (width, height))
        features = columns * lines
        patches = features * self.merge**2
        rows: dict[str, Runs] = {
            "patches": ((1, patches),),
            "positions": ((1, patches),),
            "features": ((1, features),),
        }
        return Layout(tokens=(columns + 1) * lines, rows=rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class AspectTiles:
    """Up to ``max_tiles`` tiles in the grid nearest to the image's aspect ratio, and a thumbnail.

    InternVL, Aya Vision, Command A Vision. ``tile_markers`` tokens go with each tile, ``markers``
    around all of them.
    """

    tile: Tile
    max_tiles: int
    tile_markers: int = 0
    markers: int = 0

    def layout(self, width: int, height: int) -> Layout:
        """Tiles of the grid; one tile needs no thumbnail."""
        columns, lines = self._grid(width, height)
        tiles = columns * lines + (1 if columns * lines > 1 else 0)
        tokens = self.markers + tiles * (self.tile.features + self.tile_markers)
        return Layout(tokens=tokens, rows=self.tile.rows(tiles))

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        """The nearest aspect ratio; of equal ones the largest that is at most twice the image."""
        counts = range(1, self.max_tiles + 1)
        grids = [(c, r) for c in counts for r in counts if c * r <= self.max_tiles]
        best, nearest = (1, 1), math.inf
        for columns, lines in sorted(grids, key=lambda grid: grid[0] * grid[1]):
            distance = abs(width / height - columns / lines)
            covered = columns * lines * self.tile.side**2
            if distance < nearest or (distance == nearest and width * height > 0.5 * covered):
                best, nearest = (columns, lines), distance
        return best


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedTiles:
    """Up to ``max_tiles`` tiles in the grid that scales the image least, and a thumbnail (Llama 4)."""

    tile: Tile
    max_tiles: int

    def layout(self, width: int, height: int) -> Layout:
        """A separator goes with each tile but the thumbnail; three tokens mark start, end, whole."""
        columns, lines = self._grid(width, height)
        tiles = columns * lines
        if tiles == 1:
            return Layout(tokens=self.tile.features + 3, rows=self.tile.rows(1))
        tokens = (tiles + 1) * self.tile.features + tiles + 3
        return Layout(tokens=tokens, rows=self.tile.rows(tiles + 1))

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        """The least scale above 1, or else the largest below; of equal ones the smallest area."""
        side, counts = self.tile.side, range(1, self.max_tiles + 1)
        grids = [(c, r) for c in counts for r in counts if c * r <= self.max_tiles]
        # Scales are compared in the single precision of the processor.
        scales = [np.float32(min(c * side / width, r * side / height)) for c, r in grids]
        up = [s for s in scales if s >= 1]
        chosen = min(up) if up else max(scales)
        fitting = [g for g, s in zip(grids, scales, strict=True) if s == chosen]
        return min(fitting, key=lambda grid: grid[0] * grid[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitTiles:
    """The longer side becomes ``longest`` pixels, the image is cut into tiles (Idefics 3, SmolVLM).

    Both sides are rounded up to whole tiles; the whole image follows as one more tile.
    """

    tile: Tile
    longest: int

    def layout(self, width: int, height: int) -> Layout:
        """Two markers go with each tile, a line break with each row and before the whole image."""
        columns, lines = self._grid(width, height)
        whole = self.tile.features + 3
        if columns * lines == 1:
            return Layout(tokens=whole, rows=self.tile.rows(1))
        tiles = columns * lines
        # The break after the last row and the one before the whole image are one token.
        tokens = tiles * (self.tile.features + 2) + lines + whole
        return Layout(tokens=tokens, rows=self.tile.rows(tiles + 1))

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        """Columns and lines, after two resizes that each round the shorter side."""
        wide, side = width >= height, self.tile.side
        short = _shorter(self.longest, width / height, wide)
        short = max(short + short % 2, 1)
        aspect = self.longest / short if wide else short / self.longest
        along = -(-self.longest // side)
        beside = max(-(-_shorter(along * side, aspect, wide) // side), 1)
        return (along, beside) if wide else (beside, along)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyResolution:
    """Tiles of the best of several resolutions, padding taken off again, and the whole image.

    LLaVA-NeXT and LLaVA-OneVision. ``resolutions`` are (height, width) in pixels; ``per_side`` are
    the features along a tile. Features beyond ``max_tiles`` tiles are interpolated down (OneVision).
    A token ends each row.
    """

    tile: Tile
    per_side: int
    resolutions: tuple[tuple[int, int], ...]
    max_tiles: int | None = None

    def layout(self, width: int, height: int) -> Layout:
        """Features of all tiles are projected; those of the padding do not enter the prompt."""
        best_h, best_w = self._resolution(width, height)
        lines, columns = best_h // self.tile.side, best_w // self.tile.side
        down, across = self._unpadded(width, height, lines * self.per_side, columns * self.per_side)
        if self.max_tiles is not None:
            ratio = math.sqrt(down * across / (self.max_tiles * self.per_side**2))
            if ratio > 1.1:
                down, across = int(down // ratio), int(across // ratio)
        tokens = self.tile.features + down * (across + 1)
        return Layout(tokens=tokens, rows=self.tile.rows(lines * columns + 1))

    def _resolution(self, width: int, height: int) -> tuple[int, int]:
        """Most pixels of the image kept, then fewest wasted."""

        def fit(resolution: tuple[int, int]) -> tuple[int, int]:
            h, w = resolution
            scale = min(w / width, h / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, -(w * h - kept)

        return max(self.resolutions, key=fit)

    def _unpadded(self, width: int, height: int, down: int, across: int) -> tuple[int, int]:
        """Rows and columns of features that are not padding."""
        if width / height > across / down:
            padding = (down - int(round(height * (across / width), 7))) // 2
            return down - 2 * padding, across
        padding = (across - int(round(width * (down / height), 7))) // 2
        return down, across - 2 * padding


ImageSizing = (
    OneTile | Canvas | NativeGrid | RowGrid | AspectTiles | FittedTiles | SplitTiles | AnyResolution
)


def _pieces(length: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(how many, length): whole pieces, and what is left over."""
    return (length // size, size), (1 if length % size else 0, length % size)


def _shorter(longer: int, aspect: float, wide: bool) -> int:
    """The other side of an image whose width / height is ``aspect``, rounded down."""
    return int(longer / aspect) if wide else int(longer * aspect)
