"""Burst times -> time laws: robust least squares in log time, then kriging of what is left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.folds import folds, together
from calibration.robust import deviations, robust_fit
from calibration.tables import Table
from energymodel import laws
from energymodel.kriging import Kriging, fit_kriging
from energymodel.laws import ROOFLINE_KINDS, STREAMING_KINDS, kind_of
from energymodel.profile import Covariance, Estimate
from energymodel.steps import Floats

Array = NDArray[np.float64]

# Bursts at a lower share of the highest clock were caught by the power limit of the work before.
FULL_CLOCK = 0.985
# Scale at which a residual (log time) counts as an outlier.
ROBUST_AT = 0.05
# A weak pull towards the starting values keeps parameters apart that the grid cannot tell apart.
PRIOR_WEIGHT = 0.04
# A sharpness below 1 would make a smooth maximum larger than the sum. Otherwise,
# no parameter may leave its starting value by more than this (log): a factor of about 150.
REACH = 5.0

_ROWS = {
    "launch_s": 2e-6, "bytes_per_s": 4e12, "cache_bytes_per_s": 8e12, "cache_bytes": 5e7,
    "element_s": 0.15e-9, "rows_per_sm": 8.0,
}  # fmt: skip
_ROOFLINE = {
    "launch_s": 10e-6, "bytes_per_s": 4e12, "flop_per_s": 4e14, "sharpness": 3.0,
    "fill_blocks": 0.2, "step_s": 1e-6,
}  # fmt: skip
# Starting values: rates near what a copy and a large product reach, latencies of a few microseconds.
START: Mapping[str, Mapping[str, float]] = {
    "gemm": {
        "launch_s": 3e-6, "bytes_per_s": 4.4e12, "flop_per_s": 8e14, "fill_k": 60.0,
        "fill_tiles": 1.0, "sharpness": 4.0, "reduce_s": 0.3e-9,
    },
    "decode_attention": {
        "launch_s": 7e-6, "bytes_per_s": 4.5e12, "block_s": 3e-6, "sharpness": 4.0,
        "sm_bytes_per_s": 4e10, "combine_s": 1.8e-6, "block_share": 0.35, "block_power": 0.4,
    },
    "prefill_attention": {
        "launch_s": 6e-6, "flop_per_s": 8.8e14, "softmax_dims": 41.0, "block_s": 3.6e-6,
        "walk_share": 0.5, "walk_power": 0.45, "sharpness": 4.0, "bytes_per_s": 2.6e12,
    },
    "moe": {
        "launch_s": 16e-6, "bytes_per_s": 4.3e12, "flop_per_s": 7e14, "fill_rows": 4.0,
        "fill_k": 84.0, "sharpness": 3.4, "hidden_passes": 3.0, "inner_passes": 8.0,
        "expert_s": 0.05e-6,
    },
    **dict.fromkeys(STREAMING_KINDS, _ROWS),
    **dict.fromkeys(ROOFLINE_KINDS, _ROOFLINE),
}  # fmt: skip

_UNITS = {"flop_per_s": "FLOP/s", "cache_bytes": "B", "bytes_per_s": "B/s"}

# Correlation lengths of residuals in log2 of each feature, and the noise of one burst.
LENGTH_SCALES: Mapping[str, tuple[float, ...]] = {
    "gemm": (3, 2, 2),
    "decode_attention": (3, 3, 3, 3, 2),
    "prefill_attention": (3, 2, 2, 3, 3, 2),
    "moe": (3, 3, 2, 2, 3, 4),
    **dict.fromkeys(ROOFLINE_KINDS, (3, 3, 3)),
    # What pools several kernels has no residual in common.
    **dict.fromkeys((k for k in STREAMING_KINDS if k != "elementwise"), (3, 3)),
}
AMPLITUDE, NOISE = 0.15, 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeFit:
    """Law, residual interpolation and log errors on held-out shape families, shape [n]."""

    law: dict[str, Estimate]
    covariance: Covariance
    residual: Kriging | None
    held_out: Array


def fit_time(table: Table) -> TimeFit:
    """Fit the law of ``table.name`` to its bursts and cross-validate by shape family."""
    usable = full_clock(table)
    shapes = {name: values[usable] for name, values in table.shapes.items()}
    seconds = np.array([o.call_s for o in table.observations])[usable]
    repeats = len(seconds) / max(1, len(np.unique(table.point[usable])))
    law, covariance = _fit_law(table, shapes, seconds, repeats)
    return TimeFit(
        law=law,
        covariance=covariance,
        residual=_fit_residual(table.name, shapes, seconds, law),
        held_out=_cross_validate(table, shapes, seconds, usable),
    )


def full_clock(table: Table) -> NDArray[np.bool_]:
    """Which observations are bursts at full clock."""
    least_hz = FULL_CLOCK * table.top_clock_hz
    return np.array(
        [o.mode == "burst" and (o.sm_clock_hz or 0.0) >= least_hz for o in table.observations],
        dtype=np.bool_,
    )


def law_seconds(
    name: str, shapes: Mapping[str, Floats], law: Mapping[str, Estimate], residual: Kriging | None
) -> Array:
    """Seconds of one call at full clock by law and residual."""
    kind = kind_of(name)
    seconds = laws.LAWS[kind](shapes, {k: e.value for k, e in law.items()}).seconds
    if residual is not None:
        seconds = seconds * np.exp(residual.mean(laws.features(kind, shapes)))
    return seconds


def _fit_law(
    table: Table, shapes: Mapping[str, Array], seconds: Array, repeats: float = 1.0
) -> tuple[dict[str, Estimate], Covariance]:
    """Estimates of the law's parameters, and the covariance of their logarithms."""
    kind = table.kind
    names = list(START[kind])
    start = np.log([START[kind][name] for name in names])
    fixed = {"sm_count": table.sm_count}

    def residuals(log_values: Array) -> Array:
        parameters = dict(zip(names, np.exp(log_values), strict=True)) | fixed
        error = np.log(laws.LAWS[kind](shapes, parameters).seconds / seconds)
        return np.concatenate([error, PRIOR_WEIGHT * (log_values - start)])

    found, covariance = robust_fit(
        residuals,
        start,
        data=len(seconds),
        outlier_at=ROBUST_AT,
        lower=np.array(
            [0.0 if n == "sharpness" else x - REACH for n, x in zip(names, start, strict=True)]
        ),
        upper=start + REACH,
        step=3e-3,
        repeats=repeats,
    )
    law = {
        name: Estimate(value=float(np.exp(x)), stderr=float(np.exp(x) * e), unit=_unit(name))
        for name, x, e in zip(names, found, deviations(covariance), strict=True)
    }
    law["sm_count"] = Estimate(value=table.sm_count, stderr=0.0, unit="1")
    return law, stored_covariance(names, covariance)


def stored_covariance(names: Sequence[str], matrix: Array) -> Covariance:
    """A covariance as a profile holds it."""
    rows = tuple(tuple(float(f"{x:.4g}") for x in row) for row in matrix)
    return Covariance(names=tuple(names), matrix=rows)


def _unit(name: str) -> str:
    rate = "B/s" if name.endswith("bytes_per_s") else None
    return _UNITS.get(name) or rate or ("s" if name.endswith("_s") else "1")


def _fit_residual(
    name: str, shapes: Mapping[str, Array], seconds: Array, law: Mapping[str, Estimate]
) -> Kriging | None:
    kind = kind_of(name)
    if kind not in LENGTH_SCALES:
        return None
    features = laws.features(kind, shapes)
    error = np.log(seconds / law_seconds(name, shapes, law, None))
    distinct, inverse = np.unique(features, axis=0, return_inverse=True)
    mean = np.bincount(inverse, error) / np.bincount(inverse)
    return fit_kriging(
        distinct,
        mean,
        length_scales=np.array(LENGTH_SCALES[kind], dtype=np.float64),
        amplitude=AMPLITUDE,
        noise=NOISE,
    )


def _cross_validate(
    table: Table, shapes: Mapping[str, Array], seconds: Array, usable: NDArray[np.bool_]
) -> Array:
    """Log time over predicted log time, each shape family predicted without itself."""
    held_out = np.zeros_like(seconds)
    for test in folds(together(table.group[usable], table.point[usable])):
        train = {name: values[~test] for name, values in shapes.items()}
        law, _ = _fit_law(table, train, seconds[~test])
        residual = _fit_residual(table.name, train, seconds[~test], law)
        held = {name: values[test] for name, values in shapes.items()}
        held_out[test] = np.log(seconds[test] / law_seconds(table.name, held, law, residual))
    return held_out
