"""Latent attention: every call of a step by hand, and as the calibration counts the same kernels."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from step_builders import decode, prefill, steps_of

from calibration import tables
from energymodel.deployment import Deployment
from energymodel.model import ModelSpec, model_from_config
from energymodel.ops import Op, lower

TINY = {
    "model_type": "deepseek_v3",
    "hidden_size": 8,
    "intermediate_size": 16,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 3,
    "num_attention_heads": 2,
    "q_lora_rank": 6,
    "kv_lora_rank": 5,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2,
    "v_head_dim": 3,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "vocab_size": 32,
}
# One chunk of 3 tokens after 2 cached ones, and two decoding sequences with 5 tokens cached.
STEP = steps_of(([(3, 2, 1, 1)], [(5, 2)]))


def spec(**changes: object) -> ModelSpec:
    return model_from_config({**TINY, **changes}, "test")[0]


def ops_of(model: ModelSpec, deployment: Deployment | None = None) -> dict[str, Op]:
    return {op.name: op for op in lower(model, deployment or Deployment(), STEP)}


def test_every_operation_of_latent_attention_by_hand() -> None:
    # 2 heads; queries 2x6, latent 5+2, expanded 2x(4+3), results 2x3; 5 rows, 2 bytes a value.
    expected = {
        # (kind, FLOP, bytes): [5,8] x [8,6+7]
        "qkv_a_proj": ("gemm", 2 * 5 * 8 * 13, 8 * 13 * 2 + 5 * (8 + 13) * 2),
        "q_a_norm": ("rms_norm", 0, 5 * 2 * 6 * 2 + 6 * 2),
        "kv_a_norm": ("rms_norm", 0, 5 * 2 * 5 * 2 + 5 * 2),
        "q_b_proj": ("gemm", 2 * 5 * 6 * 12, 6 * 12 * 2 + 5 * (6 + 12) * 2),
        # 2 values of each query head and of the one key
        "rotary": ("rotary", 0, 5 * 2 * 3 * 2 * 2),
        "kv_cache_write": ("kv_write", 0, 5 * 2 * 7 * 2),
        # 3 new tokens and 2 of an earlier chunk
        "kv_b_proj": ("gemm", 2 * 5 * 5 * 14, 5 * 14 * 2 + 5 * (5 + 14) * 2),
        "join_keys": ("elementwise", 0, 5 * 2 * (4 + 6) * 2),
        # queries see 3, 4, 5 keys; 5 keys and values of 2x(6+3), 3 queries and results
        "attention_prefill": ("mla_prefill", 2 * 2 * 9 * 12, 5 * 18 * 2 + 3 * 18 * 2),
        # 2 sequences: each head's 4 values times [4,5]
        "q_absorb": ("gemm", 2 * 2 * 2 * 4 * 5, 2 * 20 * 2 + 2 * 2 * (4 + 5) * 2),
        # 2 queries see 6 keys of 7 values, of which 5 are the value
        "attention_decode": ("mla_decode", 2 * 2 * 12 * 12, 12 * 7 * 2 + 2 * 2 * 12 * 2),
        "v_expand": ("gemm", 2 * 2 * 2 * 5 * 3, 2 * 15 * 2 + 2 * 2 * (5 + 3) * 2),
        "o_proj": ("gemm", 2 * 5 * 6 * 8, 6 * 8 * 2 + 5 * (6 + 8) * 2),
    }
    ops = ops_of(spec())
    found = {
        name: (ops[name].kind, ops[name].flop.item(), ops[name].hbm_bytes.item())
        for name in expected
    }
    assert found == expected
    assert all(ops[name].count == 3 for name in expected)


def test_queries_without_a_narrow_layer_are_projected_at_once() -> None:
    ops = ops_of(spec(q_lora_rank=None))
    assert ops["q_proj"].flop.item() == 2 * 5 * 8 * 12
    assert ops["kv_a_proj_with_mqa"].flop.item() == 2 * 5 * 8 * 7
    assert not {"qkv_a_proj", "q_a_norm", "q_b_proj"} & set(ops)


def test_an_fp8_cache_halves_what_decoding_reads() -> None:
    op = ops_of(spec(), Deployment(kv_cache_dtype="fp8"))["attention_decode"]
    assert op.weight_bytes.item() == 12 * 7
    assert op.law == "mla_decode.fp8"


def test_products_of_single_heads_stay_wide_where_projections_are_narrow() -> None:
    ops = ops_of(spec(), Deployment(quantization="fp8"))
    assert ops["kv_b_proj"].stored == "fp8"
    assert {ops[name].stored for name in ("q_absorb", "v_expand")} == {"bfloat16"}


@pytest.mark.parametrize("heads", [2, 128])
@pytest.mark.parametrize(("seqs", "tokens", "context"), [(3, 1, 40), (2, 300, 0), (2, 200, 700)])
def test_shapes_are_those_that_the_calibration_fits(
    heads: int, seqs: int, tokens: int, context: int
) -> None:
    shape = {
        key: TINY[key]
        for key in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    }
    shape |= {"heads": heads, "num_seqs": seqs, "tokens": tokens, "context": context}
    observed: Any = SimpleNamespace(shape=shape, dtype="bfloat16")
    fitted = tables._mla(observed)
    steps = decode(context, seqs) if tokens == 1 else prefill(tokens, context, seqs)
    phase = "decode" if tokens == 1 else "prefill"
    model = spec(num_attention_heads=heads)
    op = next(o for o in lower(model, Deployment(), steps) if o.kind == f"mla_{phase}")
    predicted = {key: np.asarray(value).item() for key, value in op.shape.items()}
    assert predicted == {key: pytest.approx(fitted[key]) for key in predicted}
    assert op.weight_bytes.item() == pytest.approx(fitted["weights"])
    assert (op.hbm_bytes - op.weight_bytes).item() == pytest.approx(fitted["rows_moved"])


def test_the_cache_holds_one_latent_however_many_heads_there_are() -> None:
    few, many = (spec(num_attention_heads=n).kv_bytes_per_token() for n in (2, 16))
    assert few == many == 3 * 7 * 2


def test_layers_that_predict_further_tokens_are_stored_apart() -> None:
    model = spec(first_k_dense_replace=1, num_nextn_predict_layers=1)
    assert model.param_count == spec(first_k_dense_replace=1).param_count
    assert model.mtp is not None
    # A layer like the last, three norms, [2x8, 8], and copies of table and head of 32x8.
    layer = sum(w.params for w in model.layers[-1].weights(8))
    stored = sum(count * w.params for w, count, _ in model.mtp.weights())
    assert stored == layer + 3 * 8 + 16 * 8 + 2 * 32 * 8
