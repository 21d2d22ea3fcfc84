"""A simulated GPU with faults: what a measurement must survive or refuse, never record."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from calibration.clock import VirtualClock
from calibration.sensors import Reading
from calibration.simulation.gpu import SimulatedGpu, SimulatedOp, SimulatedSensor
from calibration.window import Work

# A process id, and NVML's bit of a software thermal slowdown.
STRANGER, HOT = 4242, 0x20


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that is wrong from ``start_s`` to ``end_s`` of the simulated clock.

    - ``late``: updates of the energy counter do not show; the next one catches up. A short one is
      a lost sample, an endless one a counter that is stuck.
    - ``forgotten``: updates do not show, and what was spent meanwhile is never counted.
    - ``back``: from the first update on, the counter shows ``size_j`` less.
    - ``gone``: the GPU is lost: sensors and work fail.
    - ``hot``: it slows down for thermal reasons.
    - ``company``: another process runs on it.
    - ``error``: at the start it reports an error (Xid, or memory that cannot be corrected).
    """

    kind: Literal["late", "forgotten", "back", "gone", "hot", "company", "error"]
    start_s: float
    end_s: float = float("inf")
    size_j: float = 0.0

    def at(self, time_s: float) -> bool:
        """Whether it acts at a moment."""
        return self.start_s <= time_s < self.end_s


class FaultySensor(SimulatedSensor):
    """A simulated GPU, and its sensor, with ``faults``."""

    def __init__(
        self,
        faults: Sequence[Fault],
        gpu: SimulatedGpu | None = None,
        clock: VirtualClock | None = None,
    ) -> None:
        super().__init__(gpu, clock)
        self._faults = tuple(faults)

    def counter_j(self, time_s: float) -> float:
        """What the counter shows at a moment, faults included."""
        if self._acting("gone", time_s):
            raise OSError("GPU is lost")
        if not self.gpu.counter_works:
            return 0.0
        tick = self.tick_at(time_s)
        while late := self._acting("late", self.tick_s(tick)):
            tick = self._before(late[0])
        value_j = self.counted_j(tick)
        for f in self._faults:
            if f.kind == "back" and f.start_s <= self.tick_s(tick):
                value_j -= f.size_j
            if f.kind == "forgotten" and f.start_s <= self.tick_s(tick):
                last = min(tick, self._before(f, end=True))
                value_j -= self.counted_j(last) - self.counted_j(self._before(f))
        return value_j

    def _before(self, fault: Fault, *, end: bool = False) -> int:
        """The last update before a fault began, or ended."""
        moment_s = fault.end_s if end else fault.start_s
        return self.tick_at(moment_s - 1e-9) if math.isfinite(moment_s) else sys.maxsize

    def reading(self, time_s: float) -> Reading:
        """As of a sound GPU; fails once it is lost."""
        if self._acting("gone", self.clock.now()):
            raise OSError("GPU is lost")
        return super().reading(time_s)

    def other_processes(self) -> tuple[int, ...]:
        """The other process, while it runs."""
        return (STRANGER,) if self._acting("company", self.clock.now()) else ()

    def faults(self) -> int:
        """Errors so far."""
        return sum(f.kind == "error" and f.start_s <= self.clock.now() for f in self._faults)

    def thermal_reasons(self, time_s: float) -> int:
        """NVML's bits of thermal slowdown at a moment."""
        return HOT if self._acting("hot", time_s) else super().thermal_reasons(time_s)

    def work(self, op: SimulatedOp, *, pause_s: float = 0.0) -> Work:
        """As on a sound GPU; fails, as CUDA does, once it is lost."""
        sound = super().work(op, pause_s=pause_s)

        def submit() -> Callable[[], float]:
            if self._acting("gone", self.clock.now()):
                raise RuntimeError("CUDA error: unspecified launch failure")
            return sound.submit()

        return replace(sound, submit=submit)

    def _acting(self, kind: str, time_s: float) -> list[Fault]:
        return [f for f in self._faults if f.kind == kind and f.at(time_s)]
