"""What a GPU is: datasheet facts from ``gpus/*.json``, each file naming its source."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from energymodel.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """One GPU model. Rates are peaks, dense; ``power_limit_w`` is the default board limit."""

    name: str
    full_name: str
    source: str
    peak_flop_per_s: Mapping[str, float]
    hbm_bytes: float
    hbm_bytes_per_s: float
    l2_bytes: float
    link_bytes_per_s: float
    sm_count: int
    max_sm_clock_hz: float
    power_limit_w: float
    min_power_limit_w: float


def available() -> tuple[str, ...]:
    """Names of the GPUs with a datasheet."""
    files = resources.files("energymodel").joinpath("gpus").iterdir()
    return tuple(sorted(f.name.removesuffix(".json") for f in files if f.name.endswith(".json")))


@cache
def load(name: str) -> GpuSpec:
    """The GPU called ``name``, case-insensitive.

    Raises:
        InputError: no datasheet has that name; the message lists those that exist.
    """
    from energymodel.io import convert, parse_json

    known = available()
    if name.lower() not in known:
        raise InputError(f"GPU '{name}' is unknown; known are: {', '.join(known)}.")
    file = resources.files("energymodel").joinpath("gpus", f"{name.lower()}.json")
    return convert(parse_json(file.read_text(encoding="utf-8"), file.name), GpuSpec, file.name)
