"""The power limit over time: what a step may draw depends on what was drawn just before.

The firmware holds the mean power over tens of milliseconds (``settling.py``), here a mean A that
forgets with a time constant of T = ``AVERAGED_S``, dA/dt = (P - A) / T. A step of s seconds that
draws P leaves it at P + (A - P) exp(-s / T), which must not exceed the limit, so the step may draw

    P = (limit - A exp(-s / T)) / (1 - exp(-s / T)).

A short prompt between steps of decode therefore runs faster, and costs more, than one behind other
prompts. Steps that are long, or many alike, draw the limit, as in an offline run.
"""

import math

from energymodel import power
from energymodel.deployment import Deployment
from energymodel.one_step import Load
from energymodel.power import MIN_RELATIVE_CLOCK
from energymodel.profile import Profile
from energymodel.settling import AVERAGED_S

# Halvings and Newton steps that find the clock of one step.
BISECTIONS, NEWTON_STEPS = 4, 4
# Rounds of duration -> power allowed -> clock -> duration.
ROUNDS = 3


class Limit:
    """The power limit of a deployment at one static power, as time goes on from an idle GPU."""

    def __init__(self, deployment: Deployment, profile: Profile, static_w: float) -> None:
        self._cap_w = profile.held_w(deployment.power_limit_w)
        self._static_w = self._mean_w = static_w
        self._exponent = profile.power.exponent.value

    def wait(self, seconds: float) -> None:
        """Nothing runs."""
        self._forget(self._static_w, seconds)

    def run(self, load: Load, iterations: int) -> tuple[float, float]:
        """(seconds of one iteration, its relative clock) of a step that runs so many times."""
        fixed_s, clocked_s, core_j, hbm_j = load
        step_s = fixed_s + clocked_s
        if step_s <= 0.0:
            return 0.0, 1.0
        clock = 1.0
        if self._static_w + (core_j + hbm_j) / step_s > self._cap_w:
            for _ in range(ROUNDS):
                kept = math.exp(-iterations * step_s / AVERAGED_S)
                allowed_w = (self._cap_w - self._mean_w * kept) / (1.0 - kept)
                clock = self._clock(load, allowed_w - self._static_w)
                step_s = fixed_s + clocked_s / clock
        watts = self._static_w + (core_j * clock**self._exponent + hbm_j) / step_s
        self._forget(watts, iterations * step_s)
        return step_s, clock

    def seconds(self, load: Load) -> float:
        """Duration of a step that goes on for long."""
        return load[0] + load[1] / self._clock(load, self._cap_w - self._static_w)

    def _clock(self, load: Load, allowed_w: float) -> float:
        """``power.limited_clock`` of one step that may draw so much above static power."""
        fixed_s, clocked_s, core_j, hbm_j = load
        if core_j + hbm_j <= allowed_w * (fixed_s + clocked_s):
            return 1.0
        exponent, low, high = self._exponent, MIN_RELATIVE_CLOCK, 1.0
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            spent_j = core_j * middle**exponent + hbm_j
            if spent_j > allowed_w * (fixed_s + clocked_s / middle):
                high = middle
            else:
                low = middle
        clock = 0.5 * (low + high)
        for _ in range(NEWTON_STEPS):
            spent_j = core_j * clock**exponent
            excess = spent_j + hbm_j - allowed_w * (fixed_s + clocked_s / clock)
            slope = exponent * spent_j / clock + allowed_w * clocked_s / clock**2
            clock = min(max(clock - excess / slope, low), high) if slope > 0 else low
        return clock

    def _forget(self, watts: float, seconds: float) -> None:
        self._mean_w = watts + (self._mean_w - watts) * math.exp(-seconds / AVERAGED_S)


def first_static_w(profile: Profile, deployment: Deployment) -> float:
    """A guess to begin with: static power at half the power limit."""
    limit_w = deployment.power_limit_w or profile.gpu.power_limit_w
    return float(power.static_power_w(profile.power, limit_w / 2))
