"""Decoders whose layers route tokens to experts: Mixtral, OLMoE, Qwen MoE, gpt-oss."""

from collections.abc import Mapping
from dataclasses import replace

from energymodel.blocks import Mlp
from energymodel.families.parts import (
    Reader,
    model_spec,
    own_window,
    read_attention,
    read_moe,
    sparse_layers,
    switched_window,
    uniform_layers,
    windows_by_layer,
    windows_everywhere,
)
from energymodel.fields import Fields
from energymodel.model import ModelSpec


def _mixtral(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    experts = read_moe(f, f.integer("intermediate_size"))
    windows = windows_everywhere(f, f.optional_integer("sliding_window"))
    return model_spec(f, name, uniform_layers(read_attention(f, kv_heads=8), experts, windows)), []


def _olmoe(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    bias = f.flag("attention_bias", default=False)
    attention = replace(
        read_attention(f, qkv_bias=bias, o_bias=bias, qk_norm="hidden"), clip_qkv=f.has("clip_qkv")
    )
    experts = read_moe(f, f.integer("intermediate_size"))
    return model_spec(f, name, uniform_layers(attention, experts, windows_everywhere(f, None))), []


def _qwen2_moe(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=16, qkv_bias=f.flag("qkv_bias", default=True))
    shared = Mlp(intermediate_size=f.integer("shared_expert_intermediate_size"))
    experts = replace(
        read_moe(f, f.integer("moe_intermediate_size")),
        shared_expert=shared,
        shared_expert_gate=True,
    )
    last = f.integer("max_window_layers", 28, low=0)
    windows = windows_by_layer(f, switched_window(f), lambda i: i % 2 == 0 and i < last)
    return model_spec(f, name, sparse_layers(f, attention, experts, windows)), []


def _qwen3_moe(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    bias = f.flag("attention_bias", default=False)
    attention = read_attention(f, kv_heads=4, qkv_bias=bias, o_bias=bias, qk_norm="head")
    experts = read_moe(f, f.integer("moe_intermediate_size"))
    windows = windows_everywhere(f, switched_window(f))
    return model_spec(f, name, sparse_layers(f, attention, experts, windows)), []


def _gpt_oss(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    bias = f.flag("attention_bias", default=True)
    attention = replace(
        read_attention(f, kv_heads=8, head_dim=64, qkv_bias=bias, o_bias=bias), sinks=True
    )
    experts = replace(
        read_moe(f, f.integer("intermediate_size")), router_bias=True, expert_bias=True
    )
    windows = windows_by_layer(f, own_window(f, 128), lambda i: i % 2 == 0)
    return model_spec(f, name, uniform_layers(attention, experts, windows)), []


FAMILIES: Mapping[str, Reader] = {
    "mixtral": _mixtral,
    "olmoe": _olmoe,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
    "gpt_oss": _gpt_oss,
}
