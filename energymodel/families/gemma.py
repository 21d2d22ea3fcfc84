"""Gemma: wide heads, tied embeddings, local layers between global ones."""

from collections.abc import Mapping
from dataclasses import replace

from energymodel.families.parts import (
    Reader,
    dense_model,
    own_window,
    read_attention,
    read_mlp,
    windows_by_layer,
)
from energymodel.fields import Fields
from energymodel.model import Layout, ModelSpec


def _gemma(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=16, head_dim=256, own_bias=True)
    return dense_model(f, name, attention, read_mlp(f), tied=True), []


def _gemma2(f: Fields, name: str, layout: Layout = "sandwich") -> tuple[ModelSpec, list[str]]:
    final = f.number_or_null("final_logit_softcapping", 30.0)
    attention = read_attention(f, kv_heads=4, head_dim=256, own_bias=True)
    windows = windows_by_layer(f, own_window(f, 4096), lambda i: i % 2 == 0)
    spec = dense_model(f, name, attention, read_mlp(f), windows, layout=layout, tied=True)
    return replace(spec, final_logit_softcapping=final), []


def _vaultgemma(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    return _gemma2(f, name, layout="pre")


def _gemma3_text(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    # Published text sections list only what differs from the defaults of the configuration class.
    f = Fields(
        {
            "vocab_size": 262_208,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "max_position_embeddings": 131_072,
            **{key: value for key, value in f.config.items() if value is not None},
        },
        f.where,
    )
    attention = read_attention(f, kv_heads=4, head_dim=256, own_bias=True, qk_norm="head")
    key = "sliding_window_pattern" if f.has("sliding_window_pattern") else "_sliding_window_pattern"
    pattern = f.integer(key, 6)
    windows = windows_by_layer(f, own_window(f, 4096), lambda i: (i + 1) % pattern != 0)
    both_ways = f.flag("use_bidirectional_attention", default=False)  # EmbeddingGemma
    attention = replace(attention, causal=not both_ways)
    spec = dense_model(f, name, attention, read_mlp(f), windows, layout="sandwich", tied=True)
    cap = f.optional_number("final_logit_softcapping")
    return replace(spec, final_logit_softcapping=cap, has_head=not both_ways), []


FAMILIES: Mapping[str, Reader] = {
    "gemma": _gemma,
    "gemma2": _gemma2,
    "vaultgemma": _vaultgemma,
    "gemma3_text": _gemma3_text,
}
