"""Vision towers that take images as they are: Qwen-VL, the Qwen Omni thinkers, GLM-4V.

The least and the most pixels are those of the published processors.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from energymodel.blocks import Mlp
from energymodel.blocks.ends import EndNorm, Lookup, Projection
from energymodel.blocks.tower import Move, Piece
from energymodel.families.hearing import omni_ears, qwen3_omni_ears
from energymodel.families.parts import Reader
from energymodel.families.text_sections import language_model, missing, sighted, with_defaults
from energymodel.families.vision import (
    depth,
    layer_numbers,
    layers,
    patch_embedding,
    sides,
    square,
    vision_attention,
    with_tower,
)
from energymodel.fields import Fields
from energymodel.images import NativeGrid
from energymodel.model import ModelSpec
from energymodel.towers import Part

QWEN2_PIXELS = (56 * 56, 12_845_056)
QWEN3_PIXELS = (256 * 256, 16_777_216)
GLM_PIXELS = (112 * 112 // 2, 14 * 14 * 2 * 2 * 6144)
"""The processor counts every image twice, as two frames."""


def _grid(v: Fields, patch: int, pixels: tuple[int, int], window: int | None = None) -> NativeGrid:
    merge = v.integer("spatial_merge_size", 2, high=64)
    least, most = pixels
    return NativeGrid(patch=patch, merge=merge, min_pixels=least, max_pixels=most, window=window)


def _merger(
    width: int, merge: int, outputs: int, *, vectors: int, name: str = "merger", wide: bool = False
) -> list[Part]:
    """Squares of patches to features, by two products; normalised before or (``wide``) after."""
    inner = width * merge**2
    norm = EndNorm(name=f"{name}_norm", vectors=vectors, width=inner if wide else width)
    products: tuple[Piece, ...] = (
        Projection(name=f"{name}_1", component="vision", n=inner, k=inner, bias=True),
        Move(name=f"{name}_activation", values=2 * inner),
        Projection(name=f"{name}_2", component="vision", n=outputs, k=inner, bias=True),
    )
    if wide:
        return [Part(rows="features", work=(norm, *products))]
    return [Part(rows="positions", work=(norm,)), Part(rows="features", work=products)]


def _vision(f: Fields) -> Fields:
    return f.section("vision_config") or Fields({}, f.where)


def _flat_text(f: Fields, text_type: str) -> Fields:
    """Files of Qwen2-VL and Qwen2.5-VL hold the fields of the decoder beside ``vision_config``."""
    if f.has("text_config"):
        return f
    text = {k: v for k, v in f.config.items() if k not in ("vision_config", "quantization_config")}
    return Fields({**f.config, "text_config": {**text, "model_type": text_type}}, f.where)


def _flat(text_type: str, see: Callable[[Fields, ModelSpec], ModelSpec]) -> Reader:
    """A reader of files whose decoder is flat."""
    read = sighted(text_type, see)
    return lambda f, name: read(_flat_text(f, text_type), name)


def _plain(f: Fields, spec: ModelSpec) -> ModelSpec:
    """The tower of Qwen2-VL."""
    v = _vision(f)
    width, patch = v.integer("embed_dim", 1280), square(v, "patch_size", 14)
    frames = square(v, "temporal_patch_size", 2, high=64)
    grid = _grid(v, patch, QWEN2_PIXELS)
    attention = vision_attention(v, width, v.integer("num_heads", 16), rotary=True)
    inner = width * v.integer("mlp_ratio", 4, high=1000)
    parts = [
        patch_embedding(v, width, patch, bias=False, frames=frames),
        layers(
            depth(v, 32, "depth"), attention, Mlp(intermediate_size=inner, gated=False, bias=True)
        ),
        *_merger(width, grid.merge, v.integer("hidden_size", 3584), vectors=2),
    ]
    return with_tower(spec, parts, images=grid)


def _windowed(f: Fields, spec: ModelSpec) -> ModelSpec:
    """The tower of Qwen2.5-VL: most layers attend within windows."""
    v = _vision(f)
    width, patch = v.integer("hidden_size", 3584), square(v, "patch_size", 14)
    grid = _grid(v, patch, QWEN2_PIXELS, v.integer("window_size", 112))
    frames = square(v, "temporal_patch_size", 2, high=64)
    attention = vision_attention(v, width, v.integer("num_heads", 16), rotary=True)
    mlp = Mlp(intermediate_size=v.integer("intermediate_size", 3420), bias=True)
    number, whole = (
        depth(v, 32, "depth"),
        layer_numbers(v, "fullatt_block_indexes", (7, 15, 23, 31)),
    )
    full = sum(i in whole for i in range(number))
    kinds = (("windows", number - full), ("positions", full))
    parts = [
        patch_embedding(v, width, patch, bias=False, frames=frames),
        Part(rows="positions", work=(Move(name="window_order", values=2 * width),)),
        *(layers(n, attention, mlp, norm="rms", rows=rows) for rows, n in kinds if n),
        *_merger(width, grid.merge, v.integer("out_hidden_size", 3584), vectors=1),
    ]
    return with_tower(spec, parts, images=grid)


def _deep(
    spec: ModelSpec, v: Fields, pixels: tuple[int, int], stacked: tuple[int, ...]
) -> ModelSpec:
    """The tower of Qwen3-VL: features of several depths are added within the language model."""
    width, patch = v.integer("hidden_size", 1152), square(v, "patch_size", 16)
    frames = square(v, "temporal_patch_size", 2, high=64)
    grid, outputs = _grid(v, patch, pixels), v.integer("out_hidden_size", 3584)
    attention = vision_attention(v, width, v.integer("num_heads", 16), rotary=True)
    inner = v.integer("intermediate_size", 4304)
    rows = v.integer("num_position_embeddings", 2304)
    parts = [
        patch_embedding(v, width, patch, bias=True, frames=frames),
        Part(rows="positions", work=(Lookup(name="positions", rows=rows, width=width),)),
        layers(
            depth(v, 27, "depth"), attention, Mlp(intermediate_size=inner, gated=False, bias=True)
        ),
        *_merger(width, grid.merge, outputs, vectors=2),
    ]
    add = Part(rows="features", work=(Move(name="deepstack_add", values=3 * spec.hidden_size),))
    for i in range(len(stacked)):
        name = f"deepstack_{i}"
        parts += [*_merger(width, grid.merge, outputs, vectors=2, name=name, wide=True), add]
    return with_tower(spec, parts, images=grid)


def _stacked(f: Fields, spec: ModelSpec, pixels: tuple[int, int] = QWEN3_PIXELS) -> ModelSpec:
    """The tower of Qwen3-VL with all that it adds to the language model."""
    v = _vision(f)
    return _deep(spec, v, pixels, layer_numbers(v, "deepstack_visual_indexes", (8, 16, 24)))


def _shallow(f: Fields, spec: ModelSpec) -> ModelSpec:
    """The tower of Qwen3.5, which adds nothing within."""
    return _deep(spec, _vision(f), QWEN3_PIXELS, ())


def _thinker(f: Fields, name: str) -> tuple[Fields, list[str]]:
    """The part that reads, sees and hears; what speaks is left out, as vLLM leaves it out."""
    inner = f.section("thinker_config")
    said = f"{name}: only the thinker is counted, not what turns its text into speech"
    if inner is None:
        return f, [said] if "thinker" not in f.text("model_type") else []
    return with_defaults(inner, {"model_type": f.text("model_type")}), [said]


def _senses(
    text_type: str,
    see: Callable[[Fields, ModelSpec], ModelSpec],
    hear: Callable[[Fields, ModelSpec], ModelSpec],
) -> Reader:
    """A reader of a thinker that sees and hears."""

    def read(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
        thinker, said = _thinker(f, name)
        spec, warnings = language_model(thinker, name, default=text_type)
        for section, sense in (("vision_config", see), ("audio_config", hear)):
            if thinker.section(section) is None:
                said = [*said, missing(name, section)]
            else:
                spec = sense(thinker, spec)
        return replace(spec, model_type=f.text("model_type")), [*said, *warnings]

    return read


def _as_published(f: Fields, spec: ModelSpec) -> ModelSpec:
    """Qwen3-Omni was published with the pixels of Qwen2.5-VL."""
    return _stacked(f, spec, QWEN2_PIXELS)


def _glm4v(f: Fields, spec: ModelSpec) -> ModelSpec:
    """Squares of patches are merged by a convolution, then by a gated block."""
    v = _vision(f)
    width, (side, patch) = v.integer("hidden_size", 1536), sides(v, 336, 14)
    outputs, inner = v.integer("out_hidden_size", 4096), v.integer("intermediate_size", 13_696)
    frames = square(v, "temporal_patch_size", 2, high=64)
    bias = v.flag("attention_bias", default=False)
    heads = v.integer("num_heads", 12)
    attention = vision_attention(v, width, heads, bias=bias, o_bias=False, rotary=True)
    grid = _grid(v, patch, GLM_PIXELS)
    down = Projection(
        name="downsample", component="vision", n=outputs, k=width * grid.merge**2, bias=True
    )
    merger = (
        down,
        Projection(name="merger_1", component="vision", n=outputs, k=outputs),
        EndNorm(name="merger_norm", vectors=2, width=outputs),
        Move(name="merger_activation", values=2 * outputs),
        Projection(name="merger_gate_up", component="vision", n=2 * inner, k=outputs),
        Move(name="merger_gate", values=3 * inner),
        Projection(name="merger_2", component="vision", n=outputs, k=inner),
    )
    before = (
        EndNorm(name="patch_norm", vectors=1, width=width),
        Lookup(name="positions", rows=(side // patch) ** 2, width=width),
    )
    parts = [
        patch_embedding(v, width, patch, bias=True, frames=frames),
        Part(rows="positions", work=before),
        layers(
            depth(v, 24, "depth"),
            attention,
            Mlp(intermediate_size=outputs),
            norm="rms",
            final_norm="rms",
        ),
        Part(rows="features", work=merger),
    ]
    return with_tower(spec, parts, images=grid)


_omni = _senses("qwen2_5_omni_text", _windowed, omni_ears)
_omni3 = _senses("qwen3_omni_moe_text", _as_published, qwen3_omni_ears)
FAMILIES: Mapping[str, Reader] = {
    "qwen2_vl": _flat("qwen2_vl_text", _plain),
    "qwen2_5_vl": _flat("qwen2_5_vl_text", _windowed),
    "qwen3_vl": sighted("qwen3_vl_text", _stacked),
    "qwen3_vl_moe": sighted("qwen3_vl_moe_text", _stacked),
    "qwen3_5": sighted("qwen3_5_text", _shallow),
    "qwen3_5_moe": sighted("qwen3_5_moe_text", _shallow),
    "qwen2_5_omni": _omni,
    "qwen2_5_omni_thinker": _omni,
    "qwen3_omni_moe": _omni3,
    "qwen3_omni_moe_thinker": _omni3,
    "glm4v": sighted("glm4v_text", _glm4v),
    "glm4v_moe": sighted("glm4v_moe_text", _glm4v),
}
