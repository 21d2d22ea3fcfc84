"""A replica of a fleet, simulated: its latencies and its power over time, instead of estimates."""

from dataclasses import dataclass, replace

import numpy as np

from energymodel.arrivals import poisson
from energymodel.latency import percentiles
from energymodel.planning.candidates import Candidate
from energymodel.planning.evaluate import Operating, idle_power_w
from energymodel.planning.operating import quantile
from energymodel.planning.provision import course_of
from energymodel.prediction import Latency
from energymodel.simulation import Replica, energy_j, replica, simulate
from energymodel.steps import Floats
from energymodel.workload import Workload

# Requests that are simulated: enough for percentiles, and for the replica to fill up some times, at
# least and if nothing speaks against it.
LEAST_REQUESTS, MOST_REQUESTS, TURNOVERS = 400, 3000, (3, 8)
# Share of the span that is left out while the replica fills up.
WARM_UP = 0.25
SLOT_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A replica in steady state: percentiles asked for, distributions, GPU power over time.

    ``power_w`` is the mean, ``course_w`` in slots of ``SLOT_S``, of all GPUs of the replica.
    ``kept_up``: whether it served what arrived.
    """

    ttft_s: float
    itl_s: float
    ttft: Latency
    itl: Latency
    power_w: float
    course_w: Floats
    most_w: float
    utilisation: float
    kept_up: bool


def server_of(candidate: Candidate) -> Replica:
    """A candidate that can be simulated, at any of its batches and power limits."""
    return replica(candidate.model, candidate.deployment, candidate.profile)


def watch(
    operating: Operating,
    server: Replica,
    workload: Workload,
    percentile: float,
    draw: tuple[int, int],
) -> Seen:
    """Simulate a replica under Poisson arrivals at the rates of ``workload``.

    ``server`` is its candidate, ``draw`` (requests at most, seed).
    """
    candidate = operating.candidate
    server = replace(server, deployment=operating.deployment)
    least, usual = (max(turns * operating.point.sequences, LEAST_REQUESTS) for turns in TURNOVERS)
    requests = round(min(max(draw[0], least), usual, MOST_REQUESTS))
    arrivals = poisson(workload, requests, draw[1])
    replay = simulate(server, arrivals)
    warm_s = WARM_UP * arrivals.end_s
    kept = arrivals.time_s >= warm_s
    ttft_s = replay.first_token_s[kept] - arrivals.time_s[kept]
    weight, ends_s = replay.weight, replay.start_s + replay.weight * replay.step_s
    steady = (replay.start_s >= warm_s) & (replay.start_s <= arrivals.end_s)
    tokens = (weight * np.array(replay.scheduler.decoding, dtype=np.float64))[steady]
    step_s = replay.step_s[steady]
    joules = energy_j(replay) * candidate.gpus
    idle_w = candidate.gpus * idle_power_w(candidate.profile)
    seconds, spent = _with_idle(replay.start_s, ends_s, weight * joules, idle_w)
    course_w = course_of(seconds, spent, SLOT_S)
    window = course_w[int(warm_s / SLOT_S) : max(int(arrivals.end_s / SLOT_S), 1)]
    busy_s = float((weight * replay.step_s)[steady].sum())
    served_late = float(np.mean(replay.finish_s[kept] > arrivals.end_s + 2 * warm_s))
    return Seen(
        ttft_s=_at(ttft_s, np.ones_like(ttft_s), percentile),
        itl_s=_at(step_s, tokens, percentile),
        ttft=percentiles(ttft_s, np.ones_like(ttft_s)),
        itl=percentiles(step_s, tokens),
        power_w=float(window.mean()),
        course_w=window,
        # A short step may draw more; the firmware holds the mean over tens of milliseconds.
        most_w=min(float((joules / replay.step_s).max()), operating.limit_w),
        utilisation=min(busy_s / (arrivals.end_s - warm_s), 1.0),
        kept_up=served_late < 0.5,
    )


def _with_idle(
    start_s: Floats, end_s: Floats, joules: Floats, idle_w: float
) -> tuple[Floats, Floats]:
    """Rows and the gaps between them as one run of (seconds, joules), in order."""
    before = np.concatenate([[0.0], end_s[:-1]])
    gap_s = np.maximum(start_s - before, 0.0)
    seconds = np.stack([gap_s, end_s - start_s], axis=1).ravel()
    spent = np.stack([gap_s * idle_w, joules], axis=1).ravel()
    return seconds, spent


def _at(values: Floats, weight: Floats, percentile: float) -> float:
    return float(quantile(values[None], weight[None], percentile)[0])
