"""Values on a lattice of one to three axes, and what lies between them."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from energymodel.steps import Floats, Ints


def nodes(last: float, whole: int, per_doubling: int) -> Floats:
    """1, 2, ... ``whole``, then ``per_doubling`` to a doubling, up to ``last`` and beyond.

    At least two of them.
    """
    last = max(last, 2.0)
    doublings = max(np.log2(last / whole), 0.0) if last > whole else 0.0
    steps = np.arange(1, int(np.ceil(doublings * per_doubling)) + 1)
    beyond = np.round(whole * np.exp2(steps / per_doubling))
    return np.unique(np.concatenate([np.arange(1.0, min(last, whole) + 1.0), beyond]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """``values`` [nodes of each axis ..., n_values], linear between the nodes of each axis.

    Beyond the last node the last cell goes on; before the first node its value holds.
    """

    axes: tuple[Floats, ...]
    values: Floats

    def at(self, *places: Floats) -> Floats:
        """Values at ``places``, one array [n] for each axis; shape [n, n_values]."""
        flat, strides = self.values.reshape(-1, self.values.shape[-1]), _strides(self.axes)
        cells = [_cells(axis, x) for axis, x in zip(self.axes, places, strict=True)]
        first = sum(cell * stride for (cell, _), stride in zip(cells, strides, strict=True))
        total: Floats | None = None
        for corner in product((0, 1), repeat=len(cells)):
            ahead = sum(far * stride for far, stride in zip(corner, strides, strict=True))
            part = flat.take(np.asarray(first + ahead), axis=0)
            weight: Floats | float = 1.0
            for (_, share), far in zip(cells, corner, strict=True):
                weight = weight * (share if far else 1.0 - share)
            part *= np.asarray(weight)[:, None]
            total = part if total is None else np.add(total, part, out=total)
        return np.asarray(total)


class Lookup:
    """The same, one place at a time: for a simulation that goes step by step."""

    def __init__(self, lattice: Lattice) -> None:
        self._axes = [axis.tolist() for axis in lattice.axes]
        self._strides = _strides(lattice.axes)
        values = lattice.values
        self._rows: list[list[float]] = values.reshape(-1, values.shape[-1]).tolist()

    def at(self, *places: float) -> list[float]:
        """Values [n_values] at one place."""
        corners = [(1.0, 0)]
        for axis, stride, x in zip(self._axes, self._strides, places, strict=True):
            cell = min(max(bisect_right(axis, x) - 1, 0), len(axis) - 2)
            share = max((x - axis[cell]) / (axis[cell + 1] - axis[cell]), 0.0)
            cell *= stride
            if share == 0.0:
                corners = [(w, i + cell) for w, i in corners]
            elif share == 1.0:
                corners = [(w, i + cell + stride) for w, i in corners]
            else:
                far = [(w * share, i + cell + stride) for w, i in corners]
                corners = [(w * (1.0 - share), i + cell) for w, i in corners] + far
        if len(corners) == 1:
            return self._rows[corners[0][1]]
        parts = [[w * v for v in self._rows[i]] for w, i in corners]
        return [sum(column) for column in zip(*parts, strict=True)]


class Curve:
    """Four values over one axis, one place at a time; as ``Lattice``."""

    def __init__(self, axis: Floats, values: Floats) -> None:
        self._axis: list[float] = axis.tolist()
        self._rows: list[tuple[float, float, float, float]] = [
            (a, b, c, d) for a, b, c, d in values.tolist()
        ]
        self._last = len(self._axis) - 2

    def at(self, x: float) -> tuple[float, float, float, float]:
        """Values at one place."""
        axis = self._axis
        cell = min(max(bisect_right(axis, x) - 1, 0), self._last)
        low, rows = axis[cell], self._rows
        share = max((x - low) / (axis[cell + 1] - low), 0.0)
        a, b = rows[cell], rows[cell + 1]
        rest = 1.0 - share
        return (
            rest * a[0] + share * b[0],
            rest * a[1] + share * b[1],
            rest * a[2] + share * b[2],
            rest * a[3] + share * b[3],
        )


def _strides(axes: Sequence[Floats]) -> list[int]:
    """How far apart in a flat array neighbours on each axis are."""
    return [math.prod(len(axis) for axis in axes[i + 1 :]) for i in range(len(axes))]


def _cells(axis: Floats, x: Floats) -> tuple[Ints, Floats]:
    """(cell that each x is in or nearest to, how far into it it is)."""
    cell = np.clip(np.searchsorted(axis, x, side="right") - 1, 0, len(axis) - 2)
    low = axis[cell]
    return cell, np.maximum((x - low) / (axis[cell + 1] - low), 0.0)
