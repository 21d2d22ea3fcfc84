"""Collectives of a simulated host come back as they were declared, and reach a profile."""

import json
from pathlib import Path

import pytest

from calibration import fit_collectives
from calibration.collectives import run
from calibration.simulation.fabric import Fabric
from energymodel import profile as profiles
from energymodel.errors import InputError
from energymodel.fabric import collective_of
from energymodel.profile import FabricProfile

TRUTH = Fabric()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("fabric") / "collectives.jsonl"
    run.simulate(file, "h200", 2, grid_name="full", report=lambda _: None, progress=lambda *_: None)
    return file


@pytest.fixture(scope="module")
def fitted(measured: Path) -> FabricProfile:
    return fit_collectives.fit_fabric(measured, "h200")


def test_declared_costs_come_back(fitted: FabricProfile) -> None:
    assert {(c.kind, c.library) for c in fitted.collectives} == {
        ("all_reduce", "nccl"),
        ("all_reduce", "vllm"),
        ("all_gather", "nccl"),
        ("reduce_scatter", "nccl"),
        ("all_to_all", "nccl"),
        ("send_recv", "nccl"),
    }
    for c in fitted.collectives:
        name = "vllm" if c.library == "vllm" else c.kind
        assert c.latency_s.value == pytest.approx(TRUTH.latency_s[name], rel=0.02)
        assert c.bus_bytes_per_s.value == pytest.approx(TRUTH.bytes_per_s[c.library], rel=0.02)
        assert c.busy_w.value == pytest.approx(TRUTH.busy_w, rel=0.03)
        assert (
            abs(c.wire_byte_j.value - TRUTH.byte_j) < 3 * c.wire_byte_j.stderr + 0.02 * TRUTH.byte_j
        )
        assert c.time_error < 0.02
        assert c.energy_error < 0.03
    assert fitted.wait_w.value == pytest.approx(TRUTH.busy_w, rel=0.03)


def test_links_and_boards_are_kept(fitted: FabricProfile) -> None:
    assert fitted.link == "simulated"
    assert len(fitted.boards) == 2


def test_they_are_written_into_the_profile(measured: Path, tmp_path: Path) -> None:
    target = fit_collectives.conclude(measured, tmp_path, "h200", simulated=True)
    profile = profiles.load("h200", target)
    assert profile.kind == "simulated"
    law = collective_of(profile, "all_reduce", "vllm", 2)
    assert law.latency_s.value == pytest.approx(TRUTH.latency_s["vllm"], rel=0.02)


def test_those_beside_the_observations_are_taken(measured: Path) -> None:
    found = fit_collectives.with_fabric(
        profiles.load("h200"), measured.with_name("observations.jsonl"), "h200", simulated=True
    )
    assert found.fabric is not None
    assert found.fabric.link == "simulated"


def test_too_few_sizes_are_refused(measured: Path, tmp_path: Path) -> None:
    lines = measured.read_text().splitlines()
    few = [line for line in lines if json.loads(line)["message_bytes"] in (0, 1024)]
    file = tmp_path / "collectives.jsonl"
    file.write_text("\n".join(few) + "\n")
    with pytest.raises(InputError, match="no collective was measured at 3 sizes"):
        fit_collectives.fit_fabric(file, "h200")


def test_another_gpu_is_refused(measured: Path) -> None:
    with pytest.raises(InputError, match=r"collectives\.jsonl is of '.*', not h100"):
        fit_collectives.fit_fabric(measured, "h100")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"link": "PCIe"},
            "link of collective 2 must be that of the first, 'simulated', got 'PCIe'",
        ),
        (
            {"environment": {"NCCL_ALGO": "Tree"}},
            "environment of collective 2 must be that of the first, NCCL_ALGO None, got 'Tree'",
        ),
    ],
)
def test_links_that_differ_are_refused(
    measured: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    first, second = (
        json.loads(line) | {"library": "nccl"} for line in measured.read_text().splitlines()[:2]
    )
    second |= changes
    file = tmp_path / "collectives.jsonl"
    file.write_text("".join(f"{json.dumps(o)}\n" for o in (first, second)))
    with pytest.raises(InputError, match=said):
        fit_collectives.fit_fabric(file, "h200")
