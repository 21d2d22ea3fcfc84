"""Which kind of memory boards carry that only whole runs were measured on.

The sensor of the memory's own power tells: above what it draws at rest, a board spends its kind's joules
for each byte that the run moves, and kinds differ by a factor of 1.7 (``fit_memory``). A board belongs
to the kind whose ratio to the usual one it is nearest to in the median of its runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from energymodel.collectives import COMPONENT
from energymodel.costs import demand, planned
from energymodel.io import Run
from energymodel.model import ModelSpec
from energymodel.profile import Profile

# What the memory of an H200 draws at rest.
RESTING_W = 38.0
# Runs whose memory works less than this above rest tell little.
LEAST_W = 20.0


def with_boards(profile: Profile, measured: Sequence[tuple[Run, ModelSpec]]) -> Profile:
    """The profile, its kinds of memory with the boards of these runs that it did not know."""
    ratios: dict[str, list[float]] = {}
    for run, model in measured:
        if len(profile.memory) < 2 or run.deployment.pipeline_parallel_size > 1:
            continue
        known = {b: w for b, w in _watts(run.extra) if profile.memory_of(b) is None}
        if not known:
            continue
        usual_w = _memory_w(run, model, profile)
        for board, watts in known.items():
            if watts - RESTING_W > LEAST_W:
                ratios.setdefault(board, []).append((watts - RESTING_W) / usual_w)
    kinds = list(profile.memory)
    for board, found in sorted(ratios.items()):
        off = [
            abs(np.log(np.median(found) / (kind.byte_j.value / kinds[0].byte_j.value)))
            for kind in kinds
        ]
        nearest = int(np.argmin(off))
        kinds[nearest] = replace(kinds[nearest], boards=(*kinds[nearest].boards, board))
    return replace(profile, memory=tuple(kinds))


def byte_j_of(run: Run, profile: Profile) -> float | None:
    """Joules per byte in the memory of the boards of a run, mean over its GPUs; None if unknown."""
    boards: list[object] = [b for b, _ in _watts(run.extra)] or [run.extra.get("board")]
    known = [j for b in boards if (j := profile.memory_of(b)) is not None]
    return float(np.mean(known)) if known else run.deployment.hbm_byte_j


def _watts(extra: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    """Boards of a run and the power of their memories."""
    gpus = extra.get("gpus")
    for entry in gpus if isinstance(gpus, list) else [extra]:
        board, watts = entry.get("board"), entry.get("memory_power_w")
        if isinstance(board, str) and isinstance(watts, int | float):
            yield board, float(watts)


def _memory_w(run: Run, model: ModelSpec, profile: Profile) -> float:
    """Watts that the memory of one GPU would draw above rest, were it of the usual kind."""
    deployment = replace(run.deployment, hbm_byte_j=None)
    served, schedule = planned(model, deployment, run.workload, profile.gpu)
    wanted = demand(model, deployment, schedule.steps, profile, served.bins)
    weight = schedule.steps.weight
    joules = sum(
        float(weight @ j)
        for op, j in zip(wanted.ops, wanted.hbm_j, strict=True)
        if op.component != COMPONENT
    )
    return joules / run.duration_s
