import json
from pathlib import Path

import pytest

from calibration.clock import VirtualClock
from calibration.recording import RecordingSensor, ReplaySensor, read
from calibration.simulation.gpu import SimulatedGpu, SimulatedOp, SimulatedSensor
from calibration.watch import Trace, Watcher
from calibration.window import Window, WindowRefused, steady_window
from energymodel.errors import InputError, WorkError

MATRIX = SimulatedOp(time_s=615e-6, power_w=850.0)
STREAM = SimulatedOp(time_s=20e-6, power_w=300.0, clock_bound=0.1, memory_share=0.5)


def record_window(path: Path, op: SimulatedOp, *, duty: float = 1.0, **gpu: float) -> Window:
    sensor = SimulatedSensor(SimulatedGpu(**gpu))  # type: ignore[arg-type]
    sensor.clock.sleep(3.217)  # a recording may begin at any time of its clock
    recording = RecordingSensor(sensor, path, sensor.clock)
    work = recording.work(sensor.work(op))
    # Longer than what is asked of the replay, which may need the next update.
    return steady_window(
        recording, work, settle_s=0.35, min_ticks=14, duty=duty, clock=sensor.clock
    )


def replay_window(path: Path, *, duty: float = 1.0) -> Window:
    clock = VirtualClock()
    sensor = ReplaySensor(path, clock)
    return steady_window(sensor, sensor.work(), settle_s=0.35, duty=duty, clock=clock)


@pytest.mark.parametrize(
    ("op", "duty", "gpu"),
    [
        (MATRIX, 1.0, {}),
        (MATRIX, 0.4, {}),
        (STREAM, 1.0, {}),
        (MATRIX, 1.0, {"tick_jitter_s": 5e-3, "counter_noise_j": 0.05, "seed": 3}),
        (STREAM, 0.5, {"energy_read_s": 6e-3, "tick_s": 0.095}),
    ],
)
def test_a_window_can_be_evaluated_again(
    op: SimulatedOp, duty: float, gpu: dict[str, float], tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl"
    first = record_window(path, op, duty=duty, **gpu)
    again = replay_window(path, duty=duty)
    assert again.ticks >= 10
    assert again.energy_j / again.calls == pytest.approx(first.energy_j / first.calls, rel=5e-3)
    power_w = first.energy_j / first.duration_s
    assert again.energy_j / again.duration_s == pytest.approx(power_w, rel=5e-3)
    assert again.call_s == pytest.approx(first.call_s, rel=1e-3)
    assert again.sm_clock_hz == pytest.approx(first.sm_clock_hz, rel=5e-3)
    assert again.memory_power_w == pytest.approx(first.memory_power_w, rel=0.02)
    assert again.throttle_reasons == first.throttle_reasons
    assert replay_window(path, duty=duty) == again


def watch(sensor: SimulatedSensor | RecordingSensor | ReplaySensor, clock: VirtualClock) -> Trace:
    with Watcher(sensor, clock) as trace:
        clock.sleep(2.0)
    return trace


def test_a_watcher_sees_the_same_energies_again(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    sensor = SimulatedSensor(SimulatedGpu(tick_jitter_s=3e-3, counter_noise_j=0.1))
    sensor.work(MATRIX).submit()
    seen = watch(RecordingSensor(sensor, path, sensor.clock), sensor.clock)
    clock = VirtualClock()
    again = watch(ReplaySensor(path, clock), clock)
    # The same energies at the same moments, give or take a read.
    shared = min(len(seen.tick_j), len(again.tick_j))
    assert shared >= 18
    assert again.tick_j[:shared] == seen.tick_j[:shared]
    for a, b in zip(again.tick_s[:shared], seen.tick_s[:shared], strict=True):
        assert a == pytest.approx(b, abs=8e-3)


def test_identity_and_all_else_come_back(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    sensor = SimulatedSensor()
    sensor.other_processes = lambda: (17,)  # type: ignore[method-assign]
    recording = RecordingSensor(sensor, path, sensor.clock)
    asked = (
        recording.identity(),
        recording.other_processes(),
        recording.faults(),
        recording.memory_power_w(),
        recording.reading(0.0),
    )
    replay = ReplaySensor(path, VirtualClock())
    assert asked == (
        sensor.identity(),
        (17,),
        0,
        sensor.memory_power_w(),
        sensor.reading(0.0),
    )
    assert asked == (
        replay.identity(),
        replay.other_processes(),
        replay.faults(),
        replay.memory_power_w(),
        replay.reading(0.0),
    )
    assert replay.reading(1.5).time_s == 1.5
    with pytest.raises(WorkError, match="holds no read of the energy counter"):
        replay.energy_j()
    with pytest.raises(WorkError, match="holds no work"):
        replay.work()


def test_answers_are_the_last_ones_before_the_moment(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    lines = [
        {"call": "memory_power_w", "begun_s": t, "ended_s": t, "value": v}
        for t, v in ((10.0, 1.0), (11.0, None), (12.0, 3.0))
    ]
    lines += [
        {"call": "energy_j", "begun_s": t, "ended_s": t + 0.01, "value": v}
        for t, v in ((10.0, 5.0), (10.1, 5.0), (10.2, 9.0))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    clock = VirtualClock()
    replay = ReplaySensor(path, clock)
    assert replay.memory_power_w() == 1.0
    assert replay.energy_j() == 5.0
    assert clock.now() == pytest.approx(0.01)  # a read takes as long as it did
    clock.sleep_until(0.16)  # the counter advanced at 0.155, between the middles of two reads
    assert replay.energy_j() == 9.0
    clock.sleep_until(1.2)
    assert replay.memory_power_w() is None
    clock.sleep_until(50.0)
    assert (replay.memory_power_w(), replay.energy_j()) == (3.0, 9.0)


def test_a_window_longer_than_the_recording_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    record_window(path, MATRIX)
    clock = VirtualClock()
    sensor = ReplaySensor(path, clock)
    with pytest.raises((WorkError, WindowRefused)):
        steady_window(sensor, sensor.work(), settle_s=0.35, min_ticks=30, clock=clock)


class LostSensor(SimulatedSensor):
    def energy_j(self) -> float:
        if self.clock.now() > 0.8:
            raise OSError("GPU is lost")
        return super().energy_j()


def test_a_lost_gpu_is_lost_again(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    sensor = LostSensor()
    with pytest.raises(WorkError, match="GPU is lost"):
        watch(RecordingSensor(sensor, path, sensor.clock), sensor.clock)
    clock = VirtualClock()
    replay = ReplaySensor(path, clock)
    assert replay.energy_j() >= 0
    with pytest.raises(WorkError, match="GPU is lost"):
        watch(replay, clock)
    assert clock.now() > 0.7


# File --------------------------------------------------------------------------------------------


def test_a_truncated_last_line_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    record_window(path, MATRIX)
    whole = read(path)
    text = path.read_text()
    for cut in (1, 5, 30):
        path.write_text(text[:-cut])
        assert sum(map(len, read(path).values())) >= sum(map(len, whole.values())) - 1
    path.write_text(text[:-30])
    RecordingSensor(SimulatedSensor(), path, VirtualClock()).faults()  # and can be continued
    assert read(path)["faults"][-1].value == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no call"),
        ("nonsense\n{}\n", "line 1: must be a recorded call"),
        ('{"call": "faults"}\n{}\n', "line 1: must be a recorded call"),
        ('[]\n{"call": "faults"}\n', "line 1"),
    ],
)
def test_other_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read(path)
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none.jsonl")


# Against another program -------------------------------------------------------------------------


@pytest.mark.gpu
def test_zeus_measures_the_same_energy() -> None:
    """Zeus reads the same counter at arbitrary moments; over seconds they agree to a few percent."""
    monitor = pytest.importorskip("zeus.monitor", reason="zeus is not installed")
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    from calibration.gpu import find_gpu
    from calibration.replay import clocks_up

    sensor = find_gpu()
    zeus = monitor.ZeusMonitor(gpu_indices=[torch.cuda.current_device()])
    work = clocks_up()
    zeus.begin_window("ours")
    window = steady_window(sensor, work, settle_s=0.3, min_ticks=40)
    theirs = zeus.end_window("ours")
    ours_w = window.energy_j / window.duration_s
    assert theirs.total_energy / theirs.time == pytest.approx(ours_w, rel=0.05)
