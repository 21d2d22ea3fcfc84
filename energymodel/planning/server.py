"""What stands around the GPUs: a declared server type, each of its figures with its source."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from energymodel.errors import InputError

SHIPPED = "hgx-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server of ``gpus`` GPUs.

    Beside them it draws ``fixed_w`` (CPUs, memory, network) and ``per_gpu_w`` watts per watt of the
    GPUs (fans, losses of the power supply). ``embodied_kg`` is the CO2e of making it, written off
    over ``lifetime_years``. ``sources`` say where each figure is from.
    """

    name: str
    full_name: str
    gpus: int
    fixed_w: float
    per_gpu_w: float
    nameplate_w: float
    servers_per_rack: int
    embodied_kg: float
    lifetime_years: float
    sources: Mapping[str, str]

    def power_w(self, gpu_w: float) -> float:
        """Power of the whole server, its GPUs included, while they draw ``gpu_w`` together."""
        return self.fixed_w + (1.0 + self.per_gpu_w) * gpu_w


# What a figure may be: (above or at least, at most).
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "gpus": (1, 1024),
    "fixed_w": (0, 1e6),
    "per_gpu_w": (0, 10),
    "nameplate_w": (1, 1e7),
    "servers_per_rack": (1, 1000),
    "embodied_kg": (0, 1e7),
    "lifetime_years": (0.1, 100),
}


def load(name_or_path: str = SHIPPED) -> Server:
    """The shipped server type of that name, or the one in a file.

    Raises:
        InputError: there is none, or a field of it is wrong.
    """
    from energymodel.io import convert, parse_json, read_json

    known = available()
    if name_or_path in known:
        file = resources.files("energymodel.planning").joinpath("servers", f"{name_or_path}.json")
        document = parse_json(file.read_text(encoding="utf-8"), file.name)
    elif Path(name_or_path).suffix == ".json":
        document = read_json(name_or_path)
    else:
        raise InputError(
            f"--server {name_or_path} must be a .json file or one of: {', '.join(known)}."
        )
    server = convert(document, Server, name_or_path)
    for name, (low, high) in _BOUNDS.items():
        value = getattr(server, name)
        if not low <= value <= high:
            raise InputError(
                f"{name_or_path}: {name} must be from {low:g} to {high:g}, got {value:g}."
            )
    for name in _BOUNDS:
        if name != "gpus" and not server.sources.get(name):
            raise InputError(f"{name_or_path}: sources.{name} must say where it is from.")
    return server


def available() -> tuple[str, ...]:
    """Names of the shipped server types."""
    files = resources.files("energymodel.planning").joinpath("servers").iterdir()
    return tuple(sorted(f.name.removesuffix(".json") for f in files if f.name.endswith(".json")))
