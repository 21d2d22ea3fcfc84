"""Operations -> joules, and the clock that the power limit allows for the mix of a step.

At relative clock x = f / f_max a step takes

    t(x) = fixed_s + clocked_s / x

and spends

    E(x) = static_w t(x) + core_j x^a + hbm_j

with ``core_j`` what its operations spend in SMs and caches at full clock and ``hbm_j`` what they
spend in the memory itself. The firmware lowers x until E(x) / t(x) meets the limit. Operations
are summed first and throttled afterwards: the limit acts on the mix, not on one operation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from energymodel.profile import PowerProfile
from energymodel.steps import Floats

W = TypeVar("W", float, Floats)

# The lowest clock that a busy GPU was asked for; below it the model has nothing to say.
MIN_RELATIVE_CLOCK = 0.2
# Halvings of the clock interval bring the solution near, Newton's steps then to rounding.
BISECTIONS, NEWTON_STEPS = 8, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoad:
    """What each step asks of the GPU at full clock; arrays of shape [n_steps], or scalars."""

    fixed_s: Floats
    clocked_s: Floats
    core_j: Floats
    hbm_j: Floats


def core_energy_j(
    energy: Mapping[str, float],
    flop: Floats,
    weight_bytes: Floats,
    row_bytes: Floats,
    busy_s: Floats,
) -> Floats:
    """Energy in SMs and caches of one call at full clock, above static power.

    ``weight_bytes`` are weights and cached keys and values, ``row_bytes`` activations.
    """
    streamed = energy["weight_byte_j"] * weight_bytes + energy["row_byte_j"] * row_bytes
    return energy["flop_j"] * flop + streamed + energy["busy_w"] * busy_s


def mean_power_w(
    load: StepLoad, clock: Floats, static_w: float | Floats, exponent: float
) -> Floats:
    """Mean power of each step at relative clock ``clock``."""
    duration = load.fixed_s + load.clocked_s / clock
    spent = load.core_j * clock**exponent + load.hbm_j
    return static_w + np.divide(spent, duration, out=np.zeros_like(spent), where=duration > 0)


def limited_clock(
    load: StepLoad, static_w: float | Floats, exponent: float, cap_w: float | Floats
) -> Floats:
    """The highest relative clock, at most 1, at which each step draws no more than ``cap_w``.

    Power rises with the clock, so there is one; a step that exceeds the cap even at
    ``MIN_RELATIVE_CLOCK`` stays there.
    """
    high = np.ones_like(load.core_j)
    free = mean_power_w(load, high, static_w, exponent) <= cap_w
    if free.all():
        return high
    low = np.full_like(high, MIN_RELATIVE_CLOCK)
    allowed_w = cap_w - static_w
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        # Energy above static against what the cap leaves for the duration: no division by zero.
        spent = load.core_j * middle**exponent + load.hbm_j
        over = spent > allowed_w * (load.fixed_s + load.clocked_s / middle)
        high = np.where(over, middle, high)
        low = np.where(over, low, middle)
    clock = 0.5 * (low + high)
    for _ in range(NEWTON_STEPS):
        core_j = load.core_j * clock**exponent
        excess = core_j + load.hbm_j - allowed_w * (load.fixed_s + load.clocked_s / clock)
        slope = exponent * core_j / clock + allowed_w * load.clocked_s / clock**2
        with np.errstate(over="ignore"):  # a flat curve sends the step out of the bracket: clip
            step = np.divide(excess, slope, out=np.zeros_like(clock), where=slope > 0)
        clock = np.clip(clock - step, low, high)
    lowest = np.full_like(clock, MIN_RELATIVE_CLOCK)
    held = mean_power_w(load, lowest, static_w, exponent) <= cap_w
    return np.where(free, 1.0, np.where(held, clock, lowest))


def limited(
    load: StepLoad, static_w: float | Floats, exponent: float, cap_w: float | Floats
) -> tuple[Floats, Floats]:
    """(seconds, joules) of each step at the clock at which it draws no more than ``cap_w``."""
    clock = limited_clock(load, static_w, exponent, cap_w)
    seconds = load.fixed_s + load.clocked_s / clock
    return seconds, seconds * mean_power_w(load, clock, static_w, exponent)


def capped_power_w(
    load: StepLoad, static_w: float | Floats, exponent: float, cap_w: float | Floats
) -> Floats:
    """Mean power of each step once limited: what it draws at full clock, or the cap."""
    return np.minimum(mean_power_w(load, np.ones_like(load.core_j), static_w, exponent), cap_w)


def static_power_w(p: PowerProfile, mean_w: W) -> W:
    """Static power at the temperature that ``mean_w`` settles at."""
    temperature_c = p.ambient_c.value + p.c_per_w.value * mean_w
    return p.static_w.value + p.static_w_per_c.value * temperature_c
