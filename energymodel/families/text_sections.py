"""The language model within a model of several parts: ``text_config`` and what it leaves out.

Published sections often list only what differs from the defaults of their configuration class in
transformers 5, so those defaults are here.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from energymodel.errors import InputError
from energymodel.families.parts import Reader
from energymodel.fields import Fields
from energymodel.model import ModelSpec

Defaults = Mapping[str, object]


_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
)


def _sizes(*numbers: int, **more: object) -> Defaults:
    """Those of ``_SIZES``, and more."""
    return {**dict(zip(_SIZES, numbers, strict=True)), **more}


def _experts(number: int, chosen: int, inner: int) -> Defaults:
    return {
        "num_experts": number,
        "num_experts_per_tok": chosen,
        "moe_intermediate_size": inner,
    }


_QWEN2_VL = _sizes(152_064, 8192, 29_568, 80, 64, 8, max_window_layers=80)
TEXT: Mapping[str, tuple[str, Defaults]] = {
    "llama": ("llama", _sizes(32_000, 4096, 11_008, 32, 32, 32)),
    "mistral": ("mistral", _sizes(32_000, 4096, 14_336, 32, 32, 8)),
    "ministral3": ("ministral3", _sizes(131_072, 4096, 14_336, 34, 32, 8, head_dim=128)),
    "qwen2": ("qwen2", _sizes(151_936, 4096, 22_016, 32, 32, 32)),
    "qwen3": ("qwen3", _sizes(151_936, 4096, 22_016, 32, 32, 32, head_dim=128)),
    "qwen3_moe": (
        "qwen3_moe",
        {**_sizes(151_936, 2048, 6144, 24, 32, 4), **_experts(128, 8, 768)},
    ),
    "gemma": ("gemma", _sizes(256_000, 3072, 24_576, 28, 16, 16, head_dim=256)),
    "gemma2": ("gemma2", _sizes(256_000, 2304, 9216, 26, 8, 4, head_dim=256)),
    "gemma3_text": ("gemma3_text", {}),  # its reader fills them in
    "cohere": ("cohere", _sizes(256_000, 8192, 22_528, 40, 64, 64)),
    "cohere2": ("cohere2", _sizes(256_000, 8192, 22_528, 40, 64, 64)),
    "gpt_oss": (
        "gpt_oss",
        {
            **_sizes(201_088, 2880, 2880, 36, 64, 8, head_dim=64),
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
        },
    ),
    "llama4_text": (
        "llama4_text",
        {
            **_sizes(202_048, 5120, 8192, 48, 40, 8, head_dim=128),
            "intermediate_size_mlp": 16_384,
            "num_local_experts": 16,
            "num_experts_per_tok": 1,
        },
    ),
    "qwen2_vl_text": ("qwen2", _QWEN2_VL),
    "qwen2_5_vl_text": ("qwen2", _QWEN2_VL),
    "qwen2_5_omni_text": ("qwen2", _sizes(152_064, 3584, 18_944, 28, 28, 4)),
    "qwen3_vl_text": ("qwen3", _sizes(151_936, 4096, 22_016, 32, 32, 32, head_dim=128)),
    "qwen3_vl_moe_text": (
        "qwen3_moe",
        {**_sizes(151_936, 2048, 5632, 24, 16, 16, head_dim=128), **_experts(60, 4, 1408)},
    ),
    "qwen3_omni_moe_text": (
        "qwen3_moe",
        {**_sizes(3584, 2048, 18_944, 28, 28, 4), **_experts(128, 8, 768)},
    ),
    "qwen3_5_text": ("qwen3_5_text", _sizes(248_320, 4096, 12_288, 32, 16, 4, head_dim=256)),
    "qwen3_5_moe_text": (
        "qwen3_5_moe_text",
        {
            **_sizes(248_320, 2048, 512, 40, 16, 2, head_dim=256),
            **_experts(256, 8, 512),
            "shared_expert_intermediate_size": 512,
        },
    ),
    "glm4v_text": ("glm4", _sizes(151_552, 4096, 13_696, 40, 32, 2, attention_bias=True)),
    "glm4v_moe_text": (
        "glm4_moe",
        {
            **_sizes(151_424, 4096, 10_944, 46, 96, 8, attention_bias=True),
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 1408,
            "n_routed_experts": 128,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
        },
    ),
}
"""What reads a text section of that type, and the defaults of its class."""


def language_model(f: Fields, name: str, *, default: str) -> tuple[ModelSpec, list[str]]:
    """The text decoder of ``f``, spelt as the whole model; towers are still to come.

    ``default`` is the type of a section that does not name its own. Embeddings are tied as the
    section says, or else the whole file, or else as the type of the section assumes, which is what
    engines go by.

    Raises:
        InputError: there is no section, or one of a type that is not known.
    """
    text = text_section(f)
    text_type = text.text("model_type") if text.has("model_type") else default
    reader = section_reader(text_type)
    if reader is None:
        raise InputError(
            f"{text.where}: field 'model_type' is '{text_type[:40]}'; "
            f"it must be one of {', '.join(sorted(TEXT))}"
        )
    tied = {"tie_word_embeddings": f.config.get("tie_word_embeddings")}
    spec, warnings = reader(with_defaults(text, tied), name)
    return replace(spec, model_type=f.text("model_type")), warnings


def section_reader(text_type: str) -> Reader | None:
    """What reads a text section of that type, with the defaults of its class; None: not known."""
    from energymodel.families import FAMILIES  # which this module is part of

    if text_type not in TEXT:
        return None
    family, assumed = TEXT[text_type]

    def read(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
        filled = with_defaults(f, assumed).config
        return FAMILIES[family](Fields({**filled, "model_type": family}, f.where), name)

    return read


def text_section(f: Fields) -> Fields:
    """``text_config``, which must be there."""
    text = f.section("text_config")
    if text is None:
        raise InputError(
            f"{f.where}: field 'text_config' is missing; it must hold the text decoder"
        )
    return text


def sighted(
    default: str,
    see: Callable[[Fields, ModelSpec], ModelSpec],
    section: str = "vision_config",
) -> Reader:
    """A reader of a language model to which ``see`` adds the tower that ``section`` tells of.

    Files that circulate without that section are read as the language model alone.
    """

    def read(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
        spec, warnings = language_model(f, name, default=default)
        if f.section(section) is None:
            return spec, [*warnings, missing(name, section)]
        return see(f, spec), warnings

    return read


def missing(name: str, section: str) -> str:
    """The warning about a tower that a file says nothing of."""
    return f"{name}: field '{section}' is missing: what it would tell of is not counted"


def with_defaults(f: Fields, defaults: Defaults) -> Fields:
    """The same fields, absent ones filled in."""
    missing = {key: value for key, value in defaults.items() if f.config.get(key) is None}
    return Fields({**f.config, **missing}, f.where)
