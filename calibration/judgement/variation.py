"""How far trials of the same point differ: coefficients of variation of energy and of time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from calibration.observations import Observation

Quantity = Literal["energy", "time"]

WORST = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Trials of one point on one board: their mean (joules or seconds of a call) and how they vary.

    ``coefficient`` is the standard deviation (of n - 1) over the mean.
    """

    point: str
    mode: str
    duty: float | None
    board: str
    trials: int
    mean: float
    coefficient: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """Coefficients of variation over the grid; None where no point has two trials.

    ``points`` were tried twice or more, ``single`` only once. ``worst`` are the most variable.
    """

    what: Quantity
    points: int
    single: int
    median: float | None
    p95: float | None
    worst: tuple[Spread, ...]
    note: str


def variation(observations: Iterable[Observation], what: Quantity) -> Variation:
    """Spread over trials of gross energy per call, or of time per call.

    Trials are compared within a point, a mode with its duty, and a board.
    """
    groups: dict[tuple[str, str, float | None, str], list[float]] = {}
    for o in observations:
        value = _value(o, what)
        if value is not None:
            groups.setdefault((o.point, o.mode, o.duty, o.board), []).append(value)
    spreads = sorted(_spreads(groups), key=lambda s: -s.coefficient)
    each = [s.coefficient for s in spreads]
    return Variation(
        what=what,
        points=len(each),
        single=len(groups) - len(each),
        median=float(np.median(each)) if each else None,
        p95=float(np.quantile(each, 0.95)) if each else None,
        worst=tuple(spreads[:WORST]),
        note=_note(len(groups), len(each)),
    )


def _value(o: Observation, what: Quantity) -> float | None:
    if o.mode == "idle":
        return None
    if what == "time":
        return o.call_s
    return o.energy_j / o.calls if o.energy_j is not None and o.calls else None


def _spreads(
    groups: Mapping[tuple[str, str, float | None, str], Sequence[float]],
) -> Iterable[Spread]:
    for (point, mode, duty, board), values in groups.items():
        if len(values) > 1:
            mean = float(np.mean(values))
            yield Spread(
                point=point,
                mode=mode,
                duty=duty,
                board=board,
                trials=len(values),
                mean=mean,
                coefficient=float(np.std(values, ddof=1)) / mean,
            )


def _note(groups: int, repeated: int) -> str:
    if not groups:
        return "not measured"
    if not repeated:
        return "one trial of each point: no variation can be told"
    if repeated < groups:
        return f"{groups - repeated:,} of {groups:,} points have one trial and are not counted"
    return ""
