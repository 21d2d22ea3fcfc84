"""What one trustworthy measurement is: steady work, a tick-aligned window, calls counted by time.

The work is replayed in chunks; the host time at which each chunk completes gives the curve
calls(t). The window opens and closes on ticks of the energy counter, so energy, time and calls
belong to the same interval without the work having to stop and start on a tick.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from calibration.clock import REAL_CLOCK, Clock
from calibration.sensors import Sensor, Trace, Watcher
from energymodel.errors import WorkError

MIN_TICKS = 5
# NVML's clock event reasons: software and hardware thermal slowdown.
THERMAL_REASONS = 0x20 | 0x40
# The longest pause between two bursts.
MAX_PAUSE_S = 0.2


class WindowRefused(WorkError):  # noqa: N818 - it is a verdict, not a fault of the program
    """The window cannot be trusted; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Something to measure.

    ``submit`` enqueues one chunk of ``calls_per_chunk`` calls without waiting and returns a
    function that waits for that chunk and gives its time on the device in seconds.
    """

    submit: Callable[[], Callable[[], float]]
    calls_per_chunk: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One measurement. ``energy_j`` is gross; boundary: the GPU board.

    ``busy_s`` is device time of the calls inside the window, ``call_s`` device time of one call.
    """

    duration_s: float
    energy_j: float
    calls: float
    call_s: float
    busy_s: float
    ticks: int
    sm_clock_hz: float
    temperature_c: float
    throttle_reasons: int
    memory_power_w: float | None


def steady_window(
    sensor: Sensor,
    work: Work,
    *,
    window_s: float,
    settle_s: float,
    duty: float = 1.0,
    clock: Clock = REAL_CLOCK,
) -> Window:
    """Run ``work`` for ``settle_s + window_s`` seconds and measure the last ``window_s``.

    Args:
        sensor: the GPU that the work runs on.
        work: what to repeat.
        window_s: length of the window; at least 1 s gives 10 ticks.
        settle_s: time for clock and temperature to settle before the window opens.
        duty: share of time busy; below 1 each chunk is followed by a pause.
        clock: the time that sensor and work run on.

    Raises:
        WindowRefused: the energy counter moved too few times, or the GPU was too hot.
    """
    with Watcher(sensor, clock) as trace:
        opened_s = clock.now() + settle_s
        end_s = opened_s + window_s + 0.12
        if duty >= 1.0:
            done_s, chunk_s = _sustain(work, end_s, clock)
        else:
            done_s, chunk_s = _pulse(work, end_s, duty, clock)
        memory_power_w = sensor.memory_power_w()
    return _evaluate(trace, work, done_s, chunk_s, opened_s=opened_s, memory_power_w=memory_power_w)


def burst_time_s(
    work: Work, *, bursts: int = 5, duty: float = 0.25, clock: Clock = REAL_CLOCK
) -> tuple[float, float]:
    """Median and spread (half range) of the device time of one call, at full clock.

    Short bursts with pauses keep mean power under the limit, so that the clock stays at its
    maximum.
    """
    times_s = []
    for _ in range(bursts):
        chunk_s = work.submit()()
        times_s.append(chunk_s / work.calls_per_chunk)
        clock.sleep(min(chunk_s * (1 / duty - 1), MAX_PAUSE_S))
    return median(times_s), 0.5 * (max(times_s) - min(times_s))


def refuse_thermal(throttle_reasons: int, sm_clock_hz: float, temperature_c: float) -> None:
    """Refuse what ran at a clock that heat had lowered; the power limit may lower it.

    Raises:
        WindowRefused: a thermal reason is among ``throttle_reasons``.
    """
    if throttle_reasons & THERMAL_REASONS:
        source = "hardware" if throttle_reasons & 0x40 else "software"
        raise WindowRefused(
            f"The clock fell to {sm_clock_hz / 1e6:.0f} MHz for thermal reasons ({source}, at "
            f"{temperature_c:.0f} C): let the GPU cool down and measure again."
        )


def _sustain(work: Work, end_s: float, clock: Clock) -> tuple[list[float], list[float]]:
    """Keep two chunks in the queue, so that the device never waits for the host.

    Returns the moments at which chunks were done and their device time.
    """
    done_s, chunk_s = [], []
    pending = [work.submit(), work.submit()]
    while True:
        chunk_s.append(pending.pop(0)())
        done_s.append(clock.now())
        if done_s[-1] >= end_s:
            break
        pending.append(work.submit())
    for wait in pending:
        wait()
    return done_s, chunk_s


def _pulse(work: Work, end_s: float, duty: float, clock: Clock) -> tuple[list[float], list[float]]:
    """As ``_sustain``, but after each chunk a pause that makes its share of the time ``duty``."""
    done_s: list[float] = []
    chunk_s: list[float] = []
    while not done_s or done_s[-1] < end_s:
        chunk_s.append(work.submit()())
        done_s.append(clock.now())
        clock.sleep_until(done_s[-1] + chunk_s[-1] * (1 / duty - 1))
    return done_s, chunk_s


def _evaluate(
    trace: Trace,
    work: Work,
    done_s: list[float],
    chunk_s: list[float],
    *,
    opened_s: float,
    memory_power_w: float | None,
) -> Window:
    first, last, ticks = trace.ticks_between(max(opened_s, done_s[0]), done_s[-1])
    if not trace.tick_s:
        raise WindowRefused(
            "The energy counter did not move: this GPU or its driver does not count energy."
        )
    if ticks < MIN_TICKS:
        raise WindowRefused(
            f"Only {ticks} updates of the energy counter fell into the window of "
            f"{done_s[-1] - opened_s:.2f} s: it must hold {MIN_TICKS}, so lengthen it."
        )
    sm_clock_hz, temperature_c = trace.clock_hz(first, last), trace.temperature_c(first, last)
    throttle_reasons = trace.throttle_reasons(first, last)
    refuse_thermal(throttle_reasons, sm_clock_hz, temperature_c)
    inside = [c for t, c in zip(done_s, chunk_s, strict=True) if first <= t <= last]
    call_s = float(np.mean(inside or chunk_s)) / work.calls_per_chunk
    calls = _calls_between(first, last, done_s, chunk_s, work.calls_per_chunk)
    return Window(
        duration_s=last - first,
        energy_j=trace.energy_between(first, last),
        calls=calls,
        call_s=call_s,
        busy_s=calls * call_s,
        ticks=ticks,
        sm_clock_hz=sm_clock_hz,
        temperature_c=temperature_c,
        throttle_reasons=throttle_reasons,
        memory_power_w=memory_power_w,
    )


def _calls_between(
    first: float, last: float, done_s: list[float], chunk_s: list[float], calls_per_chunk: int
) -> float:
    """Calls that ran from ``first`` to ``last``: steadily in each chunk, none in the pauses."""
    done = np.asarray(done_s)
    begun = np.maximum(done - chunk_s, np.concatenate(([done[0] - chunk_s[0]], done[:-1])))
    chunks = np.arange(len(done))
    times_s = np.column_stack((begun, done)).ravel()
    finished = np.column_stack((chunks, chunks + 1)).ravel()
    at_first, at_last = np.interp([first, last], times_s, finished)
    return float(at_last - at_first) * calls_per_chunk
