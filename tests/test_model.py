"""Attention arithmetic, reading of configurations, and the zoo."""

import contextlib
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models_zoo
from energymodel.blocks.softmax import SoftmaxAttention
from energymodel.errors import InputError
from energymodel.families import FAMILIES
from energymodel.model import Mlp, ModelSpec, Moe, model_from_config


def attention(window: int | None) -> SoftmaxAttention:
    return SoftmaxAttention(
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rotary_dim=8,
        sliding_window=window,
    )


def zoo(name: str) -> ModelSpec:
    config = models_zoo.find(name)
    assert config is not None
    return model_from_config(config, name)[0]


def visible(tokens: int, context: int, window: int | None) -> np.ndarray:
    """The mask itself: queries in rows, keys in columns."""
    query = context + np.arange(tokens)[:, None]
    key = np.arange(context + tokens)[None, :]
    return (key <= query) & (key > query - (window or context + tokens + 1))


@given(st.integers(1, 60), st.integers(0, 90), st.none() | st.integers(1, 70))
def test_pairs_and_keys_are_those_of_the_mask(
    tokens: int, context: int, window: int | None
) -> None:
    mask = visible(tokens, context, window)
    a = attention(window)
    at = np.array([context])
    assert a.chunk_pairs(np.array([tokens]), at).tolist() == [mask.sum()]
    assert a.chunk_kv_tokens(np.array([tokens]), at).tolist() == [mask.any(axis=0).sum()]
    assert a.decode_kv_tokens(at).tolist() == [visible(1, context, window).sum()]


def test_attention_by_hand() -> None:
    a = attention(3)
    # 2 keys and values of 2 heads of 8, 2 bytes each
    assert a.kv_bytes_per_token(2) == 64
    # queries 2, 3, 4 of a prompt see 2, 3, 3 keys
    assert a.chunk_pairs(np.array([3]), np.array([1])).tolist() == [8]
    # 4 heads, 8 multiply-adds for the score and 8 for the value, 2 FLOP each
    assert a.flop(np.array([8.0])).tolist() == [8 * 4 * (8 + 8) * 2]


def test_very_long_contexts_are_counted_exactly() -> None:
    pairs = attention(None).chunk_pairs(np.array([1_000_000]), np.array([9_000_000]))
    assert pairs.tolist() == [1_000_000 * 9_000_000 + 1_000_000 * 1_000_001 // 2]


# Parameters of the published weights, as the Hugging Face Hub reports them for each checkpoint.
PUBLISHED = {
    "allenai/OLMo-2-1124-7B": 7_298_617_344,
    "allenai/OLMoE-1B-7B-0924": 6_919_161_856,
    "google/gemma-2-27b-it": 27_227_128_320,
    "google/gemma-2-2b-it": 2_614_341_888,
    "google/gemma-2-9b-it": 9_241_705_984,
    "google/gemma-3-1b-it": 999_885_952,
    "google/gemma-7b-it": 8_537_680_896,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-405B-Instruct": 405_853_388_800,
    "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
    "microsoft/phi-2": 2_779_683_840,
    "microsoft/phi-4": 14_659_507_200,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "mistralai/Mistral-Large-Instruct-2407": 122_610_069_504,
    "mistralai/Mistral-Nemo-Instruct-2407": 12_247_782_400,
    "mistralai/Mistral-Small-24B-Instruct-2501": 23_572_403_200,
    "mistralai/Mixtral-8x22B-Instruct-v0.1": 140_630_071_296,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46_702_792_704,
    "Qwen/Qwen1.5-MoE-A2.7B": 14_315_784_192,
    "Qwen/Qwen2-57B-A14B": 57_408_658_944,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
}


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_zoo_has_the_published_number_of_parameters(name: str, published: int) -> None:
    assert zoo(name).param_count == published


def test_active_parameters_leave_out_the_table_and_unrouted_experts() -> None:
    # The model card of gpt-oss counts so too: 3.61 B and 5.13 B.
    assert zoo("gpt-oss-20b").active_param_count == pytest.approx(3.61e9, rel=2e-3)
    assert zoo("gpt-oss-120b").active_param_count == pytest.approx(5.13e9, rel=2e-3)
    dense = zoo("Llama-3.1-8B-Instruct")
    assert dense.active_param_count == dense.param_count - 128_256 * 4096
    tied = zoo("Llama-3.2-1B-Instruct")
    assert tied.active_param_count == tied.param_count


def test_weight_bytes_of_each_storage() -> None:
    llama = zoo("Llama-3.1-8B-Instruct")
    assert llama.weight_bytes() == 2 * llama.param_count
    # What fp8 leaves in 16 bits: both tables and 65 norms of 4096.
    wide = 2 * 128_256 * 4096 + 65 * 4096
    assert llama.weight_bytes(quantization="fp8") == llama.param_count + wide
    # The published checkpoint of gpt-oss-20b has 13.76 GB.
    assert zoo("gpt-oss-20b").weight_bytes() == pytest.approx(13.76e9, rel=1e-3)


def test_kv_bytes_per_token_by_hand() -> None:
    llama = zoo("Llama-3.1-8B-Instruct")
    # 32 layers, a key and a value, 8 heads of 128, 2 bytes
    assert llama.kv_bytes_per_token() == 32 * 2 * 8 * 128 * 2
    assert llama.kv_bytes_per_token(dtype="fp8") == 32 * 2 * 8 * 128


def test_windows_of_the_families() -> None:
    def windows(model: ModelSpec) -> list[int | None]:
        return [layer.find(SoftmaxAttention).sliding_window for layer in model.layers]

    assert windows(zoo("gemma-2-2b-it"))[:3] == [4096, None, 4096]
    assert windows(zoo("gemma-3-1b-it"))[:7] == [512] * 5 + [None, 512]
    assert windows(zoo("gpt-oss-20b"))[:3] == [128, None, 128]
    assert set(windows(zoo("Phi-3-mini-4k-instruct"))) == {2047}
    assert set(windows(zoo("Mistral-7B-Instruct-v0.3"))) == {None}
    assert set(windows(zoo("Qwen2.5-7B-Instruct"))) == {None}


def test_every_model_of_the_zoo_reads_and_names_its_source() -> None:
    for name in models_zoo.names():
        config = models_zoo.find(name)
        assert config is not None
        assert config["_model_id"] == name
        assert config["_source"]
        assert config["_confirmed"]
        spec, _ = model_from_config(config, name)
        assert spec.num_hidden_layers == len(spec.layers)


def test_zoo_names_are_found_in_any_case_with_or_without_organisation() -> None:
    full = models_zoo.find("Qwen/Qwen3-8B")
    assert full is not None
    assert models_zoo.find("qwen3-8b") == models_zoo.find("QWEN/QWEN3-8B") == full
    assert models_zoo.find("nobody/Qwen3-8B") is None
    assert models_zoo.find("../energymodel/profiles/x") is None


def test_short_names_of_the_zoo_are_unambiguous() -> None:
    short = [name.split("/")[1].lower() for name in models_zoo.names()]
    assert len(set(short)) == len(short)


def test_sparse_layers_follow_step_and_exceptions() -> None:
    config = models_zoo.find("Qwen3-30B-A3B")
    assert config is not None
    spec, _ = model_from_config(config | {"decoder_sparse_step": 2, "mlp_only_layers": [3]}, "x")
    kinds = [type(layer.blocks[1]) for layer in spec.layers[:6]]
    assert kinds == [Mlp, Moe, Mlp, Mlp, Mlp, Moe]


VALID = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"hidden_size": 0}, "'hidden_size'"),
        ({"hidden_size": -64}, "'hidden_size'"),
        ({"hidden_size": 64.0}, "'hidden_size'"),
        ({"hidden_size": "64"}, "'hidden_size'"),
        ({"hidden_size": True}, "'hidden_size'"),
        ({"hidden_size": 10**12}, "'hidden_size'"),
        ({"hidden_size": 63}, "'head_dim'"),
        ({"num_hidden_layers": 10**6}, "'num_hidden_layers'"),
        ({"num_key_value_heads": 3}, "'num_key_value_heads'"),
        ({"tie_word_embeddings": 1}, "'tie_word_embeddings'"),
        ({"model_type": "nonsense"}, "'model_type'"),
        ({"model_type": None}, "'model_type' is missing"),
        ({"model_type": ["llama"]}, "'model_type'"),
        ({"quantization_config": {"quant_method": "hqq"}}, "'quantization_config'"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "'layer_types'"),
        ({"model_type": "gemma2", "layer_types": ["full_attention", "x"]}, "'layer_types'"),
        ({"model_type": "gemma2", "layer_types": "full"}, "'layer_types'"),
        ({"model_type": "gemma2", "final_logit_softcapping": float("nan")}, "softcapping"),
        ({"model_type": "gemma3", "text_config": 3}, "'text_config'"),
        (
            {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 0},
            "'sliding_window'",
        ),
        ({"model_type": "olmoe"}, "'num_experts' is missing"),
        ({"model_type": "olmoe", "num_experts": 4, "num_experts_per_tok": 5}, "per_tok"),
        ({"model_type": "phi", "partial_rotary_factor": 2}, "'partial_rotary_factor'"),
        (
            {"model_type": "phi", "partial_rotary_factor": 10**400},
            "'partial_rotary_factor' is 1000",
        ),
        ({"model_type": "phi", "partial_rotary_factor": float("inf")}, "'partial_rotary_factor'"),
        ({"model_type": "phi", "rope_scaling": []}, "'rope_scaling'"),
    ],
)
def test_unusable_fields_are_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named) as error:
        model_from_config(VALID | change, "some/model")
    assert str(error.value).startswith("some/model")
    assert "\n" not in str(error.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = sorted(
    {
        *VALID,
        *("head_dim", "num_key_value_heads", "layer_types", "sliding_window", "mlp_only_layers"),
        *("use_sliding_window", "max_window_layers", "sliding_window_pattern", "text_config"),
        *("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size"),
        *("shared_expert_intermediate_size", "decoder_sparse_step", "quantization_config"),
        *("rope_scaling", "rope_parameters", "partial_rotary_factor", "attention_bias"),
    }
)


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from(sorted(FAMILIES)),
    st.dictionaries(st.sampled_from(KEYS), json_values, max_size=4),
)
def test_any_json_is_read_or_refused_with_a_reason(
    family: str, damage: Mapping[str, object]
) -> None:
    config = {**VALID, "num_experts": 4, "num_experts_per_tok": 2, "model_type": family, **damage}
    with contextlib.suppress(InputError):
        assert model_from_config(config, "x")[0].param_count > 0
