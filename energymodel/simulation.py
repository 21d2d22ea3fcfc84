"""Requests served as they arrive: the scheduler of an engine, moved through time.

The scheduler is that of offline runs (``scheduler.py``); a stretch of pure decode ends at the next
arrival, too. With asynchronous scheduling an engine schedules step k + 1 when step k begins
(``vllm/v1/engine/core.py`` of vLLM 0.24, ``step_with_batch_queue``), so that a request that arrives
during step k is first served in step k + 2; one that finds the engine idle is served at once.

What a step takes comes from the table of the model (``step_table.py``), at the clock that the power
limit allows after what ran before it (``power_in_time.py``). Static power follows the mean power of the run, which is known afterwards: a
simulation of the first requests gives it, and the whole one is repeated where that was too far off.
"""

import math
from dataclasses import dataclass

import numpy as np

from energymodel import power
from energymodel.arrivals import Arrivals
from energymodel.context_sums import ContextSums
from energymodel.deployment import Deployment
from energymodel.engines import engine_of
from energymodel.errors import InputError
from energymodel.model import ModelSpec
from energymodel.one_step import ExactLoad, TableLoad
from energymodel.power_in_time import Limit, first_static_w
from energymodel.predict import check
from energymodel.profile import Profile
from energymodel.progress import tell
from energymodel.reading import served_workload
from energymodel.scheduler import FOREVER, Scheduler
from energymodel.serving import Schedule, expand
from energymodel.step_parts import windows_of
from energymodel.step_table import StepTable, step_table
from energymodel.steps import Floats, Ints
from energymodel.workload import Workload

# Requests of the simulation that finds the static power, and watts that it may be off: 3 W are 0.5 %
# of what the power limit leaves, so of the time of a step at the limit.
FIRST_REQUESTS, NEAR_W, MOST_ROUNDS = 400, 3.0, 3
# From so many iterations on, a stretch is measured again in its middle.
LONG_STRETCH = 32
# Arrivals between two looks at how far a simulation is.
TELL_EVERY = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One replica of a model, ready to be asked many times. ``table`` is None where it has none."""

    model: ModelSpec
    deployment: Deployment
    profile: Profile
    table: StepTable | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What happened to requests that arrived in time.

    ``served``: the bins as the model sees them. Rows of ``schedule`` start at ``start_s`` and run
    ``weight`` iterations of ``step_s`` at ``relative_clock``, each of which asks for ``core_j`` and
    ``hbm_j`` (as of ``power.StepLoad``); shape [n_rows]. Requests were admitted when their first chunk
    started, and got their first token and finished at the end of a row; shape [n_requests].
    ``schedule`` knows each request by its own number, in the order of arrival.
    """

    replica: Replica
    arrivals: Arrivals
    served: Workload
    scheduler: Scheduler
    start_s: Floats
    step_s: Floats
    relative_clock: Floats
    core_j: Floats
    hbm_j: Floats
    admitted_s: Floats
    first_token_s: Floats
    finish_s: Floats
    static_w: float

    @property
    def weight(self) -> Floats:
        """Iterations of each row."""
        return np.array(self.scheduler.weights, dtype=np.float64)

    @property
    def end_s(self) -> float:
        """When the last request had finished."""
        return float(self.start_s[-1] + self.weight[-1] * self.step_s[-1])

    def schedule(self) -> Schedule:
        """The rows as steps; ``bin`` is the number of the request."""
        return expand(self.scheduler)


def replica(model: ModelSpec, deployment: Deployment, profile: Profile) -> Replica:
    """Check the deployment and make the table of its steps.

    Raises:
        InputError: the deployment cannot be predicted, or its engine does not serve in time.
    """
    check(deployment, profile)
    if engine_of(deployment).online is None:
        raise InputError(
            f"engine {deployment.engine} serves batches, not requests that arrive in time: use bins "
            "with count."
        )
    return Replica(
        model=model,
        deployment=deployment,
        profile=profile,
        table=step_table(model, deployment, profile),
    )


def simulate(replica: Replica, arrivals: Arrivals) -> Replay:
    """Serve the requests until none is left.

    Raises:
        InputError: the model does not fit, or cannot do what a request asks for.
    """
    static_w = first_static_w(replica.profile, replica.deployment)
    total = len(arrivals.time_s)
    if total > 2 * FIRST_REQUESTS:
        static_w = settled_static_w(_run(replica, arrivals.first(FIRST_REQUESTS), static_w))
    for _ in range(MOST_ROUNDS):
        found = _run(replica, arrivals, static_w)
        static_w = settled_static_w(found)
        if abs(static_w - found.static_w) <= NEAR_W:
            break
    return found


def _run(replica: Replica, arrivals: Arrivals, static_w: float) -> Replay:
    """One pass through time at a given static power."""
    model, deployment = replica.model, replica.deployment
    served = served_workload(model, Workload(bins=arrivals.bins))
    contexts = ContextSums(windows_of(model))
    begin = engine_of(deployment).online
    assert begin is not None  # noqa: S101 (a replica has been checked for it)
    scheduler = begin(model, deployment, served, replica.profile.gpu, arrivals.bin, contexts)
    limit = Limit(deployment, replica.profile, static_w)
    pricer = _pricer(replica, served, arrivals.bin)
    clock = _Clock(arrivals, scheduler, contexts, pricer, limit)
    clock.run()
    count = len(arrivals.time_s)
    start_s, step_s = np.array(clock.start_s), np.array(clock.step_s)
    end_s = start_s + np.array(scheduler.weights) * step_s
    admitted_s, first_s, finish_s = np.full((3, count), np.nan)
    rows, requests = np.array([(c[0], c[5]) for c in scheduler.chunks], dtype=np.int64).T
    admitted_s[requests[::-1]] = start_s[rows[::-1]]  # the first chunk of each is written last
    done = np.array(scheduler.milestones, dtype=np.int64)
    first_s[done[:, 0]], finish_s[done[:, 0]] = end_s[done[:, 2]], end_s[done[:, 3]]
    return Replay(
        replica=replica,
        arrivals=arrivals,
        served=served,
        scheduler=scheduler,
        start_s=start_s,
        step_s=step_s,
        relative_clock=np.array(clock.relative_clock),
        core_j=np.array(clock.core_j),
        hbm_j=np.array(clock.hbm_j),
        admitted_s=admitted_s,
        first_token_s=first_s,
        finish_s=finish_s,
        static_w=static_w,
    )


def _pricer(replica: Replica, served: Workload, bins: Ints) -> TableLoad | ExactLoad:
    shows = any(b.images or b.audio_s for b in served.bins)
    if replica.table is not None and not shows:
        return TableLoad(replica.table)
    each = tuple(served.bins[i] for i in bins.tolist())
    return ExactLoad(replica.model, replica.deployment, replica.profile, each)


class _Clock:
    """Time, as the scheduler moves from event to event."""

    def __init__(
        self,
        arrivals: Arrivals,
        scheduler: Scheduler,
        contexts: ContextSums,
        pricer: TableLoad | ExactLoad,
        limit: Limit,
    ) -> None:
        self._times: list[float] = arrivals.time_s.tolist()
        self._scheduler = scheduler
        self._contexts = contexts
        self._pricer = pricer
        self._limit = limit
        self._now = 0.0
        self._seen = 0.0  # who had arrived by then is known to the next schedule
        self._next = 0
        self._chunk = 0
        self.start_s: list[float] = []
        self.step_s: list[float] = []
        self.relative_clock: list[float] = []
        self.core_j: list[float] = []
        self.hbm_j: list[float] = []

    def run(self) -> None:
        times, scheduler = self._times, self._scheduler
        while self._next < len(times) or scheduler.busy:
            while self._next < len(times) and times[self._next] <= self._seen:
                scheduler.arrive(self._next)
                self._next += 1
            if scheduler.busy:
                scheduler.schedule(self._horizon)
                self._move()
            else:
                began, self._now = self._now, max(self._now, times[self._next])
                self._limit.wait(self._now - began)
                self._seen = self._now
            if self._next % TELL_EVERY == 0:
                tell("serving", scheduler.finished, len(times))

    def _horizon(self) -> int:
        """Iterations of the decoding sequences until the next arrival is known to the scheduler."""
        if self._next == len(self._times):
            return FOREVER
        iteration, decoding = self._scheduler.iteration, self._contexts.sequences
        gap_s = self._times[self._next] - self._now
        visible = self._contexts.visible(iteration)
        iterations = gap_s / self._limit.seconds(self._pricer(decoding, visible))
        if iterations > LONG_STRETCH:
            later = tuple(keys + decoding * iterations / 2 for keys in visible)
            iterations = gap_s / self._limit.seconds(self._pricer(decoding, later))
        return max(math.ceil(iterations) + self._scheduler.overlap, 1)

    def _move(self) -> None:
        """Let the rows that were scheduled pass."""
        scheduler = self._scheduler
        for row in range(len(self.step_s), len(scheduler.weights)):
            chunks = []
            while self._chunk < len(scheduler.chunks) and scheduler.chunks[self._chunk][0] == row:
                _, tokens, context, _, samples, request = scheduler.chunks[self._chunk]
                chunks.append((tokens, context, samples, request))
                self._chunk += 1
            load = self._pricer(scheduler.decoding[row], scheduler.visible[row], chunks)
            iterations = scheduler.weights[row]
            step_s, relative_clock = self._limit.run(load, iterations)
            self.start_s.append(self._now)
            self.step_s.append(step_s)
            self.relative_clock.append(relative_clock)
            self.core_j.append(load[2])
            self.hbm_j.append(load[3])
            self._now += iterations * step_s
            self._seen = self._now - step_s if scheduler.overlap else self._now


def idle_s(replay: Replay) -> float:
    """Seconds without a step, from the first arrival until the last request has finished."""
    return max(replay.end_s - float(replay.weight @ replay.step_s), 0.0)


def energy_j(replay: Replay) -> Floats:
    """Energy of one iteration of each row, at the static power of the simulation; [n_rows].

    Of a replica on several GPUs, of each.
    """
    exponent = replay.replica.profile.power.exponent.value
    spent = replay.core_j * replay.relative_clock**exponent + replay.hbm_j
    return np.asarray(replay.static_w * replay.step_s + spent)


def settled_static_w(replay: Replay) -> float:
    """Static power at the mean power of the run."""
    joules = float(replay.weight @ energy_j(replay)) + replay.static_w * idle_s(replay)
    return float(power.static_power_w(replay.replica.profile.power, joules / replay.end_s))
