"""A small grid, a simulated GPU to sweep it on, and what a sweep of it should leave."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from calibration import observations
from calibration.bench import Runnable
from calibration.grid import Point
from calibration.observations import Observation
from calibration.simulation.gpu import SimulatedBench, SimulatedOp, SimulatedSensor
from calibration.sweep import TRIALS, sweep

POINTS = [
    Point(op="gemm", shape={"m": m, "n": 1024, "k": 1024}, duties=(1.0, 0.2)) for m in (64, 1024)
] + [Point(op="copy", shape={"bytes": b}) for b in (1 << 20, 1 << 24, 1 << 28)]
BURSTS, WINDOWS = len(POINTS), 4 * TRIALS
# Beside bursts and windows, one window without work.
ALL = BURSTS + WINDOWS + 1

Fails = Callable[[Point], Exception | None]


def never(_point: Point) -> None:
    """No point fails."""


def law(point: Point) -> SimulatedOp:
    """Products at 500 TFLOP/s and 1 pJ/FLOP, copies at 4 TB/s and 60 pJ/byte."""
    s = point.shape
    if point.op == "copy":
        return SimulatedOp(
            time_s=2 * s["bytes"] / 4e12, power_w=240.0, clock_bound=0.0, memory_share=0.8
        )
    return SimulatedOp(time_s=2 * s["m"] * s["n"] * s["k"] / 5e14, power_w=500.0)


class Bench(SimulatedBench):
    """Counts what is asked of it; can fail at points, and break the context after them."""

    def __init__(
        self,
        sensor: SimulatedSensor,
        fails: Fails = never,
        *,
        breaks: Fails = never,
        costs: Callable[[Point], SimulatedOp] = law,
    ) -> None:
        super().__init__(sensor, costs)
        self.prepared: list[str] = []
        self.released = 0
        self._fails, self._breaks = fails, breaks
        self._last: Point | None = None

    def prepare(self, point: Point) -> Runnable:
        self._last = point
        error = self._fails(point)
        if error is not None:
            raise error
        self.prepared.append(point.key)
        return super().prepare(point)

    def release(self) -> None:
        self.released += 1
        error = self._breaks(self._last) if self._last is not None else None
        if error is not None:
            raise error


def run(
    out: Path,
    points: Sequence[Point] = POINTS,
    sensor: SimulatedSensor | None = None,
    bench: Bench | None = None,
    **how: Any,
) -> int:
    """A sweep with time enough."""
    sensor = sensor or SimulatedSensor()
    return sweep(points, sensor, out, bench=bench or Bench(sensor), **{"budget_s": 1e4} | how)


def measured(out: Path) -> list[Observation]:
    """All that was measured but the windows without work."""
    return [o for o in observations.read(out) if o.mode != "idle"]


EVERYTHING = {(p.key, 0, None) for p in POINTS} | {
    (p.key, trial, duty) for p in POINTS for duty in p.duties for trial in range(TRIALS)
}


def part(o: Observation) -> tuple[str, int, float | None]:
    return o.point, o.trial, o.duty


def trials_of(out: Path, point: Point) -> list[int]:
    return sorted(o.trial for o in measured(out) if o.point == point.key and o.duty == 1.0)
