import json
from dataclasses import asdict
from importlib import resources

import pytest

from energymodel import hardware, io
from energymodel.errors import InputError
from energymodel.hardware import GpuSpec


@pytest.mark.parametrize("name", hardware.available())
def test_every_datasheet_is_plausible(name: str) -> None:
    gpu = hardware.load(name)
    assert gpu.name == name == name.lower()
    assert gpu.full_name.startswith("NVIDIA ")
    assert len(gpu.source) > 20
    assert {"bfloat16", "float16"} <= set(gpu.peak_flop_per_s)
    # SI units: a slip of a thousand shows.
    assert 1e13 < gpu.peak_flop_per_s["bfloat16"] < 1e16
    assert 1e10 < gpu.hbm_bytes < 1e12
    assert 5e11 < gpu.hbm_bytes_per_s < 5e13
    assert 1e6 < gpu.l2_bytes < 1e9
    assert 1e9 < gpu.max_sm_clock_hz < 3e9
    assert 50 < gpu.min_power_limit_w < gpu.power_limit_w < 2000
    assert 10 < gpu.sm_count < 300


def test_the_peak_of_the_h200_is_its_multiprocessors_at_boost() -> None:
    # 4 tensor cores x 512 multiply-adds in 16 bits a cycle = 4096 FLOP; the datasheet's rate is at
    # a boost clock of 1830 MHz, below the highest clock.
    gpu = hardware.load("h200")
    clock_hz = gpu.peak_flop_per_s["bfloat16"] / (gpu.sm_count * 4096)
    assert 0.9 * gpu.max_sm_clock_hz < clock_hz <= gpu.max_sm_clock_hz


def test_case_does_not_matter() -> None:
    assert hardware.load("H200") == hardware.load("h200")


@pytest.mark.parametrize("name", ["b9000", "", "../h200", "h200.json"])
def test_an_unknown_gpu_is_refused_with_those_that_exist(name: str) -> None:
    with pytest.raises(InputError, match=rf"'{name}' is unknown; known are: .*h200"):
        hardware.load(name)


def test_a_datasheet_survives_json() -> None:
    gpu = hardware.load("h200")
    again = io.convert(io.parse_json(io.dumps(gpu), "text"), GpuSpec, "text")
    assert again == gpu


def test_a_missing_fact_is_named() -> None:
    for field in GpuSpec.__dataclass_fields__:
        facts = {k: v for k, v in asdict(hardware.load("h200")).items() if k != field}
        with pytest.raises(InputError, match=f"{field} is missing"):
            io.convert(facts, GpuSpec, "gpu.json")


def test_the_files_hold_nothing_else() -> None:
    for name in hardware.available():
        text = resources.files("energymodel").joinpath("gpus", f"{name}.json").read_text()
        assert set(json.loads(text)) == set(GpuSpec.__dataclass_fields__)
