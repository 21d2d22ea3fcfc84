"""A vision encoder, a projector and a language model: LLaVA and its relatives.

Sizes are those of ``config.json``; what only a processor's own file holds (the most tiles, the
longest side) is as the models were published, and said at each reader.
"""

import math
from collections.abc import Mapping, Sequence

from energymodel.blocks.ends import EndNorm, Projection
from energymodel.blocks.tower import Move, Piece
from energymodel.errors import InputError
from energymodel.families.parts import Reader
from energymodel.families.text_sections import sighted, with_defaults
from energymodel.families.vision import with_tower
from energymodel.families.vision_encoders import Encoder, read_encoder
from energymodel.fields import Fields
from energymodel.images import (
    AnyResolution,
    AspectTiles,
    ImageSizing,
    OneTile,
    RowGrid,
    SplitTiles,
    Tile,
)
from energymodel.model import ModelSpec
from energymodel.towers import Part
from energymodel.weights import Weight, vector

MAX_RESOLUTIONS = 1000
MAX_TILES = 12
"""``max_patches`` of the published processors of InternVL, Aya Vision and Command A Vision."""


def _seeing(
    spec: ModelSpec,
    encoder: Encoder,
    images: ImageSizing,
    projector: Sequence[Part],
    unused: tuple[Weight, ...] = (),
) -> ModelSpec:
    """The language model behind an encoder and a projector."""
    parts, stored = (*encoder.parts, *projector), (*encoder.unused, *unused)
    return with_tower(spec, parts, images=images, unused=stored)


def _tile(encoder: Encoder, features: int) -> Tile:
    patches = encoder.per_side**2
    return Tile(side=encoder.side, patches=patches, features=features, extra=encoder.extra)


def _two_layers(
    inputs: int, inner: int, outputs: int, *, bias: bool, gated: bool = False
) -> tuple[Piece, ...]:
    """Two projections with an activation between them; a gated one halves the width."""
    half = inner // 2 if gated else inner
    return (
        Projection(name="projector_1", component="vision", n=inner, k=inputs, bias=bias),
        Move(name="projector_activation", values=inner + half),
        Projection(name="projector_2", component="vision", n=outputs, k=half, bias=bias),
    )


def _projector(f: Fields, encoder: Encoder, hidden: int, *, bias: bool) -> tuple[Piece, ...]:
    """That of LLaVA, on the results of one or several layers side by side."""
    own = f.flag("multimodal_projector_bias", bias)
    return _two_layers(encoder.results * encoder.width, hidden, hidden, bias=own)


def _features(f: Fields, encoder: Encoder) -> int:
    """Those of a tile of LLaVA: with the class token where the strategy is "full"."""
    full = f.config.get("vision_feature_select_strategy") == "full"
    return encoder.per_side**2 + (encoder.extra if full else 0)


def _llava(f: Fields, spec: ModelSpec) -> ModelSpec:
    encoder = read_encoder(f, default="clip_vision_model", feature_layer=-2)
    work = _projector(f, encoder, spec.hidden_size, bias=True)
    images: ImageSizing = OneTile(tile=_tile(encoder, _features(f, encoder)))
    if encoder.any_shape:  # Pixtral 12B
        images = RowGrid(patch=encoder.patch, merge=1, longest=encoder.side)
    return _seeing(spec, encoder, images, [Part(rows="features", work=work)])


def _llava_next(f: Fields, spec: ModelSpec) -> ModelSpec:
    encoder = read_encoder(f, default="clip_vision_model", feature_layer=-2)
    work = _projector(f, encoder, spec.hidden_size, bias=True)
    known = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
    images = AnyResolution(
        tile=_tile(encoder, _features(f, encoder)),
        per_side=encoder.per_side,
        resolutions=_resolutions(f, encoder.side, known),
    )
    newline = vector("image_newline", spec.hidden_size)
    return _seeing(spec, encoder, images, [Part(rows="features", work=work)], (newline,))


def _llava_onevision(f: Fields, spec: ModelSpec) -> ModelSpec:
    encoder = read_encoder(f, default="siglip_vision_model", feature_layer=-1)
    work = _projector(f, encoder, spec.hidden_size, bias=True)
    sides = tuple(384 * n for n in range(1, 7))
    images = AnyResolution(
        tile=_tile(encoder, encoder.per_side**2),
        per_side=encoder.per_side,
        resolutions=_resolutions(f, encoder.side, tuple((h, w) for h in sides for w in sides)),
        max_tiles=_max_tiles(f),
    )
    newline = vector("image_newline", spec.hidden_size)
    return _seeing(spec, encoder, images, [Part(rows="features", work=work)], (newline,))


def _max_tiles(f: Fields) -> int:
    """The number at the end of ``vision_aspect_ratio``."""
    if not f.has("vision_aspect_ratio"):
        return 9
    number = f.text("vision_aspect_ratio").removeprefix("anyres_max_")
    if not (number.isdecimal() and len(number) < 5 and int(number)):
        raise InputError(f"{f.where}: field 'vision_aspect_ratio' must be like 'anyres_max_9'")
    return int(number)


def _resolutions(
    f: Fields, side: int, default: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, int], ...]:
    """``image_grid_pinpoints``: (height, width) in whole tiles."""
    pairs = f.sequence("image_grid_pinpoints")
    if not pairs:
        return default
    found = [_in_tiles(pair, side) for pair in pairs[: MAX_RESOLUTIONS + 1]]
    whole = tuple(pair for pair in found if pair is not None)
    if len(whole) != len(pairs):
        raise InputError(
            f"{f.where}: field 'image_grid_pinpoints' must hold at most {MAX_RESOLUTIONS} pairs "
            f"of multiples of {side}"
        )
    return whole


def _in_tiles(pair: object, side: int) -> tuple[int, int] | None:
    """A pair of whole multiples of ``side``, or None."""
    numbers = pair if isinstance(pair, list | tuple) and len(pair) == 2 else (0, 0)
    height, width = numbers
    if any(isinstance(n, bool) or not isinstance(n, int) for n in (height, width)):
        return None
    if not all(side <= n <= 100_000 and n % side == 0 for n in (height, width)):
        return None
    return height, width


def _gemma3(f: Fields, spec: ModelSpec) -> ModelSpec:
    """SigLIP, averaged over squares of patches. Pan-and-scan is off, as the models were published."""
    encoder = read_encoder(f, default="siglip_vision_model", final_norm=True)
    tokens = f.integer("mm_tokens_per_image", 256, high=encoder.per_side**2)
    features, width = math.isqrt(tokens) ** 2, encoder.width
    project = (
        EndNorm(name="projector_norm", vectors=1, width=width),
        Projection(name="projector", component="vision", n=spec.hidden_size, k=width),
    )
    projector = [
        Part(rows="positions", work=(Move(name="pooling", values=width),)),
        Part(rows="features", work=project),
    ]
    # Line breaks and markers stand around the features: two tokens before them, two behind.
    images = OneTile(tile=_tile(encoder, features), markers=4)
    return _seeing(spec, encoder, images, projector)


def _paligemma(f: Fields, spec: ModelSpec) -> ModelSpec:
    encoder = read_encoder(f, default="siglip_vision_model", final_norm=True)
    n = f.integer("projection_dim", 2048)
    project = Projection(name="projector", component="vision", n=n, k=encoder.width, bias=True)
    images = OneTile(tile=_tile(encoder, encoder.per_side**2))
    return _seeing(spec, encoder, images, [Part(rows="features", work=(project,))])


def _mistral3(f: Fields, spec: ModelSpec) -> ModelSpec:
    """Pixtral's encoder; squares of patches are merged by a product."""
    encoder = read_encoder(f, default="pixtral", feature_layer=-1)
    width, merge = encoder.width, f.integer("spatial_merge_size", 2, high=64)
    merged = (
        Projection(name="patch_merger", component="vision", n=width, k=width * merge**2),
        *_projector(f, encoder, spec.hidden_size, bias=False),
    )
    norm = EndNorm(name="projector_norm", vectors=1, width=width)
    gather = Move(name="patch_gather", values=2 * width)
    projector = [
        Part(rows="positions", work=(norm, gather)),
        Part(rows="features", work=merged),
    ]
    images = RowGrid(patch=encoder.patch, merge=merge, longest=encoder.side)
    return _seeing(spec, encoder, images, projector)


def _shuffled(f: Fields, encoder: Encoder, key: str, factor: int) -> tuple[Part, int, int]:
    """A pixel shuffle by a factor: (the move, features of a tile, width of a feature).

    Raises:
        InputError: the factor, which follows from the field ``key``, is larger than an image.
    """
    if factor > encoder.per_side:
        raise InputError(
            f"{f.where}: field '{key}' merges squares of {factor} x {factor} patches; "
            f"an image has {encoder.per_side} x {encoder.per_side}"
        )
    move = Move(name="pixel_shuffle", values=2 * encoder.width)
    features = (encoder.per_side // factor) ** 2
    return Part(rows="positions", work=(move,)), features, encoder.width * factor**2


def _internvl(f: Fields, spec: ModelSpec) -> ModelSpec:
    encoder = read_encoder(f, default="internvl_vision", feature_layer=-1)
    ratio = f.optional_number("downsample_ratio", low=1e-3, high=1.0) or 0.5
    move, features, inputs = _shuffled(f, encoder, "downsample_ratio", int(1 / ratio))
    project = (
        EndNorm(name="projector_norm", vectors=2, width=inputs),
        *_two_layers(inputs, spec.hidden_size, spec.hidden_size, bias=True),
    )
    images = AspectTiles(tile=_tile(encoder, features), max_tiles=MAX_TILES, markers=2)
    return _seeing(spec, encoder, images, [move, Part(rows="features", work=project)])


def _idefics3(f: Fields, spec: ModelSpec) -> ModelSpec:
    """The longer side becomes four tiles (``size`` of the published processors)."""
    shape = {
        "hidden_size": 1152,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
        "patch_size": 32,
    }
    section = f.section("vision_config") or Fields({}, f.where)
    vision = {**with_defaults(section, shape).config, "model_type": "idefics3_vision"}
    filled = Fields({**f.config, "vision_config": vision}, f.where)
    encoder = read_encoder(filled, default="idefics3_vision", final_norm=True)
    factor = f.integer("scale_factor", 2)
    move, features, inputs = _shuffled(f, encoder, "scale_factor", factor)
    project = Projection(name="projector", component="vision", n=spec.hidden_size, k=inputs)
    images = SplitTiles(tile=_tile(encoder, features), longest=4 * encoder.side)
    return _seeing(spec, encoder, images, [move, Part(rows="features", work=(project,))])


def _aya_vision(f: Fields, spec: ModelSpec) -> ModelSpec:
    encoder = read_encoder(f, default="siglip_vision_model", feature_layer=-1)
    factor = f.integer("downsample_factor", 2)
    move, features, inputs = _shuffled(f, encoder, "downsample_factor", factor)
    inner = f.integer("alignment_intermediate_size", spec.hidden_size)
    project = (
        EndNorm(name="projector_norm", vectors=2, width=inputs),
        *_two_layers(inputs, inner, spec.hidden_size, bias=True, gated=True),
    )
    tile = _tile(encoder, features)
    images = AspectTiles(tile=tile, max_tiles=MAX_TILES, tile_markers=1, markers=2)
    return _seeing(spec, encoder, images, [move, Part(rows="features", work=project)])


def _cohere2_vision(f: Fields, spec: ModelSpec) -> ModelSpec:
    encoder = read_encoder(f, default="siglip_vision_model", final_norm=True)
    factor = f.integer("downsample_factor", 2)
    move, features, inputs = _shuffled(f, encoder, "downsample_factor", factor)
    inner = f.integer("alignment_intermediate_size", 36_864)
    project = _two_layers(inputs, inner, spec.hidden_size, bias=True, gated=True)
    tile = _tile(encoder, features)
    images = AspectTiles(tile=tile, max_tiles=MAX_TILES, tile_markers=1, markers=2)
    return _seeing(spec, encoder, images, [move, Part(rows="features", work=project)])


FAMILIES: Mapping[str, Reader] = {
    "llava": sighted("llama", _llava),
    "llava_next": sighted("llama", _llava_next),
    "llava_onevision": sighted("qwen2", _llava_onevision),
    "gemma3": sighted("gemma3_text", _gemma3),
    "paligemma": sighted("gemma", _paligemma),
    "mistral3": sighted("mistral", _mistral3),
    "internvl": sighted("qwen2", _internvl),
    "idefics3": sighted("llama", _idefics3),
    "smolvlm": sighted("llama", _idefics3),
    "aya_vision": sighted("cohere2", _aya_vision),
    "cohere2_vision": sighted("cohere2", _cohere2_vision),
}
