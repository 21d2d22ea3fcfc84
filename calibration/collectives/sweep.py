"""Points -> collectives.jsonl on one host of several GPUs: interleaved trials, resumable.

As ``calibration.sweep`` does it for one GPU: bursts first, which cost little, then every trial of
every window in an order of its own, so that drift does not masquerade as size; what still scatters
after the last trial is for the fit to see.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from calibration import jsonl
from calibration.collectives import observations
from calibration.collectives.grid import Point
from calibration.collectives.observations import CollectiveObservation, RankWindow
from calibration.verdict import WindowRefused
from energymodel.errors import WorkError

TRIALS = 3
# So many refusals in a row are no accident.
MOST_REFUSED = 20
# What a burst and a window take, set-up included; only to say how far the sweep is.
BURST_COST_S, WINDOW_COST_S = 0.15, 1.6

Report = Callable[[str], None]
Progress = Callable[[float, float, str], None]
# A point's key, the trial, and whether it is its burst.
Part = tuple[str, int, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is the same in all lines of one run."""

    gpus: int
    boards: tuple[str, ...]
    gpu: str
    driver: str
    power_limit_w: float
    link: str
    environment: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One burst or window as every GPU saw it, by rank; ``spread_s`` is of a burst."""

    ranks: tuple[RankWindow, ...]
    stack: str
    spread_s: float | None = None


class Host(Protocol):
    """GPUs that run collectives together: real ones behind torchrun, or simulated."""

    def facts(self) -> Facts:
        """What the GPUs are and how they are connected."""

    def now_s(self) -> float:
        """The time that a budget is counted in."""

    def measure(self, point: Point, *, burst: bool) -> Seen:
        """One burst or window of a point on all GPUs; refused where one of them refuses it."""


def sweep(
    points: Sequence[Point],
    host: Host,
    out: Path,
    *,
    budget_s: float,
    trials: int = TRIALS,
    seed: int = 0,
    report: Report = lambda _: None,
    progress: Progress = lambda *_: None,
) -> int:
    """Measure ``points`` and append to ``out``; returns how many lines were added.

    What ``out`` already holds of these boards is skipped. Stops cleanly once ``budget_s`` is spent.

    Args:
        points: what to measure.
        host: the GPUs.
        out: collectives.jsonl, appended to.
        budget_s: time after which nothing more is begun.
        trials: how often each window is taken.
        seed: of the order within a trial.
        report: gets a line for what was left out.
        progress: gets seconds of work done, in all, and the point that runs.

    Raises:
        InputError: ``out`` cannot be written or holds something else.
        WorkError: a sensor stopped answering, a GPU was lost, or windows are refused again and
            again.
    """
    jsonl.repair(out)
    facts = host.facts()
    known: set[Part] = set()
    idle_power_w: dict[str, float] = {}
    for o in observations.read(out):
        if o.boards == facts.boards:
            known.add(_part(o))
            _know_idle(o, idle_power_w)
    todo = [part for part in _order(points, trials, seed) if _key(*part, facts.gpus) not in known]
    left_s = total_s = sum(_cost_s(burst=burst) for _, _, burst in todo)
    end_s = host.now_s() + budget_s
    written = refused = 0
    for done, (point, trial, burst) in enumerate(todo):
        if host.now_s() > end_s:
            report(f"time budget spent: {len(todo) - done} bursts and windows left")
            return written
        progress(total_s - left_s, total_s, point.title)
        left_s -= _cost_s(burst=burst)
        try:
            seen = host.measure(point, burst=burst)
            refused = 0
        except WindowRefused as refusal:
            report(f"{point.title}: left out: {refusal}")
            refused += 1
            if refused >= MOST_REFUSED:
                raise WorkError(
                    f"{refused} windows in a row were refused, the last since: {refusal}"
                ) from refusal
            continue
        observation = _observation(point, trial, seen, facts, idle_power_w, burst=burst)
        _know_idle(observation, idle_power_w)
        observations.append(out, observation)
        written += 1
    progress(total_s, total_s, "")
    return written


def _order(points: Sequence[Point], trials: int, seed: int) -> list[tuple[Point, int, bool]]:
    """Bursts, then trial after trial: idle power first, the rest in random order."""
    order = random.Random(seed)  # noqa: S311 - an order, not a secret
    parts = [(p, 0, True) for p in points if p.op != "idle"]
    for trial in range(trials):
        windows = [p for p in points if p.energy]
        order.shuffle(windows)
        windows.sort(key=lambda p: p.op != "idle")
        parts += [(p, trial, False) for p in windows]
    return parts


def _key(point: Point, trial: int, burst: bool, gpus: int) -> Part:
    return (point.key(gpus), trial, burst)


def _part(o: CollectiveObservation) -> Part:
    return (o.point, o.trial, o.mode == "burst")


def _cost_s(*, burst: bool) -> float:
    return BURST_COST_S if burst else WINDOW_COST_S


def _know_idle(o: CollectiveObservation, idle_power_w: dict[str, float]) -> None:
    if o.mode == "idle":
        for r in o.ranks:
            if r.energy_j is not None and r.duration_s:
                idle_power_w[r.board] = r.energy_j / r.duration_s


def _observation(
    point: Point,
    trial: int,
    seen: Seen,
    facts: Facts,
    idle_power_w: dict[str, float],
    *,
    burst: bool,
) -> CollectiveObservation:
    idle = point.op == "idle"
    return CollectiveObservation(
        op=point.op,
        library=point.library,
        gpus=facts.gpus,
        message_bytes=point.message_bytes,
        dtype=point.dtype,
        mode="burst" if burst else point.mode,
        trial=trial,
        skew_us=point.skew_us,
        m=point.m,
        n=point.n,
        k=point.k,
        # Who came last waited for nobody.
        call_s=min(r.call_s for r in seen.ranks),
        call_spread_s=seen.spread_s,
        ranks=[r if idle else _net(r, idle_power_w.get(r.board)) for r in seen.ranks],
        stack=seen.stack,
        gpu=facts.gpu,
        driver=facts.driver,
        power_limit_w=facts.power_limit_w,
        link=facts.link,
        environment=facts.environment,
        time_s=round(time.time(), 1),
    )


def _net(r: RankWindow, idle_power_w: float | None) -> RankWindow:
    """With what is left above the power of the last idle window."""
    if r.energy_j is None or r.duration_s is None or idle_power_w is None:
        return r
    return replace(r, idle_power_w=idle_power_w, net_j=r.energy_j - idle_power_w * r.duration_s)
