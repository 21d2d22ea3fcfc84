"""Candidates at their best batch: what a replica serves within the objective, and what it draws."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from energymodel import power
from energymodel.deployment import Deployment
from energymodel.planning.candidates import Candidate
from energymodel.planning.operating import Mix, Point, asked, best_point, points_at
from energymodel.planning.pricing import limited, load_of
from energymodel.profile import Profile
from energymodel.step_table import COARSE, step_table
from energymodel.steps import Floats
from energymodel.workload import Workload

# Numbers of decoding sequences that are looked at: a few to a doubling.
TO_A_DOUBLING = 4
# Share of the KV cache that is filled on average: what requests hold varies.
FILLED = 0.9
# Deviations of the number of sequences that ``max_num_seqs`` leaves room for.
ROOM = 4.0
# Temperature that an idle GPU settles at follows from its power, found in so many rounds.
ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Latency that is asked for, at a percentile between 0 and 1; None: does not matter."""

    ttft_s: float | None = None
    itl_s: float | None = None
    percentile: float = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Operating:
    """A candidate at a power limit, at the best batch for one demand.

    ``deployment`` is complete. ``point`` is of the whole replica. ``idle_w``, ``most_w`` and
    ``limit_w`` are what all its GPUs draw with nothing to do, in their hungriest kind of step, and may
    draw in the mean over tens of milliseconds.
    """

    candidate: Candidate
    demand: int
    deployment: Deployment
    point: Point
    idle_w: float
    most_w: float
    limit_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed:
    """A candidate that cannot meet the objective: ``what`` it misses, at best ``value`` seconds."""

    candidate: Candidate
    demand: int
    what: str
    value: float


def mix_of(workload: Workload) -> Mix:
    """Requests of a workload with rates, as shares."""
    rate = np.array([b.amount for b in workload.bins], dtype=np.float64)
    return Mix(
        share=rate / rate.sum(),
        input_tokens=np.array([b.input_tokens for b in workload.bins], dtype=np.float64),
        output_tokens=np.array([b.output_tokens for b in workload.bins], dtype=np.float64),
    )


def evaluate(
    candidate: Candidate, mixes: Sequence[tuple[int, Mix]], objective: Objective
) -> tuple[list[Operating], list[Missed]]:
    """The candidate at each of its power limits, at its best for each demand (index, mix).

    Demands whose requests never decode, and models whose steps cannot be tabulated, are missed.
    """
    table = step_table(candidate.model, candidate.deployment, candidate.profile, COARSE)
    done: list[Operating] = []
    missed: list[Missed] = []
    for index, mix in mixes:
        if table is None or mix.mean_steps == 0:
            missed.append(Missed(candidate=candidate, demand=index, what="table", value=0.0))
            continue
        if not _fits(candidate, mix):
            missed.append(Missed(candidate=candidate, demand=index, what="memory", value=0.0))
            continue
        steps = asked(mix, _sequences(candidate, mix))
        load = load_of(table, steps.decoding, steps.context, steps.prompts, steps.tokens)
        for limit_w in candidate.power_limits_w:
            priced = limited(table, load, limit_w)
            found = points_at(mix, steps, priced, objective.percentile)
            best, what = best_point(found, itl_s=objective.itl_s, ttft_s=objective.ttft_s)
            if best is None:
                least = found[0].itl_s if what == "itl_s" else found[0].ttft_s
                missed.append(Missed(candidate=candidate, demand=index, what=what, value=least))
            else:
                done.append(_operating(candidate, index, best, limit_w))
    return done, missed


def _fits(candidate: Candidate, mix: Mix) -> bool:
    """Whether the longest request has room in the caches."""
    return float((mix.input_tokens + mix.output_tokens).max()) <= candidate.kv_tokens


def _operating(candidate: Candidate, demand: int, best: Point, limit_w: float | None) -> Operating:
    places = int(np.ceil(best.sequences + ROOM * np.sqrt(best.sequences)))
    gpus, profile = candidate.gpus, candidate.profile
    cap_w = profile.held_w(limit_w)
    return Operating(
        candidate=candidate,
        demand=demand,
        deployment=replace(
            candidate.deployment,
            max_num_seqs=min(places, candidate.deployment.max_num_seqs),
            power_limit_w=limit_w,
        ),
        point=best,
        idle_w=gpus * idle_power_w(profile),
        most_w=min(gpus * cap_w, best.most_w),
        limit_w=gpus * cap_w,
    )


def _sequences(candidate: Candidate, mix: Mix) -> Floats:
    """Numbers of decoding sequences to look at, up to what places and memory allow."""
    room = FILLED * candidate.kv_tokens / max(mix.mean_context, 1.0)
    most = max(min(float(candidate.deployment.max_num_seqs), room), 1.0)
    # The number varies: its mean leaves places for its variation.
    most = max((np.sqrt(most + ROOM**2 / 4.0) - ROOM / 2.0) ** 2, 1.0)
    count = int(np.ceil(TO_A_DOUBLING * np.log2(most))) + 1
    return np.geomspace(1.0, most, max(count, 2)) if most > 1.0 else np.ones(1)


def idle_power_w(profile: Profile) -> float:
    """Power of one GPU with the engine loaded and nothing to do."""
    watts = profile.power.static_w.value
    for _ in range(ROUNDS):
        watts = power.static_power_w(profile.power, watts)
    return watts


def pareto(found: Sequence[Operating]) -> list[Operating]:
    """Those that no other of their demand is at least as good as in everything; of equals the first."""
    if not found:
        return []
    costs = np.array([_costs(o) for o in found])
    demand = np.array([o.demand for o in found])
    kept = np.ones(len(found), dtype=np.bool_)
    for k in np.unique(demand):
        mine = np.flatnonzero(demand == k)
        a = costs[mine]
        as_good = np.all(a[:, None] <= a[None], axis=2)  # [i, j]: i is as good as j in everything
        better = as_good & (~as_good.T | np.triu(np.ones_like(as_good), 1))
        kept[mine] = ~better.any(axis=0)
    return [o for o, keep in zip(found, kept, strict=True) if keep]


def _costs(o: Operating) -> tuple[float, ...]:
    """What less is better of: GPU-seconds and joules of a request, size of a replica in GPUs and W."""
    rate = o.point.rate
    return (o.candidate.gpus / rate, o.point.power_w / rate, float(o.candidate.gpus), o.idle_w)
