"""Whose kernels a calibration measures, by what runs on the GPU."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from calibration import run
from calibration.grid import Point
from calibration.simulation.gpu import SimulatedSensor


@pytest.mark.parametrize("version", [2, 3])
def test_attention_is_torchs_where_flash_attention_3_does_not_run(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = ModuleType("vllm.vllm_flash_attn")
    kernels.is_fa_version_supported = lambda asked: asked == version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.vllm_flash_attn", kernels)
    measured: list[Point] = []

    def sweep(points: Sequence[Point], *_: object, **__: Any) -> int:
        measured.extend(points)
        return len(points)

    monkeypatch.setattr(run, "sweep", sweep)
    lines: list[str] = []
    run.measure(
        tmp_path / "o.jsonl",
        SimulatedSensor(),
        grid="full",
        library="vllm",
        report=lines.append,
        progress=lambda *_: None,
    )
    libraries = {(p.op in run.FLASH_3, p.library) for p in measured}
    if version == 3:
        assert libraries == {(True, "vllm"), (False, "vllm")}
        assert lines == []
    else:
        assert libraries == {(True, "torch"), (False, "vllm")}
        assert "torch's kernels" in lines[0]
