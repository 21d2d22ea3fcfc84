"""Image size to tokens: by hand, and against the processors of transformers where they are there."""

import importlib
from typing import Any

import numpy as np
import pytest

from energymodel.errors import InputError
from energymodel.images import (
    AnyResolution,
    AspectTiles,
    Canvas,
    FittedTiles,
    NativeGrid,
    OneTile,
    RowGrid,
    SplitTiles,
    Tile,
)
from energymodel.media import total

CLIP = Tile(side=336, patches=576, features=576, extra=1)
QWEN = NativeGrid(patch=14, merge=2, min_pixels=56 * 56, max_pixels=12_845_056, window=112)
NEXT = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


def test_llava_always_has_576_tokens() -> None:
    layout = OneTile(tile=CLIP).layout(4000, 30)
    assert layout.tokens == 576
    assert layout.rows == {
        "patches": ((1, 576),),
        "positions": ((1, 577),),
        "features": ((1, 576),),
    }


def test_gemma_3_has_256_features_and_four_markers() -> None:
    tile = Tile(side=896, patches=4096, features=256)
    layout = OneTile(tile=tile, markers=4).layout(1024, 768)
    assert (layout.tokens, total(layout.rows["features"])) == (260, 256)


def test_a_native_grid_rounds_sides_to_whole_features() -> None:
    # 1024 / 28 = 36.6 -> 37, 768 / 28 = 27.4 -> 27.
    layout = QWEN.layout(1024, 768)
    assert layout.tokens == 37 * 27
    assert layout.rows["positions"] == ((1, 4 * 37 * 27),)


def test_a_native_grid_stays_within_its_pixels() -> None:
    small = NativeGrid(patch=14, merge=2, min_pixels=56 * 56, max_pixels=28 * 28 * 100)
    # 2800 x 2800 is scaled by 1/10 to 10 x 10 features.
    assert small.layout(2800, 2800).tokens == 100
    # 28 x 28 is scaled by 2 to 2 x 2 features.
    assert small.layout(28, 28).tokens == 4
    assert small.layout(10, 1000).tokens >= 4


def test_windows_are_whole_but_at_the_edges() -> None:
    # Windows of 112 pixels are 4 x 4 features; 37 x 27 features leave 1 column and 3 rows.
    windows = QWEN.layout(1024, 768).rows["windows"]
    assert {each: number for number, each in windows} == {
        4 * 16: 9 * 6,
        4 * 12: 9,
        4 * 4: 6,
        4 * 3: 1,
    }
    assert total(windows) == 4 * 37 * 27


def test_an_image_that_is_too_long_is_refused() -> None:
    with pytest.raises(InputError, match="at most 200 times the shorter"):
        QWEN.layout(2010, 10)


def test_a_row_grid_ends_each_row_with_a_token() -> None:
    # 3080 pixels become 1540: 55 columns and 28 rows of 28 pixels (770 / 28 = 27.5).
    layout = RowGrid(patch=14, merge=2, longest=1540).layout(3080, 1540)
    assert layout.tokens == (55 + 1) * 28
    assert layout.rows["patches"] == ((1, 4 * 55 * 28),)


def test_tiles_follow_the_aspect_ratio() -> None:
    internvl = AspectTiles(
        tile=Tile(side=448, patches=1024, features=256, extra=1), max_tiles=12, markers=2
    )
    # 4:3 has 4 x 3 tiles of equal shape, and a thumbnail.
    assert internvl.layout(1600, 1200).tokens == 13 * 256 + 2
    # A small square stays one tile, without a thumbnail.
    assert internvl.layout(448, 448).tokens == 256 + 2
    # A large one takes the largest square grid that is at most twice the image.
    assert internvl.layout(1344, 1344).tokens == 10 * 256 + 2


def test_tiles_fit_without_enlarging_more_than_needed() -> None:
    llama4 = FittedTiles(tile=Tile(side=336, patches=576, features=144, extra=1), max_tiles=16)
    assert llama4.layout(336, 336).tokens == 144 + 3
    # 1000 x 600 fits 3 x 2 tiles (scale 1.008); a separator for each, the whole image behind.
    assert llama4.layout(1000, 600).tokens == 7 * 144 + 6 + 3


def test_an_image_is_split_into_whole_tiles() -> None:
    smolvlm = SplitTiles(tile=Tile(side=512, patches=1024, features=64), longest=2048)
    # 2048 x 1536 makes 4 x 3 tiles: two markers each, 3 line breaks, the whole image with 3.
    assert smolvlm.layout(1600, 1200).tokens == 12 * 66 + 3 + 67
    assert smolvlm.layout(1200, 1600).tokens == 12 * 66 + 4 + 67


def test_padding_does_not_enter_the_prompt() -> None:
    llava = AnyResolution(tile=CLIP, per_side=24, resolutions=NEXT)
    # 1000 x 500 fits 672 x 336 best: two tiles and the whole; 24 rows of 48, each with an end.
    layout = llava.layout(1000, 500)
    assert layout.tokens == 576 + 24 * 49
    assert total(layout.rows["features"]) == 3 * 576
    # 900 x 300 fills 72 x 24 of three tiles.
    assert llava.layout(900, 300).tokens == 576 + 24 * 73
    # 4:3 on 672 x 672 leaves 6 of 48 rows empty above and below.
    assert llava.layout(800, 600).tokens == 576 + 36 * 49


def test_a_canvas_is_always_full() -> None:
    canvas = Canvas(
        tile=Tile(side=560, patches=1600, features=1601, extra=1), max_tiles=4, padding=7
    )
    layout = canvas.layout(100, 100)
    assert layout.tokens == 1
    assert layout.rows["positions"] == ((1, 4 * 1608),)
    assert total(layout.rows["features"]) == 4 * 1601


# --- against transformers -------------------------------------------------------------------------


def processor(family: str, name: str, **settings: object) -> Any:
    """The processor that needs no torchvision."""
    pytest.importorskip("PIL", reason="needs Pillow")
    module = pytest.importorskip(
        f"transformers.models.{family}.image_processing_pil_{family}", reason="needs transformers"
    )
    return getattr(module, name)(**settings)


def image(width: int, height: int) -> Any:
    """A black one."""
    return importlib.import_module("PIL.Image").new("RGB", (width, height))


def sizes(number: int, low: int = 20, high: int = 2200) -> list[tuple[int, int]]:
    """Common sizes, and some at random."""
    rng = np.random.default_rng(number)
    common = [(640, 480), (480, 640), (1920, 1080), (300, 300), (1024, 1024), (33, 700)]
    return [*common, *((int(w), int(h)) for w, h in rng.integers(low, high, (number, 2)))]


def test_qwen_grids_are_those_of_the_processor() -> None:
    made = processor("qwen2_vl", "Qwen2VLImageProcessorPil")
    least, most = made.size["shortest_edge"], made.size["longest_edge"]
    grid = NativeGrid(patch=14, merge=2, min_pixels=least, max_pixels=most)
    for width, height in sizes(15):
        expected = made(images=image(width, height), return_tensors="np")["image_grid_thw"][0]
        assert total(grid.layout(width, height).rows["patches"]) == expected.prod()


def test_pixtral_grids_are_those_of_the_processor() -> None:
    unit = {"height": 28, "width": 28}
    made = processor(
        "pixtral", "PixtralImageProcessorPil", patch_size=unit, size={"longest_edge": 1540}
    )
    grid = RowGrid(patch=14, merge=2, longest=1540)
    for width, height in sizes(15):
        ((h, w),) = made(images=image(width, height), return_tensors="np")["image_sizes"]
        assert grid.layout(width, height).tokens == (w // 28 + 1) * (h // 28)


def test_tiles_by_aspect_ratio_are_those_of_the_processor() -> None:
    side = {"height": 448, "width": 448}
    made = processor("got_ocr2", "GotOcr2ImageProcessorPil", size=side, crop_to_patches=True)
    tiles = AspectTiles(tile=Tile(side=448, patches=1024, features=256), max_tiles=12)
    for width, height in sizes(200):
        expected = made.get_number_of_image_patches(height, width, {})
        assert tiles.layout(width, height).rows["patches"] == ((expected, 1024),)


@pytest.mark.parametrize(("side", "longest"), [(364, 1456), (512, 2048)])
def test_split_tiles_are_those_of_the_processor(side: int, longest: int) -> None:
    made = processor(
        "idefics3",
        "Idefics3ImageProcessorPil",
        size={"longest_edge": longest},
        max_image_size={"longest_edge": side},
        return_row_col_info=True,
    )
    tiles = SplitTiles(tile=Tile(side=side, patches=1, features=64), longest=longest)
    for width, height in sizes(5):
        out = made(images=image(width, height), return_tensors="np")
        lines, columns = out["rows"][0][0], out["cols"][0][0]
        layout = tiles.layout(width, height)
        assert layout.rows["patches"] == ((out["pixel_values"].shape[1], 1),)
        assert layout.tokens == (lines * columns * 66 + lines if lines else 0) + 67


def test_packed_features_are_those_of_llava_next() -> None:
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.llava_next.modeling_llava_next")
    llava = AnyResolution(tile=CLIP, per_side=24, resolutions=NEXT)
    for width, height in sizes(200, low=100):
        down, across = modeling.get_anyres_image_grid_shape(
            (height, width), [list(pair) for pair in NEXT], 336
        )
        kept = modeling.unpad_image(torch.zeros(1, 24 * down, 24 * across), (height, width))
        layout = llava.layout(width, height)
        assert layout.rows["patches"] == ((down * across + 1, 576),)
        assert layout.tokens == 576 + kept.shape[1] * (kept.shape[2] + 1)
