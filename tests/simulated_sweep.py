"""A small simulated sweep, as a module for tests and as a program that can be killed on the way.

python simulated_sweep.py OUT sleep 1234: dies of SIGKILL in the 1234th sleep of its clock.
python simulated_sweep.py OUT line 5: dies of SIGKILL when half of the fifth line is written.
With 0 it runs to its end and prints how many sleeps and lines there were.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibration import jsonl
from calibration.clock import VirtualClock
from calibration.grid import Point
from calibration.observations import Observation
from calibration.simulation.gpu import SimulatedBench, SimulatedGpu, SimulatedOp, SimulatedSensor
from calibration.sweep import sweep

STATIC_W = 120.0
POINTS = (
    Point(op="gemm", shape={"m": 64, "n": 4096, "k": 4096}, duties=(1.0, 0.2)),
    Point(op="gemm", shape={"m": 8192, "n": 4096, "k": 4096}, duties=(1.0, 0.5)),
    Point(op="copy", shape={"bytes": 1 << 24}),
    Point(op="copy", shape={"bytes": 1 << 28}, duties=(1.0,)),
)
GPU = SimulatedGpu(static_power_w=STATIC_W)


def law(point: Point) -> SimulatedOp:
    """Products at 500 TFLOP/s and 1.8 pJ/FLOP, beyond the limit; copies at 4 TB/s."""
    s = point.shape
    if point.op == "copy":
        return SimulatedOp(
            time_s=2 * s["bytes"] / 4e12, power_w=240.0, clock_bound=0.0, memory_share=0.8
        )
    seconds = 5e-6 + 2 * s["m"] * s["n"] * s["k"] / 5e14
    return SimulatedOp(time_s=seconds, power_w=900.0 if s["m"] > 1000 else 300.0)


def worst_error(o: Observation) -> float:
    """The largest relative error of what an observation says, against what was declared."""
    if o.op == "idle":
        return _off(o.energy_j, STATIC_W * (o.duration_s or 0.0))
    op = law(Point(op=o.op, shape=dict(o.shape)))
    x = GPU.clock(op, static_w=STATIC_W, busy=o.duty) if o.duty is not None else 1.0
    errors = [_off(o.call_s, op.seconds(x))]
    if o.energy_j is not None:
        busy_j = (o.calls or 0.0) * GPU.call_j(op, x)
        errors.append(_off(o.energy_j, STATIC_W * (o.duration_s or 0.0) + busy_j))
        errors.append(
            _off((o.calls or 0.0) * op.seconds(x), (o.duty or 1.0) * (o.duration_s or 1.0))
        )
    return max(errors)


def _off(measured: float | None, declared: float) -> float:
    return abs((measured or 0.0) / declared - 1.0)


class _Mortal(VirtualClock):
    """Counts sleeps and lines, and kills this process, as kill -9 does, at one of them."""

    def __init__(self, how: str, at: int) -> None:
        super().__init__()
        self.how, self.at = how, at
        self.count = {"sleep": 0, "line": 0}

    def sleep_until(self, time_s: float) -> None:
        if self._ends("sleep"):
            os.kill(os.getpid(), signal.SIGKILL)
        super().sleep_until(time_s)

    def append(self, path: Path, record: Mapping[str, Any]) -> None:
        if self._ends("line"):
            line = json.dumps(record)
            with path.open("a", encoding="utf-8") as file:
                file.write(line[: len(line) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        append_line(path, record)

    def _ends(self, what: str) -> bool:
        self.count[what] += 1
        return self.how == what and self.count[what] == self.at


append_line = jsonl.append


def main(out: str, how: str, at: str) -> None:
    """Run the sweep, and die where told."""
    clock = _Mortal(how, int(at))
    jsonl.append = clock.append
    sensor = SimulatedSensor(GPU, clock)
    sweep(POINTS, sensor, Path(out), budget_s=1e4, bench=SimulatedBench(sensor, law))
    sys.stdout.write(f"{clock.count['sleep']} {clock.count['line']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
