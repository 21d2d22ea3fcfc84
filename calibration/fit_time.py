"""Burst times -> time laws: robust least squares in log time, then kriging of what is left."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.robust import robust_fit
from calibration.tables import Table
from energymodel import laws
from energymodel.kriging import Kriging, fit_kriging
from energymodel.profile import Estimate
from energymodel.steps import Floats

Array = NDArray[np.float64]

# Bursts at a lower clock were caught by the power limit of the work before them.
FULL_CLOCK_HZ = 1.95e9
# Scale at which a residual (log time) counts as an outlier.
ROBUST_AT = 0.05
# A weak pull towards the starting values keeps parameters apart that the grid cannot tell apart.
PRIOR_WEIGHT = 0.04
# A sharpness below 1 would make a smooth maximum larger than the sum. Otherwise,
# no parameter may leave its starting value by more than this (log): a factor of about 150.
REACH = 5.0
FOLDS = 10
# With fewer shape families than this, single observations are held out instead.
LEAST_FAMILIES = 3

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
    "elementwise": {
        "launch_s": 2e-6, "bytes_per_s": 4e12, "cache_bytes_per_s": 8e12, "cache_bytes": 5e7,
    },
}  # fmt: skip
START = {**START, "gather": START["elementwise"], "sampling": START["elementwise"]}

_UNITS = {"launch_s": "s", "reduce_s": "s", "block_s": "s", "combine_s": "s", "expert_s": "s"}
_UNITS |= {"bytes_per_s": "B/s", "cache_bytes_per_s": "B/s", "sm_bytes_per_s": "B/s"}
_UNITS |= {"flop_per_s": "FLOP/s", "cache_bytes": "B"}

# Correlation lengths of residuals in log2 of each feature, and the noise of one burst.
LENGTH_SCALES: Mapping[str, tuple[float, ...]] = {
    "gemm": (3, 2, 2),
    "decode_attention": (3, 3, 3, 3, 2),
    "prefill_attention": (3, 2, 2, 3, 3, 2),
    "moe": (3, 3, 2, 2, 3, 4),
}
AMPLITUDE, NOISE = 0.15, 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeFit:
    """Law, residual interpolation and relative errors on held-out shape families, shape [n]."""

    law: dict[str, Estimate]
    residual: Kriging | None
    held_out: Array


def fit_time(table: Table) -> TimeFit:
    """Fit the law of ``table.kind`` to its bursts and cross-validate by shape family."""
    usable = full_clock(table)
    shapes = {name: values[usable] for name, values in table.shapes.items()}
    seconds = np.array([o.call_s for o in table.observations])[usable]
    group = table.group[usable]
    law = _fit_law(table.kind, shapes, seconds)
    return TimeFit(
        law=law,
        residual=_fit_residual(table.kind, shapes, seconds, law),
        held_out=_cross_validate(table.kind, shapes, seconds, group),
    )


def full_clock(table: Table) -> NDArray[np.bool_]:
    """Which observations are bursts at full clock."""
    return np.array(
        [o.mode == "burst" and (o.sm_clock_hz or 0.0) >= FULL_CLOCK_HZ for o in table.observations]
    )


def law_seconds(
    kind: str, shapes: Mapping[str, Floats], law: Mapping[str, Estimate], residual: Kriging | None
) -> Array:
    """Seconds of one call at full clock by law and residual."""
    seconds = laws.LAWS[kind](shapes, {k: e.value for k, e in law.items()}).seconds
    if residual is not None:
        seconds = seconds * np.exp(residual.mean(laws.features(kind, shapes)))
    return seconds


def _fit_law(kind: str, shapes: Mapping[str, Array], seconds: Array) -> dict[str, Estimate]:
    names = list(START[kind])
    start = np.log([START[kind][name] for name in names])

    def residuals(log_values: Array) -> Array:
        parameters = dict(zip(names, np.exp(log_values), strict=True))
        error = np.log(laws.LAWS[kind](shapes, parameters).seconds / seconds)
        return np.concatenate([error, PRIOR_WEIGHT * (log_values - start)])

    found, errors = robust_fit(
        residuals,
        start,
        data=len(seconds),
        outlier_at=ROBUST_AT,
        lower=np.array(
            [0.0 if n == "sharpness" else x - REACH for n, x in zip(names, start, strict=True)]
        ),
        upper=start + REACH,
        step=3e-3,
    )
    return {
        name: Estimate(
            value=float(np.exp(x)), stderr=float(np.exp(x) * e), unit=_UNITS.get(name, "1")
        )
        for name, x, e in zip(names, found, errors, strict=True)
    }


def _fit_residual(
    kind: str, shapes: Mapping[str, Array], seconds: Array, law: Mapping[str, Estimate]
) -> Kriging | None:
    if kind not in LENGTH_SCALES:
        return None
    features = laws.features(kind, shapes)
    error = np.log(seconds / law_seconds(kind, shapes, law, None))
    distinct, inverse = np.unique(features, axis=0, return_inverse=True)
    mean = np.bincount(inverse, error) / np.bincount(inverse)
    return fit_kriging(
        distinct,
        mean,
        length_scales=np.array(LENGTH_SCALES[kind], dtype=np.float64),
        amplitude=AMPLITUDE,
        noise=NOISE,
    )


def _cross_validate(kind: str, shapes: Mapping[str, Array], seconds: Array, group: Array) -> Array:
    """Log time over predicted log time, each shape family predicted without itself."""
    if len(np.unique(group)) < LEAST_FAMILIES:
        group = np.arange(len(seconds), dtype=np.float64)
    families = np.unique(group)
    order = np.random.default_rng(0).permutation(families)
    held_out = np.zeros_like(seconds)
    folds = min(FOLDS, len(families))
    for fold in range(folds):
        test = np.isin(group, order[fold::folds])
        train = {name: values[~test] for name, values in shapes.items()}
        law = _fit_law(kind, train, seconds[~test])
        residual = _fit_residual(kind, train, seconds[~test], law)
        held = {name: values[test] for name, values in shapes.items()}
        held_out[test] = np.log(seconds[test] / law_seconds(kind, held, law, residual))
    return held_out
