"""The thread that follows the energy counter, and the trace of what it saw.

NVML's energy counter advances in ticks of about 100 ms and a read costs milliseconds, so the
watcher sleeps through most of each period and reads closely only around the expected tick.
"""

import threading
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from calibration.clock import REAL_CLOCK, Clock
from calibration.sensors import Reading, Sensor
from energymodel.errors import WorkError

# A tick is sharp if it was caught within this many times the usual interval of two reads.
SHARP = 2.0


@dataclass(slots=True)
class Trace:
    """What the watcher saw: ticks of the energy counter and readings in between.

    ``tick_s[i]`` is the host time at which the counter was first seen at ``tick_j[i]``: the middle
    of an interval of ``within_s[i]`` in which it advanced (taken as 0 where there is none).
    ``others`` are the other processes that were on the GPU, ``faults`` the errors that it reported.
    """

    tick_s: list[float] = field(default_factory=list)
    tick_j: list[float] = field(default_factory=list)
    within_s: list[float] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    others: set[int] = field(default_factory=set)
    faults: int = 0

    def energy_between(self, start_s: float, end_s: float) -> float:
        """Energy from ``start_s`` to ``end_s`` by linear interpolation between ticks, joules.

        Raises:
            ValueError: the interval is not inside the ticks that were seen.
        """
        if not self.tick_s or start_s < self.tick_s[0] or end_s > self.tick_s[-1]:
            raise ValueError("the interval reaches outside the ticks of the energy counter")
        lo, hi = np.interp([start_s, end_s], self.tick_s, self.tick_j)
        return float(hi - lo)

    def sharp_between(self, start_s: float, end_s: float) -> list[int]:
        """Ticks inside [start_s, end_s] whose moment is known as closely as reads allow."""
        inside = [i for i, t in enumerate(self.tick_s) if start_s <= t <= end_s]
        if not self.within_s or not inside:
            return inside
        limit_s = SHARP * median(self.within_s)
        return [i for i in inside if self.within_s[i] <= limit_s]

    def ticks_between(self, start_s: float, end_s: float) -> tuple[float, float, int]:
        """First and last sharp tick inside [start_s, end_s], and the periods between them."""
        inside = self.sharp_between(start_s, end_s)
        if len(inside) < 2:
            return start_s, end_s, 0
        return self.tick_s[inside[0]], self.tick_s[inside[-1]], inside[-1] - inside[0]

    def clock_hz(self, start_s: float, end_s: float) -> float:
        """Mean SM clock over the readings in the interval; NaN where there is none."""
        values = [r.sm_clock_hz for r in self.readings if start_s <= r.time_s <= end_s]
        return float(np.mean(values)) if values else float("nan")

    def temperature_c(self, start_s: float, end_s: float) -> float:
        """Mean GPU temperature over the readings in the interval; NaN where there is none."""
        values = [r.temperature_c for r in self.readings if start_s <= r.time_s <= end_s]
        return float(np.mean(values)) if values else float("nan")

    def throttle_reasons(self, start_s: float, end_s: float) -> int:
        """Union of NVML's clock event reasons over the readings in the interval."""
        union = 0
        for r in self.readings:
            if start_s <= r.time_s <= end_s:
                union |= r.throttle_reasons
        return union


class Watcher:
    """Follows a sensor from a thread; ``with Watcher(sensor) as trace`` fills ``trace`` meanwhile.

    Raises:
        WorkError: at the end of the ``with``, if the sensor stopped answering.
    """

    # After a tick, sleep through this share of the period seen so far, but never longer.
    QUIET_SHARE, QUIET_S = 0.80, 0.080
    READING_EVERY_S = 0.010

    def __init__(self, sensor: Sensor, clock: Clock = REAL_CLOCK) -> None:
        self._sensor, self._clock = sensor, clock
        self._stop = threading.Event()
        self._error: Exception | None = None
        self.trace = Trace()

    def __enter__(self) -> Trace:
        self._join = self._clock.spawn(self._run)
        return self.trace

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._join()
        if kind is not None and not issubclass(kind, Exception):
            return  # an interruption stays one
        if self._error is not None:
            raise sensor_lost(self._error) from self._error
        if kind is not None:
            refuse_lost(self._sensor)

    @property
    def failed(self) -> bool:
        """Whether the sensor stopped answering; what it was is raised when the watch ends."""
        return self._error is not None

    def wait_for_tick(self, after_s: float, timeout_s: float = 2.0) -> None:
        """Block until a tick later than ``after_s`` was seen, or the time-out."""
        deadline = self._clock.now() + timeout_s
        while self._clock.now() < deadline and not self.failed:
            if self.trace.tick_s and self.trace.tick_s[-1] > after_s:
                return
            self._clock.sleep(0.005)

    def _run(self) -> None:
        try:
            self._follow()
        except Exception as error:  # noqa: BLE001 - raised again where the watcher is used
            self._error = error

    def _follow(self) -> None:
        faults = self._sensor.faults()
        self._look_for_others()
        old_s, old_j = self._clock.now(), self._sensor.energy_j()
        while not self._stop.is_set():
            asked_s = self._clock.now()
            energy_j = self._sensor.energy_j()
            if energy_j == old_j:
                old_s = asked_s
                self._read()
                continue
            # The counter advanced between the start of the last read that saw the old value and
            # the end of this one.
            self._tick(old_s, self._clock.now(), energy_j)
            old_s, old_j = asked_s, energy_j
            self._look_for_others()
            self._rest()
        self._look_for_others()
        self.trace.faults = self._sensor.faults() - faults

    def _tick(self, old_s: float, new_s: float, energy_j: float) -> None:
        # Its time comes last: who counts ticks meanwhile finds the rest complete.
        self.trace.within_s.append(new_s - old_s)
        self.trace.tick_j.append(energy_j)
        self.trace.tick_s.append(0.5 * (old_s + new_s))

    def _look_for_others(self) -> None:
        self.trace.others.update(self._sensor.other_processes())

    def _read(self) -> None:
        self.trace.readings.append(self._sensor.reading(self._clock.now()))

    def _rest(self) -> None:
        until = self._clock.now() + self._quiet_s()
        self._read()
        while self._clock.now() < until and not self._stop.is_set():
            self._clock.sleep(max(0.0, min(self.READING_EVERY_S, until - self._clock.now())))
            self._read()

    def _quiet_s(self) -> float:
        """How long to sleep after a tick: not at all while the period is unknown or was missed."""
        ticks = self.trace.tick_s
        if len(ticks) < 2 or len(self.trace.sharp_between(ticks[-2], ticks[-1])) < 2:
            return 0.0
        gaps_s = np.diff(ticks[-4:])
        return min(self.QUIET_S, self.QUIET_SHARE * float(gaps_s.min()))


def sensor_lost(error: Exception) -> WorkError:
    """What is raised when a sensor stops answering."""
    return WorkError(f"The GPU's sensors stopped answering: {error}.")


def refuse_lost(sensor: Sensor) -> None:
    """Where work failed, ask whether that is because the GPU is lost.

    Raises:
        WorkError: it does not answer.
    """
    try:
        sensor.energy_j()
    except Exception as error:
        raise sensor_lost(error) from error
