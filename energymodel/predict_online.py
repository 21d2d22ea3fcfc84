"""From requests that arrive in time to a prediction: of a trace, or of a steady state.

A steady state is simulated: requests are drawn at random at the rates of the bins, the first ones
are left out until the replica has filled, and energy, time and tokens are those of the steps within
the rest. Whether the replica keeps up is seen from its queue.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from energymodel import prefix_cache
from energymodel.arrivals import Arrivals, at_once, of_trace, poisson
from energymodel.costs import demand, settled
from energymodel.deployment import Deployment
from energymodel.engines import engine_of
from energymodel.latency import percentiles
from energymodel.model import ModelSpec
from energymodel.predict import composed
from energymodel.prediction import Latency, Online, Prediction
from energymodel.profile import Profile
from energymodel.serving import Milestones, Schedule
from energymodel.simulation import Replay, Replica, replica, simulate
from energymodel.step_table import demand as table_demand
from energymodel.steps import Floats, Ints, Steps
from energymodel.traces.binning import DEFAULT_BINS, bin_lengths
from energymodel.traces.lengths import Lengths
from energymodel.traces.trace import Limits, Trace, served
from energymodel.workload import Bin, Workload

# Requests of a steady state at first and at most: those that are simulated grow until their span is
# so many times the longest a request takes (99th percentile), of which the first WARM_UP are left out.
REQUESTS, MOST_REQUESTS = 4_000, 64_000
SPANS, WARM_UP, LEAST_WARM_UP = 20.0, 3.0, 0.1
# Requests of a queue that never empties, for each place of the replica, and at least and most.
QUEUED_EACH, QUEUED_LEAST, QUEUED_MOST = 12, 2_000, 8_000
# Arrivals over what the replica serves of requests that all come at once.
OVERLOAD = 1.5
UNMEASURED = (
    "no run whose requests arrive in time was measured: its steps are those of offline runs, with what "
    "the power limit allows after what ran before them."
)
# Deviations by which a random queue would have to grow by itself to pass for one that grows.
DEVIATIONS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows of a replay from ``first`` to before ``last``, which begin at ``start_s``, end at ``end_s``."""

    first: int
    last: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """What a prediction tells apart: the group of each bin of the arrivals, [n_bins].

    ``bins`` as they were asked for, ``served`` as the model sees them.
    """

    bins: tuple[Bin, ...]
    served: tuple[Bin, ...]
    of_bin: Ints


def predict_trace(
    model: ModelSpec, deployment: Deployment, trace: Trace, profile: Profile
) -> Prediction:
    """Energy, time and latency of one replica that serves a trace as its requests arrive.

    Raises:
        InputError: the trace gives no times, or what ``predict`` refuses.
    """
    asked = replica(model, deployment, profile)
    limits = Limits(
        max_tokens=model.max_position_embeddings, keep_zero_output=model.kind == "encoder"
    )
    kept, left_out = served(trace, limits)
    replay = simulate(asked, of_trace(kept))
    part = Part(first=0, last=len(replay.step_s), start_s=0.0, end_s=replay.end_s)
    found = _prediction(
        replay, part, groups=_groups(replay.arrivals), arrivals="trace", seed=None, capacity=None
    )
    notes = [*trace.notes]
    if kept.prefix_tokens is not None and kept.prefix_tokens.any():
        known = ["prefixes of the trace are found as in a prefix cache without limit."]
        notes += prefix_cache.ignored(deployment) or known
    if left_out:
        reasons = ", ".join(f"{n:,} {why.replace('_', ' ')}" for why, n in left_out.items())
        notes.append(f"left out of the trace: {reasons}.")
    return replace(found, warnings=(*found.warnings, *notes))


def predict_online(
    model: ModelSpec,
    deployment: Deployment,
    workload: Workload,
    profile: Profile,
    *,
    seed: int = 0,
) -> Prediction:
    """Steady state of one replica to which requests come at the rates of the bins (Poisson).

    ``duration_s`` is the simulated span, ``requests`` those that finished within it.

    Raises:
        InputError: what ``predict`` refuses, or a rate is not above 0.
    """
    asked = replica(model, deployment, profile)
    replay = steady(asked, workload, seed)
    index = np.arange(len(workload.bins))
    return _prediction(
        replay,
        steady_part(replay),
        groups=Groups(bins=workload.bins, served=replay.served.bins, of_bin=index),
        arrivals="poisson",
        seed=seed,
        capacity=capacity_requests_per_s(asked, workload, seed),
    )


# Steady state ------------------------------------------------------------------------------------


def steady(asked: Replica, workload: Workload, seed: int = 0) -> Replay:
    """Enough Poisson arrivals for a steady state."""
    requests = REQUESTS
    while True:
        arrivals = poisson(workload, requests, seed)
        replay = simulate(asked, arrivals)
        longest_s = float(np.quantile(_e2e_s(replay), 0.99))
        if arrivals.end_s >= SPANS * longest_s or requests >= MOST_REQUESTS or grows(replay):
            return replay
        requests = min(int(1.2 * requests * SPANS * longest_s / arrivals.end_s) + 1, MOST_REQUESTS)


def steady_part(replay: Replay) -> Part:
    """The rows after the replica has filled and before arrivals end.

    Of a replica that cannot keep up: while its queue lasts.
    """
    if grows(replay):
        since_s, until_s = _queued(replay)
    else:
        until_s = replay.arrivals.end_s
        longest_s = float(np.quantile(_e2e_s(replay), 0.99))
        since_s = min(max(WARM_UP * longest_s, LEAST_WARM_UP * until_s), until_s / 2)
    first, last = np.searchsorted(replay.start_s, (since_s, until_s))
    first = min(int(first), len(replay.start_s) - 1)
    last = max(int(last), first + 1)
    ends = replay.start_s[last] if last < len(replay.start_s) else replay.end_s
    return Part(first=first, last=last, start_s=float(replay.start_s[first]), end_s=float(ends))


def capacity_requests_per_s(asked: Replica, workload: Workload, seed: int = 0) -> float:
    """Requests a second of a replica whose queue never empties, of the mix of ``workload``.

    Requests that start together keep in step for many rounds and share more than they would in a
    steady state, so the queue is made by arrivals at more than the replica serves. Counted as they
    are admitted, in the second half.
    """
    places = QUEUED_EACH * asked.deployment.max_num_seqs
    requests = min(max(places, QUEUED_LEAST), QUEUED_MOST)
    together = simulate(asked, at_once(workload, max(requests // 4, 1), seed))
    rate = OVERLOAD * len(together.finish_s) / together.end_s
    replay = simulate(asked, poisson(_scaled(workload, rate), requests, seed))
    admitted_s = np.sort(replay.admitted_s)
    half = requests // 2
    return (requests - 1 - half) / float(admitted_s[-1] - admitted_s[half])


def _scaled(workload: Workload, requests_per_s: float) -> Workload:
    """The same mix at another rate."""
    scale = requests_per_s / workload.requests
    return Workload(
        bins=tuple(
            replace(b, requests_per_s=scale * (b.requests_per_s or 0.0)) for b in workload.bins
        )
    )


def grows(replay: Replay) -> bool:
    """Whether the queue at the end of the arrivals is longer than in their middle by more than chance."""
    end_s = replay.arrivals.end_s
    middle, end = (_waiting(replay, at_s) for at_s in (end_s / 2, end_s))
    return end - middle > DEVIATIONS * math.sqrt(len(replay.finish_s) / 2)


def _queued(replay: Replay) -> tuple[float, float]:
    """Seconds from and until which a queue keeps the replica full.

    From when a fifth of the requests have finished until the last one to finish before all are
    admitted; the whole run where all were admitted by then.
    """
    finish_s = np.sort(replay.finish_s)
    since_s = float(finish_s[len(finish_s) // 5])
    last = int(np.searchsorted(finish_s, replay.admitted_s.max(), side="right")) - 1
    until_s = float(finish_s[max(last, 0)])
    return (since_s, until_s) if until_s > since_s else (0.0, replay.end_s)


def _waiting(replay: Replay, at_s: float) -> int:
    arrived = int((replay.arrivals.time_s <= at_s).sum())
    return arrived - int((replay.admitted_s <= at_s).sum())


def _e2e_s(replay: Replay) -> Floats:
    return replay.finish_s - replay.arrivals.time_s


# Prediction --------------------------------------------------------------------------------------


def _prediction(
    replay: Replay,
    part: Part,
    *,
    groups: Groups,
    arrivals: str,
    seed: int | None,
    capacity: float | None,
) -> Prediction:
    asked, bin_of = replay.replica, groups.of_bin[replay.arrivals.bin]
    model, deployment, profile = asked.model, asked.deployment, asked.profile
    inside = (replay.finish_s > part.start_s) & (replay.finish_s <= part.end_s)
    counts = np.bincount(bin_of[inside], minlength=len(groups.bins)).tolist()
    finished = Workload(
        bins=tuple(
            replace(b, count=n, requests_per_s=None)
            for b, n in zip(groups.bins, counts, strict=True)
        )
    )
    steps = _cut(replay.schedule().steps, part, bin_of)
    if asked.table is not None and not any(b.images or b.audio_s for b in groups.served):
        wanted = table_demand(asked.table, steps, groups.served)
    else:
        wanted = demand(model, deployment, steps, profile, groups.served)
    rows = slice(part.first, part.last)
    busy_s = float(replay.weight[rows] @ replay.step_s[rows])
    idle_s = max(part.end_s - part.start_s - busy_s, 0.0)
    time = engine_of(deployment).time
    added = time(model, deployment, steps, profile, Workload(bins=groups.served))
    added = replace(added, submit_s=idle_s)
    none: Ints = np.zeros(0, dtype=np.int64)
    found = composed(
        model,
        deployment,
        finished,
        profile,
        schedule=Schedule(
            steps=steps,
            milestones=Milestones(bin=none, count=none, first_token_row=none, finish_row=none),
            iterations=int(steps.weight.sum()),
        ),
        costs=settled(
            wanted,
            added,
            steps.weight,
            deployment,
            profile,
            at=(replay.relative_clock[rows], replay.static_w),
        ),
        latencies=_latencies(replay, part, steps),
    )
    offered = replay.arrivals.requests_per_s
    saturated = grows(replay) or (capacity is not None and offered > capacity)
    produced = float(steps.weight @ steps.sampled)
    return replace(
        found,
        output_tokens=round(produced),
        output_tokens_per_s=produced / found.duration_s,
        energy_per_output_token_j=found.energy_j / produced if produced else None,
        # The span is asked for, unless requests pile up and its end is that of the work.
        duration_interval_s=(
            found.duration_interval_s if saturated else (found.duration_s, found.duration_s)
        ),
        online=Online(
            arrivals=arrivals,
            seed=seed,
            requests_per_s=offered,
            capacity_requests_per_s=capacity,
            saturated=bool(saturated),
            **_of_requests(replay, part, busy_s),
        ),
        warnings=(
            *found.warnings,
            *(_notes(offered, capacity) if saturated else ()),
            UNMEASURED,
        ),
    )


def _cut(steps: Steps, part: Part, bin_of: Ints) -> Steps:
    """The rows of a part; requests become their bins."""
    c, d = steps.chunks, steps.decodes
    in_c = (c.step >= part.first) & (c.step < part.last)
    in_d = (d.step >= part.first) & (d.step < part.last)
    return replace(
        steps,
        weight=steps.weight[part.first : part.last],
        chunks=replace(
            c,
            step=c.step[in_c] - part.first,
            tokens=c.tokens[in_c],
            context=c.context[in_c],
            count=c.count[in_c],
            last=c.last[in_c],
            bin=bin_of[c.bin[in_c]],
        ),
        decodes=replace(
            d,
            step=d.step[in_d] - part.first,
            context=d.context[in_d],
            count=d.count[in_d],
            bin=bin_of[d.bin[in_d]],
        ),
    )


def _latencies(replay: Replay, part: Part, steps: Steps) -> tuple[Latency | None, Latency | None]:
    """(TTFT of the requests that arrived in the part, ITL of the tokens made in it)."""
    arrived_s = replay.arrivals.time_s
    produces = np.array([b.output_tokens > 0 for b in replay.served.bins])[replay.arrivals.bin]
    chosen = _arrived(replay, part) & produces
    ttft = None
    if chosen.any():
        first_s = (replay.first_token_s - arrived_s)[chosen] + _beside_s(replay.replica)
        ttft = percentiles(first_s, np.ones_like(first_s))
    tokens = steps.weight * steps.decoding
    step_s = replay.step_s[part.first : part.last]
    return ttft, percentiles(step_s, tokens) if tokens.any() else None


def _arrived(replay: Replay, part: Part) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    arrived_s = replay.arrivals.time_s
    chosen = (arrived_s >= part.start_s) & (arrived_s <= part.end_s)
    return chosen if chosen.any() else np.ones_like(chosen)


def _of_requests(replay: Replay, part: Part, busy_s: float) -> dict[str, Any]:
    """What ``Online`` says of the requests of a part of a replay."""
    span_s = part.end_s - part.start_s
    arrived_s, chosen = replay.arrivals.time_s, _arrived(replay, part)
    one = np.ones(int(chosen.sum()))
    return {
        "utilisation": min(busy_s / span_s, 1.0),
        "running": _overlap_s(replay.admitted_s, replay.finish_s, part) / span_s,
        "waiting": _overlap_s(arrived_s, replay.admitted_s, part) / span_s,
        "queue_s": percentiles((replay.admitted_s - arrived_s)[chosen], one),
        "e2e_s": percentiles(_e2e_s(replay)[chosen] + _beside_s(replay.replica), one),
    }


def _beside_s(asked: Replica) -> float:
    """Seconds of a request outside the engine, as on its way through a server."""
    deployment = asked.deployment
    return engine_of(deployment).request_s(deployment, asked.profile.engines[deployment.engine])


def _overlap_s(since_s: Floats, until_s: Floats, part: Part) -> float:
    """Seconds that all intervals have in common with the part, added up."""
    inside = np.minimum(until_s, part.end_s) - np.maximum(since_s, part.start_s)
    return float(np.maximum(inside, 0.0).sum())


def _notes(offered: float, capacity: float | None) -> list[str]:
    most = "" if capacity is None else f", of which it serves {capacity:.3g}"
    text = (
        f"the replica cannot keep up with {offered:.3g} requests a second{most}: its queue grows as "
        "long as they come, and latencies with it."
    )
    return [text]


def _groups(arrivals: Arrivals) -> Groups:
    """At most ``DEFAULT_BINS`` groups of similar lengths, each with the mean lengths of its requests."""
    lengths = np.array([(b.input_tokens, b.output_tokens) for b in arrivals.bins], dtype=np.int64)
    count = np.bincount(arrivals.bin, minlength=len(lengths))
    pairs, pair = np.unique(lengths, axis=0, return_inverse=True)
    pair = pair.reshape(-1)
    asked = Lengths(
        name="",
        format="",
        input_tokens=pairs[:, 0],
        output_tokens=pairs[:, 1],
        count=np.bincount(pair, weights=count).astype(np.int64),
    )
    few = len(pairs) <= DEFAULT_BINS
    binned = bin_lengths(asked, "exact" if few else "quantile")
    bins = tuple(
        Bin(input_tokens=i, output_tokens=o)
        for i, o in zip(binned.input_tokens.tolist(), binned.output_tokens.tolist(), strict=True)
    )
    return Groups(bins=bins, served=bins, of_bin=binned.bin[pair])
