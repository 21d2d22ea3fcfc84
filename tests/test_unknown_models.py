"""A ``model_type`` that no reader knows: read like Llama with a warning, or refused with a reason."""

import contextlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models_zoo
from energymodel.deployment import Deployment
from energymodel.domain import OTHER_KERNEL
from energymodel.errors import InputError
from energymodel.families import FAMILIES
from energymodel.families.unknown import NEEDED
from energymodel.model import model_from_config
from energymodel.predict import predict
from energymodel.profile import load
from energymodel.workload import Bin, Workload

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


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_act": "relu2"}, "gated: field 'hidden_act' is 'relu2'"),  # nanochat, BitNet
        ({"hidden_act": "relu"}, "'hidden_act' is 'relu'"),
        ({"hidden_act": "gelu_new"}, "'hidden_act' is 'gelu_new'"),
        ({"hidden_activation": "new"}, "'hidden_activation' is 'new'"),
        ({"activation_function": 3}, "'activation_function' is 3"),
        ({"H_cycles": 2}, "no 'H_cycles'"),  # HRM
        ({"per_layer_config": {"0": {}}}, "no 'per_layer_config'"),  # Gemma 4
        ({"num_kv_shared_layers": 1}, "no 'num_kv_shared_layers'"),
        ({"cross_layer_interval": 1}, "no 'cross_layer_interval'"),  # IDEFICS
        ({"vision_config": {"depth": 3}}, "no 'vision_config'"),  # Phi-4 multimodal
        ({"audio_config": {"depth": 3}}, "no 'audio_config'"),
        ({"vision_lora": {"r": 3}}, "no 'vision_lora'"),
    ],
)
def test_what_is_clearly_no_llama_is_refused(change: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        model_from_config(UNKNOWN | change, "x")


@pytest.mark.parametrize(
    "gate",
    [{"hidden_act": "silu"}, {"hidden_act": "geglu"}, {"hidden_act": "gelu", "is_gated_act": True}],
)
def test_a_gate_is_read_where_the_activation_tells_of_one(gate: dict[str, object]) -> None:
    assert model_from_config(UNKNOWN | gate, "x")[0].assumed


# Of a layer of SIZES: queries, keys and values; the attention's output; gate and up; down.
QKV, OUT, MLP = 64 + 2 * 32, 64, 2 * 96 + 64


@pytest.mark.parametrize(
    ("fields", "biases", "said"),
    [
        ({}, 0, "no biases"),
        ({"bias": False}, 0, "no biases"),
        (
            {"bias": True},
            QKV + OUT + MLP,
            "biases of queries, keys and values and of the attention",
        ),
        ({"use_bias": True}, QKV + OUT + MLP, "and of feed-forward"),
        ({"add_bias_linear": True, "mlp_bias": False}, QKV + OUT, "output"),
        ({"add_bias_linear": False, "add_qkv_bias": True}, QKV, "biases of queries, keys and val"),
        (
            {"bias": True, "qkv_bias": False},
            OUT + MLP,
            "biases of the attention's output and of fee",
        ),
        ({"attention_bias": True}, QKV + OUT, "output"),
        ({"mlp_bias": True}, MLP, "biases of feed-forward"),
    ],
)
def test_biases_are_those_that_its_fields_tell_of(
    fields: dict[str, object], biases: int, said: str
) -> None:
    spec, [warning] = model_from_config(UNKNOWN | fields, "x")
    plain, _ = model_from_config(SIZES | {"model_type": "llama"}, "x")
    assert spec.param_count - plain.param_count == 4 * biases
    assert said in warning
    assert "not read" not in warning


def test_the_warning_names_what_was_not_read() -> None:
    harmless = {"eos_token_id": 2, "use_cache": True, "architectures": ["X"], "dtype": "bfloat16"}
    some = {"swin_norm": True, "depths": [1], "vq_config": {"size": 1}, "off": False, "none": []}
    _, [warning] = model_from_config(UNKNOWN | harmless | some, "x")
    assert warning.endswith("not read: 'swin_norm', 'depths', 'vq_config'")
    _, [warning] = model_from_config(UNKNOWN | {f"field{i}": i for i in range(9)}, "x")
    assert warning.endswith("'field1', 'field2', 'field3', 'field4', 'field5', 3 more")


def test_the_interval_is_that_of_another_kernel_and_the_prediction_says_why() -> None:
    workload = Workload(bins=(Bin(input_tokens=512, output_tokens=64, count=64),))
    config = models_zoo.find("Llama-3.1-8B-Instruct")
    assert config is not None
    known, unknown = (
        predict(model_from_config(c, "x")[0], Deployment(), workload, load("h200"))
        for c in (config, {**config, "model_type": "nobody-knows"})
    )
    assert unknown.energy_j == known.energy_j
    assert known.warnings == ()
    assert len(unknown.warnings) == 1
    assert "'nobody-knows' is not known" in unknown.warnings[0]
    # Two kinds of boards make it a little wider than the factor alone.
    low, high = unknown.energy_interval_j
    assert OTHER_KERNEL <= 0.5 * math.log(high / low) <= 1.01 * OTHER_KERNEL


@pytest.mark.parametrize("key", ["text_config", "llm_config"])
@pytest.mark.parametrize("inner", ["qwen3_vl_text", "qwen3_vl_moe_text"])
def test_a_text_decoder_that_is_known_keeps_what_its_type_implies(key: str, inner: str) -> None:
    # Both normalise queries and keys, and the second has experts by default.
    spec, [warning] = model_from_config(
        {"model_type": "nobody-knows", key: {"model_type": inner, "num_hidden_layers": 2}}, "x"
    )
    whole, _ = model_from_config(
        {"model_type": inner.removesuffix("_text"), "text_config": {"num_hidden_layers": 2}}, "x"
    )
    assert spec.text == whole.text
    assert spec.layers[0].blocks[0].qk_norm == "head"
    assert not spec.assumed
    assert "only its text decoder is counted" in warning


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
