"""Micro-workloads on the CPU: what they compute, how operands rotate, what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_references import check, dequantised

from calibration.kernels import (
    COLD_BYTES,
    How,
    build,
    common,
    copies,
    launch_cost_s,
    supported,
)
from calibration.kernels.common import to_fp8, to_int8

# The smallest shapes that still have every part: several sequences, groups, ragged tiles.
TINY: dict[str, list[dict[str, int]]] = {
    "gemm": [{"m": 3, "n": 48, "k": 256}],
    "quantise": [{"rows": 5, "width": 256}, {"rows": 5, "width": 256, "per_tensor": 1}],
    "attention": [
        {"num_seqs": 2, "tokens": t, "context": c, "heads": 6, "kv_heads": 2, "head_dim": 16}
        for t, c in ((1, 8), (5, 0), (5, 8))
    ],
    "mla": [
        {
            "num_seqs": 2, "tokens": t, "context": c, "heads": 4, "kv_lora_rank": 24,
            "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12,
        }
        for t, c in ((1, 8), (5, 0))
    ],
    "moe": [
        {
            "tokens": 7, "hidden_size": 32, "intermediate_size": 16, "num_experts": 5,
            "top_k": 2,
        }
    ],
    "moe_routing": [{"tokens": 7, "num_experts": 5, "top_k": 2}],
    "sdpa": [
        {
            "num_seqs": 2, "tokens": t, "context": c, "heads": 6, "kv_heads": k, "head_dim": 16,
            "causal": causal,
        }
        for t, c, k, causal in ((1, 8, 2, 1), (5, 0, 2, 1), (5, 0, 6, 0))
    ],
    "cache_append": [{"num_seqs": 2, "context": 5, "kv_heads": 2, "head_dim": 16}],
    "cache_fill": [{"num_seqs": 2, "tokens": 5, "kv_heads": 2, "head_dim": 16}],
    "eager_rotary": [{"rows": 5, "width": 32, "head_dim": 16}],
    "rotary": [{"rows": 5, "width": 80, "head_dim": 16}],
    "kv_write": [{"rows": 5, "width": 32, "head_dim": 16}],
    "embedding": [{"rows": 5, "vocab": 11, "width": 8}],
    "copy": [{"bytes": 1 << 12}],
    "selective_scan": [
        {"num_seqs": 3, "tokens": 1, "heads": 4, "head_dim": 8, "state": 16, "groups": 2},
    ],
}  # fmt: skip
ROWS = [{"rows": 5, "width": 24}]
TOLERANCES = {"float32": 1e-5, "tf32": 1e-3, "float16": 2e-3, "bfloat16": 1e-2}
# Rounding to three bits of mantissa alone is 2.6 % of a normal number.
QUANTISED = {"fp8": 4e-2, "fp8_block": 4e-2, "int8": 1.5e-2}

CASES = [
    pytest.param(s.op, dtype, shape, id=f"{s.op}-{dtype}-{i}")
    for s in supported()
    if s.library == "torch"
    for dtype in s.dtypes
    for i, shape in enumerate(TINY.get(s.op, ROWS))
]


@pytest.fixture(autouse=True)
def few_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotation over a few copies is rotation; 64 of each would only be slow."""
    monkeypatch.setattr("calibration.kernels.common.MAX_COPIES", 3)
    torch.manual_seed(0)


def on_cpu(dtype: str, *, warm: bool = False) -> How:
    return How(dtype=dtype, library="torch", device="cpu", warm=warm)


@pytest.mark.parametrize(("op", "dtype", "shape"), CASES)
def test_torch_computes_what_it_should(op: str, dtype: str, shape: dict[str, int]) -> None:
    prepared, error = check(op, shape, on_cpu(dtype))
    tolerance = QUANTISED[dtype] if op == "quantise" else TOLERANCES.get(dtype, 1e-2)
    assert error <= tolerance
    for call in prepared.calls:
        call()


@pytest.mark.parametrize(("op", "dtype", "shape"), CASES)
def test_warm_is_a_single_copy(op: str, dtype: str, shape: dict[str, int]) -> None:
    assert len(build(op, shape, on_cpu(dtype, warm=True)).calls) == 1


@pytest.mark.parametrize(
    "op", ["gemm", "attention", "moe", "kv_write", "embedding", "copy", "selective_scan"]
)
def test_what_comes_from_memory_rotates(op: str) -> None:
    assert len(build(op, TINY[op][0], on_cpu("bfloat16")).calls) == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8", "int4"])
def test_copies_of_a_weight_lie_apart_and_give_products_of_their_own(dtype: str) -> None:
    calls = build("gemm", TINY["gemm"][0], on_cpu(dtype)).calls
    held = [
        {
            cell.cell_contents.data_ptr()
            for cell in call.__closure__ or ()
            if isinstance(cell.cell_contents, torch.Tensor)
        }
        for call in calls
    ]
    assert len({frozenset(h) for h in held}) == 3
    assert calls[0]().shape == (3, 48)


@given(st.integers(1, 10**12))
def test_copies_add_up_to_more_than_the_cache(size_bytes: int) -> None:
    n = copies(size_bytes)
    assert n * size_bytes >= COLD_BYTES or n == common.MAX_COPIES
    assert n == 1 or (n - 1) * size_bytes < COLD_BYTES
    assert copies(size_bytes, warm=True) == 1


@pytest.mark.parametrize(("rows", "columns"), [(1, 300), (200, 300), (1, 128), (128, 128)])
def test_fp8_tiles_hold_what_was_there(rows: int, columns: int) -> None:
    x = torch.randn(200, 300) * torch.rand(200, 1)
    numbers, scales = to_fp8(x, rows, columns)
    assert numbers.dtype == torch.float8_e4m3fn
    assert numbers.shape == x.shape
    assert scales.shape == (-(-200 // rows), -(-300 // columns))
    back = dequantised(numbers, scales)
    # Three bits of mantissa: within a sixteenth of each normal number; tiny ones of the tile's.
    assert bool(((back - x).abs() <= x.abs() / 16 + scales.max() * 2**-9).all())
    assert numbers.float().abs().max() == 448


def test_int8_rows_use_the_whole_range() -> None:
    numbers, scales = to_int8(torch.randn(7, 50))
    assert scales.shape == (7, 1)
    assert numbers.abs().amax(dim=-1).tolist() == [127] * 7


@pytest.mark.parametrize("dtype", ["fp8", "int4"])
def test_quantised_weights_have_the_spread_of_weights(dtype: str) -> None:
    o = build("gemm", {"m": 2, "n": 256, "k": 512}, on_cpu(dtype)).operands
    if dtype == "fp8":
        w = dequantised(o["w"], o["w_scale"])
    else:
        w = (o["nibbles"] - 8) * o["scales"].T.double().repeat_interleave(128, 1)
    assert float(w.std()) == pytest.approx(0.02, rel=0.05)


def test_rotary_keeps_the_length_of_what_it_turns() -> None:
    prepared = build("rotary", {"rows": 9, "width": 96, "head_dim": 32}, on_cpu("float32"))
    turned, _ = prepared.calls[0]()
    assert turned.norm() == pytest.approx(float(prepared.operands["query"].norm()), rel=1e-5)


def test_float32_products_leave_the_setting_of_the_process_alone() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    for dtype in ("float32", "tf32"):
        build("gemm", TINY["gemm"][0], on_cpu(dtype)).calls[0]()
        assert torch.backends.cuda.matmul.fp32_precision == before


def test_a_state_moves_on() -> None:
    prepared = build("selective_scan", TINY["selective_scan"][0], on_cpu("bfloat16"))
    first = prepared.calls[0]().clone()
    assert not torch.equal(first, prepared.calls[0]())


@pytest.mark.parametrize(
    ("op", "shape", "how", "match"),
    [
        ("gemm", {}, How(dtype="fp4", device="cpu"), "gemm: no kernel .*fp4; there are vllm"),
        ("gelu", {}, How(library="vllm", device="cpu"), "gelu: no kernel of library vllm"),
        ("sort", {}, on_cpu("bfloat16"), "sort: no kernel .*; operations are gemm, quantise"),
        ("attention", {}, How(device="cpu"), "attention: .* need a CUDA GPU, not device cpu"),
        ("gemm", {"m": 1, "n": 16, "k": 100}, on_cpu("int4"), "k = 100 is no multiple"),
        ("attention", {**TINY["attention"][0], "window": 4}, on_cpu("bfloat16"), "window"),
        ("mla", {**TINY["mla"][1], "context": 4}, on_cpu("bfloat16"), "no context"),
        ("selective_scan", {**TINY["selective_scan"][0], "tokens": 4}, on_cpu("bfloat16"),
         "one token"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_refused(
    op: str, shape: dict[str, int], how: How, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        build(op, shape, how)


def test_a_launch_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="cpu has no kernels to launch"):
        launch_cost_s("cpu")


def test_every_kind_that_inference_needs_is_there() -> None:
    found = {(s.op, s.library): set(s.dtypes) for s in supported()}
    half = {"bfloat16", "float16"}
    assert found["gemm", "torch"] >= {*half, "float32", "tf32", "fp8", "int4"}
    assert found["gemm", "vllm"] >= {*half, "fp8", "fp8_block", "int8", "int4"}
    assert found["quantise", "vllm"] >= {"fp8", "fp8_block"}
    assert found["attention", "vllm"] >= {*half, "fp8"}
    assert found["moe", "vllm"] >= {"bfloat16", "fp8", "fp8_block"}
    both = {
        "gemm", "quantise", "attention", "mla", "moe", "moe_routing", "rms_norm", "silu_and_mul",
        "rotary", "kv_write", "embedding", "sampling", "copy", "selective_scan",
    }  # fmt: skip
    assert {op for op, library in found if library == "vllm"} >= both
    assert {op for op, library in found if library == "torch"} >= {
        *both, "layer_norm", "gelu", "residual_add"
    }  # fmt: skip
    assert {("linear_attention", "vllm"), ("causal_conv1d", "vllm")} <= set(found)


def test_stacks_of_committed_observations_keep_their_names() -> None:
    for op in ("gemm", "embedding", "sampling", "copy"):
        shape = TINY.get(op, ROWS)[0]
        vllm = build(op, shape, How(device="cpu", warm=True))
        assert vllm.stack == build(op, shape, on_cpu("bfloat16", warm=True)).stack
        name = {"gemm": "linear", "sampling": "argmax"}.get(op, op)
        assert vllm.stack == f"torch {torch.__version__} {name}"
