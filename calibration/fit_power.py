"""Energy and clock laws as they are used: through the power limit.

``fit_energy`` finds joules per FLOP, byte and second at the clock that was read. What a prediction
needs is the time and energy that follow once the power limit has set the clock, so the
coefficients are refined here against exactly that: each sustained window's time and energy are
predicted by ``power.limited_clock`` and compared, and each duty-cycled window's energy at full
clock beside them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.fit_energy import CORE, UNITS, Windows, fit_coefficients, subset, usable
from calibration.fit_time import stored_covariance
from calibration.folds import folds
from calibration.robust import deviations, robust_fit
from energymodel import power
from energymodel.power import StepLoad
from energymodel.profile import Covariance, Estimate

Array = NDArray[np.float64]

NAMES = (*CORE, "clock_share")
ROBUST_AT = 0.04
# The clock that NVML reads is a sample of one that dithers; it decides between a law in which much
# of the time stretches a little and one in which little stretches much.
CLOCK_WEIGHT = 0.3
# Pull (in log units per unit of log value) towards where a coefficient starts: what the windows
# do not tell apart stays there, with an error as wide as this pull is weak.
PRIOR_WEIGHT = 0.03
# Where least squares gave nothing, which says only that another coefficient took its share, start
# from a small one; or from that of the kind that this one is a variant of.
FLOOR = {"flop_j": 1e-14, "weight_byte_j": 1e-12, "row_byte_j": 1e-12, "busy_w": 1.0}
Parent = Mapping[str, Estimate]
START_SHARE = 0.5
HELD_OUT_PARTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerFit:
    """Refined estimates and the log errors (measured over predicted) of sustained windows.

    ``covariance`` is that of the logarithms of what was fitted.
    """

    energy: dict[str, Estimate]
    clock_share: Estimate
    exponent: Estimate
    covariance: Covariance
    energy_error: Array
    time_error: Array


def refine(
    w: Windows,
    start: Mapping[str, Estimate],
    exponent: Estimate,
    cap_w: float,
    *,
    parent: Parent | None = None,
    free_exponent: bool = False,
) -> PowerFit:
    """Refine the coefficients of one name; the exponent too where ``free_exponent``.

    Args:
        w: its energy windows.
        start: coefficients from non-negative least squares.
        exponent: of the clock law.
        cap_w: power at which the limit holds the board.
        parent: coefficients to start from instead, of a kind with more windows.
        free_exponent: fit the exponent as well.
    """
    names = (*NAMES, "exponent") if free_exponent else NAMES
    origins = start if parent is None else parent
    first = {n: max(origins[n].value, FLOOR[n]) for n in FLOOR}
    first |= {"clock_share": START_SHARE, "exponent": exponent.value}
    origin = np.log([first[name] for name in names])
    hbm_byte_j = start["hbm_byte_j"].value

    def values(log_values: Array) -> dict[str, float]:
        found = dict(zip(names, map(float, np.exp(log_values)), strict=True))
        return {"exponent": exponent.value, **found, "hbm_byte_j": hbm_byte_j}

    def residuals(log_values: Array) -> Array:
        errors = _errors(w, values(log_values), cap_w)
        prior = PRIOR_WEIGHT * (log_values - origin)
        return np.concatenate(
            [errors.energy, errors.time, errors.pulsed, CLOCK_WEIGHT * errors.clock, prior]
        )

    # No time can stretch more than like 1/f.
    most = np.array([0.0 if name == "clock_share" else np.inf for name in names])
    shapes = len(np.unique(w.point))
    found, covariance = robust_fit(
        residuals,
        origin,
        data=len(residuals(origin)) - len(names),
        outlier_at=ROBUST_AT,
        upper=most,
        repeats=len(w.duty) / shapes,
    )
    unseen = {
        "flop_j": not w.core_flop.any(),
        "weight_byte_j": not w.weight_bytes.any(),
        "row_byte_j": not w.row_bytes.any(),
        "clock_share": not w.clocked_s.any(),
    }
    told = [name for name in CORE if not unseen.get(name)]
    if shapes < len(told):  # too few to tell the coefficients apart, however well they fit
        covariance += np.diag(np.maximum(1.0 - np.diag(covariance), 0.0))
    units = {**UNITS, "clock_share": "1", "exponent": "1"}
    fitted = {
        name: Estimate(value=float(np.exp(x)), stderr=float(np.exp(x) * e), unit=units[name])
        for name, x, e in zip(names, found, deviations(covariance), strict=True)
    }
    # What the windows cannot see was only the prior speaking: it is nothing.
    for name in (n for n, nothing in unseen.items() if nothing):
        fitted[name] = Estimate(value=0.0, stderr=0.0, unit=units[name])
    errors = _errors(w, values(found), cap_w)
    return PowerFit(
        energy={n: fitted[n] for n in FLOOR} | {"hbm_byte_j": start["hbm_byte_j"]},
        clock_share=fitted["clock_share"],
        exponent=fitted.get("exponent", exponent),
        covariance=stored_covariance(names, covariance),
        energy_error=errors.energy,
        time_error=errors.time,
    )


def cross_validate(
    w: Windows,
    hbm_byte_j: Estimate,
    exponent: Estimate,
    cap_w: float,
    parent: Parent | None = None,
) -> tuple[Array, Array]:
    """Log errors (energy, time) of sustained windows whose shape family no fit has seen.

    Both have shape [n windows], NaN for windows with pauses and where too little is left to fit.
    """
    energy, time = np.full(len(w.duty), np.nan), np.full(len(w.duty), np.nan)
    for held in folds(w.held_together, HELD_OUT_PARTS):
        kept, test = subset(w, ~held), subset(w, held)
        if not usable(kept).any():
            continue
        start = fit_coefficients(kept, hbm_byte_j, exponent.value)
        fitted = refine(kept, start, exponent, cap_w, parent=parent)
        values = {name: e.value for name, e in fitted.energy.items()}
        values |= {"clock_share": fitted.clock_share.value, "exponent": exponent.value}
        errors = _errors(test, values, cap_w)
        places = np.flatnonzero(held)[test.duty >= 1.0]
        energy[places], time[places] = errors.energy, errors.time
    return energy, time


@dataclass(frozen=True, slots=True, kw_only=True)
class _Errors:
    """Log measured over predicted: of sustained windows, and energy of pulsed ones (weighted)."""

    energy: Array
    time: Array
    clock: Array
    pulsed: Array


def _errors(w: Windows, c: Mapping[str, float], cap_w: float) -> _Errors:
    core_j = power.core_energy_j(c, w.core_flop, w.weight_bytes, w.row_bytes, w.full_s)
    clocked_s = w.clocked_s * c["clock_share"]
    load = StepLoad(
        fixed_s=w.full_s - clocked_s,
        clocked_s=clocked_s,
        core_j=core_j,
        hbm_j=c["hbm_byte_j"] * w.hbm_bytes,
    )
    sustained = w.duty >= 1.0
    clock = power.limited_clock(load, w.static_w, c["exponent"], cap_w)
    clock = np.where(sustained, clock, w.clock)
    seconds = load.fixed_s + load.clocked_s / clock
    joules = power.mean_power_w(load, clock, w.static_w, c["exponent"]) * seconds
    energy = np.log(w.gross_j / joules)
    return _Errors(
        energy=energy[sustained],
        time=np.log(w.call_s / seconds)[sustained],
        clock=np.log(w.clock / clock)[sustained],
        pulsed=(energy * w.weight)[usable(w) & ~sustained],
    )
