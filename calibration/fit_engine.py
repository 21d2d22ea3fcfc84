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
from scipy.optimize import least_squares

from energymodel import power
from energymodel.io import Run
from energymodel.model import ModelSpec
from energymodel.power import StepLoad
from energymodel.predict import demand, regime, settle, with_engine
from energymodel.profile import Estimate, Profile
from energymodel.serving import Schedule, schedule_offline
from energymodel.vllm_engine import engine_time, kv_capacity_tokens

Array = NDArray[np.float64]

# Starting values (an idle engine is free) and units.
START: Mapping[str, tuple[float, str]] = {
    "step_s": (200e-6, "s"),
    "sequence_s": (1e-6, "s"),
    "launch_step_s": (1e-3, "s"),
    "launch_layer_s": (300e-6, "s"),
    "launch_experts_s": (800e-6, "s"),
    "submit_s": (1e-3, "s"),
    "submit_request_s": (50e-6, "s"),
    "outside_w": (100.0, "W"),
}
ROBUST_AT = 0.05
PRIOR_WEIGHT = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One measured run and what its operations ask for, before the engine adds anything."""

    run: Run
    model: ModelSpec
    schedule: Schedule
    load: StepLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFit:
    """Engine estimates and, per run, log measured over predicted with its model held out."""

    engine: dict[str, Estimate]
    energy_error: Array
    duration_error: Array
    regimes: tuple[str, ...]
    models: tuple[str, ...]


def initial_engine() -> dict[str, Estimate]:
    """Starting estimates of the engine's numbers."""
    return {name: Estimate(value=v, stderr=0.0, unit=unit) for name, (v, unit) in START.items()}


def prepare(runs: Sequence[tuple[Run, ModelSpec]], profile: Profile) -> list[Case]:
    """Schedule, lower and time each run once; the fit then only adds the engine."""
    cases = []
    for run, model in runs:
        capacity = kv_capacity_tokens(model, run.deployment, profile.gpu)
        schedule = schedule_offline(run.workload, run.deployment, capacity)
        load = demand(model, run.deployment, schedule.steps, profile).load()
        cases.append(Case(run=run, model=model, schedule=schedule, load=load))
    return cases


def fit_engine(cases: Sequence[Case], profile: Profile) -> EngineFit:
    """Fit all runs, then each model's runs with the fit of the others."""
    models = [case.model.name for case in cases]
    energy, duration = np.zeros(len(cases)), np.zeros(len(cases))
    for held in sorted(set(models)):
        others = [c for c, name in zip(cases, models, strict=True) if name != held]
        without = replace(profile, engine=_fit(others, profile))
        for i, case in enumerate(cases):
            if models[i] == held:
                duration[i], energy[i] = log_errors(case, without)
    return EngineFit(
        engine=_fit(cases, profile),
        energy_error=energy,
        duration_error=duration,
        regimes=tuple(regime(case.model) for case in cases),
        models=tuple(models),
    )


def log_errors(case: Case, profile: Profile) -> tuple[float, float]:
    """Log of measured over predicted (duration, energy) of one run."""
    run, steps = case.run, case.schedule.steps
    engine = engine_time(case.model, run.deployment, steps, profile, run.workload.requests)
    load, _ = with_engine(case.load, engine, profile.engine["outside_w"].value)
    clock, static_w = settle(load, steps.weight, run.deployment, profile)
    step_s = load.fixed_s + load.clocked_s / clock
    watts = power.mean_power_w(load, clock, static_w, profile.power.exponent.value)
    duration_s = float(steps.weight @ step_s) + engine.submit_s
    energy_j = float(steps.weight @ (watts * step_s)) + static_w * engine.submit_s
    return float(np.log(run.duration_s / duration_s)), float(np.log(run.energy_j / energy_j))


def _fit(cases: Sequence[Case], profile: Profile) -> dict[str, Estimate]:
    names = list(START)
    start = np.log([START[name][0] for name in names])

    def residuals(log_values: Array) -> Array:
        engine = {
            name: Estimate(value=float(np.exp(x)), stderr=0.0, unit=START[name][1])
            for name, x in zip(names, log_values, strict=True)
        }
        candidate = replace(profile, engine=engine)
        errors = np.array([log_errors(case, candidate) for case in cases]).ravel()
        return np.concatenate([errors, PRIOR_WEIGHT * (log_values - start)])

    solution = least_squares(
        residuals, start, loss="soft_l1", f_scale=ROBUST_AT, diff_step=1e-2, max_nfev=15
    )
    count = 2 * len(cases)
    scale = 1.4826 * float(np.median(np.abs(solution.fun[:count])))
    relative = scale * np.sqrt(np.diag(np.linalg.pinv(solution.jac.T @ solution.jac)))
    return {
        name: Estimate(value=float(np.exp(x)), stderr=float(np.exp(x) * e), unit=START[name][1])
        for name, x, e in zip(names, solution.x, relative, strict=True)
    }
