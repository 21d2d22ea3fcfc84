"""Energy windows -> joules per FLOP, per byte and per second, static power, and the clock law.

A window of ``duration_s`` holds pauses at static power and ``busy_s`` of calls. At relative clock
x each call spends, above static power,

    (flop_j FLOP + weight_byte_j weights + row_byte_j activations + busy_w seconds) x^exponent
        + hbm_byte_j bytes

(see ``energymodel.power``). ``hbm_byte_j`` comes from the memory-power sensor alone
(``fit_memory``), the rest from non-negative least squares on what the energy counter saw, each
window weighted by the share of its energy that was work.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import statsmodels.api as sm
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar, nnls

from calibration.fit_memory import Memory
from calibration.fit_time import TimeFit, full_clock, law_seconds
from calibration.folds import together
from calibration.observations import Observation
from calibration.tables import Table
from energymodel import laws
from energymodel.errors import InputError
from energymodel.power import core_energy_j
from energymodel.profile import Estimate
from energymodel.timing import clocked_seconds

Array = NDArray[np.float64]

UNITS = {
    "flop_j": "J/FLOP",
    "weight_byte_j": "J/B",
    "row_byte_j": "J/B",
    "busy_w": "W",
    "hbm_byte_j": "J/B",
}
CORE = ("flop_j", "weight_byte_j", "row_byte_j", "busy_w")
# Windows that pause and are throttled mix clocks; they serve as checks, not in the fit.
LEAST_CLOCK_WITH_PAUSES = 0.99
# Idle windows closer in temperature than this say nothing of its effect, which then is 0 with
# this standard error (W/degC): more than any board has shown.
LEAST_WARMING_C, UNKNOWN_SLOPE = 3.0, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Static:
    """Static power ``watts + watts_per_c x temperature`` with a context and no work."""

    watts: Estimate
    watts_per_c: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Energy windows of one kind as arrays [n]; ``work_j`` is energy of one call above static.

    ``memory`` is what a byte costs in the memory of the window's board, over the usual.
    """

    table: Table
    chosen: NDArray[np.bool_]
    call_s: Array
    full_s: Array
    clocked_s: Array
    static_w: Array
    clock: Array
    duty: Array
    gross_j: Array
    work_j: Array
    weight: Array
    memory: Array

    @property
    def flop(self) -> Array:
        """FLOP of one call."""
        return self.table.flop[self.chosen]

    @property
    def core_flop(self) -> Array:
        """FLOP of one call that cost energy in the SMs; padding included."""
        return self.table.core_flop[self.chosen]

    @property
    def weight_bytes(self) -> Array:
        """Bytes of weights or cached keys and values of one call."""
        return self.table.weight_bytes[self.chosen]

    @property
    def row_bytes(self) -> Array:
        """Bytes of activations of one call."""
        return self.table.row_bytes[self.chosen]

    @property
    def point(self) -> Array:
        """Number of the shape of each window."""
        return self.table.point[self.chosen]

    @property
    def held_together(self) -> Array:
        """Number of what is held out together."""
        return together(self.table.group[self.chosen], self.table.point[self.chosen])

    @property
    def moved_bytes(self) -> Array:
        """All bytes of one call, wherever they are."""
        return self.weight_bytes + self.row_bytes

    @property
    def hbm_bytes(self) -> Array:
        """Bytes of one call that reach the memory, as many as cost the same in the usual one."""
        return self.table.hbm_bytes[self.chosen] * self.memory

    @property
    def rows(self) -> list[Observation]:
        """The observations behind the windows."""
        return _rows(self.table, self.chosen)


def fit_static(observations: Sequence[Observation]) -> Static:
    """Idle windows: power against temperature, with the boards' levels averaged out."""
    idle = [o for o in observations if o.mode == "idle"]
    watts = np.array([(o.energy_j or 0.0) / (o.duration_s or 1.0) for o in idle])
    celsius = np.array([o.temperature_c for o in idle], dtype=np.float64)
    boards = np.array([o.board for o in idle])
    names = sorted(set(boards))
    each = np.array([[float(b == name) for name in names] for b in boards])
    # At one temperature nothing is known of the slope, and the level is that of this temperature.
    if len(idle) <= len(names):
        raise InputError(
            f"{len(idle)} idle windows are too few for static power: {len(names)} boards need at "
            f"least {len(names) + 1}."
        )
    warmed = np.ptp(celsius) >= LEAST_WARMING_C and len(idle) > len(names) + 1
    columns = np.column_stack([each, celsius]) if warmed else each
    result = sm.OLS(watts, columns).fit()
    levels = result.params[: len(names)]
    spread = float(np.std(levels, ddof=1)) if len(names) > 1 else float(result.bse[0])
    slope = (float(result.params[-1]), float(result.bse[-1])) if warmed else (0.0, UNKNOWN_SLOPE)
    return Static(
        watts=Estimate(value=float(np.mean(levels)), stderr=spread / len(names) ** 0.5, unit="W"),
        watts_per_c=Estimate(value=slope[0], stderr=slope[1], unit="W/degC"),
    )


def windows(table: Table, static: Static, time_fit: TimeFit, max_clock_hz: float) -> Windows:
    """Arrays of the energy windows of ``table``."""
    chosen = np.array([o.energy_j is not None for o in table.observations])
    rows = [o for o in table.observations if o.energy_j is not None]

    def column(name: str) -> Array:
        return np.array([getattr(o, name) for o in rows], dtype=np.float64)

    static_w = static.watts.value + static.watts_per_c.value * column("temperature_c")
    call_s, calls = column("call_s"), column("calls")
    pauses_s = np.maximum(column("duration_s") - column("busy_s"), 0.0)
    gross_j = (column("energy_j") - static_w * pauses_s) / calls
    shapes = {name: values[chosen] for name, values in table.shapes.items()}
    law = {k: e.value for k, e in time_fit.law.items()}
    full_s = _full_clock_seconds(table, chosen, time_fit)
    return Windows(
        table=table,
        chosen=chosen,
        call_s=call_s,
        full_s=full_s,
        clocked_s=clocked_seconds(table.kind, laws.LAWS[table.kind](shapes, law), full_s),
        static_w=static_w,
        clock=np.minimum(column("sm_clock_hz") / max_clock_hz, 1.0),
        duty=column("duty"),
        gross_j=gross_j,
        work_j=gross_j - static_w * call_s,
        weight=gross_j * calls / column("energy_j"),
        memory=np.ones(len(rows)),
    )


def on_boards(w: Windows, memory: Memory) -> Windows:
    """The same windows, each with what a byte costs on its board."""
    return replace(w, memory=np.array([memory.over_usual(o.board) for o in w.rows]))


def _full_clock_seconds(table: Table, chosen: NDArray[np.bool_], time_fit: TimeFit) -> Array:
    """Burst time of the same shape where one was taken at full clock, else the law's."""
    shapes = {name: values[chosen] for name, values in table.shapes.items()}
    seconds = law_seconds(table.name, shapes, time_fit.law, time_fit.residual)
    bursts: dict[str, list[float]] = {}
    for o in _rows(table, full_clock(table)):
        bursts.setdefault(o.point, []).append(o.call_s)
    rows = _rows(table, chosen)
    return np.array(
        [float(np.median(bursts.get(o.point, [s]))) for o, s in zip(rows, seconds, strict=True)]
    )


def _rows(table: Table, chosen: NDArray[np.bool_]) -> list[Observation]:
    """The observations of ``table`` that ``chosen`` marks."""
    return [o for o, c in zip(table.observations, chosen, strict=True) if c]


def fit_exponent(all_windows: Mapping[str, Windows], hbm_byte_j: float) -> Estimate:
    """Exponent of the clock law that leaves the least weighted squared relative error."""

    def loss(exponent: float) -> float:
        return sum(
            float(
                np.square(energy_errors(w, _coefficients(w, hbm_byte_j, exponent), exponent)).sum()
            )
            for w in all_windows.values()
        )

    best = minimize_scalar(loss, bounds=(0.2, 3.0), method="bounded")
    count = sum(int(usable(w).sum()) for w in all_windows.values())
    step = 0.05
    curvature = (loss(best.x + step) + loss(best.x - step) - 2 * best.fun) / step**2
    stderr = float(np.sqrt(2 * best.fun / count / max(curvature, 1e-12)))
    return Estimate(value=float(best.x), stderr=stderr, unit="1")


def usable(w: Windows) -> NDArray[np.bool_]:
    """Windows that enter the fit."""
    return (w.duty >= 1.0) | (w.clock >= LEAST_CLOCK_WITH_PAUSES)


def fit_coefficients(w: Windows, hbm_byte_j: Estimate, exponent: float) -> dict[str, Estimate]:
    """Non-negative joules per FLOP, per byte and per second, with weighted standard errors."""
    values = _coefficients(w, hbm_byte_j.value, exponent)
    design, target = _design(w, hbm_byte_j.value, exponent)
    active = [i for i, name in enumerate(CORE) if values[name] > 0]
    errors = np.zeros(len(CORE))
    if 0 < len(active) < len(target):
        # Columns differ by twelve orders of magnitude: scale them for the inverse, then back.
        norms = np.linalg.norm(design[:, active], axis=0)
        errors[active] = sm.OLS(target, design[:, active] / norms).fit().bse / norms
    fitted = {
        name: Estimate(value=values[name], stderr=float(e), unit=UNITS[name])
        for name, e in zip(CORE, errors, strict=True)
    }
    return {**fitted, "hbm_byte_j": hbm_byte_j}


def _design(w: Windows, hbm_byte_j: float, exponent: float) -> tuple[Array, Array]:
    """Weighted regressors and target, relative to the gross energy of a call."""
    keep = usable(w)
    scale = (w.weight / w.gross_j)[keep]
    clock = (w.clock**exponent)[keep]
    columns = np.stack([w.core_flop, w.weight_bytes, w.row_bytes, w.full_s], axis=1)[keep]
    target = w.work_j[keep] - hbm_byte_j * w.hbm_bytes[keep]
    return columns * (clock * scale)[:, None], target * scale


def _coefficients(w: Windows, hbm_byte_j: float, exponent: float) -> dict[str, float]:
    design, target = _design(w, hbm_byte_j, exponent)
    norms = np.linalg.norm(design, axis=0)
    norms[norms == 0] = 1.0
    solution = nnls(design / norms, target)[0] / norms
    named = dict(zip(CORE, map(float, solution), strict=True))
    return {**named, "hbm_byte_j": hbm_byte_j}


def energy_errors(w: Windows, c: Mapping[str, float], exponent: float) -> Array:
    """Weighted relative error of the gross energy of a call, over the usable windows."""
    keep = usable(w)
    return (_predicted_j(w, c, exponent) / w.gross_j - 1.0)[keep] * w.weight[keep]


def _predicted_j(w: Windows, c: Mapping[str, float], exponent: float) -> Array:
    core = core_energy_j(c, w.core_flop, w.weight_bytes, w.row_bytes, w.full_s)
    static_j = w.gross_j - w.work_j
    return static_j + core * w.clock**exponent + c["hbm_byte_j"] * w.hbm_bytes


def subset(w: Windows, mask: NDArray[np.bool_]) -> Windows:
    """Windows of ``mask`` only (the table keeps all observations; ``chosen`` narrows)."""
    chosen = w.chosen.copy()
    chosen[np.flatnonzero(w.chosen)[~mask]] = False
    arrays = {
        name: getattr(w, name)[mask]
        for name in (
            "call_s",
            "full_s",
            "clocked_s",
            "static_w",
            "clock",
            "duty",
            "gross_j",
            "work_j",
            "weight",
            "memory",
        )
    }
    return Windows(table=w.table, chosen=chosen, **arrays)
