"""A ``model_type`` that no reader knows: read like Llama where its fields are those of one.

Nothing of a repository but its configuration is read and no code of it is run, so the rest is an
assumption, which the warning spells out.
"""

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
    *("expert", "moe", "lora_rank", "ssm", "mamba", "state_size", "conv", "rwkv", "linear_attn"),
    *("linear_num", "hybrid", "block_type", "encoder", "cross_attention", "codebook", "index_topk"),
)


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
        InputError: fields of a Llama are missing, or there are some that a Llama does not have.
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
    bias = f.flag("attention_bias", default=False)
    attention = read_attention(f, qkv_bias=f.flag("qkv_bias", bias), o_bias=bias)
    mlp = read_mlp(f, bias=f.flag("mlp_bias", default=False))
    # A window that is not switched on or off by a field of its own is on.
    on = f.flag("use_sliding_window", default=True)
    window = f.optional_integer("sliding_window") if on else None
    spec = dense_model(f, name, attention, mlp, windows_by_layer(f, window, lambda _: True))
    tied = "tied" if spec.tie_word_embeddings else "untied"
    assumed = (
        "RMS norms before attention and before a gated feed-forward block, rotary positions, no "
        f"norms of queries and keys, {tied} embeddings"
    )
    return spec, [f"{said}: it is read like a Llama, assuming {assumed}"]


def _is_foreign(key: str) -> bool:
    return any(part in key for part in _FOREIGN)
