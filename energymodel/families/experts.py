"""Decoders whose layers route every token to a few of many experts, and nowhere else."""

from collections.abc import Mapping
from dataclasses import replace

from energymodel.errors import InputError
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
    attention = replace(
        read_attention(f, own_bias=True, qk_norm="hidden"), clip_qkv=f.has("clip_qkv")
    )
    experts = read_moe(f, f.integer("intermediate_size"))
    return model_spec(f, name, uniform_layers(attention, experts, windows_everywhere(f, None))), []


def _qwen3_moe(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=4, own_bias=True, qk_norm="head")
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


def _granitemoe(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, own_bias=True)
    experts = read_moe(f, f.integer("intermediate_size"))
    return model_spec(f, name, uniform_layers(attention, experts, windows_everywhere(f, None))), []


def _flex_olmo(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, own_bias=True, qk_norm="hidden")
    experts = read_moe(f, f.integer("intermediate_size"))
    windows = windows_everywhere(f, None)
    return model_spec(f, name, uniform_layers(attention, experts, windows, layout="post")), []


def _minimax_m2(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=8, head_dim=128, qk_norm="hidden")
    rotary = f.integer("rotary_dim", attention.rotary_dim, high=attention.head_dim)
    experts = read_moe(f, f.integer("intermediate_size"))
    layers = uniform_layers(
        replace(attention, rotary_dim=rotary), experts, windows_everywhere(f, None)
    )
    return model_spec(f, name, layers), []


def _phimoe(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=8, own_bias=True)
    experts = read_moe(f, f.integer("intermediate_size"))
    windows = windows_everywhere(f, f.optional_integer("sliding_window"))
    spec = model_spec(f, name, uniform_layers(attention, experts, windows, "layer"))
    return replace(spec, lm_head_bias=f.flag("lm_head_bias", default=False)), []


def _dbrx(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = f.named(hidden_size="d_model", num_attention_heads="n_heads", num_hidden_layers="n_layers")
    f = f.named(max_position_embeddings="max_seq_len")
    heads, inner = f.section("attn_config"), f.section("ffn_config")
    if heads is None or inner is None:
        raise InputError(f"{name}: fields 'attn_config' and 'ffn_config' must both be there")
    attention = replace(
        read_attention(f, grouped=False),
        num_key_value_heads=heads.integer("kv_n_heads", 1, high=100_000),
        clip_qkv=heads.has("clip_qkv"),
    )
    inner = inner.named(num_experts="moe_num_experts", num_experts_per_tok="moe_top_k")
    experts = read_moe(inner, inner.integer("ffn_hidden_size", 3584))
    layers = uniform_layers(attention, experts, windows_everywhere(f, None), "scale")
    return model_spec(f, name, layers), []


FAMILIES: Mapping[str, Reader] = {
    "mixtral": _mixtral,
    "olmoe": _olmoe,
    "qwen3_moe": _qwen3_moe,
    "gpt_oss": _gpt_oss,
    "granitemoe": _granitemoe,
    "flex_olmo": _flex_olmo,
    "minimax_m2": _minimax_m2,
    "phimoe": _phimoe,
    "dbrx": _dbrx,
}
