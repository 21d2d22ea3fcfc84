"""What vLLM's host does in a step and before a run -> the times of each piece of it.

With asynchronous scheduling the first step returns once it has been launched, so its duration is the
time to take the requests in and to launch: a direct measurement of both. Runs that recorded how long
the host waited for tokens (``waited_us``) show what it does in every other step: the rest.

Hosts differ, and a host that several runs share is slower. Runs of the second kind were made beside
others; so the speed of their host, against those that the first steps came from, is one more number
of the fit, and what is kept are times on a host of the usual speed.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.robust import deviations, robust_fit
from energymodel.engines.vllm_host import launches, new_runner, submissions
from energymodel.profile import Estimate

if TYPE_CHECKING:
    from calibration.fit_engine import Case

Array = NDArray[np.float64]
Row = dict[str, float]

# Starting values and units.
HOST: Mapping[str, float] = {
    "host_step_s": 1e-3,
    "submit_request_s": 60e-6,
    "submit_token_s": 15e-9,
    "launch_graph_layer_s": 100e-6,
    "launch_layer_s": 300e-6,
    "launch_norm_s": 20e-6,
    "launch_experts_s": 500e-6,
    "launch_shared_expert_s": 400e-6,
    "launch_token_s": 40e-9,
    "new_runner_step_s": 300e-6,
}
# What only runs show that recorded the host's waiting, or that were served in another way.
WATCHED: Mapping[str, float] = {
    "host_sequence_s": 10e-6,
    "new_runner_sequence_s": 7e-6,
    "detokenize_s": 2e-6,
    "submit_block_s": 4e-6,
}
# A first step that took this much longer than its launches waited for the GPU.
WAITED, WAITED_SLOWER = 1.5, 2.5
# A host that waited for less than this share of a step may have waited elsewhere in it.
SEEN_WAITING = 0.1
# The first iterations of a run take requests in, the last hands over the last tokens.
BEGUN, LEAST_STEPS = 2, 8
ROBUST_AT = 0.05
PRIOR_WEIGHT = 0.05


def fit_host(cases: Sequence["Case"], watched: Sequence["Case"] = ()) -> dict[str, Estimate]:
    """Times of the host's work, by least relative squares.

    Args:
        cases: runs whose first steps are measured.
        watched: runs of which every step is, on a host of another speed.
    """
    wanted = {**HOST, **WATCHED} if watched else dict(HOST)
    usual = [first for case in cases if (first := first_step(case)) is not None]
    other = [row for case in watched for row in (first_step(case), later_steps(case)) if row]
    if not usual:
        return {name: _estimate(value, 0.0) for name, value in wanted.items()}
    start = np.array(list(wanted.values()))
    rows = [*usual, *other]
    design = np.array([[row.get(name, 0.0) for name in wanted] for row, _ in rows])
    target = np.array([seconds for _, seconds in rows])
    slower = np.array([False] * len(usual) + [True] * len(other))
    # Large models fill the launch queue, and the host waits for the GPU: those do not count.
    launched = target < np.where(slower, WAITED_SLOWER, WAITED) * (design @ start)
    design, target, slower = design[launched], target[launched], slower[launched]

    def residuals(values: Array) -> Array:
        scaled, speed = values[:-1], values[-1]
        expected = (design @ (scaled * start)) * np.where(slower, speed, 1.0)
        return np.concatenate([expected / target - 1.0, PRIOR_WEIGHT * (values - 1.0)])

    found, covariance = robust_fit(
        residuals, np.ones(len(start) + 1), data=len(target), outlier_at=ROBUST_AT, lower=0.0
    )
    return {
        name: _estimate(float(x * s), float(e * s))
        for name, x, e, s in zip(wanted, found, deviations(covariance), start, strict=False)
    }


def first_step(case: "Case") -> tuple[Row, float] | None:
    """(counts of host work, seconds) up to the end of the first step; None if not recorded."""
    steps_us = case.run.extra.get("step_us")
    if not isinstance(steps_us, list) or not steps_us:
        return None
    row = _work(case, 0) | submissions(case.workload, case.run.deployment)
    return row, float(steps_us[0]) * 1e-6


def later_steps(case: "Case") -> tuple[Row, float] | None:
    """(counts of host work, median seconds) of a step that only decodes; None if not recorded."""
    steps_us, waited_us = case.run.extra.get("step_us"), case.run.extra.get("waited_us")
    if not isinstance(steps_us, list) or not isinstance(waited_us, list):
        return None
    inner = slice(BEGUN, -1)
    pairs = list(zip(steps_us, waited_us, strict=True))[inner]
    if len(pairs) < LEAST_STEPS or len(case.workload.bins) > 1:
        return None
    waited = median(w / s for s, w in pairs)
    if waited < SEEN_WAITING and not new_runner(case.model, case.run.deployment):
        return None
    row = int(np.argmax(case.schedule.steps.weight))
    return _work(case, row), median(s - w for s, w in pairs) * 1e-6


def _work(case: "Case", row: int) -> Row:
    steps, bins = case.schedule.steps, case.workload.bins
    counts = launches(case.model, case.run.deployment, steps, bins).counts
    return {name: float(count[row]) for name, count in counts.items()}


def _estimate(value: float, stderr: float) -> Estimate:
    return Estimate(value=value, stderr=stderr, unit="s")
