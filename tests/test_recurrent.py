"""Recurrent blocks: what calibration measured, hand calculations, properties, hostile files."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from family_cases import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from step_builders import decode, prefill, steps_of

from calibration.observations import Observation
from calibration.tables import table
from energymodel.blocks import GatedDelta, Mamba, Mamba2, SharedTransformer, ShortConvolution
from energymodel.deployment import Deployment
from energymodel.errors import InputError
from energymodel.model import LayerSpec, ModelSpec, Stack, model_from_config
from energymodel.ops import Op, lower
from energymodel.profile import load
from energymodel.steps import Steps
from energymodel.timing import law_shapes

MAMBA2 = Mamba2(num_heads=8, head_dim=64, state_size=16, n_groups=2, conv_kernel=4)
DELTA = GatedDelta(num_key_heads=2, num_value_heads=4, key_dim=32, value_dim=32, conv_kernel=4)
# One layer, or four, of each recurrent kind: (its tiny configuration).
SIZES = {"hidden_size": 16, "vocab_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24}
STATE_SPACE = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 6}
KINDS: dict[str, dict[str, Any]] = {
    "mamba": {},
    "falcon_mamba": {},
    "mamba2": {"num_heads": 4, "head_dim": 8, "state_size": 6, "n_groups": 1},
    "rwkv": {},
    "recurrent_gemma": HEADS | {"block_types": ["recurrent", "attention"]},
    "falcon_h1": HEADS | STATE_SPACE | {"mamba_d_ssm": 32},
    "jamba": HEADS | {"num_experts": 4, "num_experts_per_tok": 2, "attn_layer_offset": 0},
    "nemotron_h": HEADS
    | {"mamba_num_heads": 2, "mamba_head_dim": 8, "hybrid_override_pattern": "M-M*"},
    "zamba2": HEADS
    | {"n_mamba_heads": 4, "layers_block_type": ["hybrid", "hybrid"], "use_mem_rope": True},
    "qwen3_5_text": HEADS | {"full_attention_interval": 2, "linear_value_head_dim": 8},
    "minimax": HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "lfm2": HEADS | {"layer_types": ["conv", "full_attention"]},
}
# A model type and sizes that go together; names differ in two of the families.
every_kind = pytest.mark.parametrize("kind", KINDS)


def config(kind: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": kind, **SIZES, **KINDS[kind], **changes}


def spec(kind: str, **changes: Any) -> ModelSpec:
    return model_from_config(config(kind, **changes), "test")[0]


def of_block(block: Any, hidden_size: int = 16) -> ModelSpec:
    """A model of one layer with one block."""
    return ModelSpec(
        name="test",
        model_type="test",
        vocab_size=32,
        tie_word_embeddings=True,
        text=Stack(hidden_size=hidden_size, layers=(LayerSpec(blocks=(block,)),)),
    )


def calls(model: ModelSpec, steps: Steps, **flags: Any) -> dict[str, Op]:
    return {op.name: op for op in lower(model, Deployment(**flags), steps)}


def seen(op: str, shape: dict[str, int]) -> Observation:
    """One observation of the sweep."""
    where = {"stack": "simulated", "gpu": "NVIDIA H200", "board": "simulated", "driver": "0"}
    return Observation(op=op, shape=shape, mode="burst", trial=0, call_s=1.0, **where)


def totals(ops: tuple[Op, ...]) -> tuple[float, float]:
    flop = sum(float(np.sum(op.count * op.flop)) for op in ops)
    return flop, sum(float(np.sum(op.count * op.hbm_bytes)) for op in ops)


# --- as calibration measured it -------------------------------------------------------------------

SCAN = {"heads": 8, "head_dim": 64, "state": 16, "groups": 2}
RULE = {"heads": 4, "key_heads": 2, "head_dim": 32}
FLOAT32 = {"state_bytes": 4}
MEASURED = (
    (MAMBA2, "selective_scan", SCAN, "scan"),
    (replace(MAMBA2, state_dtype="float32"), "selective_scan", SCAN | FLOAT32, "scan"),
    (DELTA, "linear_attention", RULE, "linear_attention"),
    (replace(DELTA, state_dtype="float32"), "linear_attention", RULE | FLOAT32, "linear_attention"),
    # 512 channels of x, and 16 values of B and of C for each of two groups
    (MAMBA2, "causal_conv1d", {"width": 512 + 2 * 2 * 16}, "causal_conv1d"),
)


@pytest.mark.parametrize("what", MEASURED, ids=lambda what: f"{what[1]}-{what[2]}")
@pytest.mark.parametrize(("seqs", "tokens"), [(7, 1), (3, 512), (1, 40)])
def test_an_operation_is_what_was_measured(
    what: tuple[Any, str, dict[str, int], str], seqs: int, tokens: int
) -> None:
    block, op, sizes, law = what
    phase = "decode" if tokens == 1 else "prefill"
    steps = decode(9, seqs) if tokens == 1 else prefill(tokens, count=seqs)
    name = f"conv1d_{phase}" if op == "causal_conv1d" else f"{law}_{phase}"
    call = calls(of_block(block), steps)[name]
    measured = table(call.law, [seen(op, {"num_seqs": seqs, "tokens": tokens, **sizes})])
    assert call.law == (law if op == "causal_conv1d" else name)
    assert call.flop.item() == measured.flop.item()
    assert call.hbm_bytes.item() == measured.shapes["bytes"].item()
    if op != "causal_conv1d":
        assert call.weight_bytes.item() == measured.weight_bytes.item()
    predicted = law_shapes(call, lambda rows: rows)
    for key, value in measured.shapes.items():
        if key == "flop" and op == "causal_conv1d":
            continue  # 0, which the law does not read
        assert predicted[key].item() == value.item(), key


def test_chunks_of_different_length_run_side_by_side() -> None:
    together = calls(of_block(MAMBA2), steps_of(([(512, 0, 1, 1), (64, 9, 2, 1)], [])))
    op = together["scan_prefill"]
    # 512 tokens are two pieces that follow one another; shorter chunks are one piece of work each.
    assert op.shape["steps"] == pytest.approx([2.0])
    assert op.shape["blocks"] == pytest.approx([8 * (2 + 2)])


# --- by hand --------------------------------------------------------------------------------------


def test_states_of_nemotron_nano_by_hand() -> None:
    # Nemotron Nano 9B v2: 128 heads of 80 x 128 float32 values, and 3 tokens of
    # 128 x 80 + 2 x 8 x 128 channels in 16 bits.
    mixer = Mamba2(
        num_heads=128,
        head_dim=80,
        state_size=128,
        n_groups=8,
        conv_kernel=4,
        state_dtype="float32",
    )
    assert mixer.state_bytes(2) == 128 * 80 * 128 * 4 + 3 * 12_288 * 2
    assert of_block(mixer).state_bytes() == 5_316_608
    assert of_block(mixer).kv_bytes_per_token() == 0


def test_a_decode_step_of_a_state_space_by_hand() -> None:
    block = Mamba2(num_heads=2, head_dim=4, state_size=3, n_groups=1, conv_kernel=4)
    ops = calls(of_block(block, hidden_size=8), decode(100, 5))
    # Inside 2 x 4 = 8 wide, convolution of 8 + 2 x 3 = 14, input projection of 8 + 14 + 2 = 24.
    expected = {
        "in_proj": (2 * 5 * 8 * 24, 8 * 24 * 2 + 5 * (8 + 24) * 2),
        # 14 channels in and out; 3 tokens of state in and out
        "conv1d_decode": (0, 5 * 14 * 2 * (2 + 6)),
        # state of 2 x 4 x 3 in and out; x, gate and output of 8, B and C of 3, 2 time steps
        "scan_decode": (6 * 5 * 24, 5 * (2 * 24 + 3 * 8 + 2 * 3 + 2) * 2),
        "gated_norm": (0, 5 * 3 * 8 * 2 + 8 * 2),
        "out_proj": (2 * 5 * 8 * 8, 8 * 8 * 2 + 5 * (8 + 8) * 2),
    }
    found = {k: (ops[k].flop.item(), ops[k].hbm_bytes.item()) for k in expected}
    assert found == expected
    for name in ("conv1d_prefill", "scan_prefill"):
        assert ops[name].hbm_bytes.item() == 0


def test_other_recurrences_borrow_a_law_and_say_so() -> None:
    mamba = Mamba(intermediate_size=8, state_size=3, conv_kernel=4, time_step_rank=1)
    assert calls(of_block(mamba), decode(1))["scan_decode"].stands_for
    assert calls(spec("rwkv"), decode(1))["wkv_decode"].stands_for
    assert calls(spec("recurrent_gemma"), decode(1))["input_gate"].stands_for
    assert calls(spec("minimax"), decode(1))["linear_attention_decode"].stands_for
    assert not calls(of_block(MAMBA2), decode(1))["scan_decode"].stands_for
    assert not calls(of_block(DELTA), decode(1))["linear_attention_decode"].stands_for


def test_short_convolution_by_hand() -> None:
    block = ShortConvolution(width=16, kernel=3)
    assert block.state_bytes(2) == 2 * 16 * 2
    ops = calls(of_block(block), prefill(10, count=2))
    assert ops["conv1d_prefill"].hbm_bytes.item() == (20 * 2 + 2 * 2 * 2) * 16 * 2
    assert ops["input_gate"].hbm_bytes.item() == 20 * 3 * 16 * 2


def test_shared_weights_count_once_and_are_read_by_every_layer() -> None:
    once = spec("zamba2", layers_block_type=["hybrid", "mamba"])
    twice = spec("zamba2")
    shared = once.layers[0].blocks[0].parts[0]
    assert isinstance(shared, SharedTransformer)
    weights = shared.weights(16)
    own = [w for w in weights if "adapter" in w.name or w.name == "shared_out_proj"]
    assert twice.param_count - once.param_count == sum(w.params for w in own)
    assert sum(w.params for w in weights) > sum(w.params for w in own)
    for name in ("qkv_proj", "gate_up_proj"):
        found = [op for op in lower(twice, Deployment(), decode(3)) if op.name == name]
        assert [op.hbm_bytes.item() > 0 for op in found] == [True, True]


def test_quantised_online_the_shared_weights_are_narrow_in_every_layer() -> None:
    ops = lower(spec("zamba2"), Deployment(quantization="fp8"), decode(3))
    assert {op.stored for op in ops if op.name in ("qkv_proj", "in_proj", "gate_up_proj")} == {
        "fp8"
    }
    assert {op.stored for op in ops if op.name.startswith("scan")} == {"bfloat16"}


# --- properties -----------------------------------------------------------------------------------


@every_kind
def test_projections_read_the_weights_of_the_model(kind: str) -> None:
    model = spec(kind)
    one, two = (lower(model, Deployment(), prefill(n)) for n in (10_000, 20_000))
    fixed = sum(
        o.count * (2 * o.hbm_bytes.item() - t.hbm_bytes.item())
        for o, t in zip(one, two, strict=True)
        if o.kind in ("gemm", "moe") and o.name != "lm_head"
    )
    # Shared weights count once and are read by every layer that has them.
    layers = [replace(layer, blocks=tuple(map(_own, layer.blocks))) for layer in model.layers]
    weights = [w for layer in layers for w in layer.weights(model.hidden_size)]
    read = [w for w in weights if w.role != "plain" or w.name == "router" or ".bias" in w.name]
    assert fixed == pytest.approx(2 * sum(w.params for w in read), rel=1e-9)


def _own(block: Any) -> Any:
    """A block whose weights are all its own."""
    parts = getattr(block, "parts", ())
    if not any(getattr(part, "repeated", False) for part in parts):
        return block
    return replace(
        block,
        parts=tuple(replace(p, repeated=False) if hasattr(p, "repeated") else p for p in parts),
    )


@every_kind
def test_two_steps_together_equal_each_alone(kind: str) -> None:
    first = ([(7, 0, 2, 1), (300, 9, 1, 0)], [(4.5, 3), (11, 1)])
    second = ([], [(20, 5)])
    together = lower(spec(kind), Deployment(), steps_of(first, second))
    apart = [lower(spec(kind), Deployment(), steps_of(row)) for row in (first, second)]
    for i, op in enumerate(together):
        for row in range(2):
            alone = apart[row][i]
            assert op.name == alone.name
            assert op.flop[row] == pytest.approx(alone.flop[0], rel=1e-14)
            assert op.hbm_bytes[row] == pytest.approx(alone.hbm_bytes[0], rel=1e-14)
            assert op.weight_bytes[row] == pytest.approx(alone.weight_bytes[0], rel=1e-14)
            for key, value in op.shape.items():
                whole, single = np.atleast_1d(value), np.atleast_1d(alone.shape[key])
                assert whole[row % whole.size] == pytest.approx(single[0], rel=1e-14)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(KINDS)), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_chunks_of_a_prompt_have_the_flop_of_the_whole_prompt(kind: str, pieces: list[int]) -> None:
    starts = np.cumsum([0, *pieces[:-1]])
    last = [0] * (len(pieces) - 1) + [1]
    rows = [([(t, int(c), 1, e)], []) for t, c, e in zip(pieces, starts, last, strict=True)]
    chunked = totals(lower(spec(kind), Deployment(), steps_of(*rows)))
    whole = totals(lower(spec(kind), Deployment(), prefill(sum(pieces))))
    assert chunked[0] == whole[0]
    assert chunked[1] >= whole[1] * (1 - 1e-12)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(KINDS)), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_more_tokens_or_sequences_never_cost_less(
    kind: str, tokens: int, batch: int, decoding: bool
) -> None:
    def cost(tokens: int, batch: int) -> tuple[float, float]:
        step = decode(tokens, batch) if decoding else prefill(tokens, 0, batch)
        return totals(lower(spec(kind), Deployment(), step))

    base = cost(tokens, batch)
    for more in (cost(tokens + 1, batch), cost(tokens, batch + 1)):
        assert more[0] >= base[0]
        assert more[1] >= base[1] * (1 - 1e-12)


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "falcon_mamba", "rwkv"])
def test_without_attention_a_longer_context_costs_nothing(kind: str) -> None:
    short, long = (totals(lower(spec(kind), Deployment(), decode(n))) for n in (10, 100_000))
    assert short == long


@every_kind
def test_names_of_operations_are_distinct_within_a_layer(kind: str) -> None:
    model = spec(kind)
    for layer in model.layers:
        alone = replace(model, text=replace(model.text, layers=(layer,)))
        names = [op.name for op in lower(alone, Deployment(), decode(3))]
        assert len(set(names)) == len(names)


@every_kind
def test_every_law_that_is_asked_for_is_in_the_shipped_profile(kind: str) -> None:
    profile = load("h200")
    for op in lower(spec(kind), Deployment(), decode(3)):
        assert profile.calibrated_as(op.law) == op.law


# --- hostile files --------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [1.0, True, "1", [1]])
@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("bamba", "attn_layer_indices"),
        ("lfm2", "full_attn_idxs"),
        ("kimi_linear", "full_attn_layers"),
        ("qwen3_moe", "mlp_only_layers"),
        ("llama4_text", "moe_layers"),
    ],
)
def test_lists_of_layers_hold_whole_numbers(family: str, key: str, wrong: object) -> None:
    tiny = next(case.full for case in cases() if case.family == family)
    changes = {key: [wrong], "linear_attn_config": {key: [wrong]}}
    with pytest.raises(InputError, match=f"'{key}' must be a list of layer numbers"):
        model_from_config({**tiny, **changes}, "x")


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("nemotron_h", {"hybrid_override_pattern": "M-X"}, "hybrid_override_pattern"),
        ("nemotron_h", {"hybrid_override_pattern": ""}, "hybrid_override_pattern"),
        ("nemotron_h", {"hybrid_override_pattern": "M" * 20_000}, "hybrid_override_pattern"),
        ("nemotron_h", {"hybrid_override_pattern": 3}, "hybrid_override_pattern"),
        ("nemotron_h", {"layers_block_type": ["mamba", ["moe"]]}, "layers_block_type"),
        ("nemotron_h", {"mamba_ssm_cache_dtype": "int2"}, "mamba_ssm_cache_dtype"),
        ("nemotron_h", {"mamba_num_heads": 10**9}, "mamba_num_heads"),
        ("mamba2", {"num_heads": 3}, "num_heads"),
        ("mamba2", {"head_dim": "auto?"}, "head_dim"),
        ("mamba", {"time_step_rank": -1}, "time_step_rank"),
        ("mamba", {"expand": float("nan")}, "expand"),
        ("falcon_h1", {"mamba_d_ssm": 31}, "mamba_n_heads"),
        ("falcon_h1", {"mamba_conv_bias": "yes"}, "mamba_conv_bias"),
        ("qwen3_5_text", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen3_5_text", {"layer_types": ["full_attention", {}]}, "layer_types"),
        ("qwen3_5_text", {"linear_num_key_heads": 5}, "linear_num_key_heads"),
        ("recurrent_gemma", {"block_types": ["else"]}, "block_types"),
        ("recurrent_gemma", {"lru_width": 17}, "num_attention_heads"),
        ("lfm2", {"conv_L_cache": 0}, "conv_L_cache"),
        ("zamba2", {"layers_block_type": ["hybrid"]}, "layers_block_type"),
        ("jamba", {"attn_layer_period": 0}, "attn_layer_period"),
    ],
)
def test_a_damaged_file_is_refused_by_field(kind: str, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named) as error:
        spec(kind, **changes)
    assert "\n" not in str(error.value)
