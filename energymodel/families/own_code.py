"""Decoders whose code is in their repositories and not in transformers: as vLLM 0.24 builds them.

Their configurations are read, their code is neither fetched nor run.
"""

from collections.abc import Mapping
from dataclasses import replace

from energymodel.errors import InputError
from energymodel.families.parts import (
    Reader,
    dense_model,
    depth,
    model_spec,
    paired_layers,
    qwen_windows,
    read_attention,
    read_mlp,
    read_moe,
)
from energymodel.fields import Fields
from energymodel.model import ModelSpec, Norm


def _exaone(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = f.named(num_hidden_layers="num_layers")
    return dense_model(f, name, read_attention(f), read_mlp(f)), []


def _minicpm(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    if f.integer("num_experts", 0, low=0):
        raise InputError(f"{name}: field 'num_experts' is not 0; only dense MiniCPM is supported")
    return dense_model(f, name, read_attention(f), read_mlp(f), tied=True), []


def _mimo(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=32, qkv_bias=True)
    return dense_model(f, name, attention, read_mlp(f), qwen_windows(f)), []


def _baichuan(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    # The small models rotate, the large ones have ALiBi; nothing else in the file says so.
    rotated = f.integer("hidden_size") == 4096
    attention = read_attention(f, grouped=False, rotary_factor=float(rotated))
    return dense_model(f, name, replace(attention, alibi=not rotated), read_mlp(f)), []


def _chatglm(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = f.named(
        num_hidden_layers="num_layers",
        vocab_size="padded_vocab_size",
        max_position_embeddings="seq_length",
        intermediate_size="ffn_hidden_size",
        head_dim="kv_channels",
        num_key_value_heads="multi_query_group_num",
    )
    bias = f.flag("add_bias_linear", default=False)
    attention = read_attention(
        f,
        qkv_bias=bias or f.flag("add_qkv_bias", default=False),
        o_bias=bias,
        rotary_factor=0.5,
        grouped=f.flag("multi_query_attention", default=False),
    )
    norm: Norm = "rms" if f.flag("rmsnorm", default=True) else "layer"
    spec = dense_model(f, name, attention, read_mlp(f, bias=bias), norm=norm)
    if f.flag("post_layer_norm", default=True):
        return spec, []
    return replace(spec, text=replace(spec.text, final_norm=None)), []


def _deepseek(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = f.named(num_experts="n_routed_experts")
    layers, inner = depth(f), f.integer("moe_intermediate_size")
    shared = inner * f.integer("n_shared_experts", 0, low=0, high=10_000)
    experts, mlp = read_moe(f, inner, shared), read_mlp(f)
    dense, every = f.integer("first_k_dense_replace", 0, low=0), f.integer("moe_layer_freq", 1)
    blocks = [experts if i >= dense and i % every == 0 else mlp for i in range(layers)]
    return model_spec(f, name, paired_layers([read_attention(f)] * layers, blocks)), []


FAMILIES: Mapping[str, Reader] = {
    "exaone": _exaone,
    "minicpm": _minicpm,
    "mimo": _mimo,
    "baichuan": _baichuan,
    "chatglm": _chatglm,
    "deepseek": _deepseek,
}
