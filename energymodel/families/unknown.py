"""A ``model_type`` that no reader knows: read like Llama where its fields are those of one.

Nothing of a repository but its configuration is read and no code of it is run, so the rest is an
assumption, which the warning spells out.
"""

from collections.abc import Mapping
from dataclasses import replace

from energymodel.errors import InputError
from energymodel.families.parts import (
    dense_model,
    read_attention,
    read_mlp,
    windows_by_layer,
)
from energymodel.fields import Fields
from energymodel.model import ModelSpec

NEEDED = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"),
    *("rms_norm_eps", "vocab_size"),
)
"""Fields without which nothing can be assumed."""

_TEXT = ("text_config", "llm_config", "language_config")
# Parts of names of fields that change what a layer is made of.
_FOREIGN = (
    *("expert", "moe", "lora", "ssm", "mamba", "state_size", "conv", "rwkv", "linear_attn"),
    *("linear_num", "hybrid", "block_type", "encoder", "cross_attention", "codebook", "index_topk"),
    *("cross_attn", "cross_layer", "cycles", "per_layer", "kv_shared", "k_eq_v", "perceiver"),
    *("vision_config", "audio_config", "speech_config"),
)

_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
# What acts on a gate in the families that are known; others act on blocks without one.
_GATED = ("silu", "swish", "swiglu", "geglu", "gelu_pytorch_tanh")
# Fields that a Llama has, that say what was read, or that change no operation.
_READ = frozenset(
    {
        *(*NEEDED, *_ACTIVATIONS, "is_gated_act", "num_key_value_heads", "head_dim"),
        *("attention_bias", "qkv_bias", "add_qkv_bias", "mlp_bias"),
        *("bias", "use_bias", "add_bias_linear"),
        *("sliding_window", "use_sliding_window", "layer_types", "rope_parameters", "rope_scaling"),
        *("tie_word_embeddings", "max_position_embeddings", "rope_theta"),
        *("quantization_config", "compression_config"),
    }
)
_HARMLESS = frozenset(
    {
        *("architectures", "auto_map", "id2label", "label2id", "return_dict", "use_cache"),
        *("output_attentions", "output_hidden_states", "pretraining_tp", "torchscript"),
        *("original_max_position_embeddings", "task_specific_params", "use_flash_attn"),
        *("max_length", "num_beams", "num_beam_groups", "num_return_sequences", "top_k"),
        *("keys_to_ignore_at_inference", "is_decoder", "num_labels", "use_bfloat16"),
    }
)
_MOST_NAMED = 5


def text_part(f: Fields) -> Fields | None:
    """The text decoder within the configuration of a model of several parts, or None."""
    key = next((key for key in _TEXT if f.has(key)), None)
    part = f.section(key) if key else None
    if part is None or not f.has("tie_word_embeddings") or part.has("tie_word_embeddings"):
        return part
    tied = {"tie_word_embeddings": f.value("tie_word_embeddings")}
    return Fields({**part.config, **tied}, part.where)


def read_unknown(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    """The model as a Llama of its sizes, and a warning.

    Raises:
        InputError: fields of a Llama are missing, there are some that a Llama does not have, or
            nothing says that the feed-forward block is gated.
    """
    model_type = f.text("model_type")
    said = f"{name}: field 'model_type' is {model_type[:40]!r}, which is not known"
    missing = [key for key in NEEDED if not f.has(key)]
    if missing:
        listed = ", ".join(f"'{key}'" for key in missing)
        raise InputError(f"{said}, nor can it be read like a Llama without {listed}")
    foreign = [key for key, value in f.config.items() if value and _is_foreign(key)]
    if foreign:
        raise InputError(
            f"{said}, nor can it be read like a Llama, which has no {foreign[0][:40]!r}"
        )
    act = next((key for key in _ACTIVATIONS if f.has(key)), None)
    gated = act is None or f.text(act) in _GATED or f.flag("is_gated_act", default=False)
    if act is not None and not gated:
        raise InputError(
            f"{said}, nor can it be read like a Llama, whose feed-forward block is gated: field "
            f"'{act}' is {f.text(act)[:40]!r}, not one of {', '.join(_GATED)}"
        )
    everywhere = f.flag("use_bias", f.flag("add_bias_linear", f.flag("bias", default=False)))
    o_bias, mlp_bias = f.flag("attention_bias", everywhere), f.flag("mlp_bias", everywhere)
    qkv_bias = f.flag("qkv_bias", f.flag("add_qkv_bias", o_bias))
    attention = read_attention(f, qkv_bias=qkv_bias, o_bias=o_bias)
    mlp = read_mlp(f, bias=mlp_bias)
    # A window that is not switched on or off by a field of its own is on.
    on = f.flag("use_sliding_window", default=True)
    window = f.optional_integer("sliding_window") if on else None
    spec = dense_model(f, name, attention, mlp, windows_by_layer(f, window, lambda _: True))
    tied = "tied" if spec.tie_word_embeddings else "untied"
    assumed = (
        "RMS norms before attention and before a gated feed-forward block, rotary positions, no "
        f"norms of queries and keys, {tied} embeddings, {_biases(qkv_bias, o_bias, mlp_bias)}"
    )
    warning = f"{said}: it is read like a Llama, assuming {assumed}{_unread(f)}"
    return replace(spec, assumed=True), [warning]


def _biases(qkv: bool, o: bool, mlp: bool) -> str:
    """Which projections have one."""
    places = {"queries, keys and values": qkv, "the attention's output": o, "feed-forward": mlp}
    named = [place for place, there in places.items() if there]
    return f"biases of {' and of '.join(named)}" if named else "no biases"


def _unread(f: Fields) -> str:
    """The end of the warning: fields that may mean something and were not read."""
    names = [
        f"'{key[:40]}'"
        for key, value in f.config.items()
        if value and isinstance(value, int | list | tuple | Mapping) and not _is_understood(key)
    ]
    if not names:
        return ""
    more = [f"{len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
    return f"; not read: {', '.join(names[:_MOST_NAMED] + more)}"


def _is_understood(key: str) -> bool:
    return key in _READ or key in _HARMLESS or key.endswith(("_token_id", "_token_index"))


def _is_foreign(key: str) -> bool:
    return any(part in key for part in _FOREIGN)
