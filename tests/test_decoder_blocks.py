"""Kinds of attention and of what surrounds it, beyond those in ``test_ops``: masks, calls, errors."""

from dataclasses import replace

import numpy as np
import pytest
from family_cases import TINY, Json
from hypothesis import given
from hypothesis import strategies as st
from step_builders import decode, prefill, steps_of

from energymodel.blocks import SoftmaxAttention
from energymodel.deployment import Deployment
from energymodel.errors import InputError
from energymodel.model import ModelSpec, model_from_config
from energymodel.ops import Op, lower

# One chunk of 3 tokens after 2 cached ones, and two decoding sequences with 5 tokens cached.
STEP = steps_of(([(3, 2, 1, 1)], [(5, 2)]))


def spec(family: str, **changes: object) -> ModelSpec:
    return model_from_config({**TINY, "model_type": family, **changes}, "test")[0]


def calls(model: ModelSpec) -> list[Op]:
    return list(lower(model, Deployment(), STEP))


def pieces(size: int) -> SoftmaxAttention:
    return SoftmaxAttention(
        num_attention_heads=2, num_key_value_heads=1, head_dim=4, rotary_dim=4, chunk_size=size
    )


def mask(tokens: int, context: int, size: int) -> np.ndarray:
    """Queries in rows, keys in columns: those that came before within a piece of ``size``."""
    query = context + np.arange(tokens)[:, None]
    key = np.arange(context + tokens)[None, :]
    return (key <= query) & (key // size == query // size)


@given(st.integers(1, 60), st.integers(0, 90), st.integers(1, 40))
def test_pairs_and_keys_in_pieces_are_those_of_the_mask(
    tokens: int, context: int, size: int
) -> None:
    a, seen, at = pieces(size), mask(tokens, context, size), np.array([context])
    assert a.chunk_pairs(np.array([tokens]), at).tolist() == [seen.sum()]
    assert a.chunk_kv_tokens(np.array([tokens]), at).tolist() == [seen.any(axis=0).sum()]
    assert a.decode_kv_tokens(at).tolist() == [mask(1, context, size).sum()]


@given(st.integers(0, 700), st.integers(1, 300), st.integers(1, 500))
def test_the_mean_over_steps_of_a_decoding_sequence_is_that_of_its_steps(
    first: int, span: int, size: int
) -> None:
    a, at = pieces(size), np.arange(first, first + span)
    keys = (at % size) + 1
    middle = np.array([at.mean()])
    assert a.decode_kv_tokens(middle, span).item() == pytest.approx(keys.mean())
    blocks = np.ceil(keys / a.key_block) * a.key_block
    assert a.decode_block_tokens(middle, span).item() == pytest.approx(blocks.mean())


LLAMA4: Json = {
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "intermediate_size_mlp": 40,
    "attention_chunk_size": 4,
    "num_hidden_layers": 4,
}


def test_three_layers_of_four_see_a_piece_of_the_context_and_know_positions() -> None:
    attentions = [layer.find(SoftmaxAttention) for layer in spec("llama4_text", **LLAMA4).layers]
    assert [(a.chunk_size, a.rotary_dim, a.qk_norm) for a in attentions if a] == [
        *[(4, 8, "plain")] * 3,
        (None, 0, None),
    ]


def test_layers_that_share_a_cache_neither_project_keys_nor_write_them() -> None:
    gemma: Json = {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "sliding_window": 4,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 0,
    }
    found = calls(spec("gemma4_text", **gemma))
    widths = [op.shape["n"] for op in found if op.name == "qkv_proj"]
    # 4 heads of 8 or 16, and keys and values of 2 heads
    assert widths == [32 + 32, 64 + 64, 32, 64]
    assert [op.count for op in found if op.name == "kv_cache_write"] == [1, 1]
    assert sum(op.count for op in found if op.name == "attention_decode") == 4
    assert spec("gemma4_text", **gemma).kv_bytes_per_token() == 2 * 2 * 2 * (8 + 16)
    # Values of 2 heads, in and out, without learnt values: 5 rows, twice 16 or 32 values.
    assert [op.hbm_bytes.item() for op in found if op.name == "v_norm"] == [320, 640]


def test_values_that_are_keys_are_not_projected_again() -> None:
    model = spec(
        "gemma4_text",
        hidden_size_per_layer_input=0,
        global_head_dim=16,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        layer_types=["full_attention"] * 3,
    )
    (qkv,) = (op for op in calls(model) if op.name == "qkv_proj")
    assert qkv.shape["n"] == 4 * 16 + 16
    assert model.kv_bytes_per_token() == 3 * 2 * 16 * 2


GEMMA3N: Json = {
    "num_kv_shared_layers": 0,
    "layer_types": ["full_attention"] * 3,
    "vocab_size_per_layer_input": 64,
    "hidden_size_per_layer_input": 6,
    "altup_num_inputs": 3,
    "laurel_rank": 5,
}


@pytest.mark.parametrize(
    ("name", "hbm_bytes"),
    [
        # 3 layers of 6 values of a row of the table, in and out; two in and one out
        ("per_layer_embedding", 5 * 2 * 18 * 2),
        ("per_layer_sum", 5 * 3 * 18 * 2),
        # the gate and the layer's own values in, their product out
        ("per_layer_product", 5 * 3 * 6 * 2),
        # the result in, two copies of 32 in and out
        ("per_layer_add", 5 * 5 * 32 * 2),
        # each of 32 values of a token, of 3 copies, in and out; 3x3 coefficients
        ("altup_predict", 5 * 32 * (3 + 3) * 2 + 9 * 2),
        # the change and 3 copies in, 3 copies out
        ("altup_correct", 5 * 7 * 32 * 2),
        ("laurel_add", 5 * 6 * 32 * 2),
        ("laurel_left", 32 * 5 * 2 + 5 * (32 + 5) * 2),
    ],
)
def test_calls_around_the_layers_of_gemma3n_by_hand(name: str, hbm_bytes: int) -> None:
    found = {op.name: op for op in calls(spec("gemma3n_text", **GEMMA3N))}
    assert found[name].hbm_bytes.item() == hbm_bytes


def test_the_gate_is_cut_only_where_the_pattern_says_so() -> None:
    model = spec("gemma3n_text", **GEMMA3N, activation_sparsity_pattern=[0.9, 0.9, 0.0])
    (cut,) = (op for op in calls(model) if op.name == "cut")
    # 48 values of the gate are read, read again and written.
    assert (cut.count, cut.hbm_bytes.item()) == (2, 5 * 3 * 48 * 2)


def test_experts_beside_a_dense_block_add_three_norms_and_a_sum() -> None:
    routed: Json = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 12}
    model = spec("gemma4_text", **routed, enable_moe_block=True, hidden_size_per_layer_input=0)
    names = {op.name for op in calls(model)}
    assert {"gate_up_proj", "experts", "beside_add", "post_mlp_norm"} <= names
    assert {"pre_experts_norm", "post_experts_norm", "router_norm"} <= names
    assert model.regime == "moe"


SPARSE: Json = {
    "q_lora_rank": 6,
    "kv_lora_rank": 5,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2,
    "v_head_dim": 3,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "index_n_heads": 3,
    "index_head_dim": 8,
    "index_topk": 4,
}


def test_an_indexer_scores_every_key_and_attention_sees_the_best() -> None:
    found = {op.name: op for op in calls(spec("deepseek_v32", **SPARSE))}
    # Queries see 3, 4, 5 keys and twice 6; each pair has 3 heads of 8 and one weight.
    pairs = 12 + 12
    assert found["indexer"].flop.item() == 2 * 3 * 9 * pairs
    # 5 and 12 keys of 8.25 bytes; 5 queries of 3 heads, each with a weight; scores of 4 bytes
    assert found["indexer"].hbm_bytes.item() == 17 * 8.25 + 5 * 3 * (8.25 + 2) + 4 * pairs
    assert found["select_keys"].hbm_bytes.item() == 4 * pairs
    # Of those only 3, 4, 4 and twice 4 are looked at: 4 heads of 7 + 5 values
    assert found["attention_sparse"].flop.item() == 2 * 4 * 12 * (11 + 8)
    # 5 keys of the prompt and twice 4 of the others, of 7 values; 5 queries and results
    assert found["attention_sparse"].hbm_bytes.item() == 13 * 7 * 2 + 5 * 4 * 12 * 2
    assert found["q_absorb"].shape["m"].item() == 5


@given(st.integers(1, 30), st.integers(0, 30), st.integers(1, 40))
def test_sparse_attention_never_multiplies_more_than_with_all_keys(
    tokens: int, context: int, most: int
) -> None:
    few, all_of_them = (
        spec("deepseek_v32", **{**SPARSE, "index_topk": top}) for top in (most, 100)
    )
    for step in (prefill(tokens, context), decode(context)):
        a, b = (
            next(op for op in lower(model, Deployment(), step) if op.name == "attention_sparse")
            for model in (few, all_of_them)
        )
        assert a.flop.item() <= b.flop.item()
        assert a.hbm_bytes.item() <= b.hbm_bytes.item()


def test_layers_without_an_indexer_neither_store_nor_run_one() -> None:
    model = spec("glm_moe_dsa", **SPARSE, index_topk_pattern="FSF", first_k_dense_replace=3)
    assert [op.count for op in calls(model) if op.name == "indexer"] == [2]
    assert model.kv_bytes_per_token() == 3 * 7 * 2 + 2 * 8.25


def test_embeddings_of_another_width_are_projected_on_their_way_in_and_out() -> None:
    model = spec("opt", ffn_dim=40, word_embed_proj_dim=16)
    found = {op.name: op for op in calls(model)}
    assert found["embedding"].hbm_bytes.item() == 5 * 2 * 16 * 2
    assert found["project_in"].hbm_bytes.item() == 16 * 32 * 2 + 5 * (16 + 32) * 2
    assert found["position_embedding"].hbm_bytes.item() == 5 * 3 * 32 * 2
    assert found["lm_head"].shape["k"] == 16


@pytest.mark.parametrize(
    ("family", "changes", "biased"),
    [
        ("bloom", {"n_layer": 1, "n_head": 4}, True),
        ("mpt", {"d_model": 32, "n_layers": 1, "n_heads": 4}, True),
        (
            "mpt",
            {"d_model": 32, "n_layers": 1, "n_heads": 4, "attn_config": {"alibi": False}},
            False,
        ),
        ("falcon", {"alibi": True}, True),
        ("falcon", {}, False),
    ],
)
def test_attention_with_alibi_stands_for_another_kernel(
    family: str, changes: Json, biased: bool
) -> None:
    said = {
        op.stands_for for op in calls(spec(family, **changes)) if op.kind.endswith("_attention")
    }
    assert said == {"attention with a bias on its scores" if biased else ""}


def test_old_checkpoints_of_opt_lack_the_last_norm() -> None:
    new, old = (spec("opt", ffn_dim=40, _remove_final_layer_norm=flag) for flag in (False, True))
    assert new.param_count - old.param_count == 2 * 32
    assert "final_norm" not in {op.name for op in calls(old)}


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("gpt2", {}, "'n_embd' is missing"),
        ("gpt_neo", {"num_layers": 3, "num_heads": 4}, "'attention_types' gives 24 layers"),
        ("gpt_neo", {"attention_types": [[["global"], 10**12]]}, "'attention_types'"),
        ("gpt_neo", {"attention_types": [[["local", []], 3]]}, "'attention_types'"),
        ("gpt_neo", {"attention_types": "global"}, "'attention_types'"),
        (
            "gpt_neo",
            {"num_layers": 3, "num_heads": 4, "attention_types": [[["global"], 10**4]] * 10**4},
            "gives 10000 layers or more",
        ),
        ("smollm3", {"no_rope_layers": [1, 0]}, "'no_rope_layers'"),
        ("smollm3", {"no_rope_layers": [1, 0, "x"]}, "'no_rope_layers'"),
        ("llama4_text", {**LLAMA4, "layer_types": ["full_attention"]}, "'layer_types'"),
        ("llama4_text", {**LLAMA4, "layer_types": [{}] * 4}, "'layer_types'"),
        ("llama4_text", {**LLAMA4, "moe_layers": ["a"]}, "'moe_layers'"),
        ("glm4_moe_lite", {**SPARSE, "mlp_layer_types": ["dense"] * 2}, "'mlp_layer_types'"),
        ("glm4_moe_lite", {**SPARSE, "mlp_layer_types": [[]] * 3}, "'mlp_layer_types'"),
        ("glm_moe_dsa", {**SPARSE, "indexer_types": ["full"]}, "'indexer_types'"),
        ("glm_moe_dsa", {**SPARSE, "index_topk_pattern": "FXF"}, "'indexer_types'"),
        ("deepseek_v32", {**SPARSE, "q_lora_rank": None}, "'q_lora_rank'"),
        ("deepseek_v3", {**SPARSE, "n_group": 1, "n_routed_experts": 1}, "num_experts_per_tok"),
        ("hunyuan_v1_moe", {"num_experts": 4, "moe_topk": [1, 2]}, "'moe_topk'"),
        ("hunyuan_v1_moe", {"num_experts": 4, "moe_topk": [[], 1, {}]}, "'moe_topk'"),
        ("hunyuan_v1_moe", {"num_experts": 4, "moe_topk": 9}, "num_experts_per_tok"),
        ("gemma3n_text", {"intermediate_size": [8, 8]}, "'intermediate_size'"),
        ("gemma3n_text", {"intermediate_size": [8, "8", 8]}, "'intermediate_size'"),
        ("gemma3n_text", {"activation_sparsity_pattern": ["a"] * 3}, "'activation_sparsity"),
        ("internlm3", {"qkv_bias": True}, "'qkv_bias' and 'bias'"),
        ("dbrx", {"d_model": 32, "n_heads": 4, "n_layers": 2}, "'attn_config' and 'ffn_config'"),
        ("minicpm", {"num_experts": 8}, "'num_experts'"),
    ],
)
def test_unusable_fields_of_decoders_are_named(family: str, changes: Json, named: str) -> None:
    config = {k: v for k, v in TINY.items() if family != "gpt2" or not k.startswith("hidden")}
    with pytest.raises(InputError, match=named) as caught:
        model_from_config({**config, "model_type": family, **changes}, "test")
    assert "\n" not in str(caught.value)


def test_both_names_of_a_field_are_read() -> None:
    bloom: Json = {"n_layer": 2, "vocab_size": 64, "model_type": "bloom"}
    one, other = (
        model_from_config({**bloom, **names}, "test")[0]
        for names in (
            {"n_embed": 32, "num_attention_heads": 4},
            {"hidden_size": 32, "n_head": 4},
        )
    )
    assert one == other == replace(one)
