"""docs/formats.md names every field that the schemas have, and its examples are valid."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from calibration import grid
from calibration.observations import Dtype, Observation
from calibration.sweep import LOST
from energymodel import io
from energymodel.laws import LAWS, kind_of
from energymodel.profile import OperationProfile, Profile, load

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = dict(
    re.findall(
        r"^## (\S+):.*?\n(.*?)(?=^## |\Z)",
        (ROOT / "docs" / "formats.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
)


def _schema_fields(schema: dict[str, Any]) -> set[str]:
    return {name for part in schema["$defs"].values() for name in part.get("properties", {})}


def _documented(section: str) -> set[str]:
    rows = [line for line in SECTIONS[section].splitlines() if line.startswith("|")]
    return set(re.findall(r"`([a-z0-9_]+)`", " ".join(rows)))


def _example(section: str) -> Any:
    found = re.search(r"```json\n(.*?)```", SECTIONS[section], re.DOTALL)
    assert found is not None
    return io.parse_json(found[1], section)


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        ("bins.json", _schema_fields(io.schema("workload"))),
        ("runs.jsonl", _schema_fields(io.schema("runs")) - _schema_fields(io.schema("workload"))),
        ("observations.jsonl", {f.name for f in dataclasses.fields(Observation)}),
        ("profile.json", _schema_fields(msgspec.json.schema(Profile))),
    ],
)
def test_every_field_is_described(section: str, fields: set[str]) -> None:
    assert fields - _documented(section) == set()


def test_shipped_names_are_described() -> None:
    profile = load("h200")
    energies = {name for kind in profile.operations.values() for name in kind.energy}
    kinds = {kind_of(name) for name in profile.operations}
    assert kinds | energies <= _documented("profile.json")
    # A number format stands behind a dot, or what another engine runs in place of vLLM's kernel.
    behind = {name.partition(".")[2] for name in profile.operations} - {""}
    assert behind <= _documented("profile.json") | _documented("observations.jsonl")
    dtypes = behind & {*get_args(Dtype)}
    assert dtypes
    assert dtypes <= _documented("observations.jsonl") & {*get_args(Dtype)}
    assert "`gemm.fp8`" in SECTIONS["profile.json"]


def test_everything_that_can_be_measured_is_described() -> None:
    documented = _documented("observations.jsonl")
    operations = {point.op for point in grid.wide()} | {"idle"}
    ways = {"vllm", "torch", "cold", "warm", *get_args(Dtype)}
    modes = {"burst", "sustained", "duty", "idle", "host"}
    assert operations | ways | modes <= documented
    assert LOST in SECTIONS["observations.jsonl"]


def test_everything_that_can_be_fitted_is_described() -> None:
    assert set(LAWS) - _documented("profile.json") == set()


def test_examples_add_up() -> None:
    o = _example("observations.jsonl")
    assert o["net_j"] == pytest.approx(o["energy_j"] - o["idle_power_w"] * o["duration_s"])
    # Every field but those that only bursts have.
    assert {f.name for f in dataclasses.fields(Observation)} - o.keys() == {"call_spread_s"}
    operation = _example("profile.json")["operations"]["gemm"]
    assert operation.keys() | {"sizes"} == {f.name for f in dataclasses.fields(OperationProfile)}
    io.convert(operation, OperationProfile, "example")


def test_examples_are_valid(tmp_path: Path) -> None:
    for section, read in (("bins.json", io.read_workload), ("runs.jsonl", io.read_runs)):
        path = tmp_path / section
        path.write_text(json.dumps(_example(section)), encoding="utf-8")
        assert read(path)
    assert io.convert(_example("observations.jsonl"), Observation, "example").op == "attention"
    assert _example("profile.json").keys() == {f.name for f in dataclasses.fields(Profile)}
