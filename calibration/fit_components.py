"""Observations -> what a call costs: time and energy of every name that there is evidence for."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibration.fit_energy import (
    Static,
    Windows,
    fit_coefficients,
    fit_exponent,
    fit_static,
    on_boards,
    windows,
)
from calibration.fit_memory import Memory, fit_memory
from calibration.fit_power import PowerFit, cross_validate, refine
from calibration.fit_time import TimeFit, fit_time, full_clock
from calibration.observations import Observation
from calibration.tables import Table, all_names, table
from calibration.verdict import POWER_CAP_REASON
from energymodel.hardware import GpuSpec
from energymodel.laws import REQUIRED, STREAMING_KINDS, TILE_ROWS, kind_of
from energymodel.profile import Estimate

Array = NDArray[np.float64]
Report = Callable[[str], None]

# Names with energy windows at fewer shapes than ``LEAST_WINDOWS`` share the coefficients of another.
SHARED_ENERGY = {
    "gather": "elementwise",
    "sampling": "elementwise",
    "copy.append": "copy",
    "copy.fill": "copy",
}
# What has few windows starts from the coefficients of what it is like; a dtype from its own kind.
PARENTS: Mapping[str, str] = {
    "mla_decode": "decode_attention",
    "mla_prefill": "prefill_attention",
    **dict.fromkeys(("scan_decode", "linear_attention_decode"), "decode_attention"),
    **dict.fromkeys(("scan_prefill", "linear_attention_prefill"), "prefill_attention"),
    **dict.fromkeys(STREAMING_KINDS[1:], "elementwise"),
}
# Where no window met the power limit: held just there, and energy in proportion to the clock.
UNKNOWN_SHARE = Estimate(value=1.0, stderr=0.05, unit="1")
UNKNOWN_EXPONENT = Estimate(value=1.0, stderr=0.5, unit="1")
# Fewer shapes tell nothing about a name that no prediction needs: it is left out.
LEAST_WINDOWS, LEAST_BURSTS = 3, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class NameFit:
    """What was found for one name: its evidence, its fits, and its errors on shapes held out.

    ``held_out_j`` and ``held_out_s`` are log errors (measured over predicted) of the sustained
    windows behind ``power``; NaN where none could be taken. ``shared`` names the kind whose
    energy coefficients are used for want of own windows.
    """

    table: Table
    time: TimeFit
    windows: Windows
    power: PowerFit
    held_out_j: Array
    held_out_s: Array
    shared: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """Everything that was fitted to observations alone, by name; ``left_out`` says why not."""

    observations: tuple[Observation, ...]
    static: Static
    memory: Memory
    exponent: Estimate
    limit_share: Estimate
    names: Mapping[str, NameFit]
    left_out: Mapping[str, str]

    @property
    def hbm_byte_j(self) -> Estimate:
        """What a byte costs in the usual memory."""
        return self.memory.usual


def fit_components(
    seen: Sequence[Observation], spec: GpuSpec, report: Report = lambda _: None
) -> Components:
    """Time and energy of every name that there is evidence for."""
    static = fit_static(seen)
    tables = {
        name: table(name, seen, float(spec.sm_count), spec.l2_bytes) for name in all_names(seen)
    }
    left_out = {name: why for name, t in tables.items() if (why := _too_little(t, tables))}
    tables = {name: t for name, t in tables.items() if name not in left_out}
    times, energy = {}, {}
    for name, t in tables.items():
        report(f"time of {name}")
        times[name] = fit_time(t)
        energy[name] = windows(t, static, times[name], min(spec.max_sm_clock_hz, t.top_clock_hz))
    single = [t for name, t in tables.items() if name != "elementwise"]
    memory = fit_memory(single, spec.hbm_bytes_per_s)
    energy = {name: on_boards(w, memory) for name, w in energy.items()}
    hbm_byte_j = memory.usual
    if not hbm_byte_j.value:
        left_out["hbm_byte_j"] = "no sensor of memory power: it is part of weight_byte_j"
    share = _held_share(seen, spec.power_limit_w)
    cap_w = share.value * spec.power_limit_w
    if share.stderr < UNKNOWN_SHARE.stderr:
        exponent = _fit_clock_law(energy["gemm"], hbm_byte_j, cap_w)
    else:
        exponent = UNKNOWN_EXPONENT
        left_out["clock law"] = "no window met the power limit: energy as if it went with the clock"
    own: dict[str, tuple[PowerFit, Array, Array]] = {}
    names = {}
    for name, w in energy.items():
        report(f"energy of {name}")
        source = SHARED_ENERGY.get(name, name) if _sustained(w) < LEAST_WINDOWS else name
        if source not in own:
            origin = PARENTS.get(source, kind_of(source))
            parent = _like(own[origin][0], origin) if origin in own else None
            own[source] = _fit_power(energy[source], hbm_byte_j, exponent, cap_w, parent)
        power, held_out_j, held_out_s = own[source]
        names[name] = NameFit(
            table=tables[name],
            time=times[name],
            windows=w,
            power=power,
            held_out_j=held_out_j,
            held_out_s=held_out_s,
            shared=None if source == name else source,
        )
    return Components(
        observations=tuple(seen),
        static=static,
        memory=memory,
        exponent=exponent,
        limit_share=share,
        names=names,
        left_out=left_out,
    )


def _like(parent: PowerFit, parent_name: str) -> Mapping[str, Estimate]:
    """Coefficients that a name without many windows starts from.

    Other kernels pad other tiles than decode attention, whose FLOP of padding go with its bytes: a
    key and a value of 16 bits for every 4 x 64 FLOP, 64 FLOP a byte. Its rows are too few bytes to
    say what they cost elsewhere.
    """
    if parent_name != "decode_attention":
        return parent.energy
    flop_j, byte_j, row_j = (parent.energy[n] for n in ("flop_j", "weight_byte_j", "row_byte_j"))
    return {
        **parent.energy,
        "flop_j": replace(flop_j, value=0.0),
        "weight_byte_j": replace(byte_j, value=byte_j.value + TILE_ROWS * flop_j.value),
        "row_byte_j": replace(row_j, value=0.0),
    }


def _too_little(t: Table, known: Collection[str]) -> str | None:
    """Why a name that no prediction needs cannot be fitted, beside what is ``known``; None if it can."""
    if t.name in REQUIRED:
        return None
    bursts = len(np.unique(t.point[full_clock(t)]))
    sustained = len({o.point for o in t.observations if o.mode == "sustained"})
    if bursts < LEAST_BURSTS:
        return f"{bursts} timed shapes, {LEAST_BURSTS} are needed"
    shares = SHARED_ENERGY.get(t.name)
    if sustained < LEAST_WINDOWS and shares not in known:
        return f"{sustained} shapes with sustained windows, {LEAST_WINDOWS} are needed"
    return None


def _sustained(w: Windows) -> int:
    """Distinct shapes with sustained windows."""
    return len(np.unique(w.table.point[w.chosen][w.duty >= 1.0]))


def _fit_clock_law(products: Windows, hbm_byte_j: Estimate, cap_w: float) -> Estimate:
    """Exponent of the clock law, from the products that the limit holds."""
    first = fit_exponent({"gemm": products}, hbm_byte_j.value)
    start = fit_coefficients(products, hbm_byte_j, first.value)
    return refine(products, start, first, cap_w, free_exponent=True).exponent


def _fit_power(
    w: Windows,
    hbm_byte_j: Estimate,
    exponent: Estimate,
    cap_w: float,
    parent: Mapping[str, Estimate] | None,
) -> tuple[PowerFit, Array, Array]:
    """Energy coefficients through the power limit, and errors on shapes held out of them."""
    start = fit_coefficients(w, hbm_byte_j, exponent.value)
    energy, time = cross_validate(w, hbm_byte_j, exponent, cap_w, parent)
    return refine(w, start, exponent, cap_w, parent=parent), energy, time


def _held_share(seen: Sequence[Observation], limit_w: float) -> Estimate:
    """Share of the limit at which a throttled GPU's mean power is held."""
    top_hz = max(o.sm_clock_hz or 0.0 for o in seen)
    held = [
        (o.energy_j or 0.0) / (o.duration_s or 1.0) / limit_w
        for o in seen
        if o.mode == "sustained"
        and (o.sm_clock_hz or 0.0) < 0.9 * top_hz
        and (o.throttle_reasons is None or o.throttle_reasons & POWER_CAP_REASON)
    ]
    if not held:
        return UNKNOWN_SHARE
    return Estimate(
        value=float(np.median(held)), stderr=float(np.std(held) / len(held) ** 0.5), unit="1"
    )
