"""All GPUs of a replica at once, each followed on its own energy counter."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from calibration.sensors import Sensor
from calibration.verdict import WindowRefused, refuse_thermal
from calibration.watch import Trace, Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRun:
    """One GPU's part of a run. Energy is gross over the run; boundary: the GPU board."""

    board: str
    energy_j: float
    sm_clock_hz: float
    temperature_c: float
    throttle_reasons: int
    memory_power_w: float | None


class WatchAll:
    """Follows every sensor while it is entered.

    Raises:
        WorkError: at the end of the ``with``, if a sensor stopped answering.
    """

    def __init__(self, sensors: Sequence[Sensor]) -> None:
        self._sensors = tuple(sensors)
        self._watchers = tuple(Watcher(sensor) for sensor in sensors)
        self._traces: list[Trace] = []
        self._stack = ExitStack()

    def __enter__(self) -> "WatchAll":
        self._traces = [self._stack.enter_context(w) for w in self._watchers]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def wait_for_tick(self, after_s: float) -> None:
        """Block until every counter has advanced after ``after_s``, or the time-out."""
        for watcher in self._watchers:
            watcher.wait_for_tick(after_s)

    def memory_power_w(self) -> tuple[float | None, ...]:
        """Power of each GPU's memory over the last second; None where there is no sensor."""
        return tuple(sensor.memory_power_w() for sensor in self._sensors)

    def runs(
        self, start_s: float, end_s: float, memory_power_w: Sequence[float | None], repeats: int
    ) -> tuple[GpuRun, ...]:
        """What each GPU spent from ``start_s`` to ``end_s``, for one of ``repeats`` passes.

        Raises:
            WindowRefused: a counter stood still, or a GPU was too hot.
        """
        found = []
        for sensor, trace, memory_w in zip(
            self._sensors, self._traces, memory_power_w, strict=True
        ):
            try:
                energy_j = trace.energy_between(start_s, end_s)
            except ValueError as error:
                raise WindowRefused("The energy counter did not move around the run.") from error
            run = GpuRun(
                board=sensor.identity().board,
                energy_j=energy_j / repeats,
                sm_clock_hz=trace.clock_hz(start_s, end_s),
                temperature_c=trace.temperature_c(start_s, end_s),
                throttle_reasons=trace.throttle_reasons(start_s, end_s),
                memory_power_w=memory_w,
            )
            refuse_thermal(run.throttle_reasons, run.sm_clock_hz, run.temperature_c)
            found.append(run)
        return tuple(found)


def mean_clock_hz(runs: Sequence[GpuRun]) -> float:
    """Mean over the GPUs."""
    return float(np.mean([r.sm_clock_hz for r in runs]))


def mean_temperature_c(runs: Sequence[GpuRun]) -> float:
    """Mean over the GPUs."""
    return float(np.mean([r.temperature_c for r in runs]))


def total_memory_power_w(runs: Sequence[GpuRun]) -> float | None:
    """Sum over the GPUs; None where one has no such sensor."""
    values = [r.memory_power_w for r in runs if r.memory_power_w is not None]
    return sum(values) if len(values) == len(runs) else None


def all_reasons(runs: Sequence[GpuRun]) -> int:
    """Clock event reasons of any GPU, bits or-ed."""
    reasons = 0
    for run in runs:
        reasons |= run.throttle_reasons
    return reasons
