"""``calibrate --collectives``: simulated to the profile, resumed with more GPUs, refitted, refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from calibration.collectives import launch, observations, run
from energymodel import profile
from energymodel.cli import main
from energymodel.errors import WorkError

COMMAND = ("calibrate", "--gpu", "h200", "--collectives")
SIMULATE = (*COMMAND, "--simulate", "--grid", "quick")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_from_a_simulated_host_to_a_profile_and_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SIMULATE, "--gpus", "2"]) == 0
    assert "Wrote h200.json" in capsys.readouterr().err
    two = list(observations.read(Path("collectives.jsonl")))
    assert {o.gpus for o in two} == {2}

    assert main([*SIMULATE, "--gpus", "4", "--resume", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {"observations_file": "collectives.jsonl", "profile": "h200.json"}
    both = list(observations.read(Path("collectives.jsonl")))
    assert both[: len(two)] == two
    assert {o.gpus for o in both[len(two) :]} == {4}

    fabric = profile.load(None, "h200.json").fabric
    assert fabric is not None
    found = {(c.kind, c.library, c.gpus): c for c in fabric.collectives}
    # As declared in calibration/simulation/fabric.py.
    for gpus in (2, 4):
        law = found["all_reduce", "nccl", gpus]
        assert law.latency_s.value == pytest.approx(12e-6 * gpus / 2, rel=0.05)
        assert law.bus_bytes_per_s.value == pytest.approx(360e9, rel=0.05)
        assert law.wire_byte_j.value == pytest.approx(6e-11, rel=0.1)

    assert main([*COMMAND, "--from", "collectives.jsonl", "--out", "again"]) == 0
    assert profile.load(None, "again/h200.json").fabric == fabric


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--components", "--model", "x"], "--components and --collectives do not go together"),
        (["--grid", "wide"], "--grid must be quick or full with --collectives, got wide"),
        (["--simulate", "--from", "x"], "--simulate and --from do not go together"),
        (["--resume"], "finds no collectives.jsonl"),
    ],
)
def test_what_does_not_go_together_is_refused(
    capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main([*COMMAND, *flags]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_gpu_that_fails_is_one_sentence_and_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise WorkError("GPU 1 of 2 failed (CUDA out of memory): what was measured is kept.")

    monkeypatch.setattr(run, "find_gpus", lambda *_: [])
    monkeypatch.setattr(launch, "measure", fail)
    assert main([*COMMAND, "--gpus", "2"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_too_few_gpus_are_said_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_few(_: str, count: int) -> None:
        raise WorkError(f"{count} GPUs are needed, and CUDA shows 1 here.")

    monkeypatch.setattr(run, "find_gpus", too_few)
    assert main([*COMMAND, "--gpus", "8"]) == 1
    assert "8 GPUs are needed, and CUDA shows 1 here." in capsys.readouterr().err


def test_simulating_needs_no_torch() -> None:
    code = "import sys, calibration.collectives.run; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - our own
