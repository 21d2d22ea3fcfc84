"""How a sensor behaves in time: what a read costs, how often the value changes, how finely.

Every source is read in turn, as fast as the reads allow; statistics come from the recorded series
alone, so that they can be tested on simulated time.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from calibration.clock import Clock
from calibration.doctor.facts import reason

# After a round of reads: bounds the load on a host core where reads cost microseconds.
PAUSE_S = 1e-3
BEAT_S = 0.2
# NVML counts in mW and mJ.
MILLI = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Something that can be polled; ``read`` gives joules or watts, as ``unit`` says."""

    name: str
    unit: str
    read: Callable[[], float]


@dataclass(slots=True)
class Series:
    """Reads of one source: when (middle of the read), what, and how long the read took."""

    time_s: list[float] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    cost_s: list[float] = field(default_factory=list)
    failed: str | None = None

    def changes(self) -> list[tuple[float, float]]:
        """(moment, new value) of every change; the moment is half way between two reads."""
        pairs = zip(self.time_s, self.time_s[1:], self.value, self.value[1:], strict=False)
        return [(0.5 * (s + t), b) for s, t, a, b in pairs if b != a]

    def mean_between(self, start_s: float, end_s: float) -> float | None:
        """Mean over time by trapezia; None with fewer than two reads in the interval."""
        inside = [i for i, t in enumerate(self.time_s) if start_s <= t <= end_s]
        if len(inside) < 2:
            return None
        times, values = np.asarray(self.time_s)[inside], np.asarray(self.value)[inside]
        area = np.sum(0.5 * (values[1:] + values[:-1]) * np.diff(times))
        return float(area / (times[-1] - times[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorFacts:
    """One sensor as it behaved; None is what could not be told.

    ``quantum_j`` or ``quantum_w`` divides every step that was seen; ``rise_s`` is the time from
    10 to 90 % of a step in load (a mean over T seconds takes 0.8 T). A period close to
    ``poll_step_s``, the time between two reads, is an upper bound.
    """

    supported: bool
    reason: str | None = None
    reads: int = 0
    read_median_s: float | None = None
    read_p95_s: float | None = None
    poll_step_s: float | None = None
    updates: int = 0
    update_period_s: float | None = None
    update_period_p95_s: float | None = None
    smallest_step_j: float | None = None
    smallest_step_w: float | None = None
    quantum_j: float | None = None
    quantum_w: float | None = None
    rise_s: float | None = None


def poll(
    sources: Iterable[Source],
    duration_s: float,
    clock: Clock,
    beat: Callable[[], None] = lambda: None,
) -> dict[str, Series]:
    """Read all sources in turn for a while; ``beat`` is called every 0.2 s in between.

    A source that fails is left alone from then on, and its series says why.
    """
    alive = list(sources)
    series = {source.name: Series() for source in alive}
    end_s = clock.now() + duration_s
    next_beat_s = clock.now()
    while clock.now() < end_s:
        if clock.now() >= next_beat_s:
            next_beat_s = clock.now() + BEAT_S
            beat()
        alive = [source for source in alive if _read(source, series[source.name], clock)]
        clock.sleep(PAUSE_S)
    beat()
    return series


def _read(source: Source, into: Series, clock: Clock) -> bool:
    begun_s = clock.now()
    try:
        value = source.read()
    except Exception as error:  # noqa: BLE001 - a sensor that is lost is a finding
        into.failed = reason(error)
        return False
    done_s = clock.now()
    into.time_s.append(0.5 * (begun_s + done_s))
    into.value.append(value)
    into.cost_s.append(done_s - begun_s)
    return True


def describe(unit: str, runs: Sequence[Series], rise_s: float | None = None) -> SensorFacts:
    """Statistics over all runs of one source.

    The period is that of the run in which the value changed most often: at rest a power reading
    may repeat itself, which hides updates.
    """
    costs = [c for run in runs for c in run.cost_s]
    steps = [b - a for run in runs for a, b in pairwise(run.value)]
    gaps = min(([*_gaps(run)] for run in runs), key=_period_or_inf, default=[])
    failed = next((run.failed for run in runs if run.failed), None)
    quantum, smallest = _quanta(steps)
    joules = unit == "J"
    between = [d for run in runs for d in np.diff(run.time_s)]
    return SensorFacts(
        supported=bool(costs),
        reason=failed,
        reads=len(costs),
        read_median_s=_percentile(costs, 50),
        read_p95_s=_percentile(costs, 95),
        poll_step_s=_percentile(between, 50),
        updates=sum(len(run.changes()) for run in runs),
        update_period_s=_usual(gaps),
        update_period_p95_s=_percentile(gaps, 95),
        smallest_step_j=smallest if joules else None,
        smallest_step_w=None if joules else smallest,
        quantum_j=quantum if joules else None,
        quantum_w=None if joules else quantum,
        rise_s=rise_s,
    )


def rise_s(run: Series, low: float, high: float) -> float | None:
    """Seconds from the first read past 10 % to the first past 90 % of a step from low to high.

    None where the step is small or the series does not show it.
    """
    if not run.value or high - low < 0.2 * max(abs(high), 1.0):
        return None
    moments = []
    for share in (0.1, 0.9):
        level = low + share * (high - low)
        moment = next((t for t, v in zip(run.time_s, run.value, strict=True) if v >= level), None)
        if moment is None or run.value[0] >= level:
            return None
        moments.append(moment)
    return moments[1] - moments[0]


def counter_power_w(counter: Series) -> tuple[float, float, float] | None:
    """(first change, last change, mean power between them) of an energy counter.

    None with fewer than two changes.
    """
    ticks = counter.changes()
    if len(ticks) < 2:
        return None
    (first_s, first_j), (last_s, last_j) = ticks[0], ticks[-1]
    return first_s, last_s, (last_j - first_j) / (last_s - first_s)


def went_back(counter: Series) -> bool:
    """Whether an energy counter ever fell."""
    return any(b < a for a, b in pairwise(counter.value))


def _gaps(run: Series) -> list[float]:
    moments = [t for t, _ in run.changes()]
    return [b - a for a, b in pairwise(moments)]


def _usual(gaps: Sequence[float]) -> float | None:
    """Mean of the gaps near their median: reads blur each, and a missed update doubles one."""
    middle = _percentile(gaps, 50)
    if middle is None:
        return None
    return float(np.mean([gap for gap in gaps if 0.5 * middle < gap < 1.5 * middle]))


def _period_or_inf(gaps: list[float]) -> float:
    return _percentile(gaps, 50) or math.inf


def _quanta(steps: Iterable[float]) -> tuple[float | None, float | None]:
    """(greatest common divisor, smallest) of the steps, in units of NVML's thousandths."""
    thousandths = [abs(round(step / MILLI)) for step in steps]
    moved = [n for n in thousandths if n]
    if not moved:
        return None, None
    return math.gcd(*moved) * MILLI, min(moved) * MILLI


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if len(values) else None
