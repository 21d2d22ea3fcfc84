"""Every micro-workload on a real GPU; run with ``pytest -m gpu tests/test_kernels_gpu.py``.

Each kernel runs over all its copies, is captured in a graph as calibration does, and its first
result is compared with float64. One test each, so that one that fails hides no other.
"""

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from kernel_references import check

from calibration.kernels import How, launch_cost_s, supported

pytestmark = pytest.mark.gpu

HEADS = {"heads": 32, "kv_heads": 8, "head_dim": 128}
LATENT = {
    "heads": 16, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}  # fmt: skip
SHAPES: dict[str, dict[str, dict[str, int]]] = {
    "gemm": {
        "decode": {"m": 3, "n": 1536, "k": 1024},
        "prefill": {"m": 300, "n": 1536, "k": 1024},
    },
    "quantise": {"rows": {"rows": 37, "width": 1024}},
    "attention": {
        "decode": {"num_seqs": 4, "tokens": 1, "context": 500, **HEADS},
        "prefill": {"num_seqs": 2, "tokens": 130, "context": 0, **HEADS},
        "chunk": {"num_seqs": 2, "tokens": 130, "context": 77, **HEADS},
    },
    "mla": {
        "decode": {"num_seqs": 4, "tokens": 1, "context": 500, **LATENT},
        "prefill": {"num_seqs": 2, "tokens": 130, "context": 0, **LATENT},
        "chunk": {"num_seqs": 2, "tokens": 130, "context": 77, **LATENT},
    },
    "moe": {
        name: {
            "tokens": tokens, "hidden_size": 1024, "intermediate_size": 512, "num_experts": 16,
            "top_k": 4,
        }
        for name, tokens in (("decode", 3), ("prefill", 65))
    },
    "moe_routing": {"rows": {"tokens": 37, "num_experts": 64, "top_k": 8}},
    "rotary": {"rows": {"rows": 37, "width": 1536, "head_dim": 128}},
    "kv_write": {"rows": {"rows": 37, "width": 1024, "head_dim": 128}},
    "embedding": {"rows": {"rows": 37, "vocab": 1000, "width": 1024}},
    "copy": {"large": {"bytes": 1 << 24}},
    "selective_scan": {
        name: {
            "num_seqs": 3, "tokens": tokens, "heads": 16, "head_dim": 64, "state": 128,
            "groups": 2, "state_bytes": state_bytes,
        }
        for name, tokens, state_bytes in (
            ("decode", 1, 2), ("decode32", 1, 4), ("prefill", 300, 2), ("prefill32", 300, 4)
        )
    },
    "causal_conv1d": {
        name: {"num_seqs": 3, "tokens": tokens, "width": 1280}
        for name, tokens in (("decode", 1), ("prefill", 100))
    },
    "linear_attention": {
        name: {
            "num_seqs": 3, "tokens": tokens, "heads": 8, "key_heads": 4, "head_dim": 128,
            "state_bytes": state_bytes,
        }
        for name, tokens, state_bytes in (
            ("decode", 1, 2), ("decode32", 1, 4), ("prefill", 150, 2)
        )
    },
}  # fmt: skip
ROWS = {"rows": {"rows": 37, "width": 1024}}
EXTRA = [
    ("attention", "vllm", "bfloat16", "window", {**SHAPES["attention"]["chunk"], "window": 64}),
    ("attention", "vllm", "bfloat16", "wide", {**SHAPES["attention"]["decode"], "head_dim": 256}),
    ("attention", "vllm", "bfloat16", "mqa", {**SHAPES["attention"]["decode"], "kv_heads": 1}),
    ("quantise", "vllm", "fp8", "per_tensor", {"rows": 37, "width": 1024, "per_tensor": 1}),
    ("gemm", "vllm", "int4", "marlin", {"m": 3, "n": 1088, "k": 1024}),
    ("gemm", "vllm", "fp8_block", "ragged", {"m": 3, "n": 1472, "k": 1024}),
    ("mla", "vllm", "bfloat16", "heads128", {**SHAPES["mla"]["decode"], "heads": 128}),
]
# What these two refuse by design.
REFUSED = {
    ("mla", "torch", "chunk"),
    *(("selective_scan", "torch", name) for name in ("prefill", "prefill32")),
}


def _cases() -> Iterator[Any]:
    rows = [
        (s.op, s.library, dtype, name, shape)
        for s in supported()
        for dtype in s.dtypes
        for name, shape in SHAPES.get(s.op, ROWS).items()
        if (s.op, s.library, name) not in REFUSED
    ]
    for op, library, dtype, name, shape in rows + EXTRA:
        yield pytest.param(op, library, dtype, shape, id=f"{op}-{library}-{dtype}-{name}")


def tolerance(op: str, dtype: str) -> float:
    """Relative error that a number format allows itself.

    Products of quantised operands are exact up to rounding the result to bfloat16; quantising
    inside (experts, probabilities of fp8 attention) rounds to three bits of mantissa.
    """
    if dtype.startswith("fp8"):
        return 6e-2
    if op == "quantise":
        return 1.5e-2
    # Recurrences and chunks multiply rounded intermediates with each other.
    if op in ("linear_attention", "selective_scan"):
        return 2e-2
    return {"float32": 1e-5, "tf32": 2e-3, "float16": 2e-3}.get(dtype, 1e-2)


@pytest.fixture(autouse=True)
def gpu() -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    torch.manual_seed(0)
    yield
    torch.cuda.empty_cache()


def needs(library: str) -> None:
    if library == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed")


# Libraries warn about themselves when they are first imported; that is not ours to fail on.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("op", "library", "dtype", "shape"), list(_cases()))
def test_kernel(op: str, library: str, dtype: str, shape: dict[str, int]) -> None:
    from calibration.replay import Graph

    needs(library)
    prepared, error = check(op, shape, How(dtype=dtype, library=library))
    assert error <= tolerance(op, dtype)
    for call in prepared.calls:
        result = call()
        for x in result if isinstance(result, tuple) else (result,):
            assert x is None or bool(torch.isfinite(x.float()).all())
    graph = Graph(prepared, chunk_s=1e-3)
    assert graph.replay()() > 0
    for x in prepared.operands.values():
        if x.dtype in (torch.bfloat16, torch.float16, torch.float32):
            assert bool(torch.isfinite(x).all())


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("graph", [0, 1])
def test_launch_cost(graph: int) -> None:
    median_s, spread_s = launch_cost_s("cuda", graph)
    assert 0.2e-6 < median_s < 100e-6
    assert 0 <= spread_s < median_s
