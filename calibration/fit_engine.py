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

from calibration.robust import deviations, robust_fit
from energymodel import power
from energymodel.engines.engine import EngineTime
from energymodel.engines.vllm import engine_time, launches
from energymodel.io import Run
from energymodel.model import ModelSpec
from energymodel.power import StepLoad
from energymodel.predict import demand, planned, with_engine
from energymodel.profile import Estimate, Profile
from energymodel.serving import Schedule
from energymodel.settling import THERMAL_ROUNDS
from energymodel.workload import Workload

Array = NDArray[np.float64]

# Starting values (an idle engine is free) and units. The first group is read from the host's own
# clock, the second is fitted on durations and energies of whole runs.
HOST: Mapping[str, float] = {
    "submit_s": 1e-3,
    "submit_request_s": 60e-6,
    "submit_token_s": 15e-9,
    "launch_graph_layer_s": 100e-6,
    "launch_layer_s": 300e-6,
    "launch_experts_s": 500e-6,
    "launch_shared_expert_s": 400e-6,
    "launch_token_s": 40e-9,
}
DEVICE: Mapping[str, float] = {
    "step_s": 50e-6,
    "layer_s": 4e-6,
    "sequence_s": 0.5e-6,
    "outside_w": 150.0,
}
# A first step that took this much longer than its launches waited for the GPU.
WAITED = 1.5
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
    return {n: _estimate(n, value, 0.0) for n, value in {**HOST, **DEVICE}.items()}


def _estimate(name: str, value: float, stderr: float) -> Estimate:
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


def fit_engine(cases: Sequence[Case], profile: Profile) -> EngineFit:
    """Fit all runs, then each model's runs with the fit of the others."""
    models = [case.model.name for case in cases]
    energy, duration = np.zeros(len(cases)), np.zeros(len(cases))
    for held in sorted(set(models)):
        test = np.array([name == held for name in models])
        train = [c for c, out in zip(cases, test, strict=True) if not out]
        # A single model cannot be held out: its errors are then those of the fit to itself.
        without = with_vllm(profile, _fit(train or cases, profile))
        tested = [c for c, out in zip(cases, test, strict=True) if out]
        duration[test], energy[test] = log_errors(stacked(tested), tested, without)
    return EngineFit(engine=_fit(cases, profile), energy_error=energy, duration_error=duration)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The steps of many runs end to end, so that all are evaluated at once; [n_steps]."""

    case: NDArray[np.int64]
    weight: Array
    load: StepLoad
    runs: int


def stacked(cases: Sequence[Case]) -> Stack:
    """The steps of all runs, one run after the other."""
    sizes = [case.schedule.steps.size for case in cases]

    def joined(name: str) -> Array:
        return np.concatenate([getattr(case.load, name) for case in cases])

    return Stack(
        case=np.repeat(np.arange(len(cases)), sizes),
        weight=np.concatenate([case.schedule.steps.weight for case in cases]),
        load=StepLoad(
            fixed_s=joined("fixed_s"),
            clocked_s=joined("clocked_s"),
            core_j=joined("core_j"),
            hbm_j=joined("hbm_j"),
        ),
        runs=len(cases),
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
    )
    submit_s = np.array([t.submit_s for t in times])
    load, _ = with_engine(stack.load, engine)
    p = profile.power
    limit_w = np.array([c.run.deployment.power_limit_w or profile.gpu.power_limit_w for c in cases])
    cap_w, exponent = p.limit_share.value * limit_w, p.exponent.value
    mean_w = cap_w
    full_s = stack.weight * (load.fixed_s + load.clocked_s)
    for _ in range(THERMAL_ROUNDS):  # as in ``settling.settle``, for all runs at once
        static_w = power.static_power_w(p, mean_w)
        watts = power.capped_power_w(load, static_w[stack.case], exponent, cap_w[stack.case])
        energy_j = np.bincount(stack.case, watts * full_s, stack.runs) + static_w * submit_s
        mean_w = energy_j / (np.bincount(stack.case, full_s, stack.runs) + submit_s)
    static_w = power.static_power_w(p, mean_w)
    clock = power.limited_clock(load, static_w[stack.case], exponent, cap_w[stack.case])
    step_s = stack.weight * (load.fixed_s + load.clocked_s / clock)
    watts = power.mean_power_w(load, clock, static_w[stack.case], exponent)
    energy_j = np.bincount(stack.case, watts * step_s, stack.runs) + static_w * submit_s
    duration_s = np.bincount(stack.case, step_s, stack.runs) + submit_s
    measured_s = np.array([c.run.duration_s for c in cases])
    measured_j = np.array([c.run.energy_j for c in cases])
    return np.log(measured_s / duration_s), np.log(measured_j / energy_j)


def _fit(cases: Sequence[Case], profile: Profile) -> dict[str, Estimate]:
    """Host estimates from first steps, then device estimates from whole runs."""
    host = fit_host(cases)
    names = list(DEVICE)
    start = np.log([DEVICE[name] for name in names])
    stack = stacked(cases)

    def residuals(log_values: Array) -> Array:
        device = {
            n: _estimate(n, float(np.exp(x)), 0.0) for n, x in zip(names, log_values, strict=True)
        }
        errors = log_errors(stack, cases, with_vllm(profile, {**host, **device}))
        return np.concatenate([*errors, PRIOR_WEIGHT * (log_values - start)])

    found, covariance = robust_fit(
        residuals, start, data=2 * len(cases), outlier_at=ROBUST_AT, step=1e-2
    )
    device = {
        n: _estimate(n, float(np.exp(x)), float(np.exp(x) * e))
        for n, x, e in zip(names, found, deviations(covariance), strict=True)
    }
    return {**host, **device}


def fit_host(cases: Sequence[Case]) -> dict[str, Estimate]:
    """What the host does before and during the first step, by least relative squares.

    With asynchronous scheduling the first step returns once it has been launched, so its duration
    is the time to take the requests in and to launch: a direct measurement of both.
    """
    rows, seconds = [], []
    for case in cases:
        first = case.run.extra.get("step_us")
        if isinstance(first, list) and first:
            workload = case.workload
            one = launches(case.model, case.run.deployment, case.schedule.steps, workload.bins)
            counts = (one.graph_layers, one.layers, one.experts, one.shared_experts, one.tokens)
            rows.append(
                [1.0, workload.requests, workload.input_tokens, *(float(c[0]) for c in counts)]
            )
            seconds.append(float(first[0]) * 1e-6)
    if not rows:
        return {n: _estimate(n, value, 0.0) for n, value in HOST.items()}
    design, target = np.array(rows), np.array(seconds)
    start = np.array(list(HOST.values()))
    # Large models fill the launch queue, and the host waits for the GPU: those do not count.
    launched = target < WAITED * (design @ start)
    design, target = design[launched], target[launched]

    def residuals(scaled: Array) -> Array:
        error = design @ (scaled * start) / target - 1.0
        return np.concatenate([error, PRIOR_WEIGHT * (scaled - 1.0)])

    found, covariance = robust_fit(
        residuals, np.ones_like(start), data=len(target), outlier_at=ROBUST_AT, lower=0.0
    )
    return {
        name: _estimate(name, float(x * s), float(e * s))
        for name, x, e, s in zip(HOST, found, deviations(covariance), start, strict=True)
    }
