"""Dense decoders with softmax attention: Llama, Mistral, Qwen, Gemma, Phi, OLMo."""

from collections.abc import Mapping
from dataclasses import replace

from energymodel.blocks import Mlp
from energymodel.errors import InputError
from energymodel.families.parts import (
    Reader,
    dense_model,
    own_window,
    qwen_windows,
    read_attention,
    read_mlp,
    windows_by_layer,
    windows_everywhere,
)
from energymodel.fields import Fields
from energymodel.model import ModelSpec


def _llama(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    bias = f.flag("attention_bias", default=False)
    attention = read_attention(f, qkv_bias=bias, o_bias=bias)
    mlp = read_mlp(f, bias=f.flag("mlp_bias", default=False))
    return dense_model(f, name, attention, mlp), []


def _mistral(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=8)
    return dense_model(
        f, name, attention, read_mlp(f), windows_everywhere(f, own_window(f, 4096))
    ), []


def _qwen2(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=32, qkv_bias=True)
    return dense_model(f, name, attention, read_mlp(f), qwen_windows(f)), []


def _qwen3(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    bias = f.flag("attention_bias", default=False)
    attention = read_attention(
        f, kv_heads=32, head_dim=128, qkv_bias=bias, o_bias=bias, qk_norm="head"
    )
    return dense_model(f, name, attention, read_mlp(f), qwen_windows(f)), []


def _gemma(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    bias = f.flag("attention_bias", default=False)
    attention = read_attention(f, kv_heads=16, head_dim=256, qkv_bias=bias, o_bias=bias)
    return dense_model(f, name, attention, read_mlp(f), tied=True), []


def _gemma2(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    bias = f.flag("attention_bias", default=False)
    # A null soft-cap switches it off; only an absent one means the default of the family.
    cap = (
        f.optional_number("attn_logit_softcapping")
        if "attn_logit_softcapping" in f.config
        else 50.0
    )
    final = (
        f.optional_number("final_logit_softcapping")
        if "final_logit_softcapping" in f.config
        else 30.0
    )
    attention = replace(
        read_attention(f, kv_heads=4, head_dim=256, qkv_bias=bias, o_bias=bias), logit_softcap=cap
    )
    windows = windows_by_layer(f, own_window(f, 4096), lambda i: i % 2 == 0)
    spec = dense_model(f, name, attention, read_mlp(f), windows, layout="sandwich", tied=True)
    return replace(spec, final_logit_softcapping=final), []


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
    bias = f.flag("attention_bias", default=False)
    attention = replace(
        read_attention(f, kv_heads=4, head_dim=256, qkv_bias=bias, o_bias=bias, qk_norm="head"),
        logit_softcap=f.optional_number("attn_logit_softcapping"),
    )
    key = "sliding_window_pattern" if f.has("sliding_window_pattern") else "_sliding_window_pattern"
    pattern = f.integer(key, 6)
    windows = windows_by_layer(f, own_window(f, 4096), lambda i: (i + 1) % pattern != 0)
    spec = dense_model(f, name, attention, read_mlp(f), windows, layout="sandwich", tied=True)
    return replace(spec, final_logit_softcapping=f.optional_number("final_logit_softcapping")), []


def _gemma3(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    text = f.section("text_config")
    if text is None:
        raise InputError(f"{name}: field 'text_config' is missing; it must hold the text decoder")
    tied = text.flag("tie_word_embeddings", f.flag("tie_word_embeddings", default=True))
    merged = Fields({**text.config, "tie_word_embeddings": tied}, text.where)
    spec, warnings = _gemma3_text(merged, name)
    warnings = [*warnings, f"{name}: only the text decoder is counted, not the vision tower"]
    return replace(spec, model_type="gemma3"), warnings


def _phi(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, qkv_bias=True, o_bias=True, rotary_factor=0.5)
    if f.flag("qk_layernorm", default=False):
        attention = replace(attention, qk_norm="head")
    mlp = Mlp(intermediate_size=f.integer("intermediate_size"), gated=False, bias=True)
    spec = dense_model(f, name, attention, mlp, norm="layer", layout="parallel")
    return replace(spec, lm_head_bias=True), []


def _phi3(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    windows = windows_everywhere(f, f.optional_integer("sliding_window"))
    return dense_model(f, name, read_attention(f), read_mlp(f), windows), []


def _olmo(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    bias = f.flag("attention_bias", default=False)
    attention = replace(read_attention(f, qkv_bias=bias, o_bias=bias), clip_qkv=f.has("clip_qkv"))
    return dense_model(f, name, attention, read_mlp(f), norm="plain"), []


def _olmo2(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    bias = f.flag("attention_bias", default=False)
    attention = read_attention(f, qkv_bias=bias, o_bias=bias, qk_norm="hidden")
    return dense_model(f, name, attention, read_mlp(f), layout="post"), []


FAMILIES: Mapping[str, Reader] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gemma3_text": _gemma3_text,
    "phi": _phi,
    "phi3": _phi3,
    "olmo": _olmo,
    "olmo2": _olmo2,
}
