"""Faults never make a wrong number, and never lose a finished one."""

import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import simulated_sweep
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_sweep import GPU, POINTS, law, worst_error

from calibration import observations
from calibration.observations import Observation
from calibration.sensors import Sensor
from calibration.simulation.faults import STRANGER, Fault, FaultySensor
from calibration.simulation.gpu import SimulatedBench, SimulatedOp
from calibration.sweep import sweep
from calibration.window import Window, WindowRefused, burst_time_s, steady_window
from energymodel.errors import WorkError

STREAM = SimulatedOp(time_s=20e-6, power_w=300.0, clock_bound=0.1, memory_share=0.5)
# What a window may be off by: half a read at each end, and a lost tick at worst.
TOLERANCE = 0.03


def measure(*faults: Fault, duty: float = 1.0) -> Window:
    """A window that opens at 0.3 s of the simulated clock and closes at about 1.4 s."""
    sensor = FaultySensor(faults)
    return steady_window(sensor, sensor.work(STREAM), settle_s=0.3, duty=duty, clock=sensor.clock)


def assert_right(window: Window) -> None:
    net_j = window.energy_j - 120.0 * window.duration_s
    assert net_j / window.calls == pytest.approx(STREAM.time_s * STREAM.power_w, rel=0.01)


# One window, one fault ---------------------------------------------------------------------------


def test_without_a_fault_the_window_is_right() -> None:
    window = measure()
    assert_right(window)
    assert (window.ticks, window.lost_ticks) == (10, 0)


@pytest.mark.parametrize("start_s", [0.45, 0.75, 1.05])
def test_one_lost_update_is_noted_and_harmless(start_s: float) -> None:
    window = measure(Fault(kind="late", start_s=start_s, end_s=start_s + 0.1))
    assert_right(window)
    assert (window.ticks, window.lost_ticks) == (10, 1)


def test_updates_lost_for_a_fifth_of_the_window_are_refused() -> None:
    with pytest.raises(
        WindowRefused, match=r"No update of the energy counter was seen for 0\.40 s"
    ):
        measure(Fault(kind="late", start_s=0.75, end_s=1.05))


@pytest.mark.parametrize("start_s", [0.0, 0.55, 1.25])
def test_a_counter_that_gets_stuck_is_refused(start_s: float) -> None:
    cause = "did not move" if start_s == 0 else r"stood still: only \d updates .* must hold 10"
    with pytest.raises(WindowRefused, match=cause):
        measure(Fault(kind="late", start_s=start_s))


@pytest.mark.parametrize("duty", [1.0, 0.2])
def test_a_counter_that_forgets_is_refused(duty: float) -> None:
    with pytest.raises(WindowRefused, match="unevenly"):
        measure(Fault(kind="forgotten", start_s=0.75, end_s=0.85), duty=duty)


@pytest.mark.parametrize("size_j", [100.0, 1e9])
@pytest.mark.parametrize("start_s", [0.15, 0.75, 1.25])
def test_a_counter_that_jumps_back_is_refused(start_s: float, size_j: float) -> None:
    with pytest.raises(WindowRefused, match=r"jumped back by \d+ J"):
        measure(Fault(kind="back", start_s=start_s, size_j=size_j))


def test_a_jump_back_by_less_than_an_update_is_refused() -> None:
    with pytest.raises(WindowRefused, match="unevenly"):
        measure(Fault(kind="back", start_s=0.75, size_j=25.0))


@pytest.mark.parametrize("start_s", [0.5, 0.75, 1.2])
def test_heat_inside_the_window_is_refused(start_s: float) -> None:
    hot = Fault(kind="hot", start_s=start_s, end_s=start_s + 0.05)
    with pytest.raises(WindowRefused, match=r"fell to \d+ MHz for thermal reasons \(software"):
        measure(hot)


def test_heat_before_the_window_opens_does_no_harm() -> None:
    assert_right(measure(Fault(kind="hot", start_s=0.0, end_s=0.2)))


@pytest.mark.parametrize("start_s", [-1.0, 0.1, 0.75, 1.2])
def test_another_process_is_refused(start_s: float) -> None:
    company = Fault(kind="company", start_s=start_s, end_s=start_s + 0.25)
    if start_s < 0:
        assert_right(measure(company))
        return
    with pytest.raises(WindowRefused, match=rf"Another process .* \(pid {STRANGER}\)"):
        measure(company)


def test_a_fault_that_the_gpu_reports_is_refused() -> None:
    assert_right(measure(Fault(kind="error", start_s=-1.0)))
    with pytest.raises(WindowRefused, match=r"reported 1 faults meanwhile \(Xid"):
        measure(Fault(kind="error", start_s=0.75))


@pytest.mark.parametrize("start_s", [0.0, 0.2, 0.75, 1.3])
def test_a_lost_gpu_is_an_error_that_ends_the_measurement(start_s: float) -> None:
    with pytest.raises(WorkError, match=r"stopped answering: GPU is lost\.$") as caught:
        measure(Fault(kind="gone", start_s=start_s))
    assert not isinstance(caught.value, WindowRefused)


class Deaf(FaultySensor):
    """Cannot even say what it is."""

    def identity(self) -> None:
        raise OSError("driver not loaded")


def test_a_sensor_without_identity_is_an_error() -> None:
    sensor = Deaf(())
    with pytest.raises(WorkError, match="stopped answering: driver not loaded"):
        steady_window(sensor, sensor.work(STREAM), settle_s=0.3, clock=sensor.clock)


# Bursts ------------------------------------------------------------------------------------------


def burst(*faults: Fault) -> tuple[float, float]:
    sensor = FaultySensor(faults)
    return burst_time_s(sensor.work(STREAM), clock=sensor.clock, sensor=sensor)


@pytest.mark.parametrize(
    ("kind", "cause"), [("hot", "thermal reasons"), ("company", "Another process")]
)
def test_disturbed_bursts_are_refused(kind: str, cause: str) -> None:
    with pytest.raises(WindowRefused, match=cause):
        burst(Fault(kind=kind, start_s=0.02, end_s=0.3))


@pytest.mark.parametrize("start_s", [0.0, 0.017, 0.03])
def test_bursts_on_a_lost_gpu_are_an_error(start_s: float) -> None:
    with pytest.raises(WorkError, match="GPU is lost"):
        burst(Fault(kind="gone", start_s=start_s))


def test_work_that_fails_on_a_sound_gpu_fails_as_it_is() -> None:
    sensor = FaultySensor(())
    work = sensor.work(STREAM)

    def fail() -> None:
        raise RuntimeError("CUDA out of memory")

    broken = type(work)(submit=fail, calls_per_chunk=1)
    with pytest.raises(RuntimeError, match="out of memory"):
        burst_time_s(broken, clock=sensor.clock, sensor=sensor)
    with pytest.raises(RuntimeError, match="out of memory"):
        steady_window(sensor, broken, settle_s=0.3, clock=sensor.clock)


# Sweeps ------------------------------------------------------------------------------------------


def lasting(kind: str, least_s: float, most_s: float) -> st.SearchStrategy[Fault]:
    return st.builds(
        lambda start_s, length_s: Fault(kind=kind, start_s=start_s, end_s=start_s + length_s),
        st.floats(0.0, 25.0),
        st.floats(least_s, most_s),
    )


def starting(kind: str, *sizes_j: float) -> st.SearchStrategy[Fault]:
    return st.builds(
        lambda start_s, size_j: Fault(kind=kind, start_s=start_s, size_j=size_j),
        st.floats(0.0, 40.0),
        st.sampled_from(sizes_j or (0.0,)),
    )


FAULTS = st.lists(
    st.one_of(
        lasting("late", 0.05, 0.5),
        lasting("forgotten", 0.05, 0.5),
        lasting("hot", 0.03, 2.0),
        # A process needs longer than this to set up a CUDA context.
        lasting("company", 0.25, 3.0),
        starting("back", 100.0, 1e6),
        starting("error"),
        starting("late"),
        starting("gone"),
    ),
    max_size=4,
)


def run(sensor: Sensor, out: Path) -> tuple[list[str], bool]:
    """What a sweep reported, and whether it came to its end."""
    assert isinstance(sensor, FaultySensor)
    lines: list[str] = []
    try:
        sweep(
            POINTS, sensor, out,
            budget_s=1e4, bench=SimulatedBench(sensor, law), report=lines.append,
        )  # fmt: skip
    except WorkError as error:
        return [*lines, str(error)], False
    return lines, True


def parts(seen: Sequence[Observation]) -> list[tuple[object, ...]]:
    return [(o.op, *sorted(o.shape.items()), o.trial, o.duty) for o in seen if o.op != "idle"]


@settings(max_examples=25, deadline=None)
@given(FAULTS)
def test_whatever_goes_wrong_no_wrong_number_is_written(
    tmp_path_factory: pytest.TempPathFactory, faults: list[Fault]
) -> None:
    out = tmp_path_factory.mktemp("faults") / "o.jsonl"
    lines, ended = run(FaultySensor(faults, GPU), out)
    first = list(observations.read(out))
    assert ended or lines[-1] == "The GPU's sensors stopped answering: GPU is lost."
    for o in first:
        assert worst_error(o) < TOLERANCE, (o, faults)
    complete = {(op, *shape, duty) for op, *shape, _, duty in map(tuple, parts(reference(out)))}
    missing = complete - {(op, *shape, duty) for op, *shape, _, duty in map(tuple, parts(first))}
    assert not ended or not missing or any("left out" in line for line in lines)

    # On a sound GPU the rest is measured, and nothing twice.
    _, ended = run(FaultySensor((), GPU), out)
    again = list(observations.read(out))
    assert ended
    assert again[: len(first)] == first
    assert len(set(parts(again))) == len(parts(again))
    assert set(parts(again)) >= set(parts(reference(out)))
    assert max(map(worst_error, again)) < TOLERANCE


def reference(out: Path) -> list[Observation]:
    """What an undisturbed sweep measures."""
    whole = out.parent.parent / "reference.jsonl"
    if not whole.exists():
        run(FaultySensor((), GPU), whole)
    return list(observations.read(whole))


def test_a_lost_gpu_keeps_what_was_measured(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    lines, ended = run(FaultySensor([Fault(kind="gone", start_s=6.0)], GPU), out)
    assert not ended
    assert lines == ["The GPU's sensors stopped answering: GPU is lost."]
    assert len(list(observations.read(out))) >= 3


# kill -9 -----------------------------------------------------------------------------------------


def start(out: Path, how: str = "sleep", at: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, simulated_sweep.__file__, str(out), how, str(at)]
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603


@pytest.mark.parametrize("seed", range(4))
def test_a_sweep_that_is_killed_again_and_again_loses_nothing(tmp_path: Path, seed: int) -> None:
    whole = tmp_path / "whole.jsonl"
    undisturbed = start(whole)
    assert undisturbed.returncode == 0, undisturbed.stderr
    sleeps, lines = map(int, undisturbed.stdout.split())

    choose = random.Random(seed)  # noqa: S311 - when to kill, not a secret
    out, killed = tmp_path / "o.jsonl", 0
    while killed < 4:
        before = out.read_text() if out.exists() else ""
        how = choose.choice(("sleep", "line"))
        at = choose.randint(1, round(0.6 * (sleeps if how == "sleep" else lines)))
        ended = start(out, how, at)
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
        # A line that was finished stays as it is; one that was not is the last.
        assert out.read_text().startswith(before[: before.rfind("\n") + 1])
        if ended.returncode == 0:
            break
        killed += 1
    assert killed
    assert start(out).returncode == 0
    seen = list(observations.read(out))
    assert sorted(map(str, parts(seen))) == sorted(map(str, parts(list(observations.read(whole)))))
    assert max(map(worst_error, seen)) < 0.01


@pytest.mark.parametrize("line", [1, 5])
def test_a_line_that_a_kill_cut_is_measured_again(tmp_path: Path, line: int) -> None:
    out = tmp_path / "o.jsonl"
    assert start(out, "line", line).returncode == -signal.SIGKILL
    finished, cut = out.read_text().rsplit("\n", maxsplit=1) if line > 1 else ("", out.read_text())
    assert cut
    assert start(out).returncode == 0
    assert out.read_text().startswith(finished)
    seen = list(observations.read(out))
    assert len(set(parts(seen))) == len(parts(seen))
    assert len(parts(seen)) == len(parts(reference(out)))
    assert max(map(worst_error, seen)) < 0.01
