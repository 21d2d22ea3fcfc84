"""Whole runs -> what the engine adds: time outside the layers, launches, taking requests in.

Operation coefficients stay as the micro-workloads gave them; only the engine's own few numbers are
fitted here, on the durations and energies of measured whole-model runs. Errors are then taken
with each model held out in turn, so that every reported run was predicted by an engine fit that
had not seen its model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibration.fit_host import HOST, fit_host
from calibration.robust import deviations, robust_fit
from energymodel.costs import demand, planned, with_engine
from energymodel.engines.engine import EngineTime
from energymodel.engines.vllm import engine_time
from energymodel.io import Run
from energymodel.model import ModelSpec
from energymodel.power import StepLoad
from energymodel.profile import Estimate, Profile
from energymodel.serving import Schedule
from energymodel.settling import Runs, totals
from energymodel.workload import Workload

Array = NDArray[np.float64]

# Starting values (an idle engine is free) and units of what is fitted on durations and energies of
# whole runs; the host's work is read from its own clock (``fit_host.py``).
DEVICE: Mapping[str, float] = {
    "step_s": 50e-6,
    "finish_s": 150e-6,
    "layer_s": 4e-6,
    "sequence_s": 0.5e-6,
    "outside_w": 150.0,
}
ROBUST_AT = 0.05
PRIOR_WEIGHT = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One measured run and what its operations ask for, before the engine adds anything.

    ``workload`` are its requests as the model sees them.
    """

    run: Run
    model: ModelSpec
    workload: Workload
    schedule: Schedule
    load: StepLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFit:
    """Engine estimates and, per run, log measured over predicted with its model held out."""

    engine: dict[str, Estimate]
    energy_error: Array
    duration_error: Array


def initial_engine() -> dict[str, Estimate]:
    """Starting estimates of the engine's numbers."""
    return {n: estimate(n, value, 0.0) for n, value in {**HOST, **DEVICE}.items()}


def estimate(name: str, value: float, stderr: float) -> Estimate:
    """An estimate in watts or seconds, by the end of its name."""
    return Estimate(value=value, stderr=stderr, unit="W" if name.endswith("_w") else "s")


def with_vllm(profile: Profile, estimates: Mapping[str, Estimate]) -> Profile:
    """The profile with other numbers of vLLM."""
    return replace(profile, engines={**profile.engines, "vllm": estimates})


def prepare(runs: Sequence[tuple[Run, ModelSpec]], profile: Profile) -> list[Case]:
    """Schedule, lower and time each run once; the fit then only adds the engine."""
    cases = []
    for run, model in runs:
        served, schedule = planned(model, run.deployment, run.workload, profile.gpu)
        # Told the memory of the run's board, the engine's numbers are not fitted to it.
        byte_j = profile.memory_of(run.extra.get("board")) or run.deployment.hbm_byte_j
        deployment = replace(run.deployment, hbm_byte_j=byte_j)
        load = demand(model, deployment, schedule.steps, profile, served.bins).load()
        case = Case(run=run, model=model, workload=served, schedule=schedule, load=load)
        cases.append(case)
    return cases


def fit_engine(cases: Sequence[Case], profile: Profile, watched: Sequence[Case] = ()) -> EngineFit:
    """Fit all runs, then each model's runs with the fit of the others.

    ``watched``: runs that show the host's work in every step (``fit_host.py``), and nothing else.
    """
    models = [case.model.name for case in cases]
    energy, duration = np.zeros(len(cases)), np.zeros(len(cases))
    for held in sorted(set(models)):
        test = np.array([name == held for name in models])
        train = [c for c, out in zip(cases, test, strict=True) if not out]
        # A single model cannot be held out: its errors are then those of the fit to itself.
        seen = [c for c in watched if c.model.name != held]
        without = with_vllm(profile, _fit(train or cases, profile, seen or watched))
        tested = [c for c, out in zip(cases, test, strict=True) if out]
        duration[test], energy[test] = log_errors(stacked(tested), tested, without)
    whole = _fit(cases, profile, watched)
    return EngineFit(engine=whole, energy_error=energy, duration_error=duration)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The steps of many runs end to end, so that all are evaluated at once; [n_steps]."""

    run: NDArray[np.int64]
    weight: Array
    load: StepLoad


def stacked(cases: Sequence[Case]) -> Stack:
    """The steps of all runs, one run after the other."""
    sizes = [case.schedule.steps.size for case in cases]

    def joined(name: str) -> Array:
        return np.concatenate([getattr(case.load, name) for case in cases])

    return Stack(
        run=np.repeat(np.arange(len(cases)), sizes),
        weight=np.concatenate([case.schedule.steps.weight for case in cases]),
        load=StepLoad(
            fixed_s=joined("fixed_s"),
            clocked_s=joined("clocked_s"),
            core_j=joined("core_j"),
            hbm_j=joined("hbm_j"),
        ),
    )


def log_errors(stack: Stack, cases: Sequence[Case], profile: Profile) -> tuple[Array, Array]:
    """Log of measured over predicted (duration, energy) of each run; shape [n_runs]."""
    times = [
        engine_time(c.model, c.run.deployment, c.schedule.steps, profile, c.workload) for c in cases
    ]
    engine = EngineTime(
        outside_s=np.concatenate([t.outside_s for t in times]),
        launch_s=np.concatenate([t.launch_s for t in times]),
        submit_s=0.0,
        outside_w=profile.engines["vllm"]["outside_w"].value,
        gap_s=np.concatenate([np.broadcast_to(t.gap_s, t.launch_s.shape) for t in times]),
        lead_s=np.concatenate([np.broadcast_to(t.lead_s, t.launch_s.shape) for t in times]),
    )
    return run_errors(stack, cases, engine, np.array([t.submit_s for t in times]), profile)


def run_errors(
    stack: Stack, cases: Sequence[Case], engine: EngineTime, submit_s: Array, profile: Profile
) -> tuple[Array, Array]:
    """As ``log_errors``, with what the engine adds to all steps, and before each run [n_runs]."""
    usual_w = profile.gpu.power_limit_w
    runs = Runs(
        load=with_engine(stack.load, engine)[0],
        weight=stack.weight,
        run=stack.run,
        submit_s=submit_s,
        limit_w=np.array([c.run.deployment.power_limit_w or usual_w for c in cases]),
    )
    duration_s, energy_j = totals(runs, profile.power)
    measured_s = np.array([c.run.duration_s for c in cases])
    measured_j = np.array([c.run.energy_j for c in cases])
    return np.log(measured_s / duration_s), np.log(measured_j / energy_j)


def _fit(cases: Sequence[Case], profile: Profile, watched: Sequence[Case]) -> dict[str, Estimate]:
    """Host estimates from first steps, then device estimates from whole runs."""
    host = fit_host(cases, watched)
    names = list(DEVICE)
    start = np.log([DEVICE[name] for name in names])
    stack = stacked(cases)

    def residuals(log_values: Array) -> Array:
        device = {
            n: estimate(n, float(np.exp(x)), 0.0) for n, x in zip(names, log_values, strict=True)
        }
        errors = log_errors(stack, cases, with_vllm(profile, {**host, **device}))
        return np.concatenate([*errors, PRIOR_WEIGHT * (log_values - start)])

    found, covariance = robust_fit(
        residuals, start, data=2 * len(cases), outlier_at=ROBUST_AT, step=1e-2
    )
    device = {
        n: estimate(n, float(np.exp(x)), float(np.exp(x) * e))
        for n, x, e in zip(names, found, deviations(covariance), strict=True)
    }
    return {**host, **device}
