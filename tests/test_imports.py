"""Predicting needs numpy and what reads JSON: nothing that measures, fits or plots."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "torch", "pynvml", "vllm", "transformers", "diffusers", "triton", "scipy", "sklearn", "statsmodels",
    "pandas", "pyarrow", "matplotlib", "ibis", "duckdb", "calibration",
}  # fmt: skip
EXTRAS = {"sklearn", "matplotlib", "ibis", "scipy"}
"""What an extra brings, and the function that needs it imports."""
BINS = {
    "schema_version": 1,
    "bins": [{"input_tokens": 100, "output_tokens": 20, "count": 8}],
}
LIST = "print('loaded:', *sorted({name.partition('.')[0] for name in sys.modules}))"
ROOT = Path(__file__).parents[1]


def loaded(code: str, cwd: Path) -> tuple[set[str], str]:
    """(top-level modules after running ``code`` in a new interpreter, what it printed before)."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(  # noqa: S603 (this interpreter, our code)
        [sys.executable, "-W", "error", "-c", f"import sys\n{code}\n{LIST}"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    printed, _, modules = done.stdout.rpartition("loaded:")
    return set(modules.split()), printed


@pytest.mark.parametrize("mode", ["--json", ""])
@pytest.mark.parametrize("model", ["Qwen3-8B", "Qwen3-30B-A3B"])
def test_predict_loads_nothing_heavy(mode: str, model: str, tmp_path: Path) -> None:
    (tmp_path / "bins.json").write_text(json.dumps(BINS))
    args = ["predict", "--model", model, "--gpu", "h200", "--workload", "bins.json"]
    code = f"from energymodel.cli import main\nassert main({[*args, *mode.split()]!r}) == 0"
    modules, printed = loaded(code, tmp_path)
    assert "numpy" in modules
    assert not modules & HEAVY
    if mode:
        assert json.loads(printed)["energy_j"] > 0


def test_no_module_of_the_package_loads_anything_heavy(tmp_path: Path) -> None:
    files = (f.relative_to(ROOT).with_suffix("") for f in (ROOT / "energymodel").rglob("*.py"))
    names = sorted(".".join(f.parts) for f in files if f.stem != "__init__")
    assert len(names) > 20
    code = "import importlib\n" + "\n".join(f"importlib.import_module({n!r})" for n in names)
    modules, _ = loaded(code, tmp_path)
    assert not modules & HEAVY


def test_no_file_of_the_package_names_a_gpu_library() -> None:
    for file in (ROOT / "energymodel").rglob("*.py"):
        for line in file.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                top = words[1].partition(".")[0]
                allowed = {"calibration"} | (EXTRAS if line.startswith(" ") else set())
                assert top not in HEAVY - allowed, f"{file.name}: {line}"
