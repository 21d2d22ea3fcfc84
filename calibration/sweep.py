"""Grid -> observations.jsonl on this GPU: random order, resumable, within a time budget."""

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from calibration import observations
from calibration.grid import Point
from calibration.observations import Observation
from calibration.sensors import Sensor
from calibration.window import WindowRefused, steady_window

WINDOW_S, SETTLE_S = 1.1, 0.35
IDLE_EVERY = 40
Report = Callable[[str], None]


def sweep(
    points: Sequence[Point],
    sensor: Sensor,
    out: Path,
    *,
    budget_s: float,
    seed: int = 0,
    trial: int = 0,
    energy: bool = True,
    report: Report = lambda _: None,
) -> int:
    """Measure ``points`` in random order and append to ``out``; returns how many were measured.

    Points that ``out`` already holds are skipped. Stops cleanly once ``budget_s`` is spent. A
    point that cannot run (out of memory, kernel missing) is reported and left out.
    """
    import torch

    observations.repair(out)
    done = {
        (Point(op=o.op, shape=dict(o.shape)).key, o.trial)
        for o in (observations.read(out) if out.exists() else ())
    }
    todo = [p for p in points if (p.key, trial) not in done]
    random.Random(seed).shuffle(todo)  # noqa: S311 - an order, not a secret
    board = _provenance(sensor)
    deadline = time.perf_counter() + budget_s
    measured = 0
    for i, point in enumerate(todo):
        if time.perf_counter() > deadline:
            report(f"time budget spent: {len(todo) - i} points left")
            break
        if energy and i % IDLE_EVERY == 0:
            _measure_idle(sensor, out, board, trial)
        try:
            _measure(point, sensor, out, board, trial, energy=energy)
            measured += 1
        except (RuntimeError, WindowRefused, ValueError) as error:
            report(f"{point.key}: left out: {str(error).splitlines()[0]}")
            torch.cuda.empty_cache()
    return measured


def _provenance(sensor: Sensor) -> dict[str, Any]:
    identity = sensor.identity()
    return {"gpu": identity.gpu_name, "board": identity.board, "driver": identity.driver}


def _measure(
    point: Point, sensor: Sensor, out: Path, board: dict[str, Any], trial: int, *, energy: bool
) -> None:
    import torch

    from calibration import replay
    from calibration.kernels import BUILDERS

    prepared = BUILDERS[point.op](point.shape, "cuda")
    graph = replay.Graph(prepared)
    common: dict[str, Any] = {
        "op": point.op,
        "shape": point.shape,
        "trial": trial,
        "stack": prepared.stack,
        **board,
    }
    call_s, spread_s = replay.burst_time_s(graph)
    clock_hz = sensor.reading(0.0).sm_clock_hz
    observations.append(
        out,
        Observation(
            **common,
            mode="burst",
            call_s=call_s,
            call_spread_s=spread_s,
            sm_clock_hz=clock_hz,
            time_s=round(time.time(), 1),
        ),
    )
    for duty in point.duties if energy else ():
        window = steady_window(
            sensor, graph.work(), window_s=WINDOW_S, settle_s=SETTLE_S, duty=duty
        )
        fields: dict[str, Any] = observations.window_fields(window)
        observations.append(
            out,
            Observation(
                **common,
                **fields,
                mode="sustained" if duty >= 1 else "duty",
                duty=duty,
                time_s=round(time.time(), 1),
            ),
        )
    del prepared, graph
    torch.cuda.empty_cache()


def _measure_idle(sensor: Sensor, out: Path, board: dict[str, Any], trial: int) -> None:
    from calibration import replay

    window = steady_window(sensor, replay.clocks_up(), window_s=WINDOW_S, settle_s=SETTLE_S)
    fields: dict[str, Any] = observations.window_fields(window)
    observations.append(
        out,
        Observation(
            **board, **fields, op="idle", shape={}, mode="idle", trial=trial, stack="torch",
            time_s=round(time.time(), 1),
        ),
    )  # fmt: skip
