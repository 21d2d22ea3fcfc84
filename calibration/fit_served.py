"""Runs served in other ways than greedily by ``LLM`` -> what samplers and the HTTP server add.

A sampler is measured by the difference to the greedy run of the same requests on the same host, in
which everything else cancels; the server by the durations of its runs. All else is as it was fitted
without them (``fit_engine.py``; what the host does in every step: ``fit_host.py``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from calibration.fit_engine import Case, log_errors, stacked, with_vllm
from calibration.robust import deviations, robust_fit
from energymodel.deployment import Deployment
from energymodel.profile import Estimate, Profile

Array = NDArray[np.float64]

# Starting values: seconds of a kernel, a logit, a step, a request, a token, and until the first step.
SAMPLER: Mapping[str, float] = {"sampler_kernel_s": 10e-6, "filter_logit_s": 1.5e-9}
SERVER: Mapping[str, float] = {
    "server_step_s": 300e-6,
    "server_request_s": 2e-3,
    "server_token_s": 40e-6,
    "server_latency_s": 10e-3,
}
ROBUST_AT = 0.05
PRIOR_WEIGHT = 0.02


def fit_served(cases: Sequence[Case], profile: Profile) -> dict[str, Estimate]:
    """Estimates of ``SAMPLER`` and ``SERVER``, as far as there are runs that show them.

    Args:
        cases: runs that were served otherwise, and greedy ones of the same requests.
        profile: fitted without them.
    """
    pairs = twins(cases)
    served = [case for case in cases if case.run.deployment.server]
    found: dict[str, Estimate] = {}
    if pairs:
        found |= _fit(SAMPLER, lambda p: _differences(pairs, p), len(pairs), profile)
    if served:
        stack = stacked(served)
        found |= _fit(SERVER, lambda p: log_errors(stack, served, p)[0], len(served), profile)
    return found


def twins(cases: Sequence[Case]) -> list[tuple[Case, Case]]:
    """Runs with a sampler or penalties, each with the greedy one of the same requests."""
    plain = {_key(case): case for case in cases if case.run.deployment == _greedy(case)}
    others = (case for case in cases if case.run.deployment != _greedy(case))
    return [(case, plain[_key(case)]) for case in others if _key(case) in plain]


def _greedy(case: Case) -> Deployment:
    return replace(case.run.deployment, sampling="greedy", penalties=False)


def _key(case: Case) -> tuple[object, ...]:
    return case.run.model, case.run.extra.get("board"), case.run.workload, _greedy(case)


def _differences(pairs: Sequence[tuple[Case, Case]], profile: Profile) -> Array:
    """Log of measured over predicted ratio of durations of each pair."""
    errors = [
        log_errors(stacked(side), side, profile)[0]
        for side in ([a for a, _ in pairs], [b for _, b in pairs])
    ]
    return errors[0] - errors[1]


def _fit(
    start: Mapping[str, float],
    errors: Callable[[Profile], Array],
    data: int,
    profile: Profile,
) -> dict[str, Estimate]:
    names, begin = list(start), np.log(list(start.values()))

    def having(logs: Array) -> Profile:
        values = {n: _estimate(float(np.exp(x)), 0.0) for n, x in zip(names, logs, strict=True)}
        return with_vllm(profile, {**profile.engines["vllm"], **values})

    def residuals(logs: Array) -> Array:
        return np.concatenate([errors(having(logs)), PRIOR_WEIGHT * (logs - begin)])

    found, covariance = robust_fit(residuals, begin, data=data, outlier_at=ROBUST_AT, step=1e-2)
    return {
        n: _estimate(float(np.exp(x)), float(np.exp(x) * e))
        for n, x, e in zip(names, found, deviations(covariance), strict=True)
    }


def _estimate(value: float, stderr: float) -> Estimate:
    return Estimate(value=value, stderr=stderr, unit="s")
