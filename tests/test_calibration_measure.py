import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import models_zoo
from calibration import measure as module
from calibration.engines import vllm
from calibration.engines.vllm import Run
from calibration.engines.vllm_speculative import DraftCounts
from calibration.measure import measure, measure_all
from calibration.sensors import Reading, Sensor
from calibration.simulation.gpu import SimulatedGpu, SimulatedSensor
from calibration.watch import Watcher
from calibration.window import WindowRefused
from energymodel import io
from energymodel.deployment import Deployment
from energymodel.errors import InputError, WorkError
from energymodel.workload import Bin, Workload

MODEL = "Qwen/Qwen3-8B"
CONFIG = models_zoo.find(MODEL) or {}
SHORT = Workload(bins=(Bin(input_tokens=128, output_tokens=1, count=2),))
LONG = Workload(
    bins=(
        Bin(input_tokens=2048, output_tokens=64, count=8),
        Bin(input_tokens=16, output_tokens=0, count=1),
    )
)
SENSOR = SimulatedSensor(SimulatedGpu(name="NVIDIA H200"))


class Engine:
    """Takes 1 s and 300 J for each request; fails where told."""

    def __init__(self, fails: Mapping[Workload, Exception]) -> None:
        self.fails = fails
        self.measured: list[Workload] = []
        self.closed = False

    def measure(self, workload: Workload, sensor: Sensor) -> Run:
        assert sensor is SENSOR
        self.measured.append(workload)
        if workload in self.fails:
            raise self.fails[workload]
        return Run(
            duration_s=workload.requests,
            energy_j=300.0 * workload.requests,
            repeats=3,
            sm_clock_hz=1.98e9,
            temperature_c=50.0,
            throttle_reasons=0,
            memory_power_w=None,
            step_s=(0.5, 0.25),
        )

    def close(self) -> None:
        self.closed = True


class Start:
    """Remembers what engines were started with."""

    def __init__(self, fails: Mapping[Workload, Exception] | None = None) -> None:
        self.engines: list[Engine] = []
        self.lengths: list[int] = []
        self._fails = fails or {}

    def __call__(self, *_: object, max_model_len: int) -> Engine:
        self.lengths.append(max_model_len)
        self.engines.append(Engine(self._fails))
        return self.engines[-1]


def run(out: Path, *workloads: Workload, **options: Any) -> list[dict[str, Any]]:
    given = {"deployment": Deployment(), "sensor": SENSOR, "start": Start()} | options
    return measure_all(MODEL, CONFIG, workloads, out=out, **given)


def test_lines_are_runs_of_the_contract(tmp_path: Path) -> None:
    out, start, lines = tmp_path / "runs.jsonl", Start(), []
    deployment = Deployment(max_num_seqs=64)
    records = run(out, SHORT, LONG, start=start, deployment=deployment, report=lines.append)
    assert [json.loads(line) for line in out.read_text().splitlines()] == records
    first, second = io.read_runs(out)
    assert (first.workload, second.workload) == (SHORT, LONG)
    assert first.deployment == deployment
    assert (first.model, first.gpu) == (MODEL, "h200")
    assert (second.duration_s, second.energy_j) == (9.0, 2700.0)
    assert records[0]["board"] == "simulated"
    assert records[0]["step_us"] == [500000, 250000]
    assert "max_num_batched_tokens" not in records[0]
    assert start.lengths == [2048 + 64]
    assert records[0]["max_model_len"] == 2112
    assert start.engines[0].closed
    assert lines[-1] == "8 x 2048+64 and 1 more bins: 2700 J in 9 s"


def test_known_runs_are_not_measured_again(tmp_path: Path) -> None:
    out = tmp_path / "runs.jsonl"
    run(out, SHORT)
    start = Start()
    records = run(out, LONG, SHORT, LONG, start=start)
    assert start.engines[0].measured == [LONG]
    assert [r["energy_j"] for r in records] == [2700.0, 600.0, 2700.0]
    start = Start()
    assert run(out, LONG, SHORT, start=start) == records[:2]
    assert start.engines == []
    other = run(out, SHORT, start=start, deployment=Deployment(max_num_seqs=8))
    assert other[0]["max_num_seqs"] == 8
    assert len(io.read_runs(out)) == 3


def test_a_killed_run_loses_only_its_own_line(tmp_path: Path) -> None:
    out = tmp_path / "runs.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(out, SHORT, LONG, start=Start({LONG: KeyboardInterrupt()}))
    assert [r.workload for r in io.read_runs(out)] == [SHORT]
    out.write_bytes(out.read_bytes() + b'{"model": "Qw')
    start = Start()
    run(out, SHORT, LONG, start=start)
    assert start.engines[0].measured == [LONG]
    assert len(io.read_runs(out)) == 2


def test_a_workload_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    out = tmp_path / "runs.jsonl"
    start = Start({SHORT: WindowRefused("The energy counter did not move around the run.")})
    with pytest.raises(WorkError, match=r"^1 of 2 .*; the first: 2 x 128\+1: The energy counter"):
        run(out, SHORT, LONG, start=start)
    assert [r.workload for r in io.read_runs(out)] == [LONG]
    assert start.engines[0].closed


ONLINE = Workload(bins=(Bin(input_tokens=1, output_tokens=1, requests_per_s=1.0),))
SEEING = Workload(bins=(Bin(input_tokens=1, output_tokens=1, count=1, images=1),))


@pytest.mark.parametrize(
    ("workloads", "options", "message"),
    [
        ([], {}, "at least one workload"),
        ([ONLINE], {}, "must have count"),
        ([SEEING], {}, "must not have images"),
        ([LONG], {"max_model_len": 2000}, "max_model_len must be at least 2,112"),
        (
            [SHORT],
            {"deployment": Deployment(engine="tgi")},
            "engine must be one of vllm, transformers",
        ),
        (
            [SHORT],
            {"deployment": Deployment(tensor_parallel_size=2)},
            "number of GPUs that are measured, 1, got 2",
        ),
        ([SHORT], {"deployment": Deployment(pipeline_parallel_size=2)}, "measured, 1, got 2"),
        ([SHORT], {"deployment": Deployment(power_limit_w=500)}, "700 W, got 500: "),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_engine_starts(
    tmp_path: Path, workloads: list[Workload], options: dict[str, Any], message: str
) -> None:
    start = Start()
    with pytest.raises(InputError, match=message):
        run(tmp_path / "runs.jsonl", *workloads, start=start, **options)
    assert start.engines == []


def test_a_power_limit_that_is_enforced_is_recorded(tmp_path: Path) -> None:
    records = run(tmp_path / "r.jsonl", SHORT, deployment=Deployment(power_limit_w=700.0))
    assert records[0]["power_limit_w"] == 700.0


def test_a_configuration_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model_type"):
        measure_all(
            "x", {"model_type": "nonesuch"}, [SHORT], deployment=Deployment(), sensor=SENSOR,
            out=tmp_path / "r.jsonl", start=Start(),
        )  # fmt: skip


def test_an_engine_that_does_not_start(tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> Engine:
        raise ValueError("No available memory for the cache blocks.\nTry something.")

    with pytest.raises(WorkError, match=r"^vLLM could not load Qwen/Qwen3-8B: No avail.*blocks\.$"):
        run(tmp_path / "r.jsonl", SHORT, start=fail)


def test_a_machine_without_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(WorkError, match="vLLM is not installed here: install it first"):
        measure(
            MODEL, CONFIG, SHORT, deployment=Deployment(), sensor=SENSOR, out=tmp_path / "r.jsonl"
        )


def test_one_workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "Engine", Start())
    monkeypatch.setattr(module, "find_spec", lambda _: True)
    out = tmp_path / "r.jsonl"
    record = measure(MODEL, CONFIG, SHORT, deployment=Deployment(), sensor=SENSOR, out=out)
    assert record == json.loads(out.read_text())


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    out.write_text('{"model": "x"}\n')
    with pytest.raises(InputError, match="line 1: gpu is missing"):
        run(out, SHORT)
    assert out.read_text() == '{"model": "x"}\n'


# The engine, without vLLM ----------------------------------------------------------------------


class RealTimeSensor(SimulatedSensor):
    """100 W and an energy counter that ticks every 20 ms of real time."""

    reasons = 0

    def energy_j(self) -> float:
        time.sleep(1e-3)
        return 2.0 * (time.perf_counter() // 0.02)

    def reading(self, time_s: float) -> Reading:
        return Reading(
            time_s=time_s, sm_clock_hz=1e9, temperature_c=50.0, throttle_reasons=self.reasons
        )

    def memory_power_w(self) -> float:
        return 40.0


class SleepingEngine(vllm.Engine):
    """Takes 10 ms for whatever it is asked."""

    def __init__(self) -> None:
        self.passes: list[int] = []
        self.deployment = Deployment()
        self._drafts = DraftCounts()
        self._waited_s = []

    def prepare(self, workload: Workload, seed: int) -> vllm.Requests:
        prompt = {"prompt_token_ids": [seed] * workload.bins[0].input_tokens}
        return [prompt] * 2, [None] * 2

    def generate(self, requests: vllm.Requests, places: Sequence[int] = ()) -> tuple[float, ...]:
        assert not places
        self.passes.append(len(requests[0]))
        time.sleep(0.01)
        return (0.01,)


@pytest.fixture
def short_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "WARM_S", 0.15)
    monkeypatch.setattr(Watcher, "QUIET_S", 0.01)


@pytest.mark.usefixtures("short_warmup")
def test_the_engine_measures_whole_passes() -> None:
    run = SleepingEngine().measure(SHORT, RealTimeSensor(), min_run_s=0.3)
    assert run.repeats > 5
    assert run.duration_s * run.repeats == pytest.approx(0.3, abs=0.1)
    assert run.energy_j / run.duration_s == pytest.approx(100.0, rel=0.1)
    assert run.step_s == (0.01,)
    assert run.memory_power_w == 40.0


@pytest.mark.usefixtures("short_warmup")
def test_the_engine_refuses_runs_that_were_too_hot() -> None:
    sensor = RealTimeSensor()
    sensor.reasons = 0x40
    with pytest.raises(WindowRefused, match="thermal"):
        SleepingEngine().measure(SHORT, sensor, min_run_s=0.1)


@pytest.mark.usefixtures("short_warmup")
def test_the_engine_refuses_a_counter_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RealTimeSensor, "energy_j", lambda _: time.sleep(1e-3) or 1.0)
    monkeypatch.setattr(Watcher, "wait_for_tick", lambda *_: None)
    with pytest.raises(WindowRefused, match="did not move"):
        SleepingEngine().measure(SHORT, RealTimeSensor(), min_run_s=0.1)


def test_weights_are_redrawn_and_norms_kept_at_one() -> None:
    model = torch.nn.ModuleDict(
        {"linear": torch.nn.Linear(256, 256), "norm": torch.nn.LayerNorm(256, bias=False)}
    )
    for parameter in model.parameters():
        parameter.data.zero_()
    vllm.redraw_weights(model)
    assert model["linear"].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert bool((model["norm"].weight == 1.0).all())


def test_narrow_weights_are_redrawn_over_their_range() -> None:
    weight = torch.zeros(64, 64, dtype=torch.float8_e4m3fn)
    vllm.redraw_weights(torch.nn.ParameterDict({"w": torch.nn.Parameter(weight, False)}))
    assert weight.float().std().item() == pytest.approx(448 / 4.5, rel=0.1)


def test_narrow_weights_and_their_scales_make_the_usual_deviation() -> None:
    # vLLM keeps fp8 weights transposed.
    weight = torch.zeros(128, 64, dtype=torch.float8_e4m3fn).t()
    module = torch.nn.ParameterDict(
        {
            "weight": torch.nn.Parameter(weight, False),
            "weight_scale": torch.nn.Parameter(torch.ones(1), False),
        }
    )
    vllm.redraw_weights(module)
    values = module["weight"].float() * module["weight_scale"]
    assert values.std().item() == pytest.approx(0.02, rel=0.05)
    assert bool(torch.isfinite(values).all())


def test_calibration_is_importable_without_torch_vllm_and_nvml() -> None:
    modules = ("gpu", "measure", "sweep", "simulation.gpu", "observations", "grid", "engines.vllm")
    lines = [
        "import sys",
        "sys.modules.update(dict.fromkeys(['torch', 'vllm', 'pynvml']))",
        *(f"import calibration.{name}" for name in modules),
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)  # noqa: S603 - our own
