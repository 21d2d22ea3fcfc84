"""What simpler estimates reach on the same folds: FLOP only, time only, a roofline.

Each has one coefficient and is given its best: the median ratio of measured energy to its
regressor over the training windows, which minimises the mean absolute log error.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.fit_energy import Windows
from calibration.fit_power import HELD_OUT_PARTS
from calibration.folds import folds
from energymodel.hardware import GpuSpec

Array = NDArray[np.float64]

NAMES = ("flop_only", "time_only", "roofline")
# Whose peak rate a storage format computes at, where the datasheet does not name it: bfloat16's,
# except for these.
_COMPUTES_AS = {"fp8_block": "fp8"}
PEAK_DTYPE = "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Relative errors (predicted over measured, minus 1) that nothing in the fit had seen."""

    count: int
    median: float
    p90: float
    bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sustained:
    """Sustained windows of one or more kinds, arrays [n]: what simple estimates read."""

    gross_j: Array
    call_s: Array
    flop: Array
    roofline_s: Array
    group: Array


def errors(relative: Array) -> Errors | None:
    """Summary of relative errors; None of none."""
    finite = relative[np.isfinite(relative)]
    if not len(finite):
        return None
    size = np.abs(finite)
    return Errors(
        count=len(finite),
        median=float(np.median(size)),
        p90=float(np.quantile(size, 0.9)),
        bias=float(np.mean(finite)),
    )


def sustained(w: Windows, spec: GpuSpec) -> Sustained:
    """The sustained windows of a kind."""
    keep = w.duty >= 1.0
    rows = w.rows
    peak = np.array([_peak(o.dtype, spec) for o in rows])
    return Sustained(
        gross_j=w.gross_j[keep],
        call_s=w.call_s[keep],
        flop=w.flop[keep],
        roofline_s=np.maximum(w.flop / peak, w.moved_bytes / spec.hbm_bytes_per_s)[keep],
        group=w.held_together[keep],
    )


def pooled(kinds: Mapping[str, Sustained]) -> Sustained:
    """All kinds as one, families kept apart by kind."""
    parts = list(kinds.values())
    labels = [(i, g) for i, part in enumerate(parts) for g in part.group]
    number = {label: float(i) for i, label in enumerate(dict.fromkeys(labels))}
    return Sustained(
        gross_j=np.concatenate([p.gross_j for p in parts]),
        call_s=np.concatenate([p.call_s for p in parts]),
        flop=np.concatenate([p.flop for p in parts]),
        roofline_s=np.concatenate([p.roofline_s for p in parts]),
        group=np.array([number[label] for label in labels]),
    )


def simple_errors(s: Sustained) -> dict[str, Errors | None]:
    """Held-out errors of each simple estimate; None where it has nothing to go by (no FLOP)."""
    regressors = {"flop_only": s.flop, "time_only": s.call_s, "roofline": s.roofline_s}
    return {name: errors(held_out(regressors[name], s)) for name in NAMES}


def held_out(regressor: Array, s: Sustained) -> Array:
    """Relative errors of energy = coefficient x ``regressor``, each shape family held out.

    What has none of the regressor is estimated at nothing: an error of -1. NaN where no training
    window has any.
    """
    relative = np.full(len(s.gross_j), np.nan)
    for test in folds(s.group, HELD_OUT_PARTS):
        train = ~test & (regressor > 0)
        if train.any():
            coefficient = np.median(s.gross_j[train] / regressor[train])
            relative[test] = coefficient * regressor[test] / s.gross_j[test] - 1.0
    return relative


def _peak(dtype: str, spec: GpuSpec) -> float:
    peaks = spec.peak_flop_per_s
    return peaks.get(dtype) or peaks.get(_COMPUTES_AS.get(dtype, "")) or peaks[PEAK_DTYPE]
