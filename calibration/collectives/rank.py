"""What one GPU's rank measures: its own window on its own ticks, as many chunks as the others."""

import math
from dataclasses import dataclass

from calibration.clock import Clock
from calibration.collectives.observations import RankWindow
from calibration.sensors import Sensor
from calibration.window import LEAST_WINDOW_S, MIN_TICKS, Work, burst_time_s, steady_window

SETTLE_S = 0.25
# Periods of the energy counter beyond those of the window: one at each end is cut, some are late.
SPARE_TICKS = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How windows are taken; the counter of an H200 advances every 0.1 s."""

    tick_s: float = 0.1
    settle_s: float = SETTLE_S
    window_s: float = LEAST_WINDOW_S

    def chunks(self, chunk_s: float) -> int:
        """Chunks of a window: every rank runs as many, or the others would wait for ever."""
        ticks = max(MIN_TICKS, self.window_s / self.tick_s) + SPARE_TICKS
        return max(2, math.ceil((self.settle_s + ticks * self.tick_s) / chunk_s))


def burst(sensor: Sensor, work: Work, clock: Clock, board: str) -> tuple[RankWindow, float]:
    """Device time of one call at full clock, and its spread.

    Raises:
        WindowRefused: heat or another process disturbed it.
    """
    call_s, spread_s = burst_time_s(work, clock=clock, sensor=sensor)
    sm_clock_hz = sensor.reading(clock.now()).sm_clock_hz
    return RankWindow(board=board, call_s=call_s, sm_clock_hz=sm_clock_hz), spread_s


def window(
    sensor: Sensor, work: Work, clock: Clock, board: str, *, pace: Pace, chunks: int | None
) -> RankWindow:
    """Energy and time of ``chunks`` chunks (of idle power: until the window is full).

    Raises:
        WindowRefused: what was seen cannot be trusted.
    """
    w = steady_window(
        sensor,
        work,
        settle_s=pace.settle_s,
        window_s=pace.window_s,
        clock=clock,
        chunks=chunks,
    )
    return RankWindow(
        board=board,
        call_s=w.call_s,
        duration_s=w.duration_s,
        energy_j=w.energy_j,
        calls=w.calls,
        ticks=w.ticks,
        lost_ticks=w.lost_ticks,
        sm_clock_hz=w.sm_clock_hz,
        temperature_c=w.temperature_c,
        throttle_reasons=w.throttle_reasons,
        memory_power_w=w.memory_power_w,
    )
