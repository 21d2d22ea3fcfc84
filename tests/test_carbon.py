"""Carbon, cost and servers: hand calculations, sources, and what is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from energymodel.errors import InputError
from energymodel.planning import carbon, server


def test_the_shipped_server_draws_what_was_measured_at_full_load() -> None:
    # 8.4 kW with eight GPUs at 700 W (arXiv 2412.08602).
    assert server.load().power_w(8 * 700.0) == pytest.approx(8400.0, rel=0.01)


def test_every_figure_of_a_server_has_a_source(tmp_path: Path) -> None:
    document = asdict(server.load())
    document["sources"] = {k: v for k, v in document["sources"].items() if k != "fixed_w"}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"sources\.fixed_w must say"):
        server.load(str(file))


@pytest.mark.parametrize(
    ("field", "value"), [("gpus", 0), ("fixed_w", -1.0), ("per_gpu_w", 11.0), ("lifetime_years", 0)]
)
def test_absurd_servers_are_refused(tmp_path: Path, field: str, value: float) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(asdict(server.load()) | {field: value}))
    with pytest.raises(InputError, match=f"{field} must be from"):
        server.load(str(file))


def test_an_unknown_server_is_refused_with_those_known() -> None:
    with pytest.raises(InputError, match="one of: hgx-8"):
        server.load("mainframe")


def test_sci_by_hand() -> None:
    # 1 MW for 1,000 units a second are 1 kJ a unit: 1/3600 kWh; at 360 g/kWh 0.1 g.
    box = replace(server.load(), embodied_kg=1000.0, lifetime_years=1.0)
    i = carbon.intensity("360")
    found = carbon.software_carbon_intensity(
        facility_w=1e6,
        units_per_s=1000.0,
        unit="1000 output tokens",
        servers=100.0,
        server=box,
        i=i,
    )
    assert found is not None
    assert found.e_kwh == pytest.approx(1 / 3600)
    # 100 t in a year of 31,557,600 s over 1,000 units a second.
    assert found.m_g == pytest.approx(1e8 / 31_557_600 / 1000)
    assert found.sci_g == pytest.approx(0.1 + found.m_g)


def test_intensity_by_region_names_its_source() -> None:
    assert carbon.intensity("World").g_per_kwh == 473
    assert "Ember" in carbon.intensity("france").source
    assert carbon.intensity("250").source == "given by the user"
    for wrong in ("atlantis", "-3", "nan", "1e9"):
        with pytest.raises(InputError, match="or one of: world"):
            carbon.intensity(wrong)


def test_cost_by_hand() -> None:
    # 3.6 kW at 0.10 a kWh are 0.36 an hour, and ten GPUs at 2 an hour.
    found = carbon.cost_per_s(facility_w=3600.0, gpus=10, price_per_kwh=0.1, price_per_gpu_hour=2.0)
    assert found * 3600 == pytest.approx(20.36)
