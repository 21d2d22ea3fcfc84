"""Whole models on several GPUs: the energy of all of them, each on its own counter."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import models_zoo
from calibration import gpu
from calibration.engines.vllm import Run, run_record
from calibration.gpu import find_gpus
from calibration.measure import measure_all
from calibration.sensors import Sensor
from calibration.simulation.fabric import SteadySensor
from calibration.simulation.gpu import SimulatedGpu, SimulatedSensor
from calibration.verdict import WindowRefused
from calibration.watch_all import (
    GpuRun,
    WatchAll,
    all_reasons,
    mean_clock_hz,
    mean_temperature_c,
    total_memory_power_w,
)
from energymodel import io
from energymodel.deployment import Deployment
from energymodel.errors import InputError, WorkError
from energymodel.workload import Bin, Workload

MODEL = "Qwen/Qwen3-8B"
CONFIG: Mapping[str, Any] = models_zoo.find(MODEL) or {}
SHORT = Workload(bins=(Bin(input_tokens=128, output_tokens=1, count=2),))
TWO = [SimulatedSensor(SimulatedGpu(name="NVIDIA H200", board=b)) for b in ("a", "b")]


def gpu_run(board: str, energy_j: float, memory_power_w: float | None = 100.0) -> GpuRun:
    return GpuRun(
        board=board,
        energy_j=energy_j,
        sm_clock_hz=1e9 if board == "a" else 2e9,
        temperature_c=40.0 if board == "a" else 50.0,
        throttle_reasons=1 if board == "a" else 4,
        memory_power_w=memory_power_w,
    )


def test_every_counter_is_followed_and_the_energies_add_up() -> None:
    with WatchAll(
        [SteadySensor(power_w=100.0, board="a"), SteadySensor(power_w=250.0, board="b")]
    ) as watch:
        time.sleep(0.1)
        start = time.perf_counter()
        time.sleep(0.3)
        end = time.perf_counter()
        memory_power_w = watch.memory_power_w()
        watch.wait_for_tick(end)
    a, b = watch.runs(start, end, memory_power_w, 2)
    # The counter ticks every 20 ms, 7 % of this run.
    assert a.energy_j == pytest.approx(100.0 * (end - start) / 2, rel=0.08)
    assert b.energy_j == pytest.approx(250.0 * (end - start) / 2, rel=0.08)
    assert (a.board, b.board, a.memory_power_w) == ("a", "b", None)


def test_a_run_outside_the_ticks_of_one_gpu_is_refused() -> None:
    with WatchAll([SteadySensor(power_w=100.0, board="a")]) as watch:
        time.sleep(0.1)
    with pytest.raises(WindowRefused, match="did not move"):
        watch.runs(0.0, time.perf_counter() + 1.0, (None,), 1)


def test_sums_and_means_over_gpus() -> None:
    runs = (gpu_run("a", 10.0), gpu_run("b", 20.0))
    assert (mean_clock_hz(runs), mean_temperature_c(runs)) == (1.5e9, 45.0)
    assert (total_memory_power_w(runs), all_reasons(runs)) == (200.0, 5)
    assert total_memory_power_w((*runs, gpu_run("c", 1.0, None))) is None


class Engine:
    """Spends 100 J on each GPU."""

    def __init__(self, *_: object, max_model_len: int) -> None:
        assert max_model_len == 129

    def measure(self, _: Workload, *sensors: Sensor) -> Run:
        runs = tuple(gpu_run(s.identity().board, 100.0) for s in sensors)
        return Run(
            duration_s=1.0,
            energy_j=sum(r.energy_j for r in runs),
            repeats=3,
            sm_clock_hz=1.5e9,
            temperature_c=45.0,
            throttle_reasons=0,
            memory_power_w=200.0,
            step_s=(0.5,),
            gpus=runs if len(runs) > 1 else (),
        )

    def close(self) -> None:
        """Nothing is held."""


def test_lines_carry_every_gpu(tmp_path: Path) -> None:
    out = tmp_path / "runs.jsonl"
    deployment = Deployment(tensor_parallel_size=2)
    record = measure_all(
        MODEL, CONFIG, [SHORT], deployment=deployment, sensor=TWO[0], others=TWO[1:], out=out,
        start=Engine,
    )[0]  # fmt: skip
    assert record["energy_j"] == 200.0
    assert [g["board"] for g in record["gpus"]] == ["a", "b"]
    assert record["tensor_parallel_size"] == 2
    assert io.read_runs(out)[0].deployment == deployment


def test_one_gpu_needs_no_list_of_gpus() -> None:
    assert "gpus" not in run_record(
        MODEL, "h200", SHORT, Engine(max_model_len=129).measure(SHORT, TWO[0])
    )


@pytest.mark.parametrize(
    ("deployment", "message"),
    [
        (Deployment(tensor_parallel_size=4), "measured, 2, got 4"),
        (Deployment(), "measured, 2, got 1"),
        (Deployment(tensor_parallel_size=2, data_parallel_size=2), "data_parallel_size must be 1"),
    ],
)
def test_a_replica_whose_gpus_are_not_all_measured_is_refused(
    tmp_path: Path, deployment: Deployment, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        measure_all(
            MODEL, CONFIG, [SHORT], deployment=deployment, sensor=TWO[0], others=TWO[1:],
            out=tmp_path / "r.jsonl", start=Engine,
        )  # fmt: skip


# Finding the GPUs ------------------------------------------------------------------------------


class NVMLError(Exception):
    pass


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """NVML of a host with four GPUs; the last one is another product."""
    names = {f"GPU-{i}": "NVIDIA H200" for i in range(3)} | {"GPU-3": "NVIDIA A100-SXM4-80GB"}

    def known(uuid: str) -> str:
        if uuid not in names:
            raise NVMLError("Not Found")
        return uuid

    def nothing(*_: object) -> Any:
        raise NVMLError("Not Supported")

    fake = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_MEMORY_ERROR_TYPE_UNCORRECTED=1,
        NVML_VOLATILE_ECC=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 4,
        nvmlDeviceGetHandleByIndex=lambda i: f"GPU-{i}",
        nvmlDeviceGetHandleByUUID=known,
        nvmlDeviceGetUUID=lambda handle: handle,
        nvmlDeviceGetName=lambda handle: names[handle],
        nvmlDeviceGetMigMode=nothing,
        nvmlDeviceGetTotalEccErrors=nothing,
        nvmlDeviceGetTotalEnergyConsumption=lambda _: 1,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    made: list[str] = []
    monkeypatch.setattr(
        gpu,
        "NvmlSensor",
        lambda *, uuid: made.append(uuid) or SimpleNamespace(other_processes=tuple),
    )
    fake.made = made
    return fake


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, ["GPU-0", "GPU-1"]),
        ("2,1,0", ["GPU-2", "GPU-1"]),
        ("GPU-1, GPU-2", ["GPU-1", "GPU-2"]),
    ],
)
def test_gpus_are_those_that_cuda_shows_in_its_order(
    four: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, visible: str | None, found: list[str]
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert len(find_gpus("h200", 2)) == 2
    assert four.made == found


def test_too_few_gpus_and_other_gpus_are_refused(
    four: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="must be the GPU of this machine, NVIDIA A100"):
        find_gpus("h200", 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(WorkError, match="2 GPUs are needed, and CUDA shows 1 here"):
        find_gpus("h200", 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,GPU-9")
    with pytest.raises(WorkError, match="GPU GPU-9 of CUDA_VISIBLE_DEVICES cannot be used"):
        find_gpus("h200", 2)
