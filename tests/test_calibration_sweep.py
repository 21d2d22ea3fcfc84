"""The sweep over a grid, on a simulated GPU: what is measured how often, and in what order."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import pytest
from sweep_builders import (
    ALL,
    BURSTS,
    EVERYTHING,
    POINTS,
    WINDOWS,
    Bench,
    law,
    measured,
    part,
    run,
    trials_of,
)

from calibration import observations
from calibration import sweep as sweep_module
from calibration.grid import LAUNCHES, Point
from calibration.simulation.gpu import SimulatedGpu, SimulatedOp, SimulatedSensor
from calibration.sweep import MOST_TRIALS, MOST_VARIATION, TRIALS, variation


@pytest.fixture(autouse=True)
def static_power_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Static power is looked at once a sweep, unless a test says otherwise."""
    monkeypatch.setattr(sweep_module, "IDLE_EVERY", 1000)


# --- what is measured -----------------------------------------------------------------------------


def test_a_sweep_measures_every_point(tmp_path: Path) -> None:
    sensor, out = SimulatedSensor(), tmp_path / "o.jsonl"
    bench = Bench(sensor)
    assert run(out, sensor=sensor, bench=bench) == ALL
    assert bench.released == len(bench.prepared) == BURSTS + 2 * (TRIALS - 1)
    seen = list(observations.read(out))
    assert len(seen) == ALL
    modes = ["burst"] * 5 + ["duty"] * 2 * TRIALS + ["idle"] + ["sustained"] * 2 * TRIALS
    assert sorted(o.mode for o in seen) == modes
    for o in seen:
        assert (o.gpu, o.board, o.driver) == ("Simulated GPU", "simulated", "simulated")
        if o.mode == "idle":
            assert o.energy_j == pytest.approx(120.0 * (o.duration_s or 0), rel=1e-3)
            continue
        op = law(Point(op=o.op, shape=dict(o.shape)))
        assert o.call_s == pytest.approx(op.time_s, rel=1e-3)
        if o.energy_j is not None:
            assert o.duration_s is not None
            assert o.calls is not None
            net_j = (o.energy_j - 120.0 * o.duration_s) / o.calls
            assert net_j == pytest.approx(op.time_s * op.power_w, rel=0.01)


def test_net_energy_is_what_is_left_above_the_last_idle_window(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    run(out)
    (idle,) = (o for o in observations.read(out) if o.mode == "idle")
    idle_power_w = (idle.energy_j or 0.0) / (idle.duration_s or 0.0)
    windows = [o for o in measured(out) if o.energy_j is not None]
    assert len(windows) == WINDOWS
    for o in windows:
        assert o.energy_j is not None
        assert o.idle_power_w is not None
        assert o.idle_power_w == pytest.approx(idle_power_w, rel=1e-5)
        assert o.net_j == pytest.approx(
            o.energy_j - o.idle_power_w * (o.duration_s or 0.0), rel=1e-4
        )
    for o in measured(out):
        if o.mode == "burst":
            assert (o.idle_power_w, o.net_j, o.energy_j) == (None, None, None)


def test_a_resumed_sweep_measures_static_power_again_before_it_subtracts_it(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    run(out, POINTS[:1])
    run(out, POINTS[1:2], SimulatedSensor(SimulatedGpu(static_power_w=150.0)))
    found = {(o.point, round(o.idle_power_w)) for o in measured(out) if o.idle_power_w is not None}
    assert found == {(POINTS[0].key, 120), (POINTS[1].key, 150)}


def gaps(out: Path) -> list[int]:
    """Windows of work before, between and after the windows without."""
    modes = [o.mode for o in observations.read(out) if o.energy_j is not None]
    return [len(run.split()) for run in " ".join(modes).split("idle")]


def test_static_power_is_looked_at_every_so_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "IDLE_EVERY", 5)
    out = tmp_path / "o.jsonl"
    # Two windows a point, so that no count of them is a multiple of five in between.
    run(out, [replace(p, duties=(1.0, 0.5)) for p in POINTS])
    first, *between = gaps(out)
    assert first == 0
    assert between == [6] * 5


def test_points_that_cannot_run_do_not_ask_for_static_power_again(tmp_path: Path) -> None:
    sensor, out = SimulatedSensor(), tmp_path / "o.jsonl"
    bench = Bench(sensor, lambda p: RuntimeError("no kernel") if p.op == "gemm" else None)
    run(out, sensor=sensor, bench=bench)
    assert [o.mode for o in observations.read(out)].count("idle") == 1


def test_how_a_point_ran_is_written_down(tmp_path: Path) -> None:
    shape = {"m": 64, "n": 1024, "k": 1024}
    ways = [
        Point(op="gemm", shape=shape),
        Point(op="gemm", shape=shape, dtype="fp8"),
        Point(op="gemm", shape=shape, dtype="tf32", library="torch"),
        Point(op="gemm", shape=shape, cache="warm"),
    ]
    out = tmp_path / "o.jsonl"
    assert run(out, ways) == 4
    assert {o.point: (o.dtype, o.library, o.cache) for o in measured(out)} == {
        p.key: (p.dtype, p.library, p.cache) for p in ways
    }
    assert run(out, ways) == 0


def test_launches_are_seen_from_the_host(tmp_path: Path) -> None:
    sensor, out = SimulatedSensor(), tmp_path / "o.jsonl"
    bench = Bench(sensor)
    assert run(out, LAUNCHES, sensor, bench) == 2
    # Nothing has to be prepared, and nothing is known of their energy.
    assert bench.prepared == []
    seen = {o.shape["graph"]: o for o in observations.read(out)}
    assert {o.mode for o in seen.values()} == {"host"}
    for graph, o in seen.items():
        assert (o.call_s, o.call_spread_s) == bench.launch_s(graph)
        assert (o.op, o.stack, o.energy_j) == ("launch", "launch", None)
    assert run(out, LAUNCHES) == 0


def test_bursts_alone(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    assert run(out, energy=False) == BURSTS
    assert {o.mode for o in observations.read(out)} == {"burst"}


def test_energy_windows_can_be_added_to_a_sweep_of_bursts(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    run(out, energy=False)
    assert run(out) == WINDOWS + 1
    assert sum(o.mode == "burst" for o in observations.read(out)) == BURSTS


# --- trials ---------------------------------------------------------------------------------------


def test_trials_are_interleaved_within_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "BLOCK", 4)
    points = [
        Point(op="gemm", shape={"m": m, "n": 1024, "k": 1024}, duties=(1.0,))
        for m in range(512, 1312, 100)
    ]
    out = tmp_path / "o.jsonl"
    run(out, points)
    windows = [o for o in measured(out) if o.mode == "sustained"]
    blocks = [[p.key for p in points[:4]], [p.key for p in points[4:]]]
    orders = []
    for number, block in enumerate(blocks):
        for trial in range(TRIALS):
            start = (number * TRIALS + trial) * 4
            seen = windows[start : start + 4]
            # All of a block once, before any of them again; all of it before the next block.
            assert [o.trial for o in seen] == [trial] * 4
            assert sorted(o.point for o in seen) == sorted(block)
            orders.append([block.index(o.point) for o in seen])
    assert len(windows) == 2 * TRIALS * 4
    # Each time in an order of its own.
    assert len({tuple(order) for order in orders}) > TRIALS


def test_order_is_random_and_repeatable(tmp_path: Path) -> None:
    orders = []
    for i, seed in enumerate((1, 1, 2)):
        sensor = SimulatedSensor()
        bench = Bench(sensor)
        run(tmp_path / f"{i}.jsonl", sensor=sensor, bench=bench, seed=seed, energy=False)
        orders.append(bench.prepared)
    assert orders[0] == orders[1] != orders[2]


def noisy(*factors: float) -> Callable[[Point], SimulatedOp]:
    """A law by which the small product's power differs each time that it is prepared."""
    left = list(factors)

    def costs(point: Point) -> SimulatedOp:
        op = law(point)
        if point.key != POINTS[0].key:
            return op
        return replace(op, power_w=op.power_w * left.pop(0))

    return costs


@pytest.mark.parametrize(
    ("factors", "trials"),
    [
        ((1.0, 1.005, 0.995), TRIALS),
        ((1.0, 1.2, 0.8, 1.1, 0.9, 1.0), MOST_TRIALS),
        # A fourth trial that brings the scatter below the bound is the last.
        ((1.0, 1.0, 1.026, 1.013), TRIALS + 1),
    ],
)
def test_what_scatters_gets_more_trials(
    tmp_path: Path, factors: tuple[float, ...], trials: int
) -> None:
    points = [replace(p, duties=(1.0,)) for p in POINTS[:2]]
    sensor, out = SimulatedSensor(), tmp_path / "o.jsonl"
    run(out, points, sensor, Bench(sensor, costs=noisy(*factors)))
    assert trials_of(out, points[0]) == list(range(trials))
    # What does not scatter gets no more for its neighbour's sake.
    assert trials_of(out, points[1]) == list(range(TRIALS))
    energies = [
        (o.energy_j or 0.0) / (o.calls or 1.0)
        for o in measured(out)
        if o.point == points[0].key and o.duty is not None
    ]
    scatters = [variation(energies[:n]) > MOST_VARIATION for n in range(TRIALS, len(energies))]
    assert all(scatters)
    assert len(energies) == MOST_TRIALS or variation(energies) <= MOST_VARIATION


def test_only_the_duty_that_scatters_is_repeated(tmp_path: Path) -> None:
    """Full load is steady; a fifth of the time, pauses of different lengths make a difference."""
    sensor, out = SimulatedSensor(), tmp_path / "o.jsonl"
    bench = Bench(sensor, costs=noisy(1.0, 1.0, 1.0))
    run(out, POINTS[:1], sensor, bench)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    for line in lines:
        if line.get("duty") == 0.2:
            line["energy_j"] *= (0.9, 1.0, 1.1)[line["trial"]]
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sensor = SimulatedSensor()
    run(out, POINTS[:1], sensor)
    added = [o for o in measured(out) if o.trial >= TRIALS]
    assert [o.duty for o in added] == [0.2] * (MOST_TRIALS - TRIALS)


def test_variation_by_hand() -> None:
    assert variation([5.0]) == 0.0
    assert variation([]) == 0.0
    values = [0.9, 1.0, 1.1]
    assert variation(values) == pytest.approx(0.1)
    assert variation([7.0 * v for v in values]) == pytest.approx(stdev(values) / mean(values))


@pytest.mark.parametrize("trials", [1, 2, 4])
def test_the_least_number_of_trials_can_be_chosen(tmp_path: Path, trials: int) -> None:
    out = tmp_path / "o.jsonl"
    run(out, POINTS[:1], trials=trials)
    assert trials_of(out, POINTS[0]) == list(range(trials))


# --- time -----------------------------------------------------------------------------------------


def test_a_sweep_stops_when_its_budget_is_spent(tmp_path: Path) -> None:
    out, lines = tmp_path / "o.jsonl", list[str]()
    written = run(out, report=lines.append, budget_s=6.0)
    assert 0 < written < ALL
    assert lines == ["time budget spent: 5 points left or under way"]
    run(out)
    assert len(measured(out)) == BURSTS + WINDOWS


def test_points_of_finished_blocks_are_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "BLOCK", 1)
    out, lines = tmp_path / "o.jsonl", list[str]()
    sensor = SimulatedSensor()
    run(out, POINTS[:1], sensor)
    run(out, sensor=sensor, report=lines.append, budget_s=2.0)
    assert lines == ["time budget spent: 4 points left or under way"]


@pytest.mark.parametrize("budget_s", [6.0, 1e4])
@pytest.mark.parametrize("before", [False, True])
def test_progress_never_goes_back_and_is_whole_only_when_nothing_is_left(
    tmp_path: Path, budget_s: float, before: bool
) -> None:
    out = tmp_path / "o.jsonl"
    if before:
        run(out, POINTS[1:3])
    seen: list[tuple[float, float, str]] = []
    run(out, progress=lambda *step: seen.append(step), budget_s=budget_s)
    finished = {part(o) for o in measured(out)} == EVERYTHING
    assert finished == (budget_s > 100)
    done, whole, _ = zip(*seen, strict=True)
    assert len(seen) >= 3
    assert all(a <= b for a, b in pairwise(done))
    assert len(set(whole)) == 1
    assert whole[0] > 0
    assert 0 <= done[0] < whole[0]
    # While something runs, it is not done; a spent budget leaves the bar where it stopped.
    under_way = seen[:-1] if finished else seen
    assert all(step_s < whole[0] and op in {"gemm", "copy"} for step_s, _, op in under_way)
    if finished:
        assert seen[-1] == (whole[0], whole[0], "")
