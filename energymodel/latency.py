"""Time to first token and between tokens, from the schedule and the duration of its steps."""

import numpy as np

from energymodel.prediction import Latency
from energymodel.serving import Schedule
from energymodel.steps import Floats, Ints
from energymodel.workload import Workload


def latencies(
    workload: Workload, schedule: Schedule, step_s: Floats, submit_s: float
) -> tuple[Latency | None, Latency | None]:
    """(TTFT over requests, ITL over output tokens); None where no token is produced.

    TTFT counts from submission, so it includes waiting in the queue. The time between two tokens
    of a sequence is the duration of the step that makes the second one, or its share of a step that
    makes several; the gap that a preemption leaves in a sequence is not counted.
    """
    steps, milestones = schedule.steps, schedule.milestones
    ends = submit_s + _since_start(schedule, steps.weight * step_s)
    produces = np.array([b.output_tokens > 0 for b in workload.bins])[milestones.bin]
    first_s = ends[milestones.first_token_row[produces]]
    ttft = percentiles(first_s, milestones.count[produces]) if produces.any() else None
    tokens = steps.weight * steps.decoding
    itl = percentiles(step_s / schedule.tokens_per_step, tokens) if tokens.any() else None
    return ttft, itl


def _since_start(schedule: Schedule, row_s: Floats) -> Floats:
    """Ends of rows since the first row of their lane."""
    ends = np.concatenate([[0.0], np.cumsum(row_s)])
    rows = np.diff([*schedule.lanes, row_s.size])
    return np.asarray(ends[1:] - np.repeat(ends[list(schedule.lanes)], rows))


def percentiles(seconds: Floats, count: Floats | Ints) -> Latency:
    """Weighted mean and percentiles (smallest value that covers the share of the weight)."""
    order = np.argsort(seconds)
    values, weights = seconds[order], np.asarray(count, dtype=np.float64)[order]
    reached = np.cumsum(weights) / weights.sum()
    p50, p90, p99 = (
        float(values[min(int(np.searchsorted(reached, q - 1e-12)), len(values) - 1)])
        for q in (0.5, 0.9, 0.99)
    )
    return Latency(mean=float(values @ weights / weights.sum()), p50=p50, p90=p90, p99=p99)
