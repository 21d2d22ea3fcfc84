"""Grid -> observations.jsonl on one GPU: interleaved trials, resumable, within a time budget.

Points come in blocks, most informative first. Within a block every trial of every point is
measured in an order of its own, so that drift of temperature or clock does not masquerade as
shape; points whose energy still scatters get more trials before the next block begins.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from calibration import jsonl, observations
from calibration.bench import Bench
from calibration.grid import Point
from calibration.observations import Observation
from calibration.sensors import Sensor
from calibration.window import WindowRefused, burst_time_s, steady_window
from energymodel import io
from energymodel.errors import WorkError

SETTLE_S = 0.25
# At least ``TRIALS`` of each window, up to ``MOST_TRIALS`` while they scatter more than this.
TRIALS, MOST_TRIALS, MOST_VARIATION = 3, 6, 0.01
BLOCK = 120
# Windows between two looks at static power.
IDLE_EVERY = 12
# So many refusals in a row are no accident.
MOST_REFUSED = 20
# Beside the observations: points that broke the CUDA context.
LOST = "left_out.jsonl"

Report = Callable[[str], None]
# Seconds of work done, seconds in all, and what runs now.
Progress = Callable[[float, float, str], None]
# A point's key, the trial, and the duty of the window (None: its burst).
Part = tuple[str, int, float | None]
# What a burst and a window take, set-up included; only to say how far the sweep is.
BURST_COST_S, WINDOW_COST_S = 0.1, 1.5


def sweep(
    points: Sequence[Point],
    sensor: Sensor,
    out: Path,
    *,
    budget_s: float,
    bench: Bench | None = None,
    seed: int = 0,
    trials: int = TRIALS,
    energy: bool = True,
    report: Report = lambda _: None,
    progress: Progress = lambda *_: None,
) -> int:
    """Measure ``points``, most informative first, and append to ``out``; returns windows and bursts.

    What ``out`` already holds of this board is skipped, so that a killed sweep continues where it
    stopped. Stops cleanly once ``budget_s`` is spent. A point that cannot run (out of memory,
    kernel missing) or whose window is refused is reported and left out.

    Args:
        points: what to measure, in the order of their worth.
        sensor: the GPU.
        out: observations.jsonl, appended to.
        budget_s: time after which no further point is begun.
        bench: what the points run on; the CUDA GPU unless given.
        seed: of the order within blocks.
        trials: how often each window is taken at least.
        energy: False takes bursts only.
        report: gets a line for what was left out.
        progress: gets seconds of work done, in all, and the point that runs.

    Raises:
        InputError: ``out`` cannot be written or holds something else than observations.
        WorkError: the sensor stopped answering, or a line could not be written.
    """
    if bench is None:
        from calibration.replay import CudaBench

        bench = CudaBench()
    jsonl.repair(out)
    lost = out.with_name(LOST)
    recorder = _Recorder(sensor, bench, out, report)
    for o in observations.read(out):
        recorder.know(o)
    run = _Run(
        recorder=recorder,
        deadline_s=bench.clock.now() + budget_s,
        energy=energy,
        trials=trials,
        order=random.Random(seed),  # noqa: S311 - an order, not a secret
        report=report,
        progress=progress,
        failed=_lost(lost),
        lost=lost,
    )
    run.left_s = run.total_s = sum(run.cost_s(point, t) for point in points for t in range(trials))
    for start in range(0, len(points), BLOCK):
        if not run.block(points[start : start + BLOCK]):
            report(f"time budget spent: {len(points) - start} points left or under way")
            return recorder.written
    progress(run.total_s, run.total_s, "")
    return recorder.written


@dataclass(slots=True, kw_only=True)
class _Run:
    """One pass over the grid: what is left to do, and until when."""

    recorder: "_Recorder"
    deadline_s: float
    energy: bool
    trials: int
    order: random.Random
    report: Report
    progress: Progress
    left_s: float = 0.0
    total_s: float = 0.0
    refused: int = 0
    failed: set[str]
    lost: Path

    def block(self, points: Sequence[Point]) -> bool:
        """All trials of ``points``; False once the time is spent."""
        for trial in range(MOST_TRIALS if self.energy else 1):
            shuffled = list(points)
            self.order.shuffle(shuffled)
            for point in shuffled:
                if parts := self._parts(point, trial):
                    if self.recorder.now_s() > self.deadline_s:
                        return False
                    self._measure(point, trial, parts)
                if trial < self.trials:
                    self.left_s -= self.cost_s(point, trial)
        return True

    def cost_s(self, point: Point, trial: int) -> float:
        """Rough duration of one trial of a point."""
        windows = len(point.duties) if self.energy else 0
        return (BURST_COST_S if trial == 0 else 0.0) + windows * WINDOW_COST_S

    def _parts(self, point: Point, trial: int) -> list[float | None]:
        """What is to be measured in this trial: the burst first (None), then windows by duty."""
        if point.key in self.failed:
            return []
        known = self.recorder.known
        timed = any((point.key, t, None) in known for t in range(trial + 1))
        wanted: list[float | None] = [] if timed else [None]
        if self.energy:
            wanted += [d for d in point.duties if trial < self.trials or self._wants(point, d)]
        return [d for d in wanted if (point.key, trial, d) not in known]

    def _wants(self, point: Point, duty: float) -> bool:
        """Whether a window scatters too much, or too few of its trials were good."""
        known = self.recorder.known
        values = [
            known[part] for t in range(MOST_TRIALS) if (part := (point.key, t, duty)) in known
        ]
        return len(values) < self.trials or variation(values) > MOST_VARIATION

    def _measure(self, point: Point, trial: int, parts: Sequence[float | None]) -> None:
        self.progress(self.total_s - self.left_s, self.total_s, point.op)
        try:
            self.recorder.measure(point, trial, parts)
            self.refused = 0
        except WindowRefused as refusal:
            self.report(f"{point.key}: left out: {refusal}")
            self.refused += 1
            if self.refused >= MOST_REFUSED:
                raise WorkError(
                    f"{self.refused} windows in a row were refused, the last since: {refusal}"
                ) from refusal
        except WorkError:
            raise  # no sensor or no disk: the next point would not fare better
        except Exception as error:  # noqa: BLE001 - no memory, no such kernel, a compiler's own error
            self.failed.add(point.key)
            self.report(f"{point.key}: left out: {_first_line(error)}")
        try:
            self.recorder.release()
        except RuntimeError as error:
            # A kernel that broke the CUDA context would break it again: not to be tried again.
            jsonl.append(self.lost, {"point": point.key, "error": _first_line(error)})
            raise WorkError(
                f"{point.key} broke the GPU's context: everything measured is kept, so continue "
                "with --resume, which leaves this point out."
            ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _lost(path: Path) -> set[str]:
    """Keys of the points that broke the context of an earlier run."""
    if not path.is_file():
        return set()
    jsonl.repair(path)
    lines = io.read_text(path).splitlines()
    records = (io.convert(io.parse_json(line, str(path)), dict, str(path)) for line in lines)
    return {str(record.get("point")) for record in records}


def variation(values: Sequence[float]) -> float:
    """Coefficient of variation: standard deviation over mean; 0 of a single value."""
    return stdev(values) / mean(values) if len(values) > 1 else 0.0


class _Recorder:
    """Measures points and appends what was seen, with its provenance.

    ``known`` is what the file holds of this board: energy of a call, or its time for bursts.
    """

    def __init__(self, sensor: Sensor, bench: Bench, out: Path, report: Report) -> None:
        self._sensor, self._bench, self._out, self._report = sensor, bench, out, report
        self._identity = sensor.identity()
        self._since_idle = IDLE_EVERY
        self._idle_power_w: float | None = None
        self.known: dict[Part, float] = {}
        self.written = 0

    def now_s(self) -> float:
        """Time of the bench."""
        return self._bench.clock.now()

    def release(self) -> None:
        """Free what the last point held."""
        self._bench.release()

    def know(self, o: Observation) -> None:
        """Take note of what the file holds, if it is of this board."""
        if o.board != self._identity.board:
            return
        if o.mode == "idle" and o.energy_j is not None and o.duration_s:
            self._idle_power_w = o.energy_j / o.duration_s
            return
        value = o.call_s if o.energy_j is None else o.energy_j / (o.calls or 1.0)
        self.known[o.point, o.trial, o.duty] = value

    def measure(self, point: Point, trial: int, duties: Sequence[float | None]) -> None:
        """The burst of a point (duty None) and its energy windows."""
        bench = self._bench
        where: dict[str, Any] = {
            "op": point.op,
            "shape": point.shape,
            "dtype": point.dtype,
            "library": point.library,
            "cache": point.cache,
            "trial": trial,
        }
        if point.op == "launch":
            call_s, spread_s = bench.launch_s(point.shape["graph"])
            self._append(
                mode="host", **where, stack="launch", call_s=call_s, call_spread_s=spread_s
            )
            return
        if any(duty is not None for duty in duties):
            self._idle_if_due()
        runnable = bench.prepare(point)
        where["stack"] = runnable.stack
        for duty in duties:
            if duty is None:
                call_s, spread_s = burst_time_s(
                    runnable.work, clock=bench.clock, sensor=self._sensor
                )
                sm_clock_hz = self._sensor.reading(bench.clock.now()).sm_clock_hz
                times = {"call_s": call_s, "call_spread_s": spread_s, "sm_clock_hz": sm_clock_hz}
                self._append(mode="burst", **where, **times)
                continue
            work = runnable.work if duty >= 1 else runnable.pulse
            window = steady_window(
                self._sensor, work, settle_s=SETTLE_S, duty=duty, clock=bench.clock
            )
            fields = observations.window_fields(window)
            if self._idle_power_w is not None:
                fields["idle_power_w"] = self._idle_power_w
                fields["net_j"] = window.energy_j - self._idle_power_w * window.duration_s
            mode = "sustained" if duty >= 1 else "duty"
            self._append(mode=mode, duty=duty, **where, **fields)
            self._since_idle += 1

    def _idle_if_due(self) -> None:
        """Static power every so often: a context and clocks up, no work."""
        if self._since_idle < IDLE_EVERY:
            return
        try:
            window = steady_window(
                self._sensor, self._bench.idle(), settle_s=SETTLE_S, clock=self._bench.clock
            )
        except WindowRefused as refusal:
            self._report(f"idle: left out: {refusal}")
            return
        fields = observations.window_fields(window)
        self._append(op="idle", shape={}, mode="idle", trial=0, stack="torch", **fields)
        self._since_idle = 0

    def _append(self, **fields: Any) -> None:
        identity = self._identity
        observation = Observation(
            **fields,
            gpu=identity.gpu_name,
            board=identity.board,
            driver=identity.driver,
            power_limit_w=identity.power_limit_w,
            time_s=round(time.time(), 1),
        )
        observations.append(self._out, observation)
        self.know(observation)
        self.written += 1
