"""A ``model_type`` that no reader knows: read like Llama with a warning, or refused with a reason."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energymodel.errors import InputError
from energymodel.families import FAMILIES
from energymodel.families.unknown import NEEDED
from energymodel.model import model_from_config

SIZES: dict[str, object] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "rms_norm_eps": 1e-5,
}
UNKNOWN = SIZES | {"model_type": "nobody-knows"}


def test_it_has_the_parameters_of_a_llama_and_the_warning_says_what_was_assumed() -> None:
    spec, [warning] = model_from_config(UNKNOWN, "org/new")
    llama, _ = model_from_config(SIZES | {"model_type": "llama"}, "org/new")
    assert spec.text == llama.text
    assert (spec.model_type, spec.name) == ("nobody-knows", "org/new")
    for said in ("org/new", "'nobody-knows'", "Llama", "RMS norms", "gated", "rotary", "untied"):
        assert said in warning


def test_internlm_2_is_such_a_model() -> None:
    # The sizes of internlm/internlm2-7b, whose files hold 7,737,708,544 parameters.
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 92544}
    config = {"model_type": "internlm2", "bias": False, "rms_norm_eps": 1e-5, **sizes, **heads}
    assert model_from_config(config, "x")[0].param_count == 7_737_708_544


def test_fields_that_it_gives_are_not_assumed() -> None:
    given_fields = {"tie_word_embeddings": True, "attention_bias": True, "head_dim": 8}
    windows = {"sliding_window": 7, "layer_types": ["full_attention", "sliding_attention"] * 2}
    spec, [warning] = model_from_config(UNKNOWN | given_fields | windows, "x")
    llama, _ = model_from_config(SIZES | given_fields | {"model_type": "llama"}, "x")
    assert spec.param_count == llama.param_count
    assert [layer.blocks[0].sliding_window for layer in spec.layers] == [None, 7, None, 7]
    assert "tied embeddings" in warning
    switched_off, _ = model_from_config(
        UNKNOWN | {"sliding_window": 7, "use_sliding_window": False}, "x"
    )
    assert {layer.blocks[0].sliding_window for layer in switched_off.layers} == {None}


@pytest.mark.parametrize("key", NEEDED)
def test_without_a_field_of_a_llama_it_is_refused_by_name(key: str) -> None:
    with pytest.raises(InputError, match=f"'nobody-knows'.*without '{key}'"):
        model_from_config({k: v for k, v in UNKNOWN.items() if k != key}, "x")


def test_all_missing_fields_are_named_at_once() -> None:
    with pytest.raises(InputError) as error:
        model_from_config({"model_type": "a\nb"}, "x")
    assert all(f"'{key}'" in str(error.value) for key in NEEDED)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "field",
    [
        "n_routed_experts",
        "kv_lora_rank",
        "ssm_state_size",
        "layers_block_type",
        "is_encoder_decoder",
    ],
)
def test_fields_that_no_llama_has_are_refused_by_name(field: str) -> None:
    with pytest.raises(InputError, match=f"no '{field}'"):
        model_from_config(UNKNOWN | {field: 8}, "x")
    # Switched off, they change nothing.
    spec, _ = model_from_config(UNKNOWN | {field: 0}, "x")
    assert spec.num_hidden_layers == 4


@pytest.mark.parametrize("inner", ["llama", "also-unknown"])
@pytest.mark.parametrize("key", ["text_config", "llm_config"])
def test_of_a_model_of_several_parts_the_text_decoder_is_read(key: str, inner: str) -> None:
    parts = {key: SIZES | {"model_type": inner}, "vision_config": {}, "tie_word_embeddings": True}
    spec, [first, *more] = model_from_config({"model_type": "nobody-knows", **parts}, "x")
    assert spec.num_hidden_layers == 4
    assert spec.tie_word_embeddings
    assert "only its text decoder is counted" in first
    assert len(more) == (inner != "llama")


def test_no_reader_is_called_what_the_tests_take_for_unknown() -> None:
    assert not {"nobody-knows", "also-unknown", "internlm2"} & set(FAMILIES)


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
KEYS = ("layer_types", "sliding_window", "text_config", "llm_config", "attention_bias", "head_dim")


@settings(deadline=None, max_examples=200)
@given(
    st.text(max_size=8),
    st.dictionaries(st.sampled_from((*SIZES, *KEYS)), values | st.lists(values, max_size=4)),
)
def test_anything_else_is_read_or_refused_with_a_reason(
    family: str, damage: dict[str, object]
) -> None:
    with contextlib.suppress(InputError):
        spec, _ = model_from_config({**SIZES, "model_type": family, **damage}, "x")
        assert spec.param_count > 0
