"""Collectives on a simulated host: what was declared comes back, and nothing is measured twice."""

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from calibration.collectives import grid, launch, observations, run
from calibration.collectives.grid import KIB, MIB, SKEW_US, Point
from calibration.collectives.observations import OPS, CollectiveObservation, RankWindow
from calibration.collectives.rank import Pace
from calibration.collectives.sweep import MOST_REFUSED, Facts, Seen, sweep
from calibration.simulation.fabric import Fabric, SimulatedHost
from calibration.simulation.gpu import SimulatedGpu
from calibration.verdict import WindowRefused
from energymodel.errors import InputError, WorkError
from energymodel.fabric import CUSTOM_BYTES

FABRIC = Fabric()
STATIC_W = 120.0
GPU = SimulatedGpu(name="NVIDIA H200", static_power_w=STATIC_W)
REDUCE = Point(op="all_reduce", message_bytes=16 * MIB, energy=True)
LATE = Point(op="all_reduce", message_bytes=16 * KIB, skew_us=SKEW_US, energy=True)
IDLE = Point(op="idle", energy=True)


def measured(folder: Path, *points: Point, gpus: int = 2) -> list[CollectiveObservation]:
    out = folder / observations.FILE
    sweep(points, SimulatedHost(GPU, gpus), out, budget_s=1e9)
    return list(observations.read(out))


# What comes back -------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [2, 4])
def test_energy_and_time_of_all_gpus_come_back(tmp_path: Path, gpus: int) -> None:
    seen = [o for o in measured(tmp_path, IDLE, REDUCE, gpus=gpus) if o.op == "all_reduce"]
    # 2 (n - 1)/n of 16 MiB over each GPU's links at 360 GB/s, after 12 us for two GPUs.
    wire = 2 * (gpus - 1) / gpus * 16 * MIB
    call_s = 12e-6 * gpus / 2 + wire / 360e9
    call_j = gpus * (6e-11 * wire + (95.0 + STATIC_W) * call_s)
    assert [o.mode for o in seen] == ["burst", "sustained", "sustained", "sustained"]
    for o in seen:
        assert o.call_s == pytest.approx(call_s, rel=1e-3)
        assert len(o.ranks) == gpus
    for o in seen[1:]:
        assert o.energy_call_j == pytest.approx(call_j, rel=0.01)
        for r in o.ranks:
            assert r.net_j == pytest.approx((r.energy_j or 0) - STATIC_W * (r.duration_s or 0))


def test_the_gpus_that_wait_burn_power_and_the_late_one_does_not(tmp_path: Path) -> None:
    seen = [o for o in measured(tmp_path, IDLE, LATE) if o.mode == "wait"]
    for o in seen:
        late_w, waiting_w = ((r.net_j or 0) / (r.duration_s or 1) for r in o.ranks)
        assert late_w == pytest.approx(FABRIC.late_w, abs=2.0)
        assert waiting_w == pytest.approx(FABRIC.busy_w, abs=2.0)
    assert len(seen) == 3


def test_boards_are_told_apart(tmp_path: Path) -> None:
    assert measured(tmp_path, REDUCE)[0].boards == ("simulated-0", "simulated-1")


# The grid --------------------------------------------------------------------------------------


@pytest.mark.parametrize("custom", [True, False])
@pytest.mark.parametrize("points", [grid.quick, grid.full])
def test_points_of_a_grid_are_distinct(points: object, custom: bool) -> None:
    assert callable(points)
    found = points(custom=custom)
    keys = [p.key(2) for p in found]
    assert len(set(keys)) == len(keys)
    ours = [p for p in found if p.library == "vllm"]
    assert bool(ours) == custom
    assert all(p.message_bytes < CUSTOM_BYTES for p in ours)


def test_the_full_grid_spans_a_kilobyte_to_a_gigabyte() -> None:
    for op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv"):
        sizes = [p.message_bytes for p in grid.full(custom=True) if p.op == op]
        assert (min(sizes), max(sizes)) == (1 << 10, 1 << 30)


def test_every_rank_runs_as_many_chunks_and_the_window_holds_ten_ticks() -> None:
    assert Pace(settle_s=0.25).chunks(4e-3) * 4e-3 >= 0.25 + 1.2
    assert Pace(tick_s=0.02, window_s=0.2, settle_s=0.1).chunks(0.01) * 0.01 >= 0.1 + 0.24


# Resuming and failing --------------------------------------------------------------------------


class DyingHost(SimulatedHost):
    """Is lost after so many bursts and windows."""

    def __init__(self, lives: int) -> None:
        super().__init__(GPU, 2)
        self.lives = lives

    def measure(self, point: Point, *, burst: bool) -> Seen:
        if not self.lives:
            raise WorkError("GPU is lost")
        self.lives -= 1
        return super().measure(point, burst=burst)


def test_a_lost_gpu_keeps_what_was_measured_and_the_rest_is_resumed(tmp_path: Path) -> None:
    out, points = tmp_path / observations.FILE, grid.quick(custom=True)
    with pytest.raises(WorkError, match="GPU is lost"):
        sweep(points, DyingHost(7), out, budget_s=1e9)
    assert len(list(observations.read(out))) == 7
    with out.open("a") as file:
        file.write('{"op":"all_red')
    again = sweep(points, SimulatedHost(GPU, 2), out, budget_s=1e9)
    seen = [(o.point, o.trial, o.mode) for o in observations.read(out)]
    whole = tmp_path / "whole" / observations.FILE
    assert again + 7 == len(seen) == sweep(points, SimulatedHost(GPU, 2), whole, budget_s=1e9)
    assert len(set(seen)) == len(seen)
    assert sweep(points, SimulatedHost(GPU, 2), out, budget_s=1e9) == 0
    # Four GPUs are others than two.
    assert sweep([REDUCE], SimulatedHost(GPU, 4), out, budget_s=1e9) == 4


def test_a_budget_stops_between_windows(tmp_path: Path) -> None:
    out, said = tmp_path / observations.FILE, []
    sweep(grid.full(custom=False), SimulatedHost(GPU, 2), out, budget_s=20.0, report=said.append)
    assert said[-1].startswith("time budget spent: ")
    assert 0 < len(list(observations.read(out))) < 100


class Refusing(SimulatedHost):
    """Refuses one collective."""

    def measure(self, point: Point, *, burst: bool) -> Seen:
        if point.op == "all_gather":
            raise WindowRefused("GPU 1: The energy counter stood still.")
        return super().measure(point, burst=burst)


def test_what_one_gpu_refuses_is_left_out_and_said(tmp_path: Path) -> None:
    out, said = tmp_path / observations.FILE, []
    points = [Point(op="all_gather", message_bytes=MIB), REDUCE]
    assert sweep(points, Refusing(GPU, 2), out, budget_s=1e9, report=said.append) == 4
    assert said == [
        "all_gather 1 MiB bfloat16 nccl: left out: GPU 1: The energy counter stood still."
    ]
    many = [Point(op="all_gather", message_bytes=i * KIB) for i in range(1, MOST_REFUSED + 2)]
    with pytest.raises(WorkError, match="20 windows in a row were refused"):
        sweep(many, Refusing(GPU, 2), out, budget_s=1e9)


def test_files_are_begun_and_resumed_as_asked(tmp_path: Path) -> None:
    file = run.start(tmp_path, "h200", resume=False, simulated=True)
    run.simulate(file, "h200", 2, grid_name="quick", report=print, progress=lambda *_: None)
    assert run.is_simulated(file)
    assert run.start(tmp_path, "h200", resume=True, simulated=True) == file
    with pytest.raises(InputError, match="add --resume"):
        run.start(tmp_path, "h200", resume=False, simulated=True)
    with pytest.raises(InputError, match="was simulated"):
        run.start(tmp_path, "h200", resume=True, simulated=False)
    with pytest.raises(InputError, match="is of 'NVIDIA H200', not h100"):
        run.start(tmp_path, "h100", resume=True, simulated=True)
    with pytest.raises(InputError, match="finds no"):
        run.start(tmp_path / "nowhere", "h200", resume=True, simulated=True)


# The file --------------------------------------------------------------------------------------


def line(tmp_path: Path) -> dict[str, object]:
    measured(tmp_path, REDUCE)
    text = (tmp_path / observations.FILE).read_text().splitlines()[-1]
    found: dict[str, object] = json.loads(text)
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpus": 4}, "ranks must hold 4 entries, one a GPU, got 2"),
        ({"op": "gossip"}, "op"),
        ({"call_s": -1.0}, "call_s"),
        ({"message_bytes": 1.5}, "message_bytes"),
    ],
)
def test_lines_that_are_no_observations_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(line(tmp_path) | change) + "\n")
    with pytest.raises(InputError, match=message):
        list(observations.read(bad))


def test_a_rank_with_milliwatts_is_refused(tmp_path: Path) -> None:
    found = line(tmp_path)
    ranks = found["ranks"]
    assert isinstance(ranks, list)
    ranks[1]["energy_j"] *= 1e3
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(found) + "\n")
    with pytest.raises(InputError, match=r"board's power in watts, got .* W"):
        list(observations.read(bad))


def test_the_format_is_described(tmp_path: Path) -> None:
    text = Path(__file__).parent.parent.joinpath("docs", "formats.md").read_text(encoding="utf-8")
    section = text.split("## collectives.jsonl")[1].split("\n## ")[0]
    fields = {f.name for c in (CollectiveObservation, RankWindow) for f in dataclasses.fields(c)}
    assert fields | set(OPS) <= set(re.findall(r"`([a-z0-9_]+)`", section))
    example = re.search(r"```json\n(.*?)```", section, re.DOTALL)
    assert example is not None
    file = tmp_path / "example.jsonl"
    file.write_text(json.dumps(json.loads(example[1])) + "\n")
    for r in next(observations.read(file)).ranks:
        net_j = (r.energy_j or 0) - (r.idle_power_w or 0) * (r.duration_s or 0)
        assert r.net_j == pytest.approx(net_j, abs=0.1)


# What a failure says ---------------------------------------------------------------------------

KILLED = "E1121 api.py:1002] failed (exitcode: -9) local_rank: 1 (pid: 4828) of binary: python\n"


def failure(errors: str, *lines: dict[str, object]) -> str:
    said = launch._Said()
    for message in lines:
        said.hear(json.dumps(message), print, lambda *_: None)
    return launch._failure(said, errors, 4, "c.jsonl")


def test_failures_are_one_sentence() -> None:
    kept = "what was measured is in c.jsonl, and --resume goes on from there."
    lost = {"failed": 0, "error": "Connection closed by peer."}
    # The rank that was killed is to blame, not the one that missed it.
    assert failure(KILLED, lost) == f"The process of GPU 1 of 4 was killed by signal 9: {kept}"
    memory = {"failed": 3, "error": "CUDA out of memory."}
    assert failure("", memory, lost) == f"GPU 3 of 4 failed (CUDA out of memory): {kept}"
    assert failure("x\nNo module named torch\n") == (
        f"torchrun ended without a result (No module named torch): {kept}"
    )


def test_chatter_of_libraries_is_not_taken_for_ours() -> None:
    said = launch._Said()
    for text in ("NCCL version 2.27\n", "[1, 2]\n", "null\n", "{}\n"):
        said.hear(text, print, lambda *_: None)
    assert (said.written, said.failed) == (None, None)


def test_facts_are_those_of_all_gpus() -> None:
    facts = SimulatedHost(replace(GPU, power_limit_w=650.0), 4).facts()
    assert isinstance(facts, Facts)
    assert (facts.gpus, facts.power_limit_w, len(set(facts.boards))) == (4, 650.0, 4)
