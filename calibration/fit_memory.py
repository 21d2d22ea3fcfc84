"""What a byte costs in the memory itself, by the memory's own power sensor, board by board.

Boards of one GPU differ in little but their memory: half of the H200s that were measured spend 25 pJ
on a byte, the others 44 pJ, most likely memories of two makers. What a byte costs is therefore
fitted on each board and averaged over boards that are alike (``Memory``).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import statsmodels.api as sm
from numpy.typing import NDArray

from calibration.tables import Table
from energymodel.laws import STREAMING_KINDS
from energymodel.profile import Estimate, MemoryKind

Array = NDArray[np.float64]

# Memory power is a one-second average: only sustained work at this share of the datasheet's rate
# says what a byte costs.
STREAMING_SHARE = 0.2
H200_BYTES_PER_S = 4.8e12
LEAST_STREAMS = 4
# A board with fewer streaming windows is given to the kind of memory that it is closest to.
LEAST_STREAMS_OF_A_BOARD = 20
UNKNOWN = Estimate(value=0.0, stderr=0.0, unit="J/B")
# Boards whose bytes differ by more than this factor have memories of different kinds.
OTHER_KIND = 1.3
# What one such call writes is still in the L2 cache when the next reads it.
CACHED = frozenset(STREAMING_KINDS) - {"copy"}


Streams = Mapping[str, Array]
"""By board: (bytes per second, watts of the memory) of sustained windows that stream; [n, 2]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Joules per byte of each kind of memory; ``usual`` is the first, that of most boards.

    Without a sensor of memory power the usual costs 0: the energy of the memory is then part of
    ``weight_byte_j``, and goes with the clock like the rest.
    """

    kinds: tuple[MemoryKind, ...]

    @property
    def usual(self) -> Estimate:
        """What a byte costs on most boards."""
        return self.kinds[0].byte_j

    def over_usual(self, board: str) -> float:
        """What a byte costs on ``board`` over the usual; 1 for a board that is not known."""
        for kind in self.kinds:
            if board in kind.boards and self.usual.value:
                return kind.byte_j.value / self.usual.value
        return 1.0


def fit_memory(tables: Iterable[Table], hbm_bytes_per_s: float = H200_BYTES_PER_S) -> Memory:
    """Slope of memory power over bytes per second of sustained streams, by board.

    Args:
        tables: of single kernels, each with its windows.
        hbm_bytes_per_s: the datasheet's rate of the memory.
    """
    streams = _streams(tables, STREAMING_SHARE * hbm_bytes_per_s)
    lines = {
        board: line
        for board, points in streams.items()
        if len(points) >= LEAST_STREAMS_OF_A_BOARD and (line := _line(points)) is not None
    }
    groups = _alike(lines)
    if len(groups) < 2:
        together = _line(np.concatenate(list(streams.values()))) if streams else None
        slope = UNKNOWN if together is None else together.slope
        return Memory(kinds=(MemoryKind(byte_j=slope, boards=tuple(sorted(streams))),))
    for board in streams.keys() - lines.keys():
        _nearest(groups, lines, streams[board]).append(board)
    # A tie between kinds goes to the one that was measured more.
    groups.sort(key=lambda g: (len(g), sum(len(streams[b]) for b in g)), reverse=True)
    return Memory(
        kinds=tuple(
            MemoryKind(
                byte_j=_mean([lines[b].slope for b in g if b in lines]), boards=tuple(sorted(g))
            )
            for g in groups
        )
    )


def _streams(tables: Iterable[Table], least_bytes_per_s: float) -> Streams:
    found: dict[str, list[tuple[float, float]]] = {}
    for t in (t for t in tables if t.kind not in CACHED):
        for o, moved in zip(t.observations, t.hbm_bytes, strict=True):
            if o.memory_power_w and o.mode == "sustained" and moved / o.call_s > least_bytes_per_s:
                found.setdefault(o.board, []).append((float(moved) / o.call_s, o.memory_power_w))
    return {board: np.array(points) for board, points in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """Watts of the memory = ``base_w`` + ``slope`` x bytes per second."""

    base_w: float
    slope: Estimate


def _line(points: Array) -> _Line | None:
    """Robust line through (bytes per second, watts); None where they tell of none.

    A memory draws power without traffic and more with it: a line that says otherwise went through
    points too few or too close.
    """
    if len(points) < LEAST_STREAMS:
        return None
    result = sm.RLM(points[:, 1], sm.add_constant(points[:, 0])).fit()
    base_w, slope = map(float, result.params)
    if base_w <= 0 or slope <= 0:
        return None
    slope_j = Estimate(value=slope, stderr=float(result.bse[1]), unit="J/B")
    return _Line(base_w=base_w, slope=slope_j)


def _alike(lines: Mapping[str, _Line]) -> list[list[str]]:
    """Boards in groups without a gap of ``OTHER_KIND`` inside."""
    groups: list[list[str]] = []
    last = 0.0
    for board in sorted(lines, key=lambda b: lines[b].slope.value):
        value = lines[board].slope.value
        if not groups or value > OTHER_KIND * last:
            groups.append([])
        groups[-1].append(board)
        last = value
    return groups


def _nearest(groups: list[list[str]], lines: Mapping[str, _Line], points: Array) -> list[str]:
    """The group whose lines run closest to the points of a board that has too few for its own."""

    def distance_w(group: list[str]) -> float:
        known = [lines[b] for b in group if b in lines]
        base_w = np.mean([line.base_w for line in known])
        slope = np.mean([line.slope.value for line in known])
        return float(np.abs(np.median(points[:, 1] - base_w - slope * points[:, 0])))

    return min(groups, key=distance_w)


def _mean(slopes: Sequence[Estimate]) -> Estimate:
    """Mean over boards; its error from their scatter where there are several."""
    values = np.array([s.value for s in slopes])
    stderr = slopes[0].stderr
    if len(values) > 1:
        stderr = float(values.std(ddof=1)) / len(values) ** 0.5
    return Estimate(value=float(values.mean()), stderr=stderr, unit="J/B")
