"""The real thing; run with ``pytest -m gpu`` on a machine with an NVIDIA GPU."""

from pathlib import Path

import pytest

from calibration import observations
from calibration.gpu import find_gpu, gpu_key
from calibration.grid import Point
from calibration.sensors import NvmlSensor
from calibration.sweep import MOST_TRIALS, TRIALS, sweep
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
    written = sweep([point], sensor, out, budget_s=120, report=lines.append)
    assert lines == []
    seen = list(observations.read(out))
    assert len(seen) == written
    by_mode = {mode: [o for o in seen if o.mode == mode] for mode in {o.mode for o in seen}}
    assert set(by_mode) == {"idle", "burst", "sustained", "duty"}
    for mode, most in (("sustained", MOST_TRIALS), ("duty", MOST_TRIALS), ("burst", 1)):
        trials = [o.trial for o in by_mode[mode]]
        assert trials == list(range(len(trials)))
        assert min(TRIALS, most) <= len(trials) <= most
    flop = 2 * 4096 * 14336 * 4096
    limit_w, full_hz = sensor.identity().power_limit_w, sensor.identity().max_sm_clock_hz
    powers = {
        mode: [(o.energy_j or 0) / (o.duration_s or 1) for o in by_mode[mode]]
        for mode in ("idle", "duty", "sustained")
    }
    assert min(powers["idle"]) > 10
    assert max(powers["idle"]) < min(powers["duty"])
    assert max(powers["duty"]) < min(powers["sustained"])
    assert max(powers["sustained"]) < 1.05 * limit_w
    for o in by_mode["sustained"]:
        assert o.calls is not None
        # Between a tenth and a hundred picojoules each FLOP on any GPU that runs bf16 products.
        assert 0.1e-12 < (o.energy_j or 0) / (o.calls * flop) < 100e-12
        # What is left above static power is less, and the most of it.
        assert 0.5 * (o.energy_j or 0) < (o.net_j or 0) < (o.energy_j or 0)
        assert by_mode["burst"][0].call_s <= 1.02 * o.call_s
    for o in by_mode["duty"]:
        assert (o.busy_s or 0) / (o.duration_s or 1) == pytest.approx(0.2, rel=0.1)
        assert (o.sm_clock_hz or 0) > 0.9 * full_hz
