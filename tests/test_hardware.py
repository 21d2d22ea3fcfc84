import json
import math
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import pytest

from energymodel import hardware, io, profile
from energymodel.cli import main
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
    assert 2e11 < gpu.hbm_bytes_per_s < 5e13
    assert 5e10 < gpu.link_bytes_per_s < 5e12
    assert 1e6 < gpu.l2_bytes < 1e9
    assert 1e9 < gpu.max_sm_clock_hz < 3.5e9
    assert 30 < gpu.min_power_limit_w < gpu.power_limit_w < 2000
    assert 10 < gpu.sm_count < 300


def test_the_peak_of_the_h200_is_its_multiprocessors_at_boost() -> None:
    # 4 tensor cores x 512 multiply-adds in 16 bits a cycle = 4096 FLOP; the datasheet's rate is at
    # a boost clock of 1830 MHz, below the highest clock.
    gpu = hardware.load("h200")
    clock_hz = gpu.peak_flop_per_s["bfloat16"] / (gpu.sm_count * 4096)
    assert 0.9 * gpu.max_sm_clock_hz < clock_hz <= gpu.max_sm_clock_hz


@pytest.mark.parametrize("name", hardware.available())
def test_peaks_are_dense_and_fit_the_multiprocessors(name: str) -> None:
    # A multiprocessor does a power of two of FLOP a cycle, and half of that where numbers are
    # twice as wide: a slip in one rate, or sparsity in some of them, shows.
    gpu = hardware.load(name)
    peak = gpu.peak_flop_per_s
    flop_per_cycle = peak["bfloat16"] / (gpu.sm_count * gpu.max_sm_clock_hz)
    nearest = 2 ** math.ceil(math.log2(flop_per_cycle / 1.001))
    assert 0.8 * nearest < flop_per_cycle < 1.001 * nearest
    assert peak["bfloat16"] == peak["float16"]
    assert peak["tf32"] == pytest.approx(0.5 * peak["bfloat16"], rel=0.03)
    assert peak["float32"] < 0.5 * peak["bfloat16"]
    for narrow in {"fp8", "int8"} & set(peak):
        double = 2.0 * peak["bfloat16"]
        # Blackwell Ultra gave most of its int8 units away.
        assert peak[narrow] == pytest.approx(
            150e12 if (name, narrow) == ("b300", "int8") else double, rel=0.02
        )


@pytest.mark.parametrize(
    ("name", "flop_per_cycle"),
    [("h100", 4096), ("h100-pcie", 4096), ("a100-sxm-80gb", 2048), ("b200", 8192), ("l40s", 1024)],
)
def test_peaks_of_the_architectures(name: str, flop_per_cycle: int) -> None:
    # Whitepapers: what a multiprocessor does in a cycle in 16 bits, dense. Sheets with rates with
    # sparsity would be at twice that.
    gpu = hardware.load(name)
    most = gpu.sm_count * gpu.max_sm_clock_hz * flop_per_cycle
    assert 0.9 * most < gpu.peak_flop_per_s["bfloat16"] < 1.001 * most


def test_a_gpu_without_a_profile_is_refused_with_those_that_have_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bins = tmp_path / "bins.json"
    bins.write_text(
        '{"schema_version": 1, "bins": [{"input_tokens": 8, "output_tokens": 2, "count": 1}]}'
    )
    args = ["predict", "--model", "qwen3-8b", "--gpu", "h100", "--workload", str(bins)]
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert (
        err
        == f"energymodel: GPU 'h100' has no profile; profiles exist for: {', '.join(profile.available())}.\n"
    )


def test_gpus_says_which_have_a_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpus", "--json"]) == 0
    rows = {row["name"]: row["profile"] for row in json.loads(capsys.readouterr().out)["gpus"]}
    assert tuple(sorted(rows)) == hardware.available()
    assert {name for name, has in rows.items() if has} == set(profile.available())
    assert rows["h100"] is False


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
