"""Observations and whole runs -> a profile. No GPU, no torch: minutes on a laptop.

energymodel calibrate --gpu h200 --from observations.jsonl --runs runs.jsonl --out DIR
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration import observations as observation_file
from calibration.fit_energy import (
    Static,
    Windows,
    cross_validate,
    fit_coefficients,
    fit_exponent,
    fit_hbm_byte,
    fit_static,
    operation_key,
    windows,
)
from calibration.fit_engine import EngineFit, fit_engine, initial_engine, prepare
from calibration.fit_power import PowerFit, refine
from calibration.fit_time import TimeFit, fit_time, full_clock
from calibration.observations import Observation
from calibration.tables import KINDS, Table, kind_of, table
from energymodel import hardware
from energymodel.errors import InputError
from energymodel.find_model import find_model
from energymodel.io import Run, read_runs
from energymodel.kriging import Kriging
from energymodel.laws import domain_axes
from energymodel.model import ModelSpec
from energymodel.profile import (
    Accuracy,
    Estimate,
    OperationProfile,
    PowerProfile,
    Profile,
    StoredKriging,
)

Array = NDArray[np.float64]

# Kinds too small to have energy windows over several shapes share those of elementwise work.
SHARED_ENERGY = {"gather": "elementwise", "sampling": "elementwise"}
# Axes of which each value is a kernel of its own.
SIZE_AXES: Mapping[str, tuple[str, ...]] = {
    "decode_attention": ("head_dim",),
    "prefill_attention": ("head_dim",),
}
QUANTILE = 0.9
# Median of a chi-squared variable with one degree of freedom: the median of the variances of
# pairs is this share of their mean, and does not see the few odd ones.
MEDIAN_CHI2 = 0.4549
# With fewer runs that recorded a temperature, that of an air-cooled H200 is assumed.
LEAST_TEMPERATURES = 3
# Significant digits of stored interpolation points and weights; more only makes files longer.
DIGITS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A profile, and the runs behind its engine and accuracy figures (none without runs)."""

    profile: Profile
    measured: tuple[tuple[Run, ModelSpec], ...]
    engine: EngineFit | None


def fit_profile(observations: Path, runs: Path | None, gpu: str) -> Profile:
    """Fit everything that a prediction needs; see ``fit_all``."""
    return fit_all(observations, runs, gpu).profile


def fit_all(observations: Path, runs: Path | None, gpu: str) -> Fit:
    """Fit everything that a prediction needs, and keep what its accuracy was taken from.

    Args:
        observations: micro-workloads, as ``calibration.sweep`` writes them.
        runs: whole-model runs of the engine; without them the engine's own time is unknown and
            its starting values are used, with intervals to match.
        gpu: name of the datasheet in ``energymodel/gpus``.

    Raises:
        InputError: the observations are of another GPU, or too few to fit.
    """
    spec = hardware.load(gpu)
    seen = list(observation_file.read(observations))
    _check(seen, spec.full_name, observations)
    static = fit_static(seen)
    tables = {kind: table(kind, seen) for kind in KINDS}
    times = {kind: fit_time(t) for kind, t in tables.items()}
    energy = {k: windows(tables[k], static, times[k], spec.max_sm_clock_hz) for k in KINDS}
    hbm_byte_j = fit_hbm_byte(list(energy.values()))
    share = _held_share(seen, spec.power_limit_w)
    exponent, refined = _fit_power(energy, hbm_byte_j, share.value * spec.power_limit_w)
    measured = [(run, find_model(run.model)[0]) for run in (read_runs(runs) if runs else ())]
    for run, _ in measured:
        if run.gpu.lower() != spec.name:
            raise InputError(f"{runs}: gpu is '{run.gpu}', but the fit is for {spec.name}.")
    operations = {
        kind: _operation(
            tables[kind],
            times[kind],
            refined[SHARED_ENERGY.get(kind, kind)],
            cross_validate(energy[SHARED_ENERGY.get(kind, kind)], hbm_byte_j.value, exponent.value),
        )
        for kind in KINDS
    }
    profile = Profile(
        schema_version=1,
        name=spec.name,
        gpu=spec,
        kind="measured",
        engine=initial_engine(),
        operations=operations,
        power=_power(static, exponent, share, [run for run, _ in measured]),
        accuracy=_unknown_accuracy(),
        provenance=_provenance(seen, measured),
    )
    if not measured:
        return Fit(profile=profile, measured=(), engine=None)
    fitted = fit_engine(prepare(measured, profile), profile)
    regimes = [model.regime for _, model in measured]
    accuracy = _accuracy(fitted, regimes, seen)
    whole = replace(profile, engine=fitted.engine, accuracy=accuracy)
    return Fit(profile=whole, measured=tuple(measured), engine=fitted)


def _check(seen: Sequence[Observation], full_name: str, path: Path) -> None:
    names = {o.gpu for o in seen}
    if not names:
        raise InputError(f"{path} holds no observations.")
    wrong = sorted(n for n in names if not n.startswith(full_name))
    if wrong:
        raise InputError(f"{path}: gpu is '{wrong[0]}', but the fit is for {full_name}.")
    kinds = {kind_of(o.op, o.shape) for o in seen} | {o.op for o in seen if o.mode == "idle"}
    for kind in ("idle", *KINDS):
        if kind not in kinds:
            raise InputError(f"{path}: no observation of {kind}, which a profile needs.")
    measured = {kind_of(o.op, o.shape) for o in seen if o.energy_j is not None}
    for kind in KINDS:
        if SHARED_ENERGY.get(kind, kind) not in measured:
            raise InputError(f"{path}: no energy window of {kind}, which a profile needs.")


def _fit_power(
    energy: Mapping[str, Windows], hbm_byte_j: Estimate, cap_w: float
) -> tuple[Estimate, dict[str, PowerFit]]:
    """Exponent of the clock law, from the products that the limit holds, then each kind."""
    first = fit_exponent(energy, hbm_byte_j.value)
    start = fit_coefficients(energy["gemm"], hbm_byte_j, first.value)
    exponent = refine(energy["gemm"], start, first, cap_w, free_exponent=True).exponent
    return exponent, {
        kind: refine(w, fit_coefficients(w, hbm_byte_j, exponent.value), exponent, cap_w)
        for kind, w in energy.items()
        if kind not in SHARED_ENERGY
    }


def _operation(t: Table, time: TimeFit, fitted: PowerFit, held_out: Array) -> OperationProfile:
    bursts = full_clock(t)
    axes = domain_axes(t.kind, t.shapes)
    return OperationProfile(
        law=time.law,
        clock_share=fitted.clock_share,
        energy=fitted.energy,
        domain={
            axis: (float(values[bursts].min()), float(values[bursts].max()))
            for axis, values in axes.items()
        },
        sizes={
            axis: tuple(float(v) for v in np.unique(t.shapes[axis][bursts]))
            for axis in SIZE_AXES.get(t.kind, ())
        },
        time_error=float(np.median(np.abs(time.held_out))),
        energy_error=float(np.median(np.abs(held_out))),
        residual=_store(time.residual),
    )


def _store(kriging: Kriging | None) -> StoredKriging | None:
    if kriging is None:
        return None
    return StoredKriging(
        length_scales=tuple(map(float, kriging.length_scales)),
        points=tuple(tuple(_rounded(x) for x in row) for row in kriging.points),
        weights=tuple(_rounded(x) for x in kriging.weights),
        amplitude=kriging.amplitude,
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _held_share(seen: Sequence[Observation], limit_w: float) -> Estimate:
    """Share of the limit at which a throttled GPU's mean power is held."""
    top_hz = max(o.sm_clock_hz or 0.0 for o in seen)
    held = [
        (o.energy_j or 0.0) / (o.duration_s or 1.0) / limit_w
        for o in seen
        if o.mode == "sustained" and (o.sm_clock_hz or 0.0) < 0.9 * top_hz
    ]
    if not held:
        raise InputError("no sustained window met the power limit: the clock law cannot be fitted.")
    return Estimate(
        value=float(np.median(held)), stderr=float(np.std(held) / len(held) ** 0.5), unit="1"
    )


def _power(
    static: Static, exponent: Estimate, share: Estimate, runs: Sequence[Run]
) -> PowerProfile:
    """Static power, and the temperature that whole runs settle at."""
    watts = np.array([run.energy_j / run.duration_s for run in runs])
    celsius = np.array([float(str(run.extra.get("temperature_c", "nan"))) for run in runs])
    known = np.isfinite(celsius)
    if known.sum() < LEAST_TEMPERATURES:
        (slope, level), (slope_error, level_error) = (0.038, 29.0), (0.0, 0.0)
    else:
        (slope, level), covariance = np.polyfit(watts[known], celsius[known], 1, cov=True)
        slope_error, level_error = np.sqrt(np.diag(covariance))
    return PowerProfile(
        static_w=static.watts,
        static_w_per_c=static.watts_per_c,
        ambient_c=Estimate(value=float(level), stderr=float(level_error), unit="degC"),
        c_per_w=Estimate(value=float(slope), stderr=float(slope_error), unit="degC/W"),
        exponent=exponent,
        limit_share=share,
    )


def _unknown_accuracy() -> Accuracy:
    """Wide intervals for a profile without whole runs: a factor of 1.5 either way."""
    wide = {"dense": float(np.log(1.5)), "moe": float(np.log(1.5))}
    return Accuracy(
        energy_quantile=wide, duration_quantile=wide, board_energy=0, board_duration=0, runs=0
    )


def _accuracy(fitted: EngineFit, regimes: Sequence[str], seen: Sequence[Observation]) -> Accuracy:
    energy, duration = np.abs(fitted.energy_error), np.abs(fitted.duration_error)
    of = {name: np.array([r == name for r in regimes]) for name in ("dense", "moe")}
    known = {name: mask if mask.any() else np.ones_like(mask) for name, mask in of.items()}
    return Accuracy(
        energy_quantile={n: float(np.quantile(energy[m], QUANTILE)) for n, m in known.items()},
        duration_quantile={n: float(np.quantile(duration[m], QUANTILE)) for n, m in known.items()},
        board_energy=_between_boards(seen, "energy"),
        board_duration=_between_boards(seen, "time"),
        runs=len(energy),
    )


def _between_boards(seen: Sequence[Observation], what: str) -> float:
    """Standard deviation between boards of the log of the same sustained operation."""
    values: dict[str, dict[str, float]] = {}
    for o in seen:
        if o.mode == "sustained" and o.energy_j is not None and o.calls:
            value = o.energy_j / o.calls if what == "energy" else o.call_s
            values.setdefault(operation_key(o), {})[o.board] = float(np.log(value))
    pairs = [np.var(list(v.values()), ddof=1) for v in values.values() if len(v) > 1]
    return float(np.sqrt(np.median(pairs) / MEDIAN_CHI2)) if pairs else 0.0


def _provenance(
    seen: Sequence[Observation], measured: Sequence[tuple[Run, ModelSpec]]
) -> dict[str, Any]:
    try:
        package = version("energymodel")
    except PackageNotFoundError:
        package = "unknown"
    software = next((run.extra["software"] for run, _ in measured if "software" in run.extra), {})
    return {
        "observations": len(seen),
        "boards": sorted({o.board for o in seen}),
        "driver": sorted({o.driver for o in seen}),
        "software": software,
        "runs": len(measured),
        "run_models": sorted({run.model for run, _ in measured}),
        "energymodel": package,
        "fitted": date.today().isoformat(),
    }
