"""docs/architectures.md: its tables are those of the code, and its example works as it stands."""

import re
from typing import Any

import pytest
from family_cases import Case, cases, tiny
from family_table import DOCS, filled

from energymodel import families
from energymodel.dtypes import DTYPE_BYTES, arithmetic
from energymodel.families.quantization import METHODS

TEXT = DOCS.read_text(encoding="utf-8")


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_tables_are_current() -> None:
    assert filled(TEXT) == TEXT, "run python tests/family_table.py"


def test_every_family_that_is_read_was_checked_or_is_another_name_of_one() -> None:
    table = section("Checked against transformers")
    assert all(f"`{family}`" in table for family in families.FAMILIES)


def test_bytes_of_the_formats_are_those_of_the_code() -> None:
    rows = [line for line in section("Quantised checkpoints").splitlines() if line[:1] == "|"]
    named = " ".join(rows)
    assert all(f"`{method}`" in named for method in METHODS if method != "modelopt_fp4")
    found = {}
    for row in rows[2:-1]:
        _, _, stored, size, computed, _ = (cell.strip() for cell in row.split("|"))
        name = stored.split("`")[1]
        found[name] = float(size)
        assert float(size) == pytest.approx(DTYPE_BYTES[name], rel=1e-3), name
        wide = arithmetic(name, "bfloat16")
        assert computed == ("16 bits" if wide == "bfloat16" else wide)
    narrow = {name.split("_g")[0].removesuffix("_channel") for name in DTYPE_BYTES}
    assert set(found) == narrow - {"float32", "bfloat16", "float16"}


# --- the worked example ---------------------------------------------------------------------------


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Case:
    """The case of the example, with its reader entered among the families."""
    reader, case = re.findall(r"```python\n(.*?)```", section("Adding a family"), re.DOTALL)
    module: dict[str, Any] = {}
    exec(reader, module)  # noqa: S102 (our own document)
    monkeypatch.setattr(families, "FAMILIES", {**families.FAMILIES, **module["FAMILIES"]})
    made: Case = eval(case, {"tiny": tiny})  # noqa: S307 (likewise)
    return made


def test_the_example_is_checked_like_every_family(example: Case) -> None:
    counts = pytest.importorskip("torch_counts", reason="needs torch and transformers")
    spec = counts.spec(example.full)
    assert spec.param_count == counts.param_count(example.full, example.auto)
    assert counts.torch_prefill(example, 11) == counts.our_prefill(spec, 11)
    assert counts.torch_decode(example, 9) == counts.our_decode(spec, 9)
    assert counts.cache_bytes(example, 3) == counts.our_cache_bytes(spec, 3)


def test_the_example_is_no_family_yet() -> None:
    assert "nanochat" not in families.FAMILIES
    assert "nanochat" not in {case.family for case in cases()}
