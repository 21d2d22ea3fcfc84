"""Energy of CPU packages and their DRAM through Linux powercap (Intel RAPL, and AMD's under its name).

Boundaries "cpu_package" and "dram" (and "platform" for psys) stand beside the GPU's and are never
added to it. The counter wraps around at ``max_energy_range_uj``; the layout is that of
Documentation/power/powercap/powercap.rst of Linux.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from energymodel.errors import WorkError

POWERCAP = Path("/sys/class/powercap")
MICRO = 1e-6
REMEDY = "read it as root, or let your group read energy_uj with chgrp and chmod g+r"
BOUNDARIES = {"package": "cpu_package", "dram": "dram", "psys": "platform", "core": "cpu_core"}
"""Kinds of domains, by the start of their name; others (uncore) are part of a package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """One energy counter of the host.

    ``zone`` is the kernel's name (``intel-rapl:0:0``), ``name`` the hardware's with the package
    that it belongs to. ``remedy`` is None where the counter can be read.
    """

    zone: str
    name: str
    boundary: str
    range_j: float
    remedy: str | None = None


def domains(root: Path = POWERCAP) -> tuple[Domain, ...]:
    """The energy counters that the kernel shows, readable or not; none without powercap."""
    try:
        zones = sorted(p for p in root.iterdir() if ":" in p.name and (p / "name").is_file())
    except OSError:
        return ()
    names = {zone.name: _text(zone / "name") for zone in zones}
    found = [_domain(zone, names) for zone in zones]
    return tuple(domain for domain in found if domain is not None)


def read_j(domain: Domain, root: Path = POWERCAP) -> float:
    """The counter now, joules since an arbitrary origin; it wraps around at ``range_j``.

    Raises:
        WorkError: it cannot be read; the message says what would help.
    """
    try:
        return int(_text(root / domain.zone / "energy_uj")) * MICRO
    except PermissionError as error:
        raise WorkError(f"The energy of {domain.name} cannot be read: {REMEDY}.") from error
    except (OSError, ValueError) as error:
        raise WorkError(f"The energy of {domain.name} cannot be read: {error}.") from error


def difference_j(start_j: float, end_j: float, range_j: float) -> float:
    """Energy between two reads of a counter that wrapped around at most once between them."""
    return end_j - start_j if end_j >= start_j else end_j - start_j + range_j


class PowercapMeter:
    """Joules by domain between ``start`` and ``stop``; unreadable domains are left out.

    Read at least as often as the counter wraps around: packages wrap after 262 kJ, which is tens
    of minutes at 200 W. For longer spans call ``update`` in between.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._root = root
        self.domains = tuple(d for d in domains(root) if d.remedy is None)
        self._last_j: dict[str, float] = {}
        self._total_j: dict[str, float] = {}

    def start(self) -> None:
        """Begin at zero."""
        self._last_j = {d.name: read_j(d, self._root) for d in self.domains}
        self._total_j = dict.fromkeys(self._last_j, 0.0)

    def update(self) -> None:
        """Take in what was used since the last read."""
        for domain in self.domains:
            now_j = read_j(domain, self._root)
            spent_j = difference_j(self._last_j[domain.name], now_j, domain.range_j)
            self._total_j[domain.name] += spent_j
            self._last_j[domain.name] = now_j

    def stop(self) -> Mapping[str, float]:
        """Joules since ``start``, by the name of the domain (``package-0``, ``package-0 dram``)."""
        self.update()
        return dict(self._total_j)


def _domain(zone: Path, names: Mapping[str, str]) -> Domain | None:
    name = names[zone.name]
    boundary = next((b for start, b in BOUNDARIES.items() if name.startswith(start)), None)
    if boundary is None:
        return None
    above = names.get(zone.name.rpartition(":")[0])
    try:
        range_j = int(_text(zone / "max_energy_range_uj")) * MICRO
        _text(zone / "energy_uj")
        remedy = None
    except PermissionError:
        range_j, remedy = 0.0, REMEDY
    except (OSError, ValueError) as error:
        range_j, remedy = 0.0, f"the kernel refuses it: {error}"
    full_name = f"{above} {name}" if above else name
    return Domain(zone=zone.name, name=full_name, boundary=boundary, range_j=range_j, remedy=remedy)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()
