"""What one trustworthy measurement is: steady work, a tick-aligned window, calls counted by time.

The work is replayed in chunks; the host time at which each chunk completes gives the curve
calls(t). The window opens and closes on ticks of the energy counter, so energy, time and calls
belong to the same interval without the work having to stop and start on a tick. It closes as soon
as it holds enough ticks; what it holds is then judged (``verdict``), and refused rather than
guessed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from calibration import verdict
from calibration.clock import REAL_CLOCK, Clock
from calibration.sensors import Sensor
from calibration.verdict import WindowRefused, refuse_thermal
from calibration.watch import Trace, Watcher, refuse_lost, sensor_lost

__all__ = ["Window", "WindowRefused", "Work", "burst_time_s", "refuse_thermal", "steady_window"]

MIN_TICKS = 10
# A counter that ticks fast gets a window of this length all the same: its edges cost as much.
LEAST_WINDOW_S = 0.9
# A counter without a tick for this long is taken to stand still.
TIMEOUT_S = 3.0
# The longest pause between two bursts.
MAX_PAUSE_S = 0.2

# When a chunk was done, by the host's clock, and its time on the device.
Chunk = tuple[float, float]


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
    ``ticks`` are the periods between updates of the counter that were seen, ``lost_ticks`` the
    updates that were not.
    """

    duration_s: float
    energy_j: float
    calls: float
    call_s: float
    busy_s: float
    ticks: int
    lost_ticks: int
    sm_clock_hz: float
    temperature_c: float
    throttle_reasons: int
    memory_power_w: float | None


def steady_window(
    sensor: Sensor,
    work: Work,
    *,
    settle_s: float,
    min_ticks: int = MIN_TICKS,
    window_s: float = LEAST_WINDOW_S,
    duty: float = 1.0,
    clock: Clock = REAL_CLOCK,
    timeout_s: float = TIMEOUT_S,
    chunks: int | None = None,
) -> Window:
    """Run ``work`` for ``settle_s``, then until a window of ``min_ticks`` counter periods is full.

    With a counter that ticks every 100 ms a window takes 1.0 to 1.1 s after settling.

    Args:
        sensor: the GPU that the work runs on.
        work: what to repeat.
        settle_s: time for clock and temperature to settle before the window opens.
        min_ticks: periods of the energy counter that the window must hold.
        window_s: the least length of the window.
        duty: share of time busy; below 1 each chunk is followed by a pause.
        clock: the time that sensor and work run on.
        timeout_s: how long to wait for the next tick before the counter is taken to stand still.
        chunks: run exactly so many chunks whatever the ticks, where GPUs that work together must
            all run as many.

    Raises:
        WindowRefused: what was seen cannot be trusted; the message names the cause.
        WorkError: the sensor stopped answering.
    """
    limit_w = _power_limit_w(sensor)
    done: list[Chunk] = []
    watcher = Watcher(sensor, clock)
    with watcher as trace:
        started_s = clock.now()

        def over() -> bool:
            if chunks is not None:
                return watcher.failed or len(done) >= chunks
            if watcher.failed or clock.now() - max([started_s, *trace.tick_s[-1:]]) > timeout_s:
                return True
            first, last, ticks = trace.ticks_between(*_open(started_s + settle_s, done))
            return ticks >= min_ticks and last - first >= window_s

        if duty >= 1.0:
            _sustain(work, over, done, clock)
        else:
            _pulse(work, over, done, clock, duty)
        memory_power_w = sensor.memory_power_w()
    opened_s, closed_s = _open(started_s + settle_s, done)
    lost_ticks = verdict.judge(
        trace,
        opened_s,
        closed_s,
        min_ticks=min_ticks,
        limit_w=limit_w,
        # Power may swing within a chunk and the pause after it.
        swing_s=median(busy_s for _, busy_s in done) / duty,
    )
    first, last, ticks = trace.ticks_between(opened_s, closed_s)
    inside = [busy_s for done_s, busy_s in done if first <= done_s <= last]
    call_s = float(np.mean(inside or [busy_s for _, busy_s in done])) / work.calls_per_chunk
    calls = _calls_between(first, last, done) * work.calls_per_chunk
    return Window(
        duration_s=last - first,
        energy_j=trace.energy_between(first, last),
        calls=calls,
        call_s=call_s,
        busy_s=calls * call_s,
        ticks=ticks,
        lost_ticks=lost_ticks,
        sm_clock_hz=trace.clock_hz(first, last),
        temperature_c=trace.temperature_c(first, last),
        throttle_reasons=trace.throttle_reasons(first, last),
        memory_power_w=memory_power_w,
    )


def burst_time_s(
    work: Work,
    *,
    bursts: int = 5,
    duty: float = 0.25,
    clock: Clock = REAL_CLOCK,
    sensor: Sensor | None = None,
) -> tuple[float, float]:
    """Median and spread (half range) of the device time of one call, at full clock.

    Short bursts with pauses keep mean power under the limit, so that the clock stays at its
    maximum. With a ``sensor``, bursts that heat or another process disturbed are refused.

    Raises:
        WindowRefused: what was seen cannot be trusted; the message names the cause.
        WorkError: the sensor stopped answering.
    """
    times_s = []
    trace = Trace()
    for _ in range(bursts):
        try:
            wait = work.submit()
            # While it runs, or just after: the clock stays up for longer than a look takes.
            _look(sensor, trace, clock)
            chunk_s = wait()
        except Exception:
            if sensor is not None:
                refuse_lost(sensor)
            raise
        times_s.append(chunk_s / work.calls_per_chunk)
        clock.sleep(min(chunk_s * (1 / duty - 1), MAX_PAUSE_S))
    verdict.refuse_company(trace)
    for r in trace.readings:
        refuse_thermal(r.throttle_reasons, r.sm_clock_hz, r.temperature_c)
    return median(times_s), 0.5 * (max(times_s) - min(times_s))


def _look(sensor: Sensor | None, trace: Trace, clock: Clock) -> None:
    if sensor is not None:
        trace.others.update(sensor.other_processes())
        trace.readings.append(sensor.reading(clock.now()))


def _power_limit_w(sensor: Sensor) -> float:
    try:
        return sensor.identity().power_limit_w
    except Exception as error:
        raise sensor_lost(error) from error


def _open(earliest_s: float, chunks: list[Chunk]) -> tuple[float, float]:
    """From when to when calls can be counted: between the ends of the first and last chunk."""
    return max(earliest_s, chunks[0][0]), chunks[-1][0]


def _sustain(work: Work, over: Callable[[], bool], chunks: list[Chunk], clock: Clock) -> None:
    """Append chunks until ``over``, two in the queue so that the device never waits for the host."""
    pending = [work.submit(), work.submit()]
    while True:
        busy_s = pending.pop(0)()
        chunks.append((clock.now(), busy_s))
        if over():
            break
        pending.append(work.submit())
    for wait in pending:
        wait()


def _pulse(
    work: Work, over: Callable[[], bool], chunks: list[Chunk], clock: Clock, duty: float
) -> None:
    """As ``_sustain``, but after each chunk a pause that makes its share of the time ``duty``."""
    while not chunks or not over():
        busy_s = work.submit()()
        done_s = clock.now()
        chunks.append((done_s, busy_s))
        clock.sleep_until(done_s + busy_s * (1 / duty - 1))


def _calls_between(first: float, last: float, chunks: list[Chunk]) -> float:
    """Chunks that ran from ``first`` to ``last``: steadily in each one, none in the pauses."""
    done, busy_s = np.array(chunks).T
    begun = np.maximum(done - busy_s, np.concatenate(([done[0] - busy_s[0]], done[:-1])))
    count = np.arange(len(done))
    times_s = np.column_stack((begun, done)).ravel()
    finished = np.column_stack((count, count + 1)).ravel()
    at_first, at_last = np.interp([first, last], times_s, finished)
    return float(at_last - at_first)
