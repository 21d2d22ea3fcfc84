"""Every notebook runs without an error, and what is committed of it is small and names no machine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

for _needed in ("nbclient", "ipykernel", "matplotlib", "pandas"):
    pytest.importorskip(_needed, reason=f"notebooks need {_needed}: install the 'notebooks' extra")
nbformat = pytest.importorskip("nbformat", reason="notebooks need nbformat")

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Traces that others made: beside the repository, not part of it.
TRACES = FOLDER.parent.parent / "shared" / "data" / "traces"
TIMEOUT_S = 300
MAX_BYTES = 500_000
PRIVATE = re.compile(r"/(?:home|root|Users|work|tmp)/|site-packages|\.venv")


def _cells(path: Path) -> list[Any]:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    if "TRACES" in path.read_text(encoding="utf-8") and not TRACES.is_dir():
        pytest.skip(f"{path.name} reads request traces of {TRACES.name}/, which are not here")
    # In a process of its own, so that the sockets of kernel clients are no concern of other tests.
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    folders = ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR")
    finished = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, FOLDER / "refresh.py", copy],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {name: str(tmp_path / name.lower()) for name in folders},
        text=True,
        timeout=TIMEOUT_S,
    )
    assert finished.returncode == 0, finished.stderr
    outputs = [output for cell in _cells(copy) for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [o.text for o in outputs if o.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_notebook(path: Path) -> None:
    assert path.stat().st_size < MAX_BYTES
    cells = _cells(path)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1)), "run refresh.py"
    for cell in cells:
        assert cell.outputs or "plt.show()" not in cell.source, "run refresh.py"
        for output in cell.outputs:
            assert output.output_type != "error"
            data = output.get("data", {})
            texts = [str(value) for kind, value in data.items() if kind.startswith("text/")]
            assert not PRIVATE.search(" ".join([output.get("text", ""), *texts]))
