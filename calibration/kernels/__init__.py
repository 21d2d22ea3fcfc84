"""Micro-workloads: every operation kind that inference needs, with the engine's own kernels.

``build`` turns an operation, its shape and a ``How`` into calls to run in turn. What exists is
one table below; ``supported`` lists it. Every builder of torch also works on a CPU, those of vLLM
need a CUDA GPU.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from calibration.kernels import (
    attention,
    delta,
    eager,
    gemm,
    gemm_vllm,
    mla,
    moe,
    quantise,
    rows,
    scan,
)
from calibration.kernels.common import COLD_BYTES, Call, How, Prepared, Shape, copies
from calibration.kernels.launch import launch_cost_s

__all__ = [
    "BUILDERS", "COLD_BYTES", "Call", "How", "Prepared", "Shape", "Supported",
    "build", "copies", "launch_cost_s", "operations", "supported",
]  # fmt: skip

Builder = Callable[[Shape, How], Prepared]


@dataclass(frozen=True, slots=True, kw_only=True)
class Supported:
    """An operation that a library has kernels for, in these number formats."""

    op: str
    library: str
    dtypes: tuple[str, ...]


_HALF = ("bfloat16", "float16")
_FLOAT = ("bfloat16", "float16", "float32")
_QUANTISED = ("fp8", "fp8_block", "int8")

# Builder of each (operation, library, number format). Operations that vLLM leaves to torch stand
# under both libraries.
BUILDERS: dict[tuple[str, str, str], Builder] = {
    (op, library, dtype): builder
    for op, library, dtypes, builder in (
        ("gemm", "vllm", _HALF, gemm.linear),
        ("gemm", "vllm", ("fp8",), gemm_vllm.fp8),
        ("gemm", "vllm", ("fp8_block",), gemm_vllm.fp8_block),
        ("gemm", "vllm", ("int8",), gemm_vllm.int8),
        ("gemm", "vllm", ("int4",), gemm_vllm.int4),
        ("gemm", "torch", (*_FLOAT, "tf32"), gemm.linear),
        ("gemm", "torch", ("fp8",), gemm.scaled),
        ("gemm", "torch", ("int4",), gemm.int4),
        ("quantise", "vllm", _QUANTISED, quantise.quantise),
        ("quantise", "torch", _QUANTISED, quantise.quantise_torch),
        ("attention", "vllm", (*_HALF, "fp8"), attention.paged),
        ("attention", "torch", _HALF, attention.contiguous),
        ("sdpa", "torch", _HALF, eager.sdpa),
        ("cache_append", "torch", _HALF, eager.append),
        ("cache_fill", "torch", _HALF, eager.fill),
        ("eager_norm", "torch", _HALF, eager.norm),
        ("eager_rotary", "torch", _HALF, eager.rotary),
        ("eager_gate", "torch", _HALF, eager.gated),
        ("mla", "vllm", ("bfloat16",), mla.mla),
        ("mla", "torch", ("bfloat16",), mla.mla_torch),
        ("moe", "vllm", _HALF, moe.fused),
        ("moe", "vllm", ("fp8", "fp8_block"), moe.fused_fp8),
        ("moe", "torch", ("bfloat16",), moe.grouped),
        ("moe_routing", "vllm", ("bfloat16",), moe.routing),
        ("moe_routing", "torch", ("bfloat16",), moe.routing_torch),
        ("rms_norm", "vllm", _HALF, rows.rms_norm),
        ("rms_norm", "torch", _FLOAT, rows.rms_norm_torch),
        ("layer_norm", "torch", _FLOAT, rows.layer_norm),
        ("gelu", "torch", _FLOAT, rows.gelu),
        ("silu_and_mul", "vllm", _HALF, rows.silu_and_mul),
        ("silu_and_mul", "torch", _FLOAT, rows.silu_and_mul_torch),
        ("rotary", "vllm", _HALF, rows.rotary),
        ("rotary", "torch", _FLOAT, rows.rotary_torch),
        ("residual_add", "torch", _FLOAT, rows.residual_add),
        ("kv_write", "vllm", (*_HALF, "fp8"), rows.kv_write),
        ("kv_write", "torch", _HALF, rows.kv_write_torch),
        ("embedding", "vllm", _HALF, rows.embedding),
        ("embedding", "torch", _FLOAT, rows.embedding),
        ("sampling", "vllm", _HALF, rows.sampling),
        ("sampling", "torch", _FLOAT, rows.sampling),
        ("copy", "vllm", ("bfloat16",), rows.copy),
        ("copy", "torch", ("bfloat16",), rows.copy),
        ("selective_scan", "vllm", ("bfloat16",), scan.selective_scan),
        ("selective_scan", "torch", ("bfloat16",), scan.selective_scan_torch),
        ("causal_conv1d", "vllm", ("bfloat16",), scan.causal_conv1d),
        ("linear_attention", "vllm", ("bfloat16",), delta.linear_attention),
    )
    for dtype in dtypes
}


def build(op: str, shape: Mapping[str, int], how: How) -> Prepared:
    """The calls of one operation at one shape.

    Raises:
        ValueError: no such kernel, a shape that it cannot take, or no GPU for a kernel of vLLM.
        KeyError: the shape lacks a key.
    """
    builder = BUILDERS.get((op, how.library, how.dtype))
    if builder is None:
        known = ", ".join(f"{s.library} {' '.join(s.dtypes)}" for s in supported() if s.op == op)
        raise ValueError(
            f"{op}: no kernel of library {how.library} in dtype {how.dtype}; "
            + (f"there are {known}" if known else f"operations are {', '.join(operations())}")
        )
    of_torch = {b for (_, library, _), b in BUILDERS.items() if library == "torch"}
    if builder not in of_torch and not how.device.startswith("cuda"):
        raise ValueError(f"{op}: kernels of vLLM need a CUDA GPU, not device {how.device}")
    return builder(shape, how)


def supported() -> tuple[Supported, ...]:
    """Every operation and library with the number formats that have a builder."""
    dtypes: dict[tuple[str, str], list[str]] = {}
    for op, library, dtype in BUILDERS:
        dtypes.setdefault((op, library), []).append(dtype)
    return tuple(
        Supported(op=op, library=library, dtypes=tuple(formats))
        for (op, library), formats in dtypes.items()
    )


def operations() -> tuple[str, ...]:
    """Names of all operations."""
    return tuple(dict.fromkeys(op for op, _, _ in BUILDERS))
