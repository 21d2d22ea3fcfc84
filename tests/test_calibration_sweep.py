from collections.abc import Callable
from pathlib import Path

import pytest

from calibration import observations
from calibration.bench import Runnable
from calibration.grid import Point
from calibration.simulated import SimulatedBench, SimulatedGpu, SimulatedOp, SimulatedSensor
from calibration.sweep import sweep
from energymodel.errors import InputError, WorkError

POINTS = [
    Point(op="gemm", shape={"m": m, "n": 1024, "k": 1024}, duties=(1.0, 0.2)) for m in (64, 1024)
] + [Point(op="copy", shape={"bytes": b}) for b in (1 << 20, 1 << 24, 1 << 28)]


def law(point: Point) -> SimulatedOp:
    """Products at 500 TFLOP/s and 1 pJ/FLOP, copies at 4 TB/s and 60 pJ/byte."""
    s = point.shape
    if point.op == "copy":
        return SimulatedOp(
            time_s=2 * s["bytes"] / 4e12, power_w=240.0, clock_bound=0.0, memory_share=0.8
        )
    return SimulatedOp(time_s=2 * s["m"] * s["n"] * s["k"] / 5e14, power_w=500.0)


class Bench(SimulatedBench):
    """Counts what is asked of it; can fail at points."""

    def __init__(
        self, sensor: SimulatedSensor, fails: Callable[[Point], Exception | None] = lambda _: None
    ) -> None:
        super().__init__(sensor, law)
        self.prepared: list[str] = []
        self.released = 0
        self._fails = fails

    def prepare(self, point: Point) -> Runnable:
        error = self._fails(point)
        if error is not None:
            raise error
        self.prepared.append(point.key)
        return super().prepare(point)

    def release(self) -> None:
        self.released += 1


def test_a_sweep_measures_every_point(tmp_path: Path) -> None:
    sensor, out = SimulatedSensor(), tmp_path / "o.jsonl"
    bench = Bench(sensor)
    assert sweep(POINTS, sensor, out, budget_s=1e3, bench=bench) == 5
    assert bench.released == 5
    seen = list(observations.read(out))
    assert (
        sorted(o.mode for o in seen) == ["burst"] * 5 + ["duty"] * 2 + ["idle"] + ["sustained"] * 2
    )
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


def test_order_is_random_and_repeatable(tmp_path: Path) -> None:
    orders = []
    for i, seed in enumerate((1, 1, 2)):
        sensor = SimulatedSensor()
        bench = Bench(sensor)
        sweep(
            POINTS, sensor, tmp_path / f"{i}.jsonl",
            budget_s=1e3, bench=bench, seed=seed, energy=False,
        )  # fmt: skip
        orders.append(bench.prepared)
    assert orders[0] == orders[1] != orders[2]


def test_a_finished_sweep_measures_nothing_again_and_a_new_trial_everything(tmp_path: Path) -> None:
    sensor, out = SimulatedSensor(), tmp_path / "o.jsonl"
    sweep(POINTS, sensor, out, budget_s=1e3, bench=Bench(sensor))
    content = out.read_bytes()
    assert sweep(POINTS, sensor, out, budget_s=1e3, bench=Bench(sensor)) == 0
    assert out.read_bytes() == content
    assert sweep(POINTS, sensor, out, budget_s=1e3, bench=Bench(sensor), trial=1) == 5


@pytest.mark.parametrize("kept", [0.1, 0.37, 0.62, 0.93])
def test_a_killed_sweep_is_completed(tmp_path: Path, kept: float) -> None:
    sensor, out = SimulatedSensor(), tmp_path / "o.jsonl"
    sweep(POINTS, sensor, out, budget_s=1e3, bench=Bench(sensor))
    whole = list(observations.read(out))
    content = out.read_bytes()
    out.write_bytes(content[: int(kept * len(content))])
    sweep(POINTS, sensor, out, budget_s=1e3, bench=Bench(sensor))
    again = [o for o in observations.read(out) if o.mode != "idle"]
    parts = [(o.op, tuple(o.shape.items()), o.duty) for o in again]
    assert len(set(parts)) == len(parts)
    assert len(parts) == sum(o.mode != "idle" for o in whole)


def test_energy_windows_can_be_added_to_a_sweep_of_bursts(tmp_path: Path) -> None:
    sensor, out = SimulatedSensor(), tmp_path / "o.jsonl"
    assert sweep(POINTS, sensor, out, budget_s=1e3, bench=Bench(sensor), energy=False) == 5
    assert {o.mode for o in observations.read(out)} == {"burst"}
    assert sweep(POINTS, sensor, out, budget_s=1e3, bench=Bench(sensor)) == 2
    assert sum(o.mode == "burst" for o in observations.read(out)) == 5


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA out of memory\nmore"), ModuleNotFoundError("No module named 'vllm'"),
     AttributeError("no such kernel"), AssertionError()],
)  # fmt: skip
def test_points_that_cannot_run_are_left_out_with_a_report(
    tmp_path: Path, error: Exception
) -> None:
    sensor, out, lines = SimulatedSensor(), tmp_path / "o.jsonl", []
    bench = Bench(sensor, lambda p: error if p.op == "gemm" else None)
    assert sweep(POINTS, sensor, out, budget_s=1e3, bench=bench, report=lines.append) == 3
    reason = (str(error) or type(error).__name__).split("\n", maxsplit=1)[0]
    assert sorted(lines) == [f"{p.key}: left out: {reason}" for p in sorted(POINTS[:2], key=str)]
    assert "gemm" not in {o.op for o in observations.read(out)}
    # The next sweep tries them again.
    assert sweep(POINTS, sensor, out, budget_s=1e3, bench=Bench(sensor)) == 2


def test_refused_windows_are_reported_and_bursts_kept(tmp_path: Path) -> None:
    sensor = SimulatedSensor(SimulatedGpu(counter_works=False))
    out, lines = tmp_path / "o.jsonl", []
    sweep(POINTS, sensor, out, budget_s=1e3, bench=Bench(sensor), report=lines.append)
    assert sum(line.startswith("idle: left out: The energy counter") for line in lines) == 1
    assert sum(line.startswith("gemm") for line in lines) == 2
    assert {o.mode for o in observations.read(out)} == {"burst"}


def test_a_sweep_stops_when_its_budget_is_spent(tmp_path: Path) -> None:
    sensor, out, lines = SimulatedSensor(), tmp_path / "o.jsonl", []
    measured = sweep(POINTS, sensor, out, budget_s=3.0, bench=Bench(sensor), report=lines.append)
    assert 0 < measured < 5
    assert lines == [f"time budget spent: {5 - measured} points left"]
    assert sweep(POINTS, sensor, out, budget_s=1e3, bench=Bench(sensor)) == 5 - measured


class LostSensor(SimulatedSensor):
    def energy_j(self) -> float:
        if self.clock.now() > 5.0:
            raise OSError("GPU is lost")
        return super().energy_j()


def test_a_sensor_that_is_lost_ends_the_sweep(tmp_path: Path) -> None:
    sensor, out = LostSensor(), tmp_path / "o.jsonl"
    with pytest.raises(WorkError, match="GPU is lost"):
        sweep(POINTS, sensor, out, budget_s=1e3, bench=Bench(sensor))
    assert list(observations.read(out))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    out.write_text('{"model": "x"}\n')
    sensor = SimulatedSensor()
    with pytest.raises(InputError, match="line 1"):
        sweep(POINTS, sensor, out, budget_s=1.0, bench=Bench(sensor))
    assert out.read_text() == '{"model": "x"}\n'
