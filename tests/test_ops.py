"""Operations of a step: hand calculations, then properties that hold for every model."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_builders import decode, prefill, steps_of

import models_zoo
from energymodel.deployment import Deployment
from energymodel.errors import InputError
from energymodel.model import ModelSpec, model_from_config
from energymodel.ops import Op, lower

TINY = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 32,
}
TINY_MOE = TINY | {
    "model_type": "mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": None,
}
# Two layers of each kind that there is: dense, windowed, routed, shared experts, biases, post-norms.
ALL_KINDS = (
    TINY,
    TINY_MOE,
    TINY | {"model_type": "gemma2", "sliding_window": 5},
    TINY | {"model_type": "olmo2"},
    TINY | {"model_type": "olmo", "clip_qkv": 8.0},
    TINY | {"model_type": "phi", "partial_rotary_factor": 0.5},
    TINY
    | {
        "model_type": "qwen2_moe",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "shared_expert_intermediate_size": 20,
        "mlp_only_layers": [0],
    },
    TINY
    | {
        "model_type": "gpt_oss",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 3,
        "quantization_config": {"quant_method": "mxfp4"},
    },
)


def spec(config: dict[str, object]) -> ModelSpec:
    return model_from_config(config, "test")[0]


def by_name(ops: tuple[Op, ...]) -> dict[str, Op]:
    named = {op.name: op for op in ops}
    assert len(named) == len(ops)
    return named


def totals(ops: tuple[Op, ...]) -> tuple[float, float]:
    flop = sum(float(np.sum(op.count * op.flop)) for op in ops)
    return flop, sum(float(np.sum(op.count * op.hbm_bytes)) for op in ops)


# One chunk of 3 tokens after 2 cached ones, which completes its prompt, and two decoding sequences
# that have 5 tokens in the cache each: 5 rows in the layers, 3 rows in the LM head.
STEP = steps_of(([(3, 2, 1, 1)], [(5, 2)]))


def test_every_operation_of_a_dense_step_by_hand() -> None:
    ops = lower(spec(TINY), Deployment(), STEP)
    # (name, kind, component, calls, FLOP, bytes); hidden 8, q 2x4, k and v 1x4, MLP 16, 2 bytes.
    expected = [
        ("embedding", "gather", "embedding", 1, 0, 5 * (8 + 8) * 2),  # 160
        # x and residual in and out, and the scale: 5 x 4 x 8 x 2 + 8 x 2
        ("input_norm", "rms_norm", "norm", 2, 0, 320 + 16),
        # [5,8] x [8,16]: 2x5x8x16; 16x8 weights, 5 rows of 8 in and 16 out
        ("qkv_proj", "gemm", "attention_projections", 2, 1280, 256 + 240),
        ("rotary", "rotary", "attention", 2, 0, 5 * 2 * (8 + 4) * 2),  # 240
        ("kv_cache_write", "kv_write", "attention", 2, 0, 5 * 2 * (4 + 4) * 2),  # 160
        # queries see 3, 4, 5 keys: 12 pairs x 4 x 8; 5 keys and values of 4, 3 rows of 8 in and out
        ("attention_prefill", "prefill_attention", "attention", 2, 384, 80 + 96),
        # 2 queries see 6 keys: 12 pairs x 4 x 8; 12 keys and values of 4, 2 rows of 8 in and out
        ("attention_decode", "decode_attention", "attention", 2, 384, 192 + 64),
        ("o_proj", "gemm", "attention_projections", 2, 2 * 5 * 8 * 8, 128 + 160),
        ("post_attention_norm", "rms_norm", "norm", 2, 0, 320 + 16),
        ("gate_up_proj", "gemm", "mlp", 2, 2 * 5 * 8 * 32, 512 + 5 * (8 + 32) * 2),
        ("activation", "silu_and_mul", "mlp", 2, 0, 5 * (32 + 16) * 2),
        ("down_proj", "gemm", "mlp", 2, 2 * 5 * 16 * 8, 256 + 5 * (16 + 8) * 2),
        ("final_norm", "rms_norm", "norm", 1, 0, 320 + 16),
        ("sampled_rows", "gather", "lm_head", 1, 0, 3 * (8 + 8) * 2),
        ("lm_head", "gemm", "lm_head", 1, 2 * 3 * 8 * 32, 512 + 3 * (8 + 32) * 2),
        # logits in 16 bits, out in 32, in again for the maximum: 3 x 32 x (2 + 4 + 4)
        ("sampling", "sampling", "sampling", 1, 0, 960),
    ]
    found = [
        (op.name, op.kind, op.component, op.count, op.flop.item(), op.hbm_bytes.item())
        for op in ops
    ]
    assert found == expected
    assert {op.dtype for op in ops} == {"bfloat16"}


def test_shapes_of_a_dense_step_by_hand() -> None:
    ops = by_name(lower(spec(TINY), Deployment(), STEP))
    shapes = {
        name: {key: float(np.asarray(value).item()) for key, value in ops[name].shape.items()}
        for name in ("gate_up_proj", "lm_head", "attention_prefill", "attention_decode", "rotary")
    }
    heads = {"heads": 2, "kv_heads": 1, "head_dim": 4, "kv_element_bytes": 2}
    wide = {"weight_element_bytes": 2, "input_element_bytes": 2}
    assert shapes == {
        "gate_up_proj": {"m": 5, "n": 32, "k": 8} | wide,
        "lm_head": {"m": 3, "n": 32, "k": 8} | wide,
        "attention_prefill": heads | {"tokens": 3, "pairs": 12, "kv_tokens": 5, "num_seqs": 1},
        # two sequences of 6 keys: one block of 128 each
        "attention_decode": heads | {"num_seqs": 2, "kv_tokens": 12, "block_tokens": 256},
        "rotary": {"rows": 5, "width": 12, "bytes": 240},
    }


def test_experts_by_hand() -> None:
    ops = by_name(lower(spec(TINY_MOE), Deployment(), decode(3, count=2)))
    # 2 tokens, 2 of 4 experts each: 4 x (1 - (1/2)^2) = 3 experts touched, 3x8x16 weights each.
    experts = ops["experts"]
    assert experts.shape["experts_touched"] == pytest.approx(3, rel=1e-15)
    assert experts.flop.item() == 2 * 2 * 2 * 3 * 8 * 16
    # A token: 8 in, 8 out, and for 2 choices 32 out and in, 16 out and in, 8 out and in.
    token_bytes = 2 * (8 + 8 + 2 * (2 * 32 + 2 * 16 + 2 * 8))
    assert experts.hbm_bytes.item() == pytest.approx(3 * 384 * 2 + 2 * token_bytes, rel=1e-15)
    assert (experts.kind, experts.component, experts.count) == ("moe", "moe", 2)
    assert ops["router"].flop.item() == 2 * 2 * 8 * 4
    assert ops["router"].hbm_bytes.item() == 4 * 8 * 2 + 2 * (8 + 4) * 2
    assert ops["topk"].hbm_bytes.item() == 2 * (4 * 2 + 2 * (4 + 4))


def test_fp8_weights_take_one_byte_and_inputs_are_quantised_first() -> None:
    ops = by_name(lower(spec(TINY), Deployment(quantization="fp8"), STEP))
    assert ops["qkv_proj"].dtype == "fp8"
    # 16x8 weights of 1 byte; 5 rows of 8 in (1 byte) and 16 out (2 bytes)
    assert ops["qkv_proj"].hbm_bytes.item() == 128 + 5 * (8 + 32)
    assert ops["qkv_proj_quant"].hbm_bytes.item() == 5 * 8 * (2 + 1)
    assert ops["lm_head"].dtype == "bfloat16"
    assert ops["lm_head"].hbm_bytes.item() == 512 + 240


def test_fp8_kv_cache_halves_what_attention_reads() -> None:
    ops = by_name(lower(spec(TINY), Deployment(kv_cache_dtype="fp8"), STEP))
    assert ops["attention_decode"].hbm_bytes.item() == 192 / 2 + 64
    assert ops["kv_cache_write"].hbm_bytes.item() == 5 * 8 * (2 + 1)


def test_mxfp4_experts_are_read_in_four_and_a_quarter_bits() -> None:
    experts = by_name(
        lower(spec(ALL_KINDS[-1] | {"num_hidden_layers": 1}), Deployment(), decode(1))
    )
    op = experts["experts"]
    # 1 token touches 2 experts: 3x8x16 weights of 17/32 byte and 40 biases of 2 bytes each.
    activations = 2 * (8 + 8 + 2 * (2 * 32 + 2 * 16 + 2 * 8))
    assert op.hbm_bytes.item() == pytest.approx(2 * (384 * 17 / 32 + 40 * 2) + activations)
    assert op.dtype == "bfloat16"


def test_a_step_without_sampled_rows_does_not_read_the_head() -> None:
    ops = by_name(lower(spec(TINY), Deployment(), prefill(4, last=0)))
    assert ops["lm_head"].hbm_bytes.item() == 0
    assert ops["sampling"].hbm_bytes.item() == 0
    assert ops["gate_up_proj"].flop.item() > 0


def test_layer_layouts_have_their_norms_and_sums() -> None:
    def norms(config: dict[str, object]) -> list[str]:
        ops = lower(spec(config | {"num_hidden_layers": 1}), Deployment(), STEP)
        return [op.name for op in ops if op.component == "norm"]

    assert norms(TINY | {"model_type": "olmo2"}) == [
        "qk_norm",
        "post_attention_norm",
        "residual_add",
        "post_feedforward_norm",
        "residual_add",
        "final_norm",
    ]
    assert norms(TINY | {"model_type": "gemma3_text"}) == [
        "input_norm",
        "qk_norm",
        "post_attention_norm",
        "pre_feedforward_norm",
        "post_feedforward_norm",
        "final_norm",
    ]
    assert norms(TINY | {"model_type": "phi"}) == ["input_norm", "residual_add", "final_norm"]


QWEN_MOE = ALL_KINDS[6] | {"mlp_only_layers": []}


@pytest.mark.parametrize(
    ("config", "name", "hbm_bytes"),
    [
        # two in, one out; attention, MLP and residual in, one out
        (TINY | {"model_type": "olmo2"}, "residual_add", 5 * 3 * 8 * 2),
        (TINY | {"model_type": "phi"}, "residual_add", 5 * 4 * 8 * 2),
        # one in, one out, scale and shift; no learnt vectors at all; a scale
        (TINY | {"model_type": "phi"}, "input_norm", 5 * 2 * 8 * 2 + 2 * 8 * 2),
        (TINY | {"model_type": "olmo"}, "input_norm", 5 * 4 * 8 * 2),
        (TINY | {"model_type": "gemma2"}, "post_feedforward_norm", 5 * 2 * 8 * 2 + 8 * 2),
        # q of 8 and k of 4, in and out; scales of one head each, or of all
        (TINY | {"model_type": "qwen3"}, "qk_norm", 5 * 2 * 12 * 2 + (4 + 4) * 2),
        (TINY | {"model_type": "olmo2"}, "qk_norm", 5 * 2 * 12 * 2 + (8 + 4) * 2),
        (TINY | {"model_type": "olmo", "clip_qkv": 8.0}, "clip_qkv", 5 * 2 * 16 * 2),
        (TINY | {"model_type": "gemma2"}, "logit_softcap", 3 * 2 * 32 * 2),
        # 8x16 weights, 16 biases, 8 in, 16 out
        (TINY | {"model_type": "phi"}, "up_proj", 256 + 32 + 5 * (8 + 16) * 2),
        # shared expert of 20: gate and up are 40 wide; its gate is one number for each token
        (QWEN_MOE, "shared_gate_up_proj", 8 * 40 * 2 + 5 * (8 + 40) * 2),
        (QWEN_MOE, "shared_expert_gate", 8 * 2 + 5 * (8 + 1) * 2),
        (QWEN_MOE, "shared_add", 5 * 3 * 8 * 2),
    ],
)
def test_operations_of_single_families_by_hand(
    config: dict[str, object], name: str, hbm_bytes: int
) -> None:
    ops = lower(spec(config | {"num_hidden_layers": 1}), Deployment(), STEP)
    assert {op.hbm_bytes.item() for op in ops if op.name == name} == {hbm_bytes}


@pytest.mark.parametrize(
    ("deployment", "named"),
    [
        (Deployment(tensor_parallel_size=7), "tensor_parallel_size"),
        (Deployment(tensor_parallel_size=16), "node_link_bytes_per_s"),
        (Deployment(dtype="float64"), "dtype"),
        (Deployment(kv_cache_dtype="int3"), "kv_cache_dtype"),
        (Deployment(quantization="awq"), "awq"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(deployment: Deployment, named: str) -> None:
    with pytest.raises(InputError, match=named):
        lower(spec(TINY), deployment, STEP)


# Experts that are stored in four bits cannot be quantised to fp8.
QUANTISED = [(config, None) for config in ALL_KINDS] + [
    (config, "fp8") for config in ALL_KINDS[:-1]
]
every_kind = pytest.mark.parametrize(
    ("config", "quantization"), QUANTISED, ids=lambda c: c["model_type"] if c and c != "fp8" else c
)


@every_kind
def test_projection_weights_read_in_a_step_are_those_of_the_model(
    config: dict[str, object], quantization: str | None
) -> None:
    model = spec(config)
    # With very many tokens every expert is touched; weights = bytes minus what scales with rows.
    one, two = (
        lower(model, Deployment(quantization=quantization), prefill(n)) for n in (10_000, 20_000)
    )
    fixed = sum(
        o.count * (2 * o.hbm_bytes.item() - t.hbm_bytes.item())
        for o, t in zip(one, two, strict=True)
        if o.kind in ("gemm", "moe") and o.name != "lm_head"
    )
    head = model.vocab_size * model.hidden_size + (model.vocab_size if model.lm_head_bias else 0)
    tables = head + (0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size)
    vectors = {"rms": 1, "layer": 2, "plain": 0}[model.layers[0].norm] * model.hidden_size
    vectors += sum(
        count * w.params
        for layer, count in model.layer_groups()
        for w in layer.weights(model.hidden_size)
        if w.name in ("norm", "qk_norm", "sinks")
    )
    expected = model.weight_bytes(quantization=quantization) - 2 * (tables + vectors)
    assert fixed == pytest.approx(expected, rel=1e-9)


@every_kind
def test_two_steps_together_equal_each_alone(
    config: dict[str, object], quantization: str | None
) -> None:
    first = ([(7, 0, 2, 1), (3, 9, 1, 0)], [(4.5, 3), (11, 1)])
    second = ([], [(20, 5)])
    deployment = Deployment(quantization=quantization)
    together = lower(spec(config), deployment, steps_of(first, second))
    apart = [lower(spec(config), deployment, steps_of(row)) for row in (first, second)]
    for i, op in enumerate(together):
        for row in range(2):
            alone = apart[row][i]
            without = {"flop": 0, "hbm_bytes": 0, "weight_bytes": 0, "shape": {}, "asked": None}
            assert replace(op, **without) == replace(alone, **without)
            assert op.flop[row] == alone.flop[0]
            assert op.weight_bytes[row] == pytest.approx(alone.weight_bytes[0], rel=1e-14)
            # The power in the expected number of experts is not the same to the last bit when
            # numpy evaluates several at once.
            assert op.hbm_bytes[row] == pytest.approx(alone.hbm_bytes[0], rel=1e-14)
            for key, value in op.shape.items():
                whole, single = np.atleast_1d(value), np.atleast_1d(alone.shape[key])
                assert whole[row % whole.size] == pytest.approx(single[0], rel=1e-14)


configs = st.sampled_from(ALL_KINDS)
small = st.integers(1, 40)


@settings(deadline=None, max_examples=60)
@given(configs, small, small, st.integers(0, 30), st.booleans())
def test_more_tokens_sequences_context_or_layers_never_cost_less(
    config: dict[str, object], tokens: int, batch: int, context: int, decoding: bool
) -> None:
    def cost(tokens: int, batch: int, context: int, layers: int) -> tuple[float, float]:
        model = spec({**config, "num_hidden_layers": layers})
        step = decode(context, batch) if decoding else prefill(tokens, context, batch)
        return totals(lower(model, Deployment(), step))

    base = cost(tokens, batch, context, 2)
    for more in (
        cost(tokens + 1, batch, context, 2),
        cost(tokens, batch + 1, context, 2),
        cost(tokens, batch, context + 1, 2),
        cost(tokens, batch, context, 4),
    ):
        assert more[0] >= base[0]
        assert more[1] >= base[1] * (1 - 1e-12)


@settings(deadline=None, max_examples=60)
@given(small, small, st.integers(0, 60), st.integers(1, 50))
def test_a_window_never_costs_more_than_full_attention(
    tokens: int, batch: int, context: int, window: int
) -> None:
    mistral = TINY | {"model_type": "mistral"}
    for step in (prefill(tokens, context, batch), decode(context, batch)):
        sliding = totals(lower(spec(mistral | {"sliding_window": window}), Deployment(), step))
        full = totals(lower(spec(mistral | {"sliding_window": None}), Deployment(), step))
        assert sliding[0] <= full[0]
        assert sliding[1] <= full[1]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.integers(1, 64), st.data())
def test_expert_weights_read_lie_between_those_of_one_token_and_all(
    tokens: int, experts: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, experts))
    config = TINY_MOE | {"num_local_experts": experts, "num_experts_per_tok": top_k}
    op = by_name(lower(spec(config), Deployment(), prefill(tokens)))["experts"]
    touched = np.asarray(op.shape["experts_touched"]).item()
    assert top_k * (1 - 1e-12) <= touched <= experts * (1 + 1e-12)
    one = 3 * 8 * 16 * 2
    rows = 2 * (16 + top_k * (6 * 16 + 2 * 8)) * tokens
    assert top_k * one * (1 - 1e-12) <= op.hbm_bytes.item() - rows * (1 - 1e-12)
    assert op.hbm_bytes.item() <= (experts * one + rows) * (1 + 1e-12)


@settings(deadline=None, max_examples=40)
@given(configs, st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_chunks_of_a_prompt_have_the_flop_of_the_whole_prompt(
    config: dict[str, object], pieces: list[int]
) -> None:
    model = spec(config)
    starts = np.cumsum([0, *pieces[:-1]])
    last = [0] * (len(pieces) - 1) + [1]
    rows = [([(t, int(c), 1, e)], []) for t, c, e in zip(pieces, starts, last, strict=True)]
    chunked = lower(model, Deployment(), steps_of(*rows))
    whole = lower(model, Deployment(), prefill(sum(pieces)))
    assert totals(chunked)[0] == totals(whole)[0]


def test_a_thousand_steps_of_the_largest_model_are_fast() -> None:
    config = models_zoo.find("Llama-3.1-405B-Instruct")
    assert config is not None
    model = spec(config)
    steps = steps_of(*[([(512, 0, 4, 1)], [(100 + i, 64)]) for i in range(1000)])
    start = time.perf_counter()
    lower(model, Deployment(), steps)
    assert time.perf_counter() - start < 2  # takes 0.02 s on two idle cores


def test_four_bits_of_bitsandbytes_are_widened_before_each_product() -> None:
    config = TINY | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    ops = by_name(lower(spec(config), Deployment(), STEP))
    unpack, product = ops["o_proj_unpack"], ops["o_proj"]
    # 8 x 8 weights: half a byte and a 64th of four each in, two bytes out
    assert unpack.hbm_bytes == 64 * (0.5 + 4 / 64 + 2)
    assert unpack.stands_for
    assert (product.stored, product.weight_bytes) == ("bfloat16", 128)
    assert "lm_head_unpack" not in ops


def test_experts_say_how_wide_their_first_product_is() -> None:
    gated = by_name(lower(spec(TINY_MOE), Deployment(), STEP))["experts"].shape
    assert gated["up_size"] == 2 * float(gated["intermediate_size"])
