"""What an operation is, and the building blocks that ``ops.lower`` is written with.

One function for each shape of call; conventions of FLOP and bytes are those of ``ops``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from energymodel.model import DTYPE_BYTES
from energymodel.steps import Floats, Steps

Shape = Mapping[str, Floats | float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One kind of call in a step; ``count`` identical ones. Arrays have shape [n_steps].

    ``kind`` says which timing law holds, ``component`` to what the energy is attributed, ``dtype``
    in what the arithmetic runs. ``flop`` and ``hbm_bytes`` are of one call; ``weight_bytes`` is the
    part of ``hbm_bytes`` that are weights or cached keys and values. ``shape`` by kind:

    - gemm: ``m`` rows, ``n`` outputs, ``k`` inputs, ``weight_element_bytes``
    - moe: ``tokens``, ``hidden_size``, ``intermediate_size``, ``num_experts``, ``top_k``,
      ``experts_touched``, ``weight_element_bytes``
    - prefill_attention: ``tokens`` (queries), ``pairs`` (query-key pairs of one head),
      ``kv_tokens`` (keys read), ``num_seqs``, ``max_chunk``, ``heads``, ``kv_heads``,
      ``head_dim``, ``window`` (infinite without one), ``kv_element_bytes``
    - decode_attention: ``num_seqs``, ``kv_tokens``, ``block_tokens`` (keys in whole blocks),
      ``heads``, ``kv_heads``, ``head_dim``, ``window``, ``kv_element_bytes``
    - elementwise, gather, sampling: ``rows``, ``width``, ``bytes`` (as ``hbm_bytes``)
    """

    name: str
    kind: str
    component: str
    dtype: str
    count: int
    flop: Floats
    hbm_bytes: Floats
    weight_bytes: Floats
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every operation of a lowering needs; arrays have shape [n_steps]."""

    steps: Steps
    hidden_size: int
    dtype: str
    kv_element_bytes: float
    tokens: Floats
    sampled: Floats

    @property
    def wide(self) -> float:
        """Bytes of one activation."""
        return DTYPE_BYTES[self.dtype]


def linear(
    ctx: Context,
    name: str,
    component: str,
    count: int,
    dtype: str,
    *,
    n: int,
    k: int,
    bias: bool = False,
    rows: Floats | None = None,
) -> list[Op]:
    """[m, k] x [k, n] with m = ``rows`` (all tokens if None), after its quantisation in fp8."""
    m = ctx.tokens if rows is None else rows
    weights = n * k * DTYPE_BYTES[dtype] + (n * ctx.wide if bias else 0)
    row_bytes = k * DTYPE_BYTES[dtype] + n * ctx.wide
    gemm = Op(
        name=name,
        kind="gemm",
        component=component,
        dtype=dtype,
        count=count,
        flop=2.0 * n * k * m,
        hbm_bytes=np.where(m > 0, weights, 0.0) + m * row_bytes,
        weight_bytes=np.where(m > 0, weights, 0.0),
        shape={"m": m, "n": float(n), "k": float(k), "weight_element_bytes": DTYPE_BYTES[dtype]},
    )
    if dtype != "fp8":
        return [gemm]
    return [quantise(ctx, f"{name}_quant", component, count, width=k), gemm]


def quantise(ctx: Context, name: str, component: str, count: int, *, width: int) -> Op:
    """Dynamic activation quantisation: reads 16 bits, writes 8; the scales are neglected."""
    row_bytes = width * (ctx.wide + DTYPE_BYTES["fp8"])
    return elementwise(ctx, name, component, count, width=width, row_bytes=row_bytes)


def normalise(
    ctx: Context, name: str, count: int, *, tensors: int, weights: int, width: int | None = None
) -> Op:
    """A normalisation that moves ``tensors`` activations of ``width``, and its learnt vectors."""
    width = ctx.hidden_size if width is None else width
    row_bytes = tensors * width * ctx.wide
    fixed = weights * ctx.wide
    return elementwise(ctx, name, "norm", count, width=width, row_bytes=row_bytes, fixed=fixed)


def in_place(
    ctx: Context, name: str, component: str, count: int, *, width: int, rows: Floats | None = None
) -> Op:
    """A call that reads and rewrites ``width`` values of each row."""
    row_bytes = 2 * width * ctx.wide
    return elementwise(ctx, name, component, count, width=width, row_bytes=row_bytes, rows=rows)


def elementwise(
    ctx: Context,
    name: str,
    component: str,
    count: int,
    *,
    width: int,
    row_bytes: float,
    fixed: float = 0.0,
    rows: Floats | None = None,
    kind: str = "elementwise",
) -> Op:
    """A call bound by memory: ``row_bytes`` for each row and ``fixed`` bytes once."""
    m = ctx.tokens if rows is None else rows
    hbm_bytes = m * row_bytes + np.where(m > 0, fixed, 0.0)
    return Op(
        name=name,
        kind=kind,
        component=component,
        dtype=ctx.dtype,
        count=count,
        flop=np.zeros_like(m),
        hbm_bytes=hbm_bytes,
        weight_bytes=np.zeros_like(m),
        shape={"rows": m, "width": float(width), "bytes": hbm_bytes},
    )
