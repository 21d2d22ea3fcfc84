"""Requests in lanes that run side by side: copies of a model, and micro-batches of a pipeline.

Copies (data parallel) split the requests evenly, and so do the micro-batches of a pipeline. Each such
*lane* is scheduled by itself; their steps stand one lane after the other in one ``Schedule``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from energymodel.collectives import DISPATCH
from energymodel.parallel import Parallel
from energymodel.serving import Milestones, Schedule
from energymodel.steps import Chunks, Decodes, Floats, Steps
from energymodel.workload import Workload

if TYPE_CHECKING:
    from energymodel.costs import StepCosts

# Copies that end within this share of the run of each other end together.
NEGLIGIBLE = 0.02


def split(workload: Workload, lanes: int) -> tuple[Workload, ...]:
    """The requests of each lane; what a bin has left over goes to the lanes in turn.

    Where there are fewer requests than lanes, the last lanes have none. Rates are left as they are, for
    the scheduler of a lane to refuse.
    """
    if lanes == 1 or workload.online:
        return (workload,) * lanes
    turn = 0
    counts = np.zeros((lanes, len(workload.bins)), dtype=np.int64)
    for i, b in enumerate(workload.bins):
        each, left = divmod(b.count or 0, lanes)
        counts[:, i] = each
        counts[(turn + np.arange(left)) % lanes, i] += 1
        turn = (turn + left) % lanes
    bins = (
        [replace(b, count=int(n)) for b, n in zip(workload.bins, row, strict=True)]
        for row in counts
    )
    return tuple(replace(workload, bins=tuple(part)) for part in bins)


def joined(schedules: Sequence[Schedule | None]) -> Schedule:
    """The steps of all lanes, one lane after the other; ``Schedule.lanes`` says where each begins.

    None: a lane without requests, which are the last; one at least has some.
    """
    given = [s for s in schedules if s is not None]
    if len(schedules) == 1:
        return given[0]
    first = np.cumsum([0, *(s.steps.size for s in given)])
    starts = first[:-1]
    steps = [s.steps for s in given]
    chunks = [replace(s.chunks, step=s.chunks.step + n) for s, n in zip(steps, starts, strict=True)]
    decodes = [
        replace(s.decodes, step=s.decodes.step + n) for s, n in zip(steps, starts, strict=True)
    ]
    done = [
        replace(
            s.milestones,
            first_token_row=s.milestones.first_token_row + n,
            finish_row=s.milestones.finish_row + n,
        )
        for s, n in zip(given, starts, strict=True)
    ]
    return replace(
        given[0],
        steps=Steps(
            weight=np.concatenate([s.weight for s in steps]),
            chunks=Chunks(
                **_columns(chunks, ("step", "tokens", "context", "count", "last", "bin"))
            ),
            decodes=replace(decodes[0], **_columns(decodes, ("step", "context", "count", "bin"))),
        ),
        milestones=Milestones(**_columns(done, ("bin", "count", "first_token_row", "finish_row"))),
        iterations=max(s.iterations for s in given),
        lanes=tuple(int(first[min(i, len(given))]) for i in range(len(schedules))),
    )


def _columns(
    parts: Sequence[Chunks | Decodes | Milestones], names: Sequence[str]
) -> Mapping[str, Any]:
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}


def lane_seconds(schedule: Schedule, step_s: Floats) -> Floats:
    """How long each lane runs; [n_lanes]."""
    ends = np.concatenate([[0.0], np.cumsum(schedule.steps.weight * step_s)])
    return np.diff(ends[[*schedule.lanes, step_s.size]])


def kept_in_step(costs: "StepCosts", schedule: Schedule) -> bool:
    """Whether copies that are out of requests go on, for others need them: they share experts.

    Such a copy computes a dummy token whenever the others make a step (``run_busy_loop`` of
    ``DPEngineCoreProc`` in ``vllm/v1/engine/core.py`` of 0.24, ``execute_dummy_batch``).
    """
    lane_s = lane_seconds(schedule, costs.step_s)
    shared = any(cost.op.name == DISPATCH for cost in costs.ops)
    return shared and bool(lane_s.min() < (1.0 - NEGLIGIBLE) * lane_s.max())


def side_by_side(
    costs: "StepCosts", schedule: Schedule, groups: Parallel, waiting_w: float | None = None
) -> "StepCosts":
    """Costs whose sums over all steps are those of lanes that run side by side.

    Seconds are divided by the number of lanes. A lane that is done before the others waits for them,
    each GPU at ``waiting_w`` (static power unless given), which counts to the wait before the first
    step.
    """
    lanes = len(schedule.lanes)
    if lanes == 1:
        return costs
    lane_s = lane_seconds(schedule, costs.step_s)
    behind_s = float(lane_s.max() - lane_s.mean())
    ops = tuple(
        replace(
            cost,
            seconds=cost.seconds / lanes,
            full_clock_s=cost.full_clock_s / lanes,
            gpus=cost.gpus * lanes,
        )
        for cost in costs.ops
    )
    return replace(
        costs,
        ops=ops,
        step_s=costs.step_s / lanes,
        overhead_s=costs.overhead_s / lanes,
        launch_s=costs.launch_s / lanes,
        submit_s=costs.submit_s + behind_s,
        submit_j=costs.submit_j
        + (costs.static_w if waiting_w is None else waiting_w) * behind_s * groups.gpus,
    )
