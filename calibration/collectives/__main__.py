"""One rank of a fabric: ``torchrun --nproc-per-node N -m calibration.collectives TASK.JSON``.

Rank 0 leads: it decides what comes next, tells the others, and writes the lines. What it has to
say to who started it goes to stdout as JSON lines; each rank's failure does, too.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from calibration.clock import REAL_CLOCK
from calibration.collectives import calls, grid, rank, topology
from calibration.collectives.grid import Point
from calibration.collectives.observations import RankWindow
from calibration.collectives.sweep import Facts, Seen, sweep
from calibration.collectives.task import Task
from calibration.replay import clocks_up
from calibration.sensors import Sensor
from calibration.verdict import WindowRefused
from calibration.window import Work
from energymodel import io

# Chunks that are run to see how long one takes.
TRIED_CHUNKS = 9
# What the leader says: measure a point (and whether its burst), or None: the end.
Command = tuple[Point, bool] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one rank saw, or why it refuses the window."""

    window: RankWindow | None = None
    stack: str = ""
    spread_s: float | None = None
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """This rank: where it runs, its sensor, and the group that ranks agree through."""

    place: calls.Place
    sensor: Sensor
    pace: rank.Pace
    group: Any

    def own(self, point: Point, *, burst: bool) -> Outcome:
        """Measure this GPU's part of a point."""
        board = self.sensor.identity().board
        if point.op == "idle":
            work, stack, chunks = self._idle(), "torch", None
        else:
            try:
                work, stack = calls.work(point, self.place)
            except (RuntimeError, ValueError) as error:  # no such kernel, no memory: on every rank
                return Outcome(refusal=f"GPU {self.place.rank}: {_first_line(error)}")
            chunks = self.pace.chunks(self._chunk_s(work))
        try:
            if burst:
                seen, spread_s = rank.burst(self.sensor, work, REAL_CLOCK, board)
                return Outcome(window=seen, stack=stack, spread_s=spread_s)
            seen = rank.window(self.sensor, work, REAL_CLOCK, board, pace=self.pace, chunks=chunks)
            return Outcome(window=seen, stack=stack)
        except WindowRefused as refusal:
            return Outcome(refusal=f"GPU {self.place.rank}: {refusal}")

    def together(self, point: Point, *, burst: bool) -> list[Outcome]:
        """Measure a point on every rank; what each of them saw, by rank."""
        own = self.own(point, burst=burst)
        if self.place.device.type == "cuda":
            torch.cuda.synchronize()
        everyone: list[Any] = [None] * self.place.gpus
        dist.all_gather_object(everyone, own, group=self.group)
        return everyone

    def _chunk_s(self, work: Work) -> float:
        """Seconds of a chunk on the slowest rank; one alone may wait for a rank that comes late."""
        pending = [work.submit() for _ in range(TRIED_CHUNKS)]
        return self.place.largest(median(wait() for wait in pending))

    def _idle(self) -> Work:
        if self.place.device.type == "cuda":
            return clocks_up()

        def submit() -> Callable[[], float]:
            def wait() -> float:
                time.sleep(calls.CHUNK_S)
                return calls.CHUNK_S

            return wait

        return Work(submit=submit, calls_per_chunk=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """Rank 0 as the host that a sweep measures on."""

    member: Member
    known: Facts

    def facts(self) -> Facts:
        """What the GPUs are, as asked at the start."""
        return self.known

    def now_s(self) -> float:
        """Monotonic time."""
        return time.monotonic()

    def measure(self, point: Point, *, burst: bool) -> Seen:
        """Tell the others, measure with them, and put together what all saw."""
        _share(self.member, (point, burst))
        outcomes = self.member.together(point, burst=burst)
        refusals = [o.refusal for o in outcomes if o.refusal is not None]
        if refusals:
            raise WindowRefused(refusals[0])
        windows = tuple(o.window for o in outcomes if o.window is not None)
        quickest = min(range(len(windows)), key=lambda i: windows[i].call_s)
        return Seen(ranks=windows, stack=outcomes[0].stack, spread_s=outcomes[quickest].spread_s)


def main(task_file: str) -> None:
    """Take part until the leader has no more to measure."""
    number = int(os.environ["RANK"])
    try:
        task = io.convert(io.parse_json(Path(task_file).read_text(), task_file), Task, task_file)
        member = _join(task, number)
        facts = _facts(member)
        if number == 0:
            _lead(task, member, facts)
        else:
            _follow(member)
        # The end of the process takes NCCL down: by hand it may wait for graphs that hold it.
        dist.barrier(group=member.group)
    except Exception as error:
        _say(failed=number, error=_first_line(error))
        raise


def _join(task: Task, number: int) -> Member:
    if task.gloo_power_w is not None:
        from calibration.simulation.fabric import SteadySensor

        dist.init_process_group("gloo")
        device = torch.device("cpu")
        sensor: Sensor = SteadySensor(power_w=task.gloo_power_w, board=f"rank{number}")
        group, tick_s = dist.group.WORLD, SteadySensor.TICK_S
        custom: calls.Custom | str = "no GPU"
    else:
        from calibration.gpu import find_gpu

        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        sensor = find_gpu(task.gpu)
        dist.init_process_group("nccl", device_id=device)
        group, tick_s = dist.new_group(backend="gloo"), 0.1
        custom = calls.custom(group, device)
    place = calls.Place(
        rank=number,
        gpus=dist.get_world_size(),
        device=device,
        largest=lambda value: _largest(value, group),
        max_clock_hz=sensor.identity().max_sm_clock_hz,
        custom=custom,
    )
    window_s = 10 * tick_s if device.type == "cpu" else rank.Pace().window_s
    pace = rank.Pace(tick_s=tick_s, window_s=window_s)
    return Member(place=place, sensor=sensor, pace=pace, group=group)


def _largest(value: float, group: Any) -> float:
    shared = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=group)
    return float(shared)


def _facts(member: Member) -> Facts:
    """The same on all ranks, asked of all."""
    from calibration.gpu import open_nvml, torch_device_uuid

    identity = member.sensor.identity()
    cuda = member.place.device.type == "cuda"
    uuid = torch_device_uuid() if cuda else None
    everyone: list[Any] = [None] * member.place.gpus
    dist.all_gather_object(everyone, (identity, uuid), group=member.group)
    peers = [u for _, u in everyone if u != uuid]
    return Facts(
        gpus=member.place.gpus,
        boards=tuple(i.board for i, _ in everyone),
        gpu=identity.gpu_name,
        driver=identity.driver,
        power_limit_w=min(i.power_limit_w for i, _ in everyone),
        link=topology.link(open_nvml(), uuid, peers) if uuid else "host",
        environment=dict(topology.environment()),
    )


def _lead(task: Task, member: Member, facts: Facts) -> None:
    if task.gloo_power_w is not None:
        points = grid.on_gloo()
    else:
        custom = member.place.custom
        points = grid.GRIDS[task.grid](custom=not isinstance(custom, str))
        if isinstance(custom, str):
            _say(report=f"vLLM's custom all-reduce is left out: {custom}")
    written = sweep(
        points,
        Leader(member=member, known=facts),
        Path(task.out),
        budget_s=task.budget_s,
        trials=task.trials,
        report=lambda line: _say(report=line),
        progress=lambda done_s, total_s, what: _say(progress=[done_s, total_s, what]),
    )
    _share(member, None)
    _say(written=written)


def _follow(member: Member) -> None:
    while (command := _share(member, None)) is not None:
        point, burst = command
        member.together(point, burst=burst)


def _share(member: Member, command: Command) -> Command:
    """What rank 0 says, on every rank."""
    said: list[Any] = [command]
    dist.broadcast_object_list(said, src=0, group=member.group)
    agreed: Command = said[0]
    return agreed


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


def _say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    arguments: Sequence[str] = sys.argv[1:]
    main(*arguments)
