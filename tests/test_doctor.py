import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doctor_builders import (
    CONTEXT_W,
    IDLE_W,
    LOAD_W,
    MEMORY_W,
    Board,
    fake_nvml,
    streaming_on,
    works_on,
)

from calibration import doctor, gpu
from calibration.clock import VirtualClock
from calibration.doctor import GpuReport, Report, examine
from calibration.doctor.load import Works
from energymodel import commands_doctor
from energymodel.cli import main
from energymodel.commands_common import emit
from energymodel.errors import InputError, WorkError
from energymodel.profile import load


def examined(*boards: Board, root: Path = Path("/nonexistent"), **how: Any) -> Report:
    clock = boards[0].clock
    for board in boards:
        board.clock = clock
    works = works_on(list(boards))
    return examine(fake_nvml(list(boards)), clock=clock, root=root, **{"works": works} | how)


@pytest.fixture(scope="module")
def healthy() -> Report:
    return examined(Board())


@pytest.fixture(scope="module")
def patient(healthy: Report) -> GpuReport:
    return healthy.gpus[0]


def said(report: Report, level: str) -> list[str]:
    return [f.what for f in report.findings if f.level == level]


# A healthy GPU -----------------------------------------------------------------------------------


def test_a_healthy_gpu_is_trustworthy(healthy: Report) -> None:
    assert [g.verdict for g in healthy.gpus] == ["trustworthy"]
    assert said(healthy, "problem") == said(healthy, "warning") == []
    assert any("the whole GPU is ours" in what for what in said(healthy, "ok"))


def test_facts_are_in_si(patient: GpuReport) -> None:
    facts = patient.facts
    assert (facts.index, facts.name, facts.gpu) == (0, "NVIDIA H200", "h200")
    assert facts.board == hashlib.sha256(b"GPU-aaaa").hexdigest()[:12]
    assert (facts.power_limit_w, facts.default_power_limit_w) == (700.0, 700.0)
    assert (facts.min_power_limit_w, facts.max_power_limit_w) == (200.0, 700.0)
    assert (facts.sm_clock_hz, facts.max_sm_clock_hz) == (1.98e9, 1.98e9)
    assert (facts.temperature_c, facts.slowdown_temperature_c) == (33.0, 89.0)
    assert (facts.mig, facts.ecc, facts.persistence) == (False, True, True)
    assert facts.other_pids == ()
    assert facts.refused == {}


def test_the_declared_sensors_come_back(patient: GpuReport) -> None:
    counter = patient.sensors["energy_counter"]
    assert counter.update_period_s == pytest.approx(0.1, rel=0.01)
    assert counter.read_median_s == pytest.approx(4e-3, rel=0.01)
    assert counter.smallest_step_j == pytest.approx(IDLE_W * 0.1, abs=1e-6)
    assert (counter.quantum_w, counter.smallest_step_w) == (None, None)
    instant = patient.sensors["power_instant"]
    assert instant.update_period_s == pytest.approx(0.1, rel=0.01)
    assert instant.quantum_w == pytest.approx(0.1)
    assert instant.rise_s == pytest.approx(0.1, abs=0.02)
    for name in ("power_usage", "power_average"):
        assert patient.sensors[name].rise_s == pytest.approx(0.8, abs=0.1)
    samples = patient.sensors["power_samples"]
    assert samples.supported
    assert samples.update_period_s == pytest.approx(0.02, rel=0.01)


@pytest.mark.parametrize("how", [{"period_s": 0.05}, {"read_s": 6e-3}, {"mean_over_s": 0.5}])
def test_other_sensors_are_seen_as_they_are(how: dict[str, float]) -> None:
    board = Board(**how)  # type: ignore[arg-type]
    [found] = examined(board).gpus
    counter, usage = found.sensors["energy_counter"], found.sensors["power_usage"]
    assert counter.update_period_s == pytest.approx(board.period_s, rel=0.02)
    assert counter.read_median_s == pytest.approx(board.read_s, rel=0.01)
    assert usage.rise_s == pytest.approx(0.8 * board.mean_over_s, abs=0.1)


def test_power_in_each_state(patient: GpuReport) -> None:
    assert [p.state for p in patient.phases] == ["no context", "context", "load"]
    for phase, power_w in zip(patient.phases, (IDLE_W, CONTEXT_W, LOAD_W), strict=True):
        assert phase.counter_power_w == pytest.approx(power_w, rel=1e-3)
        assert phase.power_instant_w == pytest.approx(power_w, rel=5e-3)
        assert phase.power_samples_w == pytest.approx(power_w, rel=5e-3)
        assert phase.power_usage_w == pytest.approx(power_w, rel=5e-3)
        assert phase.memory_power_w == pytest.approx(MEMORY_W)
        assert abs(phase.samples_deviation or 1) < 5e-3
        assert abs(phase.instant_deviation or 1) < 5e-3


def test_it_takes_half_a_minute_and_a_quick_one_seconds() -> None:
    for how, limit_s in (({}, 25.0), ({"works": None}, 5.0)):
        board = Board()
        assert examined(board, **how).gpus[0].verdict == "trustworthy"
        assert board.clock.now() < limit_s


def test_averaged_readings_are_named_as_such(healthy: Report) -> None:
    means = [what for what in said(healthy, "note") if "is a mean over about 1.0 s" in what]
    assert len(means) == 2


USUAL, OTHER = (kind.byte_j.value for kind in load("h200").memory)


@pytest.mark.parametrize(("byte_j", "level"), [(USUAL, "ok"), (OTHER, "note"), (9 * USUAL, "note")])
def test_what_a_byte_costs_in_the_memory(byte_j: float, level: str) -> None:
    board, what = Board(), f"a byte costs {byte_j * 1e12:.0f} pJ in the memory"
    report = examined(board, works=streaming_on(board, byte_j))
    assert report.gpus[0].memory_byte_j == pytest.approx(byte_j, rel=0.02)
    assert what in said(report, level)
    remedies = [f.remedy for f in report.findings if "pJ in the memory" in f.what]
    assert (remedies[0] is None) == (level == "ok")


@pytest.mark.parametrize("byte_j", [0.0, -2e-12, 1e-6])
def test_a_sensor_that_does_not_follow_the_copy_prices_nothing(byte_j: float) -> None:
    board = Board()
    report = examined(board, works=streaming_on(board, byte_j))
    assert report.gpus[0].memory_byte_j is None
    assert not any("--hbm-byte-j" in (f.remedy or "") for f in report.findings)


def test_without_the_memory_sensor_no_byte_is_priced() -> None:
    board = Board(broken={"field 185 2": "not supported"})
    report = examined(board, works=streaming_on(board, 3e-11))
    assert report.gpus[0].memory_byte_j is None
    assert report.gpus[0].verdict == "trustworthy"


# What is wrong with a GPU ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "verdict", "what"),
    [
        ({"mig": 1}, "not usable", "MIG is on"),
        ({"pids": (17, 4)}, "not usable", "other processes compute on it: pid 4, 17"),
        ({"ecc": (0, 2)}, "not usable", "2 uncorrected memory errors"),
        ({"ecc": (3, 0)}, "trustworthy", "3 corrected memory errors"),
        ({"remapped": (0, 0, 0, 1)}, "not usable", "could not be remapped"),
        ({"remapped": (0, 1, 1, 0)}, "with care", "waits to be retired or remapped"),
        ({"remapped": (1, 1, 0, 0)}, "trustworthy", "2 memory rows or pages"),
        ({"limit_mw": 500_000}, "with care", "500 W, below the default of 700 W"),
        ({"persistence": 0}, "trustworthy", "persistence mode is off"),
        ({"reasons": 0x20}, "with care", "software thermal slowdown"),
        ({"reasons": 0x80}, "with care", "the board lowered its clock (load)"),
        ({"sm_mhz": 1200}, "with care", "stays at 1200 of 1980 MHz without load"),
        ({"used_bytes": 60e9}, "with care", "40 % of its memory is used"),
        ({"utilization": 50}, "with care", "50 % busy"),
        ({"counter_gain": 1.2}, "with care", "-16.7 % off the counter"),
        ({"counter_gain": 1.05}, "trustworthy", "-4.8 % off the counter"),
        ({"counter_gain": 0.0}, "not usable", "the energy counter does not advance"),
        ({"counter_gain": -1.0}, "not usable", "the energy counter went back"),
        ({"period_s": 0.5}, "with care", "advances every 500 ms"),
        ({"stops_s": 2.0}, "not usable", "stopped answering: GPU is lost"),
        ({"name": "NVIDIA B9000"}, "trustworthy", "no data sheet for NVIDIA B9000"),
    ],
)
def test_what_spoils_a_measurement_is_found(how: dict[str, Any], verdict: str, what: str) -> None:
    report = examined(Board(**how))
    assert report.gpus[0].verdict == verdict
    [found] = [f for f in report.findings if what in f.what][:1]
    assert found.gpu == 0
    assert found.level == {"not usable": "problem", "with care": "warning"}.get(verdict, "note")


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [("Not Supported", "Volta"), ("Insufficient Permissions", "ask for access")],
)
def test_a_counter_that_cannot_be_read(reason: str, remedy: str) -> None:
    report = examined(Board(broken={"nvmlDeviceGetTotalEnergyConsumption": reason}))
    [problem] = [f for f in report.findings if f.level == "problem"]
    assert reason in problem.what
    assert remedy in (problem.remedy or "")
    assert report.gpus[0].verdict == "not usable"
    assert not report.gpus[0].sensors["energy_counter"].supported
    # Without the counter the other sensors are examined all the same.
    assert report.gpus[0].phases[0].power_instant_w == pytest.approx(IDLE_W, rel=0.01)


def test_sensors_that_are_missing_are_notes() -> None:
    missing = {"field 186 0": "", "field 185 2": "", "nvmlDeviceGetSamples": "Not Supported"}
    report = examined(Board(broken=missing))
    assert report.gpus[0].verdict == "trustworthy"
    notes = said(report, "note")
    for label in ("no instantaneous power: error 3", "no power of the memory", "no power samples"):
        assert any(label in note for note in notes), label
    assert report.gpus[0].phases[0].memory_power_w is None


def test_every_nvml_function_may_fail_alone_or_with_all_others() -> None:
    nvml = fake_nvml([Board()])
    names = [name for name in vars(nvml) if name.startswith("nvmlDeviceGet")]
    functions = [n for n in names if n not in ("nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex")]
    assert len(functions) > 25
    for broken in [*({name: "Unknown Error"} for name in functions), dict.fromkeys(functions, "x")]:
        report = examined(Board(broken=broken), works=None)
        assert json.loads(json.dumps(commands_doctor.document(report)))["gpus"]
        [name] = [*broken] if len(broken) == 1 else ["nvmlDeviceGetName"]
        sensors = ("TotalEnergy", "PowerUsage", "FieldValues", "Samples")
        if not any(word in name for word in sensors):
            assert broken[name] == report.gpus[0].facts.refused[name]


def test_functions_that_a_binding_lacks_are_missing_facts() -> None:
    nvml, clock = fake_nvml([board := Board()]), VirtualClock()
    board.clock = clock
    del nvml.nvmlDeviceGetCurrentClocksEventReasons
    del nvml.nvmlDeviceGetRemappedRows
    nvml.nvmlDeviceGetCurrentClocksThrottleReasons = lambda _: 0x4
    [found] = examine(nvml, works=None, clock=clock, root=Path("/nonexistent")).gpus
    assert found.facts.throttle_reasons == ("power limit",)
    assert found.facts.remap_failed is None


# Load --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"mig": 1}, {"pids": (17,)}])
def test_others_are_not_disturbed(how: dict[str, Any]) -> None:
    board = Board(**how)
    report = examined(board)
    assert [p.state for p in report.gpus[0].phases] == ["no context"]
    assert any("not examined under load" in what for what in said(report, "note"))
    assert len(board.steps) == 1


def test_without_torch_the_rest_is_examined() -> None:
    def works(_: str) -> Works:
        raise WorkError("it needs torch")

    report = examined(Board(), works=works)
    assert report.gpus[0].verdict == "trustworthy"
    assert "not examined under load: it needs torch" in said(report, "note")


def test_work_that_fails_under_way_is_a_note() -> None:
    board = Board()

    def works(uuid: str) -> Works:
        good = works_on([board])(uuid)

        def submit() -> Callable[[], float]:
            raise RuntimeError("CUDA out of memory")

        return Works(context=good.context, load=type(good.load)(submit=submit, calls_per_chunk=1))

    report = examined(board, works=works)
    assert "not examined under load: CUDA out of memory" in said(report, "note")
    assert [p.state for p in report.gpus[0].phases][:2] == ["no context", "context"]


# Several GPUs ------------------------------------------------------------------------------------


def test_all_gpus_are_looked_at_before_any_context_is_made() -> None:
    boards = [Board(), Board(uuid="GPU-bbbb", name="NVIDIA H100 PCIe", mig=1)]
    report = examined(*boards)
    assert [g.facts.gpu for g in report.gpus] == ["h200", "h100-pcie"]
    assert [g.verdict for g in report.gpus] == ["trustworthy", "not usable"]
    assert {f.gpu for f in report.findings if f.level == "problem"} == {1}


def test_one_of_several() -> None:
    boards = [Board(), Board(uuid="GPU-bbbb", name="NVIDIA L4")]
    assert [g.facts.gpu for g in examined(*boards, index=1).gpus] == ["l4"]
    with pytest.raises(InputError, match="--gpu-index must be below 2"):
        examined(*boards, index=2)


def test_a_gpu_that_does_not_answer_leaves_the_others() -> None:
    boards = [Board(), Board(uuid="GPU-bbbb")]
    nvml = fake_nvml(boards)
    boards[1].clock = boards[0].clock

    def by_index(index: int) -> Board:
        if index == 0:
            raise nvml.NVMLError("GPU is lost")
        return boards[index]

    nvml.nvmlDeviceGetHandleByIndex = by_index
    report = examine(nvml, works=None, clock=boards[0].clock, root=Path("/nonexistent"))
    assert [g.facts.index for g in report.gpus] == [1]
    assert said(report, "problem") == ["GPU 0 does not answer: GPU is lost"]


# Command -----------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Board:
    """The command runs on a simulated board."""
    board = Board()

    def on_this_machine(index: int | None, *, quick: bool, say: Callable[[str], None]) -> Report:
        works = None if quick else works_on([board])
        root = Path("/nonexistent")
        return examine(
            fake_nvml([board]), index, works=works, clock=board.clock, root=root, say=say
        )

    monkeypatch.setattr(doctor, "examine_this_machine", on_this_machine)
    return board


def test_json_is_one_document(machine: Board, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert set(document) == {"schema_version", "host", "gpus", "findings"}
    [found] = document["gpus"]
    assert (found["verdict"], found["name"], found["gpu"]) == ("trustworthy", machine.name, "h200")
    assert set(found["sensors"]) == {
        "energy_counter", "power_instant", "power_usage", "power_average", "power_samples",
        "memory_power",
    }  # fmt: skip
    assert [p["state"] for p in found["phases"]] == ["no context", "context", "load"]
    for finding in document["findings"]:
        assert set(finding) == {"level", "what", "meaning", "remedy", "gpu"}
        assert finding["level"] in ("ok", "note", "warning", "problem")
    assert "aaaa" not in out + err
    assert "GPU 0, NVIDIA H200: at rest" in err


def test_the_table_fits_eighty_columns(machine: Board, capsys: pytest.CaptureFixture[str]) -> None:
    machine.limit_mw = 500_000
    assert main(["doctor", "--gpu-index", "0"]) == 0
    out, _ = capsys.readouterr()
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "GPU 0: NVIDIA H200 (h200)" in out
    assert "with care" in out
    assert "Remedy: nvidia-smi -pl 700" in " ".join(out.split())
    assert "aaaa" not in out


def test_hostile_names_do_not_reach_the_terminal(
    machine: Board, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.name = "NVIDIA \x1b]0;owned\x07"
    assert main(["doctor", "--quick"]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert machine.clock.now() < 5.0


def test_the_table_of_a_gpu_of_which_nothing_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    nvml = fake_nvml([Board()])
    functions = [name for name in vars(nvml) if name.startswith("nvmlDeviceGet")]
    report = examined(Board(broken=dict.fromkeys(functions, "Unknown Error")), works=None)
    emit(commands_doctor.show(report))
    assert "unknown GPU" in capsys.readouterr().out
    assert report.gpus[0].verdict == "not usable"


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_machine_without_nvml_or_gpu(
    as_json: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert main(["doctor", *as_json]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "NVML" in err
    nvml = fake_nvml([])
    nvml.nvmlInit = lambda: None
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert main(["doctor", *as_json]) == 1
    assert "this machine shows none" in capsys.readouterr().err


def test_torch_works_refuse_a_gpu_that_torch_does_not_see() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(WorkError, match="torch does not see this GPU"):
        doctor.torch_works("GPU-aaaa")
    assert gpu.torch_device_uuid() is None
