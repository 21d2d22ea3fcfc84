"""docs/collectives.md says what the committed measurements say."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_tables_are_those_of_the_committed_measurements() -> None:
    spec = importlib.util.spec_from_file_location(
        "benchmarks_collectives", ROOT / "benchmarks" / "collectives.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "docs" / "collectives.md").read_text(encoding="utf-8")
    assert module.current(text) == text
    assert text.count("<!-- end -->") == 5
    assert "| all-reduce, NCCL | 4 |" in text
