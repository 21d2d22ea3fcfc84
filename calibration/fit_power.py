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

from calibration.fit_energy import CORE, UNITS, Windows, usable
from calibration.robust import robust_fit
from energymodel import power
from energymodel.power import StepLoad
from energymodel.profile import Estimate

Array = NDArray[np.float64]

NAMES = (*CORE, "clock_share")
ROBUST_AT = 0.04
# The clock that NVML reads is a sample of one that dithers; it decides between a law in which much
# of the time stretches a little and one in which little stretches much.
CLOCK_WEIGHT = 0.3
# Pull (in log units per unit of log value) towards the starting values.
PRIOR_WEIGHT = 0.03
# Where least squares gave nothing, start from this share of a typical value.
FLOOR = {"flop_j": 1e-14, "weight_byte_j": 1e-12, "row_byte_j": 1e-12, "busy_w": 1.0}
START_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerFit:
    """Refined estimates and the log errors (measured over predicted) of sustained windows."""

    energy: dict[str, Estimate]
    clock_share: Estimate
    exponent: Estimate
    energy_error: Array
    time_error: Array


def refine(
    w: Windows,
    start: Mapping[str, Estimate],
    exponent: Estimate,
    cap_w: float,
    *,
    free_exponent: bool = False,
) -> PowerFit:
    """Refine the coefficients of one kind; the exponent too where ``free_exponent``."""
    names = (*NAMES, "exponent") if free_exponent else NAMES
    first = {n: max(start[n].value, FLOOR[n]) for n in FLOOR}
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
    found, deviations = robust_fit(
        residuals,
        origin,
        data=len(residuals(origin)) - len(names),
        outlier_at=ROBUST_AT,
        upper=most,
    )
    units = {**UNITS, "clock_share": "1", "exponent": "1"}
    fitted = {
        name: Estimate(value=float(np.exp(x)), stderr=float(np.exp(x) * e), unit=units[name])
        for name, x, e in zip(names, found, deviations, strict=True)
    }
    # What the windows cannot see was only the prior speaking: it is nothing.
    unseen = {
        "flop_j": not w.flop.any(),
        "weight_byte_j": not w.weight_bytes.any(),
        "row_byte_j": not w.row_bytes.any(),
        "clock_share": not w.clocked_s.any(),
    }
    for name in (n for n, nothing in unseen.items() if nothing):
        fitted[name] = Estimate(value=0.0, stderr=0.0, unit=units[name])
    errors = _errors(w, values(found), cap_w)
    return PowerFit(
        energy={n: fitted[n] for n in FLOOR} | {"hbm_byte_j": start["hbm_byte_j"]},
        clock_share=fitted["clock_share"],
        exponent=fitted.get("exponent", exponent),
        energy_error=errors.energy,
        time_error=errors.time,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Errors:
    """Log measured over predicted: of sustained windows, and energy of pulsed ones (weighted)."""

    energy: Array
    time: Array
    clock: Array
    pulsed: Array


def _errors(w: Windows, c: Mapping[str, float], cap_w: float) -> _Errors:
    core_j = power.core_energy_j(c, w.flop, w.weight_bytes, w.row_bytes, w.full_s)
    clocked_s = w.clocked_s * c["clock_share"]
    load = StepLoad(
        fixed_s=w.full_s - clocked_s,
        clocked_s=clocked_s,
        core_j=core_j,
        hbm_j=c["hbm_byte_j"] * w.moved_bytes,
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
