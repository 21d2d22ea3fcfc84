"""Sweeps that were killed, resumed, refused, or that met what this machine cannot run."""

import json
from pathlib import Path

import pytest
from sweep_builders import (
    ALL,
    BURSTS,
    EVERYTHING,
    POINTS,
    WINDOWS,
    Bench,
    measured,
    part,
    run,
    trials_of,
)

from calibration import jsonl, observations
from calibration import sweep as sweep_module
from calibration.simulation.gpu import SimulatedGpu, SimulatedSensor
from calibration.sweep import LOST, TRIALS
from energymodel.errors import InputError, WorkError


@pytest.fixture(autouse=True)
def static_power_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Static power is looked at once a sweep, unless a test says otherwise."""
    monkeypatch.setattr(sweep_module, "IDLE_EVERY", 1000)


# --- resuming -------------------------------------------------------------------------------------


def test_a_finished_sweep_measures_nothing_again_and_more_trials_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    run(out)
    content = out.read_bytes()
    assert run(out) == 0
    assert out.read_bytes() == content
    # One more trial of each window, and one window without work.
    assert run(out, trials=TRIALS + 1) == 4 + 1
    assert trials_of(out, POINTS[0]) == list(range(TRIALS + 1))


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.37, 0.62, 0.93, 0.999])
def test_a_killed_sweep_is_completed(tmp_path: Path, kept: float) -> None:
    out = tmp_path / "o.jsonl"
    run(out)
    assert {part(o) for o in measured(out)} == EVERYTHING
    content = out.read_bytes()
    out.write_bytes(content[: int(kept * len(content))])
    run(out)
    again = measured(out)
    assert len(again) == len(EVERYTHING)
    assert {part(o) for o in again} == EVERYTHING


def test_another_board_is_measured_from_the_start(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    run(out)
    other = SimulatedSensor(SimulatedGpu(board="another", static_power_w=150.0))
    assert run(out, sensor=other) == ALL
    assert run(out) == 0
    assert run(out, sensor=SimulatedSensor(SimulatedGpu(board="another"))) == 0
    parts = {board: [part(o) for o in measured(out) if o.board == board]
             for board in ("simulated", "another")}  # fmt: skip
    assert sorted(parts["simulated"], key=str) == sorted(parts["another"], key=str)
    # Static power is that of the board itself.
    for o in measured(out):
        if o.idle_power_w is not None:
            assert round(o.idle_power_w) == (150 if o.board == "another" else 120)


def test_files_of_before_interleaved_trials_count_as_their_first_trial(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    run(out, trials=1)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    new = ("dtype", "library", "cache", "idle_power_w", "net_j", "lost_ticks")
    old = [{k: v for k, v in line.items() if k not in new} for line in lines]
    out.write_text("".join(json.dumps(line) + "\n" for line in old))
    assert run(out) == WINDOWS - 4 + 1
    assert len({part(o) for o in measured(out)}) == BURSTS + WINDOWS


# --- what does not work out -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA out of memory\nmore"), ModuleNotFoundError("No module named 'vllm'"),
     AttributeError("no such kernel"), AssertionError(), RuntimeError()],
)  # fmt: skip
def test_points_that_cannot_run_are_left_out_with_a_report(
    tmp_path: Path, error: Exception
) -> None:
    sensor, out, lines = SimulatedSensor(), tmp_path / "o.jsonl", list[str]()
    bench = Bench(sensor, lambda p: error if p.op == "gemm" else None)
    run(out, sensor=sensor, bench=bench, report=lines.append)
    assert len(measured(out)) == 3
    reason = (str(error) or type(error).__name__).split("\n", maxsplit=1)[0]
    # Once each: no trial of them is tried again.
    assert sorted(lines) == sorted(f"{p.key}: left out: {reason}" for p in POINTS[:2])
    assert "gemm" not in {o.op for o in observations.read(out)}
    assert not out.with_name(LOST).exists()
    # The next sweep tries them again.
    run(out)
    assert {part(o) for o in measured(out)} == EVERYTHING


CONTEXT = RuntimeError("CUDA error: an illegal memory access was encountered\nmore")


def test_a_point_that_breaks_the_context_ends_the_sweep_and_is_left_out_of_the_next(
    tmp_path: Path,
) -> None:
    sensor, out = SimulatedSensor(), tmp_path / "o.jsonl"
    bad = POINTS[3]
    bench = Bench(sensor, breaks=lambda p: CONTEXT if p.key == bad.key else None)
    with pytest.raises(WorkError, match=r"context.*--resume") as caught:
        run(out, sensor=sensor, bench=bench)
    assert str(caught.value).startswith(bad.key)
    assert caught.value.__cause__ is CONTEXT
    record = json.loads(out.with_name(LOST).read_text())
    assert record == {"point": bad.key, "error": str(CONTEXT).splitlines()[0]}
    before = {part(o) for o in measured(out)}
    # Were it tried again, it would break the context again.
    sensor = SimulatedSensor()
    bench = Bench(sensor, breaks=lambda p: CONTEXT if p.key == bad.key else None)
    run(out, sensor=sensor, bench=bench)
    assert bad.key not in bench.prepared
    after = {part(o) for o in measured(out)}
    assert before <= after
    wanted = {key for key, *_ in after} | {bad.key}
    assert wanted == {p.key for p in POINTS}


def test_a_kernel_that_fails_and_breaks_the_context_is_left_out_too(tmp_path: Path) -> None:
    sensor, out = SimulatedSensor(), tmp_path / "o.jsonl"
    bench = Bench(sensor, lambda _: CONTEXT, breaks=lambda _: CONTEXT)
    with pytest.raises(WorkError, match="--resume"):
        run(out, POINTS[:1], sensor, bench)
    assert run(out, POINTS[:1]) == 0


def test_a_broken_line_about_a_broken_context_is_repaired(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    line = json.dumps({"point": POINTS[0].key, "error": "x"}) + "\n"
    out.with_name(LOST).write_text(line + line[:7])
    run(out, POINTS[:2])
    assert {o.point for o in measured(out)} == {POINTS[1].key}


def test_refused_windows_are_reported_and_bursts_kept(tmp_path: Path) -> None:
    sensor = SimulatedSensor(SimulatedGpu(counter_works=False))
    out, lines = tmp_path / "o.jsonl", list[str]()
    run(out, sensor=sensor, report=lines.append)
    assert all("left out: The energy counter" in line for line in lines)
    refused = {line.partition(": left out")[0] for line in lines}
    assert refused == {"idle", *(p.key for p in POINTS[:2])}
    assert {o.mode for o in observations.read(out)} == {"burst"}


class LostSensor(SimulatedSensor):
    def energy_j(self) -> float:
        if self.clock.now() > 15.0:
            raise OSError("GPU is lost")
        return super().energy_j()


def test_a_sensor_that_is_lost_ends_the_sweep(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    with pytest.raises(WorkError, match="GPU is lost"):
        run(out, sensor=LostSensor())
    assert measured(out)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    out.write_text('{"model": "x"}\n')
    with pytest.raises(InputError, match="line 1"):
        run(out)
    assert out.read_text() == '{"model": "x"}\n'


def test_two_runs_never_write_to_one_file(tmp_path: Path) -> None:
    out = tmp_path / "new" / "o.jsonl"
    with (
        jsonl.owned(out),
        pytest.raises(WorkError, match="written by another run"),
        jsonl.owned(out),
    ):
        pass
    with jsonl.owned(out):
        jsonl.append(out, {"a": 1})
    assert out.read_text() == '{"a":1}\n'
