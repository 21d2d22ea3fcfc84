"""Whole runs with speculative decoding -> what the host adds to their steps.

Everything else is as it was fitted without drafts: operations on micro-workloads, the engine on
whole runs. Only the host's three numbers of drafting are fitted, on steps without prompts. Other
programs on the same host slow it down for seconds, so what counts of a run is the lower quartile of
its steps, while all sequences decode. Each workload's runs are then predicted by a fit that has not
seen them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.fit_engine import Case, log_errors, prepare, stacked, with_vllm
from calibration.robust import deviations, robust_fit
from energymodel.costs import with_engine
from energymodel.engines.vllm import engine_time
from energymodel.io import Run
from energymodel.model import ModelSpec
from energymodel.profile import Estimate, Profile
from energymodel.settling import settle

Array = NDArray[np.float64]

# Starting values.
START: Mapping[str, float] = {
    "sync_step_s": 1e-3,
    "sync_sequence_s": 10e-6,
    "launch_draft_layer_s": 200e-6,
}
QUARTILE = 0.25
OUTLIER_AT = 0.05
PRIOR_WEIGHT = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeFit:
    """Host estimates and, per run, log measured over predicted with its workload held out.

    ``step_error`` is of the lower quartile of the steps in which all sequences decode, the others are
    of whole runs.
    """

    engine: dict[str, Estimate]
    step_error: Array
    duration_error: Array
    energy_error: Array


def fit_speculative(runs: Sequence[tuple[Run, ModelSpec]], profile: Profile) -> SpeculativeFit:
    """Fit all runs, then each workload's runs with the fit of the others.

    Args:
        runs: whole runs with ``speculative_model``.
        profile: fitted without them.
    """
    known = _with(profile, {name: _estimate(value) for name, value in START.items()})
    cases = prepare(runs, known)
    groups = [(run.model, run.deployment.speculative_model, run.workload) for run, _ in runs]
    step, duration, energy = (np.zeros(len(cases)) for _ in range(3))
    for group in dict.fromkeys(groups):
        held = [i for i, name in enumerate(groups) if name == group]
        train = [case for case, name in zip(cases, groups, strict=True) if name != group]
        # The only workload cannot be held out: its errors are those of the fit to itself.
        without = _with(known, _fit(train or cases, known))
        tested = [cases[i] for i in held]
        step[held] = step_errors(tested, without)
        duration[held], energy[held] = log_errors(stacked(tested), tested, without)
    return SpeculativeFit(
        engine=_fit(cases, known), step_error=step, duration_error=duration, energy_error=energy
    )


def step_errors(cases: Sequence[Case], profile: Profile) -> Array:
    """Log of measured over predicted seconds of a quiet step without prompts; [n_runs]."""
    return np.array([np.log(_measured_s(case) / _predicted_s(case, profile)) for case in cases])


def _measured_s(case: Case) -> float:
    """Lower quartile of the steps with all sequences, behind the last one that held a prompt."""
    recorded = case.run.extra["step_us"]
    assert isinstance(recorded, list)  # noqa: S101 (``measure`` writes it)
    weight = case.schedule.steps.weight
    start = int(weight[_with_prompts(case)].sum())
    steps = recorded[start : start + int(weight[_whole(case)].sum())]
    return float(np.quantile(np.array(steps, dtype=np.float64), QUARTILE)) * 1e-6


def _predicted_s(case: Case, profile: Profile) -> float:
    """Mean of the same steps: they differ by their contexts alone."""
    deployment, steps = case.run.deployment, case.schedule.steps
    engine = engine_time(case.model, deployment, steps, profile, case.workload)
    load, _ = with_engine(case.load, engine)
    clock, _ = settle(load, steps.weight, engine.submit_s, deployment, profile)
    seconds, whole = load.fixed_s + load.clocked_s / clock, _whole(case)
    return float(np.average(seconds[whole], weights=steps.weight[whole]))


def _with_prompts(case: Case) -> NDArray[np.bool_]:
    steps = case.schedule.steps
    return np.asarray(steps.sum_chunks(steps.chunks.tokens) > 0)


def _whole(case: Case) -> NDArray[np.bool_]:
    """Steps without prompts in which every sequence still decodes."""
    decoding = case.schedule.steps.decoding
    return np.asarray(~_with_prompts(case) & (decoding == decoding.max()))


def _estimate(value: float, stderr: float = 0.0) -> Estimate:
    return Estimate(value=value, stderr=stderr, unit="s")


def _with(profile: Profile, found: Mapping[str, Estimate]) -> Profile:
    return with_vllm(profile, {**profile.engines["vllm"], **found})


def _fit(cases: Sequence[Case], profile: Profile) -> dict[str, Estimate]:
    names = list(START)
    start = np.log([START[name] for name in names])

    def residuals(logs: Array) -> Array:
        found = {n: _estimate(float(np.exp(x))) for n, x in zip(names, logs, strict=True)}
        errors = step_errors(cases, _with(profile, found))
        return np.concatenate([errors, PRIOR_WEIGHT * (logs - start)])

    logs, covariance = robust_fit(
        residuals, start, data=len(cases), outlier_at=OUTLIER_AT, step=1e-2
    )
    return {
        n: _estimate(float(np.exp(x)), float(np.exp(x) * e))
        for n, x, e in zip(names, logs, deviations(covariance), strict=True)
    }
