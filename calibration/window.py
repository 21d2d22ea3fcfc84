"""What one trustworthy measurement is: steady work, a tick-aligned window, calls counted by time.

The work is replayed in chunks; the host time at which each chunk completes gives the curve
calls(t). The window opens and closes on ticks of the energy counter, so energy, time and calls
belong to the same interval without the work having to stop and start on a tick.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from calibration.sensors import Sensor, Trace, Watcher

MIN_TICKS = 5


class WindowRefused(RuntimeError):  # noqa: N818 - it is a verdict, not a fault of the program
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
    sensor: Sensor, work: Work, *, window_s: float, settle_s: float, duty: float = 1.0
) -> Window:
    """Run ``work`` for ``settle_s + window_s`` seconds and measure the last ``window_s``.

    Args:
        sensor: the GPU that the work runs on.
        work: what to repeat.
        window_s: length of the window; at least 1 s gives 10 ticks.
        settle_s: time for clock and temperature to settle before the window opens.
        duty: share of time busy; below 1 each chunk is followed by a pause.

    Raises:
        WindowRefused: fewer than five ticks of the energy counter fell into the window.
    """
    done_s: list[float] = []
    chunk_s: list[float] = []
    watcher = Watcher(sensor)
    with watcher as trace:
        start = time.perf_counter()
        end = start + settle_s + window_s + 0.12
        if duty >= 1.0:
            _sustain(work, end, done_s, chunk_s)
        else:
            _pulse(work, end, duty, done_s, chunk_s)
        memory_power_w = sensor.memory_power_w()
    return _evaluate(
        trace, work, done_s, chunk_s, opened_s=start + settle_s, memory_power_w=memory_power_w
    )


def _sustain(work: Work, end: float, done_s: list[float], chunk_s: list[float]) -> None:
    """Keep two chunks in the queue so that the device never waits for the host."""
    pending = [work.submit(), work.submit()]
    while True:
        chunk_s.append(pending.pop(0)())
        done_s.append(time.perf_counter())
        if done_s[-1] >= end:
            break
        pending.append(work.submit())
    for wait in pending:
        wait()


def _pulse(work: Work, end: float, duty: float, done_s: list[float], chunk_s: list[float]) -> None:
    """One chunk, then a pause that makes the chunk's share of the time ``duty``."""
    while not done_s or done_s[-1] < end:
        chunk_s.append(work.submit()())
        done_s.append(time.perf_counter())
        pause_until = done_s[-1] + chunk_s[-1] * (1 / duty - 1)
        while (left := pause_until - time.perf_counter()) > 0:
            time.sleep(left if left > 2e-3 else 0)


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
    if ticks < MIN_TICKS:
        raise WindowRefused(f"only {ticks} ticks of the energy counter fell into the window")
    calls_done = work.calls_per_chunk * np.arange(1, len(done_s) + 1)
    at_first, at_last = np.interp([first, last], done_s, calls_done)
    inside = [c for t, c in zip(done_s, chunk_s, strict=True) if first <= t <= last]
    call_s = float(np.mean(inside or chunk_s)) / work.calls_per_chunk
    calls = float(at_last - at_first)
    return Window(
        duration_s=last - first,
        energy_j=trace.energy_between(first, last),
        calls=calls,
        call_s=call_s,
        busy_s=calls * call_s,
        ticks=ticks,
        sm_clock_hz=trace.clock_hz(first, last),
        temperature_c=trace.temperature_c(first, last),
        throttle_reasons=trace.throttle_reasons(first, last),
        memory_power_w=memory_power_w,
    )
