"""Kernels of torch that work row by row, in place of one fused kernel."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from energymodel.op_kinds import Op
from energymodel.steps import Floats


def by_row(op: Op, value_bytes: Sequence[float]) -> Op:
    """One kernel for each of ``value_bytes``: bytes that it moves for each value of a row.

    They are one operation with as many calls, of the mean of those bytes.
    """
    rows, width = np.asarray(op.shape["rows"], dtype=np.float64), float(op.shape["width"])
    return joined_rows(op, op.name, rows=rows, width=width, value_bytes=value_bytes)


def joined_rows(
    op: Op, name: str, *, rows: Floats, width: float, value_bytes: Sequence[float]
) -> Op:
    """The same on other rows than those of ``op``, and of another ``width``."""
    moved = rows * width * float(np.mean(value_bytes))
    nothing = np.zeros_like(moved)
    kind = op.kind if len(value_bytes) == 1 else "elementwise"
    return replace(
        op,
        name=name,
        kind=kind,
        count=op.count * len(value_bytes),
        flop=nothing,
        hbm_bytes=moved,
        weight_bytes=nothing,
        shape={"rows": rows, "width": width, "bytes": moved},
    )
