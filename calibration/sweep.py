"""Grid -> observations.jsonl on one GPU: random order, resumable, within a time budget."""

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from calibration import jsonl, observations
from calibration.bench import Bench
from calibration.grid import Point
from calibration.observations import Observation
from calibration.sensors import Sensor
from calibration.window import WindowRefused, burst_time_s, steady_window
from energymodel.errors import WorkError

WINDOW_S, SETTLE_S = 1.1, 0.35
IDLE_EVERY = 40
# What a point raises that this machine cannot run: no memory (RuntimeError), no such kernel in
# this version of an engine, a shape that the kernel rejects.
CANNOT_RUN = (RuntimeError, ValueError, ImportError, AttributeError, AssertionError)

Report = Callable[[str], None]
# A point's key, the trial, and the duty of the window (None: its burst).
Part = tuple[str, int, float | None]


def sweep(
    points: Sequence[Point],
    sensor: Sensor,
    out: Path,
    *,
    budget_s: float,
    bench: Bench | None = None,
    seed: int = 0,
    trial: int = 0,
    energy: bool = True,
    report: Report = lambda _: None,
) -> int:
    """Measure ``points`` in random order and append to ``out``; returns how many were measured.

    What ``out`` already holds is skipped, so that a killed sweep continues where it stopped.
    Stops cleanly once ``budget_s`` is spent. A point that cannot run (out of memory, kernel
    missing) or whose window is refused is reported and left out. ``bench`` is the CUDA GPU
    unless given; ``energy`` = False takes bursts only.

    Raises:
        InputError: ``out`` cannot be written or holds something else than observations.
        WorkError: the sensor stopped answering, or a line could not be written.
    """
    if bench is None:
        from calibration.replay import CudaBench

        bench = CudaBench()
    jsonl.repair(out)
    done = {_part(o) for o in observations.read(out)}
    todo = [
        (point, parts)
        for point in points
        if (parts := [d for d in _duties(point, energy) if (point.key, trial, d) not in done])
    ]
    random.Random(seed).shuffle(todo)  # noqa: S311 - an order, not a secret
    recorder = _Recorder(sensor, bench, out, trial)
    deadline = bench.clock.now() + budget_s
    measured = 0
    for i, (point, parts) in enumerate(todo):
        if bench.clock.now() > deadline:
            report(f"time budget spent: {len(todo) - i} points left")
            break
        try:
            if energy and i % IDLE_EVERY == 0:
                recorder.idle()
        except WindowRefused as refusal:
            report(f"idle: left out: {refusal}")
        try:
            recorder.measure(point, parts)
            measured += 1
        except WindowRefused as refusal:
            report(f"{point.key}: left out: {refusal}")
        except WorkError:
            raise  # no sensor or no disk: the next point would not fare better
        except CANNOT_RUN as error:
            lines = str(error).splitlines() or [type(error).__name__]
            report(f"{point.key}: left out: {lines[0]}")
        bench.release()
    return measured


def _duties(point: Point, energy: bool) -> tuple[float | None, ...]:
    return (None, *point.duties) if energy else (None,)


def _part(o: Observation) -> Part:
    return Point(op=o.op, shape=dict(o.shape)).key, o.trial, o.duty


class _Recorder:
    """Measures points and appends what was seen, with its provenance."""

    def __init__(self, sensor: Sensor, bench: Bench, out: Path, trial: int) -> None:
        self._sensor, self._bench, self._out = sensor, bench, out
        identity = sensor.identity()
        self._common: dict[str, Any] = {
            "gpu": identity.gpu_name,
            "board": identity.board,
            "driver": identity.driver,
            "trial": trial,
        }

    def measure(self, point: Point, duties: Sequence[float | None]) -> None:
        """The burst of a point (duty None) and its energy windows."""
        runnable = self._bench.prepare(point)
        known: dict[str, Any] = {"op": point.op, "shape": point.shape, "stack": runnable.stack}
        for duty in duties:
            if duty is None:
                call_s, spread_s = burst_time_s(runnable.work, clock=self._bench.clock)
                sm_clock_hz = self._sensor.reading(self._bench.clock.now()).sm_clock_hz
                times = {"call_s": call_s, "call_spread_s": spread_s, "sm_clock_hz": sm_clock_hz}
                self._append(mode="burst", **known, **times)
            else:
                window = steady_window(
                    self._sensor,
                    runnable.work,
                    window_s=WINDOW_S,
                    settle_s=SETTLE_S,
                    duty=duty,
                    clock=self._bench.clock,
                )
                mode = "sustained" if duty >= 1 else "duty"
                self._append(mode=mode, duty=duty, **known, **observations.window_fields(window))

    def idle(self) -> None:
        """Static power: a context and clocks up, no work."""
        window = steady_window(
            self._sensor,
            self._bench.idle(),
            window_s=WINDOW_S,
            settle_s=SETTLE_S,
            clock=self._bench.clock,
        )
        fields = observations.window_fields(window)
        self._append(op="idle", shape={}, mode="idle", stack="torch", **fields)

    def _append(self, **fields: Any) -> None:
        time_s = round(time.time(), 1)
        observations.append(self._out, Observation(**self._common, **fields, time_s=time_s))
