"""The README's accuracy table is what ``benchmarks/accuracy.py`` writes for the shipped profile."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from energymodel import profile as profiles

for _needed in ("scipy", "statsmodels"):
    pytest.importorskip(_needed, reason=f"the benchmark refits engines, which needs {_needed}")

COVERAGE = 6  # column of the table
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("accuracy", ROOT / "benchmarks" / "accuracy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def block(benchmark: ModuleType) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    inside = text.split(benchmark.BEGIN)[1].split(benchmark.END)[0]
    return [line for line in inside.splitlines() if line]


def test_runs_that_no_fit_has_seen_are_predicted_as_the_readme_says(benchmark: ModuleType) -> None:
    shipped = profiles.load("h200")
    seen = {
        name: benchmark.unseen(benchmark.measured(name), shipped) for name, _ in benchmark.UNSEEN
    }
    expected = benchmark.unseen_lines(seen)
    assert len(expected) >= 6
    for said, line in zip(block(benchmark)[2:], expected, strict=False):
        # How often intervals hold is judged by intervals of other models, which takes a refit.
        assert said.split("|")[:COVERAGE] == line.split("|")[:COVERAGE]


def test_what_needs_a_refit_is_as_the_accuracy_page_says(benchmark: ModuleType) -> None:
    page = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in page]
    # Runs, median, 90th percentile.
    known = {tuple(row[2:5]) for row in rows if len(row) > 5 and row[1].startswith("**all")}
    left_out = [line for line in block(benchmark) if "left out in turn" in line]
    assert left_out
    for line in left_out:
        assert tuple(cell.strip() for cell in line.split("|"))[2:5] in known
