"""Llama 3.2 Vision (layers of cross attention to the image) and Llama 4 (tiles in the prompt)."""

from collections.abc import Mapping
from dataclasses import replace

from energymodel.blocks import CrossAttention, Mlp
from energymodel.blocks.ends import EndNorm, Lookup, Projection
from energymodel.blocks.tower import Move
from energymodel.families.parts import Reader, model_spec, read_attention, read_mlp, shared
from energymodel.families.text_sections import (
    missing,
    sighted,
    text_section,
    with_defaults,
)
from energymodel.families.vision import (
    depth,
    layer_numbers,
    layers,
    patch_embedding,
    sides,
    vision_attention,
    with_tower,
)
from energymodel.fields import Fields
from energymodel.images import Canvas, FittedTiles, Tile
from energymodel.model import LayerSpec, ModelSpec
from energymodel.towers import Part, Tower
from energymodel.weights import table, vector


def _llama4(f: Fields, spec: ModelSpec) -> ModelSpec:
    """At most 16 tiles (``max_patches`` of the published processors)."""
    section = f.section("vision_config") or Fields({}, f.where)
    v = with_defaults(section, {"hidden_size": 768, "intermediate_size": 5632})
    width, inner = v.integer("hidden_size"), v.integer("intermediate_size")
    side, patch = sides(v, 448, 14)
    ratio = v.optional_number("pixel_shuffle_ratio", high=1.0) or 0.5
    patches = (side // patch) ** 2
    tile = Tile(side=side, patches=patches, features=max(int(patches * ratio**2), 1), extra=1)
    heads = v.integer("num_attention_heads", 16)
    attention = vision_attention(v, width, heads, rotary=True)
    before = (
        Move(name="class_token", values=2 * width, learnt=width),
        Lookup(name="positions", rows=patches + 1, width=width),
        EndNorm(name="pre_norm", vectors=2, width=width),
    )
    middle, out = v.integer("projector_input_dim", 4096), v.integer("projector_output_dim", 4096)
    adapter = (
        Projection(name="adapter_1", component="vision", n=middle, k=inner),
        Move(name="adapter_activation_1", values=2 * middle),
        Projection(name="adapter_2", component="vision", n=out, k=out),
        Move(name="adapter_activation_2", values=2 * out),
        Projection(
            name="projector",
            component="vision",
            n=spec.hidden_size,
            k=v.integer("vision_output_dim", 7680),
        ),
    )
    parts = [
        patch_embedding(v, width, patch, bias=False),
        Part(rows="positions", work=before),
        layers(
            depth(v, 34),
            attention,
            Mlp(intermediate_size=inner, gated=False, bias=True),
            final_norm="layer",
        ),
        Part(rows="positions", work=(Move(name="pixel_shuffle", values=2 * width),)),
        Part(rows="features", work=adapter),
    ]
    return with_tower(spec, parts, images=FittedTiles(tile=tile, max_tiles=16))


def _mllama(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    """Every fifth layer attends to the image in the place of the text; without one it is skipped."""
    text = with_defaults(
        text_section(f),
        {
            "model_type": "mllama_text_model",
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": f.config.get("tie_word_embeddings"),
        },
    )
    hidden, attention, mlp = text.integer("hidden_size"), read_attention(text), read_mlp(text)
    looking = LayerSpec(
        blocks=(
            CrossAttention(
                num_attention_heads=attention.num_attention_heads,
                num_key_value_heads=attention.num_key_value_heads,
                head_dim=attention.head_dim,
                source_size=hidden,
                qk_norm="head",
            ),
            mlp,
        ),
        other_params=2,  # a gate for each block
    )
    reading, number = LayerSpec(blocks=(attention, mlp)), depth(text, 40)
    places = layer_numbers(text, "cross_attention_layers", (3, 8, 13, 18, 23, 28, 33, 38))
    chosen = tuple(looking if i in places else reading for i in range(number))
    spec = model_spec(text, name, shared(chosen))
    # Eight tokens that stand for images have embeddings and no logits.
    stack = replace(spec.text, other=(table("special_embeddings", 8 * hidden),))
    said = "keys and values that layers keep of an image are not counted in the KV cache"
    seeing = replace(spec, model_type=f.text("model_type"), text=stack)
    if f.section("vision_config") is None:
        return seeing, [missing(name, "vision_config")]
    return replace(seeing, towers=(_canvas_tower(f, hidden),)), [f"{name}: {said}"]


def _canvas_tower(f: Fields, hidden: int) -> Tower:
    """Tiles side by side through plain and then gated layers; results of several layers are kept."""
    section = f.section("vision_config") or Fields({}, f.where)
    v = with_defaults(section, {"hidden_size": 1280, "intermediate_size": 5120})
    width = v.integer("hidden_size")
    side, patch = sides(v, 448, 14)
    tiles, rows = v.integer("max_num_tiles", 4, high=1000), (side // patch) ** 2 + 1
    shapes = v.sequence("supported_aspect_ratios")
    ratios = 1 + (8 if shapes is None else len(shapes))
    kept = 1 + len(layer_numbers(v, "intermediate_layers_indices", (3, 7, 15, 23, 30)))
    attention = vision_attention(v, width, v.integer("attention_heads", 16), bias=False)
    mlp = Mlp(intermediate_size=v.integer("intermediate_size"), gated=False, bias=True)
    before = (
        Lookup(name="tile_positions", rows=ratios * tiles, width=width),
        Move(name="class_token", values=2 * width, learnt=width),
        Lookup(name="positions", rows=rows + ratios * tiles * rows, width=width),
        EndNorm(name="pre_norm", vectors=2, width=width),
    )
    between = (Lookup(name="tile_positions_2", rows=ratios * tiles, width=width),)
    project = (
        Move(name="gather", values=2 * kept * width),
        Projection(
            name="projector",
            component="vision",
            n=hidden,
            k=v.integer("vision_output_dim", 7680),
            bias=True,
        ),
    )
    plain, gated = depth(v, 32), depth(v, 8, "num_global_layers")
    parts = (
        patch_embedding(v, width, patch, bias=False),
        Part(rows="tiles", work=before),
        layers(plain, attention, mlp, final_norm="layer"),
        Part(rows="positions", work=between),
        layers(gated, attention, mlp, other_params=2),
        Part(rows="features", work=project),
    )
    tile = Tile(side=side, patches=rows - 1, features=rows, extra=1)
    canvas = Canvas(tile=tile, max_tiles=tiles, padding=-rows % 8)
    gates = vector("gates", 3)
    return Tower(component="vision", images=canvas, parts=parts, unused=(gates,))


FAMILIES: Mapping[str, Reader] = {
    "llama4": sighted("llama4_text", _llama4),
    "mllama": _mllama,
}
