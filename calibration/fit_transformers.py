"""Whole runs on transformers -> how long the host takes to launch kernels, layers and passes.

Operation coefficients stay as the micro-workloads gave them. As for vLLM (``fit_engine.py``), errors
are taken with each model held out in turn.

Lines with ``profiled`` were measured in a process that torch's profiler had been attached to earlier,
which makes every launch after it slower. They have one factor on all host times, fitted with the rest
and not part of the profile: predictions are of a process without a profiler.

Kernels on strided tensors are slow and keep the multiprocessors busy with addresses: what they draw
more than those they are like (``STRIDED``) is fitted with the rest, too, where only their times are
known (``fit_eager.py``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from calibration.fit_eager import STACK
from calibration.fit_engine import Case, EngineFit, Stack, estimate, run_errors, stacked
from calibration.robust import deviations, robust_fit
from energymodel.costs import demand
from energymodel.engines.transformers import Launches, host_time, pass_launches
from energymodel.profile import Estimate, OperationProfile, Profile

Array = NDArray[np.float64]
T = TypeVar("T")

# Starting values: what torch takes to launch a kernel on a host of 2023, a pass of Python around it.
START: Mapping[str, float] = {
    "launch_product_s": 14e-6,
    "launch_row_s": 7e-6,
    "launch_attention_s": 40e-6,
    "launch_layer_s": 60e-6,
    "pass_s": 300e-6,
    "token_s": 800e-6,
    "generate_s": 1e-3,
}
PROFILED = "profiled"  # the factor among the fitted numbers, and the key of a line
STRIDED = ("rotary.eager", "copy.fill")
STRIDED_W = "strided_w"
NUISANCE: Mapping[str, float] = {PROFILED: 1.3, STRIDED_W: 200.0}
# Hosts stumble: a run that took half as long again is not rare.
ROBUST_AT = 0.06
PRIOR_WEIGHT = 0.05


def fit_transformers(cases: Sequence[Case], profile: Profile) -> tuple[EngineFit, Profile]:
    """Fit all runs, then each model's runs with the fit of the others; the profile with the fit."""
    models = np.array([case.model.name for case in cases])
    work = [_work(case, profile) for case in cases]
    energy, duration = np.zeros(len(cases)), np.zeros(len(cases))
    for held in sorted(set(models.tolist())):
        test = models == held
        # A single model cannot be held out: its errors are then those of the fit to itself.
        train = ~test if not test.all() else test
        found = _fit(_chosen(cases, train), _chosen(work, train), profile)
        values = {name: e.value for name, e in found.items()}
        tested = _chosen(cases, test)
        asked = _joined(_chosen(work, test))
        duration[test], energy[test] = _errors(stacked(tested), tested, asked, profile, values)
    found = _fit(cases, work, profile)
    engine = {name: found[name] for name in START}
    fitted = EngineFit(engine=engine, energy_error=energy, duration_error=duration)
    return fitted, _with(profile, engine, found[STRIDED_W])


def _with(profile: Profile, engine: Mapping[str, Estimate], strided_w: Estimate) -> Profile:
    """The profile with these numbers of transformers, and what strided kernels draw."""
    operations = dict(profile.operations)
    for name in _strided(profile):
        operations[name] = _drawing(operations[name], strided_w)
    engines = {**profile.engines, "transformers": engine}
    return replace(profile, engines=engines, operations=operations)


def _drawing(operation: OperationProfile, more: Estimate) -> OperationProfile:
    """The operation with so many watts more while it runs, and a covariance to match."""
    busy_w = operation.energy["busy_w"]
    known_w = replace(more, value=busy_w.value + more.value)
    covariance = operation.energy_covariance
    if covariance is not None:
        # Of logarithms; what correlations there were are of the smaller part of the sum.
        matrix = np.array(covariance.matrix)
        place = covariance.names.index("busy_w")
        matrix[place, :] = matrix[:, place] = 0.0
        matrix[place, place] = (known_w.stderr / known_w.value) ** 2
        rows = tuple(tuple(map(float, row)) for row in matrix)
        covariance = replace(covariance, matrix=rows)
    energy = {**operation.energy, "busy_w": known_w}
    return replace(operation, energy=energy, energy_covariance=covariance)


def _strided(profile: Profile) -> list[str]:
    """Those of ``STRIDED`` whose energy was not measured."""
    known = profile.operations
    return [name for name in STRIDED if name in known and known[name].stack == STACK]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """Launches of each step, and seconds of strided kernels, [n_steps]."""

    launches: Launches
    strided_s: Array


def _work(case: Case, profile: Profile) -> _Work:
    deployment, steps = case.run.deployment, case.schedule.steps
    unknown = _strided(profile)
    wanted = demand(case.model, deployment, steps, profile, case.workload.bins)
    strided = (
        op.count * time.seconds
        for op, time in zip(wanted.ops, wanted.times, strict=True)
        if op.law in unknown
    )
    return _Work(
        launches=pass_launches(case.model, deployment, steps, case.workload),
        strided_s=sum(strided, np.zeros(steps.size)),
    )


def _chosen(items: Sequence[T], mask: NDArray[np.bool_]) -> list[T]:
    return [item for item, wanted in zip(items, mask, strict=True) if wanted]


def _joined(work: Sequence[_Work]) -> _Work:
    """That of many runs, one after the other."""
    names = [f.name for f in fields(Launches)]
    return _Work(
        launches=Launches(
            **{n: np.concatenate([getattr(w.launches, n) for w in work]) for n in names}
        ),
        strided_s=np.concatenate([w.strided_s for w in work]),
    )


def _errors(
    stack: Stack,
    cases: Sequence[Case],
    work: _Work,
    profile: Profile,
    values: Mapping[str, float],
) -> tuple[Array, Array]:
    """Log of measured over predicted (duration, energy) of each run; shape [n_runs]."""
    slowed = np.array([c.run.extra.get(PROFILED) is True for c in cases])
    factor = np.where(slowed[stack.run], values[PROFILED], 1.0)
    host = host_time(work.launches, values)
    host = replace(host, launch_s=host.launch_s * factor, gap_s=host.gap_s * factor)
    core_j = stack.load.core_j + values[STRIDED_W] * work.strided_s
    stack = replace(stack, load=replace(stack.load, core_j=core_j))
    return run_errors(stack, cases, host, np.zeros(len(cases)), profile)


def _fit(cases: Sequence[Case], work: Sequence[_Work], profile: Profile) -> dict[str, Estimate]:
    """All numbers at once, on the durations and energies of the runs."""
    guesses = {**START, **NUISANCE}
    names, stack, asked = list(guesses), stacked(cases), _joined(work)
    start = np.log(list(guesses.values()))

    def residuals(log_values: Array) -> Array:
        values = dict(zip(names, np.exp(log_values).tolist(), strict=True))
        errors = _errors(stack, cases, asked, profile, values)
        return np.concatenate([*errors, PRIOR_WEIGHT * (log_values - start)])

    found, covariance = robust_fit(
        residuals, start, data=2 * len(cases), outlier_at=ROBUST_AT, step=1e-2
    )
    return {
        n: estimate(n, float(np.exp(x)), float(np.exp(x) * e))
        for n, x, e in zip(names, found, deviations(covariance), strict=True)
    }
