"""The real thing; run with ``pytest -m gpu`` on a machine with an NVIDIA GPU."""

from pathlib import Path

import pytest

from calibration import observations
from calibration.gpu import find_gpu, gpu_key
from calibration.grid import Point
from calibration.sensors import NvmlSensor
from calibration.sweep import sweep
from energymodel.errors import WorkError

pytestmark = pytest.mark.gpu


@pytest.fixture
def sensor() -> NvmlSensor:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    try:
        return find_gpu()
    except WorkError as error:
        pytest.skip(str(error))


def test_the_sensor_answers_within_reason(sensor: NvmlSensor) -> None:
    identity = sensor.identity()
    assert gpu_key(identity.gpu_name)
    assert 30 < identity.power_limit_w < 2000
    assert 0.5e9 < identity.max_sm_clock_hz < 4e9
    assert 10 < sensor.reading(0.0).temperature_c < 95
    memory_power_w = sensor.memory_power_w()
    assert memory_power_w is None or 5 < memory_power_w < 500


def test_one_product_end_to_end(sensor: NvmlSensor, tmp_path: Path) -> None:
    point = Point(op="gemm", shape={"m": 4096, "n": 14336, "k": 4096}, duties=(1.0, 0.2))
    out, lines = tmp_path / "o.jsonl", []
    assert sweep([point], sensor, out, budget_s=120, report=lines.append) == 1
    assert lines == []
    by_mode = {o.mode: o for o in observations.read(out)}
    assert set(by_mode) == {"idle", "burst", "sustained", "duty"}
    flop = 2 * 4096 * 14336 * 4096
    limit_w, full_hz = sensor.identity().power_limit_w, sensor.identity().max_sm_clock_hz
    powers = {}
    for mode, o in by_mode.items():
        if mode == "burst":
            continue
        assert o.energy_j is not None
        assert o.duration_s is not None
        powers[mode] = o.energy_j / o.duration_s
    assert 10 < powers["idle"] < powers["duty"] < powers["sustained"] < 1.05 * limit_w
    # Between a tenth and a hundred picojoules each FLOP on any GPU that runs bf16 products.
    sustained, duty = by_mode["sustained"], by_mode["duty"]
    assert sustained.calls is not None
    assert 0.1e-12 < (sustained.energy_j or 0) / (sustained.calls * flop) < 100e-12
    assert (duty.busy_s or 0) / (duty.duration_s or 1) == pytest.approx(0.2, rel=0.1)
    assert (duty.sm_clock_hz or 0) > 0.9 * full_hz
    assert by_mode["burst"].call_s <= 1.02 * sustained.call_s
