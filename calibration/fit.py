"""Observations and whole runs -> a profile. No GPU, no torch: minutes on a laptop.

energymodel calibrate --gpu h200 --from observations.jsonl --runs runs.jsonl --out DIR
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration import fit_eager
from calibration import observations as observation_file
from calibration.fit_accuracy import fit_accuracy, unknown_accuracy
from calibration.fit_components import SHARED_ENERGY, Components, NameFit, fit_components
from calibration.fit_engine import (
    Case,
    EngineFit,
    fit_engine,
    initial_engine,
    log_errors,
    prepare,
    stacked,
    with_vllm,
)
from calibration.fit_served import fit_served
from calibration.fit_speculative import fit_speculative
from calibration.fit_time import full_clock
from calibration.fit_transformers import fit_transformers
from calibration.gpu import datasheet
from calibration.judgement.boards import Quantity, board_spread
from calibration.observations import Observation
from calibration.simulation.gpu import DRIVER as SIMULATED
from calibration.tables import names_of
from energymodel import hardware
from energymodel.domain import kernel_warnings
from energymodel.errors import InputError
from energymodel.find_model import find_model
from energymodel.hardware import GpuSpec
from energymodel.io import Run, read_runs
from energymodel.kriging import Kriging
from energymodel.laws import REQUIRED, domain_axes
from energymodel.model import ModelSpec
from energymodel.profile import (
    Estimate,
    Kind,
    OperationProfile,
    PowerProfile,
    Profile,
    StoredKriging,
)

Array = NDArray[np.float64]
Report = Callable[[str], None]

# Axes of which each value is a kernel of its own: calibrated where its energy was measured.
SIZE_AXES: Mapping[str, tuple[str, ...]] = {
    "decode_attention": ("head_dim",),
    "prefill_attention": ("head_dim",),
}
# Runs of samplers, prefix caching, detokenising, eager launches and the HTTP server.
SERVED = "served_runs.jsonl"
# Runs that no prediction is fitted to, of models or in formats that no fit has seen.
UNSEEN = ("held_out_runs.jsonl", "fp8_runs.jsonl")
# Runs on transformers, beside those on vLLM.
EAGER_RUNS = "transformers_runs.jsonl"
# Runs with speculative decoding, likewise.
DRAFTED = "speculative_runs.jsonl"
# With fewer runs that recorded a temperature, that of an air-cooled H200 is assumed.
LEAST_TEMPERATURES = 3
# Significant digits of stored interpolation points and weights; more only makes files longer.
DIGITS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A profile, what it was made of, and by engine the runs behind it and their left-out errors."""

    profile: Profile
    components: Components
    engines: Mapping[str, tuple[Sequence[Case], EngineFit]]


def fit_profile(observations: Path, runs: Path | None, gpu: str) -> Profile:
    """Fit everything that a prediction needs; see ``fit_all``."""
    return fit_all(observations, runs, gpu).profile


def fit_all(
    observations: Path,
    runs: Path | None,
    gpu: str,
    *,
    kind: Kind = "measured",
    report: Report = lambda _: None,
) -> Fit:
    """Fit everything that a prediction needs, and keep what its accuracy was taken from.

    Args:
        observations: micro-workloads, as ``calibration.sweep`` writes them.
        runs: whole-model runs of the engine; without them the engine's own time is unknown and
            its starting values are used, with intervals to match. A file ``SERVED`` beside them
            holds runs that were served otherwise than greedily by ``LLM``, a file ``EAGER_RUNS`` those
            on transformers, without which no prediction knows that engine.
        gpu: name of the datasheet in ``energymodel/gpus``.
        kind: what the profile says of its origin.
        report: gets a line for each name as its fit begins.

    Raises:
        InputError: the observations are of another GPU, or too few to fit.
    """
    sheet = hardware.load(gpu)
    seen = tuple(observation_file.read(observations))
    spec = _as_limited(sheet, seen, observations)
    _check(seen, spec, observations)
    components = fit_components(seen, spec, report)
    measured = [(run, find_model(run.model)[0]) for run in (read_runs(runs) if runs else ())]
    for run, _ in measured:
        if run.gpu.lower() != spec.name:
            raise InputError(f"{runs}: gpu is '{run.gpu}', but the fit is for {spec.name}.")
    profile = Profile(
        schema_version=1,
        name=spec.name,
        gpu=spec,
        kind=kind,
        engines={"vllm": initial_engine()},
        operations={name: _operation(fit) for name, fit in components.names.items()},
        memory=components.memory.kinds,
        power=_power(components, [run for run, _ in measured]),
        accuracy=unknown_accuracy(("vllm",)),
        provenance=_provenance(components, measured),
    )
    profiled = runs and runs.with_name(fit_eager.FILE)
    if profiled and profiled.is_file():
        profile = fit_eager.with_expressions(profile, fit_eager.read(profiled))
    if not measured:
        return Fit(profile=profile, components=components, engines={})
    report("engine")
    cases, served = prepare(measured, profile), prepare(_beside(runs, SERVED), profile)
    watched = [case for case in served if not case.run.deployment.server]
    fitted = fit_engine(cases, profile, watched)
    whole = with_vllm(profile, fitted.engine)
    whole = with_vllm(profile, {**fitted.engine, **fit_served(served, whole)})
    fits: dict[str, tuple[Sequence[Case], EngineFit]] = {"vllm": (cases, fitted)}
    drafted = _beside(runs, DRAFTED)
    if drafted:
        known = whole.engines["vllm"]
        whole = with_vllm(whole, {**known, **fit_speculative(drafted, whole).engine})
    eager = prepare(_beside(runs, EAGER_RUNS), whole)
    if eager:
        on_transformers, whole = fit_transformers(eager, whole)
        fits["transformers"] = (eager, on_transformers)
    fits["vllm"] = _with_unseen(cases, fitted, runs, whole)
    alike = _boards_alike(seen, whole)
    accuracy = fit_accuracy(
        fits,
        whole,
        board_energy=_between_boards(alike, "energy"),
        board_duration=_between_boards(alike, "time"),
    )
    whole = replace(whole, accuracy=accuracy)
    return Fit(profile=whole, components=components, engines=fits)


def _beside(runs: Path | None, name: str) -> list[tuple[Run, ModelSpec]]:
    """Runs of the file ``name`` beside those of ``runs``; none where there is no such file."""
    file = runs and runs.with_name(name)
    if file is None or not file.is_file():
        return []
    return [(run, find_model(run.model)[0]) for run in read_runs(file)]


def _as_limited(spec: GpuSpec, seen: Sequence[Observation], path: Path) -> GpuSpec:
    """The datasheet with the power limit that the boards enforced, where the lines tell it."""
    limits = sorted({round(o.power_limit_w) for o in seen if o.power_limit_w is not None})
    if len(limits) > 1:
        raise InputError(
            f"{path}: power_limit_w must be the same in all lines, got {limits[0]} and {limits[-1]}."
        )
    return replace(spec, power_limit_w=float(limits[0])) if limits else spec


def _check(seen: Sequence[Observation], spec: GpuSpec, path: Path) -> None:
    gpus = {o.gpu for o in seen}
    if not gpus:
        raise InputError(f"{path} holds no observations.")
    wrong = sorted(n for n in gpus if datasheet(n) != spec.name)
    if wrong:
        raise InputError(f"{path}: gpu is '{wrong[0]}', but the fit is for {spec.full_name}.")
    if len({o.driver == SIMULATED for o in seen}) > 1:
        raise InputError(f"{path} mixes simulated and measured lines: fit them apart.")
    known = {name for o in seen for name in names_of(o)} | {"idle" for o in seen if o.op == "idle"}
    for name in ("idle", *REQUIRED):
        if name not in known:
            raise InputError(f"{path}: no observation of {name}, which a profile needs.")
    measured = {name for o in seen if o.energy_j is not None for name in names_of(o)}
    for name in REQUIRED:
        if name not in measured and SHARED_ENERGY.get(name) not in measured:
            raise InputError(f"{path}: no energy window of {name}, which a profile needs.")


def _operation(fit: NameFit) -> OperationProfile:
    t = fit.table
    bursts = full_clock(t)
    axes = domain_axes(t.kind, t.shapes)
    return OperationProfile(
        law=fit.time.law,
        clock_share=fit.power.clock_share,
        energy=fit.power.energy,
        domain={
            axis: (float(values[bursts].min()), float(values[bursts].max()))
            for axis, values in axes.items()
        },
        sizes={
            axis: tuple(float(v) for v in np.unique(t.shapes[axis][fit.windows.chosen]))
            for axis in SIZE_AXES.get(t.kind, ())
        },
        time_error=_typical(fit.time.held_out),
        energy_error=_typical(fit.held_out_j),
        residual=_store(fit.time.residual),
        law_covariance=fit.time.covariance,
        energy_covariance=fit.power.covariance,
        stack=", ".join(sorted({o.stack for o in t.observations})),
    )


def _typical(log_errors: Array) -> float:
    """Median absolute log error; 1 (a factor of e) where nothing could be held out."""
    known = log_errors[np.isfinite(log_errors)]
    return float(np.median(np.abs(known))) if len(known) else 1.0


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


def _power(components: Components, runs: Sequence[Run]) -> PowerProfile:
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
        static_w=components.static.watts,
        static_w_per_c=components.static.watts_per_c,
        ambient_c=Estimate(value=float(level), stderr=float(level_error), unit="degC"),
        c_per_w=Estimate(value=float(slope), stderr=float(slope_error), unit="degC/W"),
        exponent=components.exponent,
        limit_share=components.limit_share,
    )


def _with_unseen(
    cases: Sequence[Case], fitted: EngineFit, runs: Path | None, profile: Profile
) -> tuple[list[Case], EngineFit]:
    """The runs of vLLM, and those of files ``UNSEEN``, which only say how wide intervals must be.

    Runs of other kernels than those that were calibrated are left out: their intervals are not
    made of errors.
    """
    found = [pair for name in UNSEEN for pair in _beside(runs, name)]
    known = [pair for pair in found if not kernel_warnings(pair[1], profile)]
    if not known:
        return list(cases), fitted
    unseen = prepare(known, profile)
    duration, energy = log_errors(stacked(unseen), unseen, profile)
    return [*cases, *unseen], EngineFit(
        engine=fitted.engine,
        energy_error=np.concatenate([fitted.energy_error, energy]),
        duration_error=np.concatenate([fitted.duration_error, duration]),
    )


def _boards_alike(seen: Sequence[Observation], profile: Profile) -> list[Observation]:
    """Observations on boards whose memory is of the kind of most boards; all where none is known."""
    usual = profile.memory[0].boards if profile.memory else ()
    return [o for o in seen if not usual or o.board in usual]


def _between_boards(seen: Sequence[Observation], what: Quantity) -> float:
    """Standard deviation between boards by the mixed-effects model; 0 where it cannot be told."""
    return board_spread(seen, what).deviation or 0.0


def _provenance(
    components: Components, measured: Sequence[tuple[Run, ModelSpec]]
) -> dict[str, Any]:
    seen = components.observations
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
        "left_out": dict(components.left_out),
        "energymodel": package,
        "fitted": date.today().isoformat(),
    }
