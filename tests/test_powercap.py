import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.powercap import PowercapMeter, difference_j, domains, read_j
from energymodel.errors import WorkError

RANGE_UJ = 262_143_328_850


def zone(root: Path, name: str, label: str, energy_uj: int = 0, range_uj: int = RANGE_UJ) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two packages, one with DRAM and uncore, and the platform, as a server shows them."""
    zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "dram", 1_000_000, range_uj=65_712_999_613)
    zone(tmp_path, "intel-rapl:0:1", "uncore")
    zone(tmp_path, "intel-rapl:1", "package-1", 7_000_000)
    zone(tmp_path, "intel-rapl:2", "psys")
    (tmp_path / "intel-rapl").mkdir()
    return tmp_path


def spend(root: Path, name: str, energy_uj: int) -> None:
    (root / name / "energy_uj").write_text(f"{energy_uj}\n")


def test_domains_and_their_boundaries(root: Path) -> None:
    found = {d.name: d for d in domains(root)}
    assert {name: d.boundary for name, d in found.items()} == {
        "package-0": "cpu_package",
        "package-0 dram": "dram",
        "package-1": "cpu_package",
        "psys": "platform",
    }
    assert all(d.remedy is None for d in found.values())
    assert "gpu" not in {d.boundary for d in found.values()}
    assert found["package-0"].range_j == pytest.approx(262_143.328850)
    assert read_j(found["package-1"], root) == pytest.approx(7.0)


def test_amd_uses_the_same_names(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 2_500_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 500_000)
    assert [(d.name, d.boundary) for d in domains(tmp_path)] == [
        ("package-0", "cpu_package"),
        ("package-0 core", "cpu_core"),
    ]


def test_a_machine_without_powercap(tmp_path: Path) -> None:
    assert domains(tmp_path / "none") == ()
    meter = PowercapMeter(tmp_path / "none")
    meter.start()
    assert meter.stop() == {}


def test_a_meter_gives_each_domain_its_joules(root: Path) -> None:
    meter = PowercapMeter(root)
    meter.start()
    spend(root, "intel-rapl:0", 8_500_000)
    spend(root, "intel-rapl:0:0", 1_250_000)
    joules = meter.stop()
    assert joules == pytest.approx(
        {"package-0": 3.5, "package-0 dram": 0.25, "package-1": 0.0, "psys": 0.0}
    )
    meter.start()
    assert meter.stop() == pytest.approx(dict.fromkeys(joules, 0.0))


def test_a_meter_survives_wraparound(root: Path) -> None:
    spend(root, "intel-rapl:0", RANGE_UJ - 1_000_000)
    meter = PowercapMeter(root)
    meter.start()
    for energy_uj in (2_000_000, RANGE_UJ - 500_000, 1_500_000):  # around twice
        spend(root, "intel-rapl:0", energy_uj)
        meter.update()
    assert meter.stop()["package-0"] == pytest.approx(3.0 + RANGE_UJ * 1e-6 - 2.5 + 2.0)


@given(st.integers(0, RANGE_UJ - 1), st.integers(0, RANGE_UJ - 1).filter(lambda spent: spent > 0))
def test_the_difference_is_what_was_spent(start: int, spent: int) -> None:
    range_j = RANGE_UJ * 1e-6
    end = (start + spent) % RANGE_UJ
    found_j = difference_j(start * 1e-6, end * 1e-6, range_j)
    assert found_j == pytest.approx(spent * 1e-6, abs=1e-5)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_closed_domain_is_named_with_its_remedy(root: Path) -> None:
    (root / "intel-rapl:1" / "energy_uj").chmod(0)
    check_closed(root)


def test_a_domain_that_denies_reading_is_named_with_its_remedy(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_text

    def denied(path: Path, *args: str, **more: str) -> str:
        if path == root / "intel-rapl:1" / "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path, *args, **more)

    monkeypatch.setattr(Path, "read_text", denied)
    check_closed(root)


def check_closed(root: Path) -> None:
    found = {d.name: d for d in domains(root)}
    assert "as root" in (found["package-1"].remedy or "")
    assert found["package-0"].remedy is None
    with pytest.raises(WorkError, match=r"package-1 cannot be read: read it as root"):
        read_j(found["package-1"], root)
    meter = PowercapMeter(root)
    meter.start()
    assert set(meter.stop()) == {"package-0", "package-0 dram", "psys"}


def test_a_counter_that_is_not_a_number_is_named(root: Path) -> None:
    [package, *_] = domains(root)
    (root / package.zone / "energy_uj").write_text("nonsense")
    with pytest.raises(WorkError, match="package-0 cannot be read"):
        read_j(package, root)
