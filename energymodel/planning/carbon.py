"""Carbon and cost of a fleet: kilowatt-hours, grams, prices.

The software carbon intensity (Green Software Foundation, ISO/IEC 21031:2024) is

    SCI = (E I + M) per R

with E the energy of the facility per unit, I the carbon intensity of its electricity, M the embodied
emissions written off in that time, and R the functional unit, here 1,000 output tokens (requests
where nothing is generated).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from energymodel.errors import InputError
from energymodel.planning.server import Server

J_PER_KWH = 3.6e6
YEAR_S = 365.25 * 86_400.0
UNIT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensity:
    """Grams of CO2e per kilowatt-hour of electricity, and where that is from."""

    g_per_kwh: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sci:
    """Software carbon intensity and its parts, per functional unit ``unit``."""

    unit: str
    e_kwh: float
    i_g_per_kwh: float
    m_g: float
    sci_g: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    source: str
    year: int
    unit: str
    regions: Mapping[str, float]


@cache
def _table() -> _Table:
    from energymodel.io import convert, parse_json

    file = resources.files("energymodel.planning").joinpath("data", "intensity.json")
    return convert(parse_json(file.read_text(encoding="utf-8"), file.name), _Table, file.name)


def regions() -> tuple[str, ...]:
    """Regions whose intensity is known."""
    return tuple(_table().regions)


def intensity(region_or_number: str) -> Intensity:
    """The carbon intensity of a region's electricity, or a number of grams per kilowatt-hour.

    Raises:
        InputError: neither.
    """
    table, name = _table(), region_or_number.strip().lower()
    if name in table.regions:
        return Intensity(g_per_kwh=table.regions[name], source=f"{table.source}, {table.year}")
    try:
        value = float(name)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 10_000.0:
        raise InputError(
            f"--carbon-intensity {region_or_number} must be grams of CO2e per kWh from 0 to 10,000 "
            f"or one of: {', '.join(regions())}."
        )
    return Intensity(g_per_kwh=value, source="given by the user")


def software_carbon_intensity(
    *,
    facility_w: float,
    units_per_s: float,
    unit: str,
    servers: float,
    server: Server,
    i: Intensity,
) -> Sci | None:
    """SCI of a fleet; None where it serves nothing.

    Args:
        facility_w: Mean power of the facility.
        units_per_s: Functional units a second.
        unit: Their name.
        servers: Servers in use, fractions for those shared.
        server: Their type.
        i: Carbon intensity of the electricity.
    """
    if units_per_s <= 0:
        return None
    e_kwh = facility_w / units_per_s / J_PER_KWH
    embodied_g_per_s = 1000.0 * server.embodied_kg * servers / (server.lifetime_years * YEAR_S)
    m_g = embodied_g_per_s / units_per_s
    return Sci(
        unit=unit,
        e_kwh=e_kwh,
        i_g_per_kwh=i.g_per_kwh,
        m_g=m_g,
        sci_g=e_kwh * i.g_per_kwh + m_g,
        source=i.source,
    )


def cost_per_s(
    *, facility_w: float, gpus: float, price_per_kwh: float, price_per_gpu_hour: float
) -> float:
    """What a fleet costs a second: electricity, and GPUs by the hour; in the prices' currency."""
    return facility_w / J_PER_KWH * price_per_kwh + gpus * price_per_gpu_hour / 3600.0
