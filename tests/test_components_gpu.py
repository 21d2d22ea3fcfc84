"""Components of small models on the real thing; run with ``pytest -m gpu``."""

from pathlib import Path

import pytest
from component_builders import written

from calibration.components import measure_components
from calibration.gpu import find_gpu
from calibration.sensors import NvmlSensor
from energymodel.errors import WorkError

pytestmark = pytest.mark.gpu


@pytest.fixture
def sensor() -> NvmlSensor:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    try:
        return find_gpu()
    except WorkError as error:
        pytest.skip(str(error))


def test_a_tiny_model_end_to_end(sensor: NvmlSensor, tmp_path: Path) -> None:
    lines: list[str] = []
    report = measure_components(
        written(tmp_path, "qwen3_moe"),
        sensor=sensor,
        out=tmp_path / "components.jsonl",
        batch=4,
        prompt=32,
        trials=2,
        report=lines.append,
    )
    # Of so tiny a model a part is microseconds: small ones scatter, and only they may.
    assert all("below 1% of the whole" in note for note in report.notes)
    assert {(c.phase, c.mode) for c in report.captures} == {
        (phase, mode) for phase in ("prefill", "decode") for mode in ("eager", "graph")
    }
    wholes = {(r.phase, r.mode): r for r in report.rows if r.component == "whole"}
    for phase in ("prefill", "decode"):
        # Launching from Python takes several times as long as replaying so tiny a model.
        assert wholes[phase, "graph"].duration_s < 0.5 * wholes[phase, "eager"].duration_s
    for row in report.rows:
        assert row.mj_per_call > 0
        assert 50 < row.power_w < 1.1 * sensor.identity().power_limit_w
    for capture in report.captures:
        assert capture.flop == 1.0
        assert 0.6 < capture.gross < 1.6
