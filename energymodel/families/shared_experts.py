"""Decoders whose tokens all visit one expert beside those that the router chooses."""

from collections.abc import Mapping
from dataclasses import replace

from energymodel.blocks import Mlp, Moe
from energymodel.errors import InputError
from energymodel.families.parts import (
    Reader,
    depth,
    exaone_attentions,
    feed_forwards,
    listed_layers,
    locally_rotated,
    model_spec,
    own_window,
    paired_layers,
    position_layers,
    read_attention,
    read_mlp,
    read_moe,
    sparse_layers,
    switched_window,
    uniform_layers,
    windowed,
    windows_by_layer,
    windows_everywhere,
    with_next_tokens,
)
from energymodel.fields import Fields
from energymodel.model import ModelSpec, Norm


def _qwen2_moe(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=16, qkv_bias=f.flag("qkv_bias", default=True))
    shared = f.integer("shared_expert_intermediate_size")
    experts = read_moe(f, f.integer("moe_intermediate_size"), shared)
    experts = replace(experts, shared_expert_gate=True)
    last = f.integer("max_window_layers", 28, low=0)
    windows = windows_by_layer(f, switched_window(f), lambda i: i % 2 == 0 and i < last)
    return model_spec(f, name, sparse_layers(f, attention, experts, windows)), []


def _llama4(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=8, head_dim=128, own_bias=True)
    # Layers with positions normalise queries and keys.
    rotated = replace(attention, qk_norm="plain") if f.flag("use_qk_norm", True) else attention
    unrotated = replace(attention, rotary_dim=0)
    rotates, size = position_layers(f), _chunk_size(f)
    attentions = [
        replace(rotated if turned else unrotated, chunk_size=size if chunked else None)
        for turned, chunked in zip(rotates, _chunked(f, rotates), strict=True)
    ]
    inner = f.integer("intermediate_size")
    experts, routed = read_moe(f, inner, inner), _routed(f)
    mlp = experts if all(routed) else Mlp(intermediate_size=f.integer("intermediate_size_mlp"))
    return model_spec(
        f, name, paired_layers(attentions, [experts if r else mlp for r in routed])
    ), []


def _chunk_size(f: Fields) -> int | None:
    """Tokens of a piece that attention stays in; a null switches it off."""
    return f.integer_or_null("attention_chunk_size", 8192)


def _chunked(f: Fields, rotates: list[bool]) -> list[bool]:
    """Layers that see their own piece of the context alone: those with positions, unless listed."""
    types = f.sequence("layer_types")
    if types is None:
        return rotates
    known = ("chunked_attention", "full_attention")
    if len(types) != len(rotates) or not all(kind in known for kind in types):
        raise InputError(
            f"{f.where}: field 'layer_types' must hold {len(rotates)} entries "
            "('num_hidden_layers'), each 'full_attention' or 'chunked_attention'"
        )
    return [kind == "chunked_attention" for kind in types]


def _routed(f: Fields) -> list[bool]:
    """Layers with experts: those in ``moe_layers``, else every ``interleave_moe_layer_step``-th."""
    routed, layers = listed_layers(f, "moe_layers"), range(depth(f))
    if routed is None:
        step = f.integer("interleave_moe_layer_step", 1)
        return [(i + 1) % step == 0 for i in layers]
    return [i in routed for i in layers]


def _glm4_moe(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = _deepseek_names(f)
    bias = f.flag("attention_bias", default=False)
    attention = read_attention(f, kv_heads=8, qkv_bias=bias, rotary_factor=0.5)
    if f.flag("use_qk_norm", default=False):
        attention = replace(attention, qk_norm="head")
    first = f.integer("first_k_dense_replace", 1, low=0)
    layers = paired_layers(
        [attention] * depth(f), feed_forwards(f, first, read_mlp(f), _deepseek_moe(f, 1))
    )
    return with_next_tokens(f, model_spec(f, name, layers)), []


def _solar(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = _deepseek_names(f)
    bias = f.flag("attention_bias", default=False)
    attention = read_attention(f, kv_heads=8, head_dim=128, qkv_bias=bias)
    windows = windows_everywhere(f, None)
    return model_spec(f, name, uniform_layers(attention, _deepseek_moe(f, 1), windows)), []


def _dots1(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = _deepseek_names(f)
    attention = read_attention(f, kv_heads=32, own_bias=True, qk_norm="head")
    last = f.integer("max_window_layers", 62, low=0)
    windows = windows_by_layer(f, own_window(f, 4096), lambda i: i >= last)
    first = f.integer("first_k_dense_replace", 0, low=0)
    mlps = feed_forwards(f, first, read_mlp(f), _deepseek_moe(f))
    return model_spec(f, name, paired_layers(windowed(attention, windows), mlps)), []


def _deepseek_names(f: Fields) -> Fields:
    return f.named(num_experts="n_routed_experts", num_shared_experts="n_shared_experts")


def _deepseek_moe(f: Fields, shared: int | None = None) -> Moe:
    """Experts of ``moe_intermediate_size``; the shared ones, ``shared`` by default, are one wide one."""
    inner = f.integer("moe_intermediate_size")
    return read_moe(f, inner, inner * f.integer("num_shared_experts", shared, low=0, high=10_000))


def _exaone_moe(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    first = f.integer("first_k_dense_replace", 1, low=0)
    mlps = feed_forwards(f, first, read_mlp(f), _deepseek_moe(f, 1))
    return model_spec(f, name, paired_layers(exaone_attentions(f), mlps)), []


def _afmoe(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = replace(read_attention(f, head_dim=128, qk_norm="head"), gated=True)
    every = f.integer("global_attn_every_n_layers", 4)
    windows = windows_by_layer(f, own_window(f, 1024), lambda i: (i + 1) % every != 0)
    experts = replace(_deepseek_moe(f, 2), router_vectors=1)
    dense = f.integer("num_dense_layers", 1, low=0)
    mlps = feed_forwards(f, dense, read_mlp(f), experts)
    layers = paired_layers(locally_rotated(attention, windows), mlps, layout="sandwich")
    return model_spec(f, name, layers), []


def _hy3(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    bias, mlp_bias = f.flag("attention_bias", default=False), f.flag("mlp_bias", default=False)
    attention = read_attention(
        f, kv_heads=8, head_dim=128, qkv_bias=bias, o_bias=bias, qk_norm="head"
    )
    experts = _deepseek_moe(f, 1)
    if experts.shared_expert is not None:
        shared = replace(experts.shared_expert, bias=mlp_bias)
        experts = replace(experts, shared_expert=shared)
    mlps = feed_forwards(f, 1, read_mlp(f, bias=mlp_bias), experts)
    return model_spec(f, name, paired_layers([attention] * len(mlps), mlps)), []


def _cohere2_moe(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    bias, dense = (
        f.flag("attention_bias", default=False),
        f.integer("first_k_dense_replace", 0, low=0),
    )
    first, rest = (
        f.integer("prefix_dense_sliding_window_pattern", 1),
        f.integer("sliding_window_pattern", 4),
    )
    windows = windows_by_layer(
        f,
        own_window(f, 4096),
        lambda i: (i + 1) % first != 0 if i < dense else (i - dense + 1) % rest != 0,
    )
    inner = f.integer("intermediate_size")
    experts = read_moe(f, inner, inner * f.integer("num_shared_experts", 0, low=0, high=10_000))
    mlp = Mlp(intermediate_size=f.integer("prefix_dense_intermediate_size", inner))
    mlps = feed_forwards(f, dense, mlp, experts)
    attention = read_attention(f, head_dim=128, qkv_bias=bias, o_bias=bias)
    # Layers that slide know positions, and dense ones where all of those see everything.
    attentions = [
        replace(attention, sliding_window=a.sliding_window) if first == 1 and m is mlp else a
        for a, m in zip(locally_rotated(attention, windows), mlps, strict=True)
    ]
    norm: Norm = "rms" if f.has("rms_norm_eps") else "scale"
    return model_spec(f, name, paired_layers(attentions, mlps, norm, "parallel"), tied=True), []


def _ernie_moe(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = f.named(num_experts="moe_num_experts", num_experts_per_tok="moe_k")
    f = f.named(num_shared_experts="moe_num_shared_experts")
    bias = f.flag("use_bias", default=False)
    attention = read_attention(f, kv_heads=4, qkv_bias=bias, o_bias=bias)
    experts = replace(_deepseek_moe(f, 2), router_vectors=1)
    if experts.shared_expert is not None:
        experts = replace(experts, shared_expert=replace(experts.shared_expert, bias=bias))
    layers, step = depth(f), f.integer("moe_layer_interval", 1)
    start = f.integer("moe_layer_start_index", 1, low=0)
    end = f.integer("moe_layer_end_index", -1, low=-1)
    stop = layers if end == -1 else end + 1
    mlp = read_mlp(f, bias=bias)
    mlps = [experts if (i + 1) % step == 0 and start <= i < stop else mlp for i in range(layers)]
    spec = model_spec(f, name, paired_layers([attention] * layers, mlps), tied=True)
    return replace(spec, lm_head_bias=bias), []


def _hunyuan_moe(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, own_bias=True, qk_norm="head")
    choices = _choices(f)
    inner = f.integer("intermediate_size")
    experts = {
        top_k: read_moe(Fields({**f.config, "num_experts_per_tok": top_k}, f.where), inner, inner)
        for top_k in dict.fromkeys(choices)
    }
    mlps = [experts[top_k] for top_k in choices]
    return model_spec(f, name, paired_layers([attention] * len(mlps), mlps)), []


def _choices(f: Fields) -> list[int]:
    """Experts that a token visits in each layer: ``moe_topk``, one number or one for each layer."""
    layers = depth(f)
    if not isinstance(f.value("moe_topk"), list | tuple):
        return [f.integer("moe_topk", 1)] * layers
    counts = [n for n in f.sequence("moe_topk") or () if isinstance(n, int)]
    if len(counts) < layers:
        raise InputError(
            f"{f.where}: field 'moe_topk' must hold a whole number for each of {layers} layers"
        )
    return counts[:layers]


def _granitemoeshared(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, own_bias=True)
    shared = f.integer("shared_intermediate_size", 0, low=0)
    experts = read_moe(f, f.integer("intermediate_size"), shared)
    return model_spec(f, name, uniform_layers(attention, experts, windows_everywhere(f, None))), []


FAMILIES: Mapping[str, Reader] = {
    "qwen2_moe": _qwen2_moe,
    "llama4_text": _llama4,
    "glm4_moe": _glm4_moe,
    "solar_open": _solar,
    "dots1": _dots1,
    "exaone_moe": _exaone_moe,
    "afmoe": _afmoe,
    "hy_v3": _hy3,
    "cohere2_moe": _cohere2_moe,
    "ernie4_5_moe": _ernie_moe,
    "hunyuan_v1_moe": _hunyuan_moe,
    "granitemoeshared": _granitemoeshared,
}
