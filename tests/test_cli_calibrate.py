"""The command ``calibrate``: what it hands over, what it prints, and what it refuses."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import calibration.components
import calibration.components.report
import calibration.gpu
from calibration import run as calibration_run
from calibration.simulation.recovery import Recovered
from calibration.tables import POOLED
from energymodel import profile as profiles
from energymodel.cli import main
from energymodel.errors import WorkError
from energymodel.laws import REQUIRED
from energymodel.profile import Estimate

Run = Callable[..., tuple[int, str, str]]
SIMULATE = ("calibrate", "--gpu", "h200", "--simulate", "--grid", "quick")


def go(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    status = main(list(args))
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)

    def no_gpu(_: str = "auto") -> None:
        raise WorkError("Measuring needs an NVIDIA GPU, and this machine has none.")

    monkeypatch.setattr(calibration.gpu, "find_gpu", no_gpu)
    return lambda *args: go(capsys, *args)


def one_sentence(err: str) -> str:
    assert err.startswith("energymodel: ")
    assert err.endswith((".\n", "?\n"))
    assert err.count("\n") == 1
    assert err.strip().isprintable()
    return err


def files() -> list[str]:
    """What is in this folder and those below it."""
    return sorted(str(p) for p in Path().rglob("*") if p.is_file())


# From the grid to the profile -----------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that ``calibrate --simulate`` has written."""
    folder = tmp_path_factory.mktemp("calibrated") / "new" / "h200"
    assert main([*SIMULATE, "--out", str(folder)]) == 0
    return folder


def test_a_simulated_calibration_from_end_to_end(run: Run) -> None:
    status, out, err = run(*SIMULATE, "--out", "new/folder", "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert set(document) == {
        "profile", "report_text", "report_html", "kind", "observations", "operations",
        "left_out", "recovered",
    }  # fmt: skip
    named = ("profile", "report_text", "report_html")
    assert sorted(document[name] for name in named) == [
        "new/folder/h200.json", "new/folder/report.html", "new/folder/report.txt",
    ]  # fmt: skip
    assert files() == sorted([*(document[name] for name in named), "new/folder/observations.jsonl"])
    lines = Path("new/folder/observations.jsonl").read_text().splitlines()
    assert document["observations"] == len(lines)

    profile = profiles.load(None, document["profile"])
    assert document["kind"] == profile.kind == "simulated"
    assert document["operations"] == {
        name: {"time_error": o.time_error, "energy_error": o.energy_error}
        for name, o in profile.operations.items()
    }
    assert set(profile.operations) == set(REQUIRED)
    assert set(document["left_out"]) == set(POOLED)

    rows = {r["name"]: r for r in document["recovered"]}
    assert len(rows) == len(document["recovered"])
    assert {"static_w_per_c", "limit_share", "exponent", "hbm_byte_j", "gemm: flop_j"} <= set(rows)
    for r in rows.values():
        assert set(r) == {"name", "declared", "fitted", "stderr", "identified", "inside"}
        found = Estimate(value=r["fitted"], stderr=r["stderr"], unit="1")
        again = Recovered(name=r["name"], declared=r["declared"], fitted=found)
        assert (r["identified"], r["inside"]) == (again.identified, again.inside)
    assert all(rows[name]["inside"] for name in ("limit_share", "exponent", "hbm_byte_j"))


def test_the_report_is_printed_and_files_are_named_beside_it(run: Run, simulated: Path) -> None:
    before = {p: p.read_bytes() for p in simulated.iterdir()}
    status, out, err = run(*SIMULATE, "--out", str(simulated), "--resume")
    assert status == 0
    report = (simulated / "report.txt").read_text()
    assert out.startswith(report)
    table = out.removeprefix(report)
    assert "declared" in table
    assert "gemm: flop_j" in table
    names = ("h200.json", "report.txt", "report.html")
    *wrote, advice = err.splitlines()
    assert wrote == [f"Wrote {simulated / name}" for name in names]
    assert "--grid full" in advice
    # Everything was there already: nothing was added, and the same was fitted.
    measured = simulated / "observations.jsonl"
    assert measured.read_bytes() == before[measured]
    assert (simulated / "h200.json").read_bytes() == before[simulated / "h200.json"]


def test_a_refit_is_the_same_profile_and_leaves_observations_alone(
    run: Run, simulated: Path
) -> None:
    source = simulated / "observations.jsonl"
    before = source.read_bytes()
    status, out, err = run(
        "calibrate", "--gpu", "H200", "--from", str(source), "--out", "refit", "--json"
    )
    assert (status, err) == (0, "")
    assert json.loads(out)["recovered"]
    assert files() == ["refit/h200.json", "refit/report.html", "refit/report.txt"]
    assert source.read_bytes() == before
    assert Path("refit/h200.json").read_bytes() == (simulated / "h200.json").read_bytes()


def test_a_profile_is_written_whole_or_not_at_all(
    run: Run, simulated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("calibrate", "--gpu", "h200", "--from", str(simulated / "observations.jsonl"))
    assert run(*command)[0] == 0
    before = Path("h200.json").read_bytes()

    def full_disk(self: Path, *_: object, **__: object) -> None:
        self.write_bytes(before[:100])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full_disk)
    status, out, err = run(*command)
    assert (status, out) == (1, "")
    assert "no space left" in one_sentence(err)
    assert Path("h200.json").read_bytes() == before
    assert files() == ["h200.json", "report.html", "report.txt"]


# What is handed over --------------------------------------------------------------------------


class Stub:
    """Stands in for a function of the calibration and remembers how it was called."""

    def __init__(self, error: BaseException | None = None, result: object = None) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._error, self._result = error, result

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls.append((args, options))
        if self._error is not None:
            raise self._error
        return self._result


def test_options_reach_the_measurement_and_the_fit(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, conclude = Stub(), Stub(error=WorkError("It is enough."))
    monkeypatch.setattr(calibration.gpu, "find_gpu", lambda gpu: f"sensor of {gpu}")
    monkeypatch.setattr(calibration_run, "measure", measure)
    monkeypatch.setattr(calibration_run, "conclude", conclude)
    monkeypatch.setattr(calibration_run, "is_simulated", lambda _: False)
    Path("runs.jsonl").touch()
    options = "--grid wide --kernels torch --budget-s 30 --runs runs.jsonl --out d"
    assert run("calibrate", "--gpu", "H200", *options.split())[0] == 1
    ((args, named),) = measure.calls
    assert args == (Path("d/observations.jsonl"), "sensor of H200")
    assert {n: v for n, v in named.items() if n not in {"report", "progress"}} == {
        "grid": "wide", "library": "torch", "cache": "cold", "budget_s": 30.0,
    }  # fmt: skip
    ((args, named),) = conclude.calls
    assert args == (Path("d/observations.jsonl"), Path("d"), "h200")
    del named["report"]
    assert named == {"runs": Path("runs.jsonl"), "simulated": False}


def test_what_stays_in_the_cache_is_measured_and_not_fitted(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, conclude = Stub(), Stub()
    monkeypatch.setattr(calibration.gpu, "find_gpu", lambda _: None)
    monkeypatch.setattr(calibration_run, "measure", measure)
    monkeypatch.setattr(calibration_run, "conclude", conclude)
    status, out, err = run("calibrate", "--gpu", "h200", "--cache", "warm")
    assert (status, out) == (0, "")
    assert err == "Wrote observations.jsonl: what stays in the cache is not fitted.\n"
    assert measure.calls[0][1]["cache"] == "warm"
    assert conclude.calls == []


def test_a_stop_by_hand_says_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_run, "simulate", Stub(error=KeyboardInterrupt()))
    status, out, err = run(*SIMULATE, "--out", "d")
    assert (status, out) == (130, "")
    said, _, end = err.splitlines()
    assert "d/observations.jsonl" in said
    assert "--resume" in said
    assert end == "energymodel: interrupted."


def test_what_is_left_out_is_said_without_escape_sequences(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def simulate(*_: object, report: Callable[[str], None], **__: object) -> None:
        report("\x1b]0;owned\x07: left out")
        raise WorkError("It is enough.")

    monkeypatch.setattr(calibration_run, "simulate", simulate)
    status, _, err = run(*SIMULATE)
    assert status == 1
    first, second = err.splitlines()
    assert first.endswith(": left out")
    assert first.isprintable()
    assert second == "energymodel: It is enough."


def test_a_package_that_is_missing_is_named_with_its_extra(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "calibration.run", None)
    monkeypatch.delattr(sys.modules["calibration"], "run")
    Path("o.jsonl").touch()
    for more, extra in (("--simulate", "fit"), ("--from=o.jsonl", "fit"), ("-h", "")):
        if extra:
            status, out, err = run("calibrate", "--gpu", "h200", more)
            assert (status, out) == (1, "")
            assert f"pip install 'energymodel[{extra}]'" in one_sentence(err)
    status, _, err = run("calibrate", "--gpu", "h200")
    assert status == 1
    assert "pip install 'energymodel[calibrate]'" in one_sentence(err)


@pytest.mark.parametrize(("mode", "modes"), [("both", ("eager", "graph")), ("eager", ("eager",))])
@pytest.mark.parametrize("failures", [(), ("attention: varies by 20 %", "mlp: varies by 30 %")])
def test_components_of_a_model(
    run: Run, monkeypatch: pytest.MonkeyPatch, mode: str, modes: tuple[str, ...],
    failures: tuple[str, ...],
) -> None:  # fmt: skip
    report = SimpleNamespace(ok=not failures, failures=failures)
    measure = Stub(result=report)
    monkeypatch.setattr(calibration.components, "measure_components", measure)
    monkeypatch.setattr(calibration.gpu, "find_gpu", lambda gpu: f"sensor of {gpu}")
    monkeypatch.setattr(calibration.components.report, "render", lambda _: "a table")
    monkeypatch.setattr(calibration.components.report, "as_dict", lambda r: {"ok": r.ok})
    command = ("calibrate", "--gpu", "h200", "--components", "--model", "M", "--out", "d")
    command += ("--batch", "4", "--prompt", "256", "--mode", mode, "--max-cv", "0.05")
    for more, printed in (((), "a table\n"), (("--json",), {"ok": not failures})):
        status, out, err = run(*command, *more)
        assert status == bool(failures)
        assert (json.loads(out) if more else out) == printed
        if failures:
            assert "attention: varies by 20 %; mlp: varies by 30 %" in one_sentence(err)
        else:
            assert err == ""
    for args, named in measure.calls:
        assert args == ("M",)
        del named["report"]
        assert named == {
            "sensor": "sensor of h200", "out": Path("d/components.jsonl"), "batch": 4,
            "prompt": 256, "modes": modes, "trials": 3, "max_cv": 0.05, "min_capture": 0.9,
        }  # fmt: skip


# What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ("", "Missing option '--gpu'"),
        ("--gpu h200 --grid huge", "'huge' is not one of 'quick', 'full', 'wide'"),
        ("--gpu nope", "GPU 'nope' is unknown"),
        ("--gpu nope --simulate", "GPU 'nope' is unknown"),
        ("--gpu h200 --simulate --from o.jsonl", "--simulate and --from do not go together"),
        ("--gpu h200 --simulate --components --model M", "--simulate and --components do not"),
        ("--gpu h200 --components", "--components and --model go together"),
        ("--gpu h200 --model Qwen3-8B", "--components and --model go together"),
        ("--gpu h200 --from o.jsonl --resume", "--from measures nothing"),
        ("--gpu h200 --from absent.jsonl", "--from absent.jsonl must be a file"),
        ("--gpu h200 --from .", "--from . must be a file"),
        ("--gpu h200 --from o.jsonl --runs absent.jsonl", "--runs absent.jsonl must be a file"),
        ("--gpu h200 --from o.jsonl", "o.jsonl holds no observations"),
        ("--gpu h200 --resume", "--resume finds no observations.jsonl"),
        ("--gpu h200 --simulate --resume --out d", "--resume finds no d/observations.jsonl"),
        ("--gpu h200 --simulate --out o.jsonl", "--out o.jsonl must be a folder"),
        ("--gpu h200 --simulate --out o.jsonl/below", "o.jsonl/below"),
        ("--gpu h200 --budget-s 0", "'--budget-s'"),
        ("--gpu h200 --components --model M --trials 1", "'--trials'"),
    ],
)
def test_bad_usage_is_one_sentence_and_writes_nothing(run: Run, args: str, reason: str) -> None:
    Path("o.jsonl").touch()
    status, out, err = run("calibrate", *args.split())
    assert (status, out) == (2, "")
    assert reason in one_sentence(err)
    assert os.listdir() == ["o.jsonl"]  # noqa: PTH208


def test_observations_are_not_overwritten(run: Run, simulated: Path) -> None:
    before = {p: p.read_bytes() for p in simulated.iterdir()}
    status, out, err = run(*SIMULATE, "--out", str(simulated))
    assert (status, out) == (2, "")
    assert "add --resume to continue" in one_sentence(err)
    assert {p: p.read_bytes() for p in simulated.iterdir()} == before


def test_what_is_resumed_must_be_of_the_same_gpu(run: Run, simulated: Path) -> None:
    measured = simulated / "observations.jsonl"
    before = measured.read_bytes()
    resume = ("--resume", "--out", str(simulated))
    status, out, err = run("calibrate", "--gpu", "b200", "--simulate", *resume)
    assert (status, out) == (2, "")
    assert "is of 'NVIDIA H200', not NVIDIA B200: choose another --out" in one_sentence(err)
    # A real one does not go on from what a simulated one has begun.
    status, out, err = run("calibrate", "--gpu", "h200", *resume)
    assert (status, out) == (2, "")
    assert "was simulated: choose another --out" in one_sentence(err)
    assert measured.read_bytes() == before
    # Nor the other way round.
    lines = before.decode().replace('"driver":"simulated"', '"driver":"595.58"')
    Path("observations.jsonl").write_text(lines)
    status, out, err = run(*SIMULATE, "--resume")
    assert (status, out) == (2, "")
    assert "was measured: choose another --out" in one_sentence(err)
    assert Path("observations.jsonl").read_text() == lines


def test_without_a_gpu_nothing_is_measured(run: Run) -> None:
    for more in ((), ("--components", "--model", "Qwen3-8B")):
        status, out, err = run("calibrate", "--gpu", "h200", *more)
        assert (status, out) == (1, "")
        assert "needs an NVIDIA GPU" in one_sentence(err)
        assert files() == []


def test_observations_of_another_gpu_are_no_evidence(run: Run, simulated: Path) -> None:
    source = simulated / "observations.jsonl"
    status, out, err = run("calibrate", "--gpu", "b200", "--from", str(source), "--out", "d")
    assert (status, out) == (2, "")
    assert "gpu is 'NVIDIA H200', but the fit is for NVIDIA B200" in one_sentence(err)
    assert files() == []
