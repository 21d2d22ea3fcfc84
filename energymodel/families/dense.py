"""Llama and dense decoders that differ from it in biases, heads, windows and positions alone."""

from collections.abc import Mapping
from dataclasses import replace

from energymodel.errors import InputError
from energymodel.families.parts import (
    Reader,
    dense_model,
    model_spec,
    own_window,
    paired_layers,
    position_layers,
    qwen_windows,
    read_attention,
    read_mlp,
    shared,
    windowed,
    windows_by_layer,
    windows_everywhere,
)
from energymodel.fields import Fields
from energymodel.model import ModelSpec


def _llama(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, own_bias=True)
    mlp = read_mlp(f, bias=f.flag("mlp_bias", default=False))
    return dense_model(f, name, attention, mlp), []


def _arcee(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, own_bias=True)
    mlp = read_mlp(f, gated=False, bias=f.flag("mlp_bias", default=False))
    return dense_model(f, name, attention, mlp), []


def _mistral(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=8)
    windows = windows_everywhere(f, own_window(f, 4096))
    return dense_model(f, name, attention, read_mlp(f), windows), []


def _ministral(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=8)
    windows = windows_by_layer(f, own_window(f, 4096), lambda _: True)
    return dense_model(f, name, attention, read_mlp(f), windows), []


def _ministral3(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=8, head_dim=128)
    windows = windows_everywhere(f, f.optional_integer("sliding_window"))
    return dense_model(f, name, attention, read_mlp(f), windows), []


def _qwen2(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=32, qkv_bias=True)
    return dense_model(f, name, attention, read_mlp(f), qwen_windows(f)), []


def _qwen3(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=32, head_dim=128, own_bias=True, qk_norm="head")
    return dense_model(f, name, attention, read_mlp(f), qwen_windows(f)), []


def _phi3(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    windows = windows_everywhere(f, f.optional_integer("sliding_window"))
    return dense_model(f, name, read_attention(f), read_mlp(f), windows), []


def _internlm3(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = f.named(attention_bias="qkv_bias", mlp_bias="bias")
    bias = f.flag("attention_bias", default=False)
    if bias != f.flag("mlp_bias", default=False):
        raise InputError(f"{name}: fields 'qkv_bias' and 'bias' differ; they must be equal")
    attention = read_attention(f, kv_heads=2, head_dim=128, qkv_bias=bias, o_bias=bias)
    return dense_model(f, name, attention, read_mlp(f, bias=bias)), []


def _seed_oss(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    qkv_bias = f.flag("attention_bias", default=True)
    o_bias = f.flag("attention_out_bias", default=False)
    attention = read_attention(f, kv_heads=8, head_dim=128, qkv_bias=qkv_bias, o_bias=o_bias)
    return dense_model(f, name, attention, read_mlp(f, bias=f.flag("mlp_bias", default=False))), []


def _smollm3(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=4, own_bias=True)
    rotates = position_layers(f)
    slides = f.flag("use_sliding_window", default=False)
    window = f.optional_integer("sliding_window") if slides else None
    windows = windows_by_layer(f, window, lambda i: not rotates[i])
    attentions = [
        a if rotated else replace(a, rotary_dim=0)
        for a, rotated in zip(windowed(attention, windows), rotates, strict=True)
    ]
    mlp = read_mlp(f, bias=f.flag("mlp_bias", default=False))
    return model_spec(f, name, paired_layers(attentions, [mlp] * len(windows)), tied=True), []


def _ernie(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    bias = f.flag("use_bias", default=False)
    attention = read_attention(f, kv_heads=2, head_dim=128, qkv_bias=bias, o_bias=bias)
    return dense_model(f, name, attention, read_mlp(f, bias=bias), tied=True), []


def _hunyuan(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, own_bias=True, qk_norm="head")
    return dense_model(f, name, attention, read_mlp(f)), []


def _glm(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    bias = f.flag("attention_bias", default=True)
    attention = read_attention(f, kv_heads=2, head_dim=128, qkv_bias=bias, rotary_factor=0.5)
    return dense_model(f, name, attention, read_mlp(f)), []


def _helium(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    bias = f.flag("attention_bias", default=False)
    attention = read_attention(f, kv_heads=20, head_dim=128, qkv_bias=bias)
    return dense_model(f, name, attention, read_mlp(f, bias=f.flag("mlp_bias", default=False))), []


def _apertus(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, own_bias=True, qk_norm="head")
    spec = dense_model(f, name, attention, read_mlp(f, gated=False))
    if f.has("hidden_act") and f.text("hidden_act") != "xielu":
        return spec, []
    # Its activation, xIELU, has two learnt values.
    layers = tuple(replace(layer, other_params=2) for layer in spec.layers)
    return replace(spec, text=replace(spec.text, layers=shared(layers))), []


def _cwm(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=8, head_dim=128)
    windows = windows_by_layer(f, own_window(f, 8192), lambda i: i % 4 != 0)
    mlp = read_mlp(f, bias=f.flag("mlp_bias", default=False))
    return dense_model(f, name, attention, mlp, windows), []


def _iquestcoder(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=8, head_dim=128, own_bias=True)
    return dense_model(f, name, attention, read_mlp(f, bias=f.flag("mlp_bias", default=False))), []


FAMILIES: Mapping[str, Reader] = {
    "llama": _llama,
    "granite": _llama,
    "arcee": _arcee,
    "mistral": _mistral,
    "ministral": _ministral,
    "ministral3": _ministral3,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "phi3": _phi3,
    "internlm3": _internlm3,
    "seed_oss": _seed_oss,
    "smollm3": _smollm3,
    "ernie4_5": _ernie,
    "hunyuan_v1_dense": _hunyuan,
    "glm": _glm,
    "helium": _helium,
    "apertus": _apertus,
    "cwm": _cwm,
    "iquestcoder": _iquestcoder,
}
