"""Dense decoders that normalise otherwise than Llama: layer norms, post-norms, parallel blocks."""

from collections.abc import Mapping
from dataclasses import replace

from energymodel.blocks import Mlp
from energymodel.families.parts import (
    Reader,
    dense_model,
    exaone_attentions,
    locally_rotated,
    model_spec,
    own_window,
    paired_layers,
    read_attention,
    read_mlp,
    windows_by_layer,
    windows_everywhere,
)
from energymodel.fields import Fields
from energymodel.model import Layout, ModelSpec


def _phi(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, qkv_bias=True, o_bias=True, rotary_factor=0.5)
    if f.flag("qk_layernorm", default=False):
        attention = replace(attention, qk_norm="head")
    mlp = Mlp(intermediate_size=f.integer("intermediate_size"), gated=False, bias=True)
    spec = dense_model(f, name, attention, mlp, norm="layer", layout="parallel")
    return replace(spec, lm_head_bias=True), []


def _olmo(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = replace(read_attention(f, own_bias=True), clip_qkv=f.has("clip_qkv"))
    return dense_model(f, name, attention, read_mlp(f), norm="plain"), []


def _olmo2(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, own_bias=True, qk_norm="hidden")
    return dense_model(f, name, attention, read_mlp(f), layout="post"), []


def _olmo3(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, own_bias=True, qk_norm="hidden")
    windows = windows_by_layer(f, own_window(f, 4096), lambda i: (i + 1) % 4 != 0)
    return dense_model(f, name, attention, read_mlp(f), windows, layout="post"), []


def _glm4(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    bias = f.flag("attention_bias", default=True)
    attention = read_attention(f, kv_heads=2, head_dim=128, qkv_bias=bias, rotary_factor=0.5)
    return dense_model(f, name, attention, read_mlp(f), layout="sandwich"), []


def _exaone4(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attentions = exaone_attentions(f)
    layers = paired_layers(attentions, [read_mlp(f)] * len(attentions), layout="post")
    return model_spec(f, name, layers), []


def _cohere(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, own_bias=True)
    if f.flag("use_qk_norm", default=False):
        attention = replace(attention, qk_norm="hidden")
    return dense_model(
        f, name, attention, read_mlp(f), norm="scale", layout="parallel", tied=True
    ), []


def _cohere2(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, own_bias=True)
    pattern = f.integer("sliding_window_pattern", 4)
    windows = windows_by_layer(f, own_window(f, 4096), lambda i: (i + 1) % pattern != 0)
    # Only the layers that slide have positions.
    attentions = locally_rotated(attention, windows)
    layers = paired_layers(attentions, [read_mlp(f)] * len(windows), "scale", "parallel")
    return model_spec(f, name, layers, tied=True), []


def _nemotron(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, own_bias=True, rotary_factor=0.5)
    mlp = read_mlp(f, gated=False, bias=f.flag("mlp_bias", default=False))
    return dense_model(f, name, attention, mlp, norm="layer"), []


def _starcoder2(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    bias = f.flag("use_bias", default=True)
    attention = read_attention(f, kv_heads=2, qkv_bias=bias, o_bias=bias)
    windows = windows_everywhere(f, f.optional_integer("sliding_window"))
    mlp = read_mlp(f, gated=False, bias=bias)
    return dense_model(f, name, attention, mlp, windows, norm="layer", tied=True), []


def _stablelm(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    bias = f.flag("use_qkv_bias", default=False)
    attention = read_attention(f, kv_heads=32, qkv_bias=bias, rotary_factor=0.25)
    if f.flag("qk_layernorm", default=False):  # a scale for each head of its own, and no shift
        attention = replace(attention, qk_norm="hidden", qk_norm_vectors=1)
    layout: Layout = "parallel" if f.flag("use_parallel_residual", default=False) else "pre"
    return dense_model(f, name, attention, read_mlp(f), norm="layer", layout=layout), []


def _persimmon(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, qkv_bias=True, o_bias=True, rotary_factor=0.5, grouped=False)
    if f.flag("qk_layernorm", default=True):
        attention = replace(attention, qk_norm="head")
    return dense_model(f, name, attention, read_mlp(f, gated=False, bias=True), norm="layer"), []


def _jais2(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    bias = f.flag("attention_bias", default=True)
    attention = read_attention(f, qkv_bias=bias, o_bias=bias)
    mlp = read_mlp(f, gated=False, bias=f.flag("mlp_bias", default=True))
    return dense_model(f, name, attention, mlp, norm="layer"), []


def _hyperclovax(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, own_bias=True)
    mlp = read_mlp(f, bias=f.flag("mlp_bias", default=False))
    layout: Layout = "sandwich" if f.flag("use_post_norm", default=True) else "pre"
    return dense_model(f, name, attention, mlp, layout=layout), []


FAMILIES: Mapping[str, Reader] = {
    "phi": _phi,
    "olmo": _olmo,
    "olmo2": _olmo2,
    "olmo3": _olmo3,
    "glm4": _glm4,
    "exaone4": _exaone4,
    "cohere": _cohere,
    "cohere2": _cohere2,
    "nemotron": _nemotron,
    "starcoder2": _starcoder2,
    "stablelm": _stablelm,
    "persimmon": _persimmon,
    "jais2": _jais2,
    "hyperclovax": _hyperclovax,
}
