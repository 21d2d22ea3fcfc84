"""The clock, temperature and energy that a run settles at, on the board asked for and on others.

The power limit sets the clock of each step, static power follows the temperature, the temperature
the mean power of the run. Boards of one GPU differ in what a byte costs in their memory
(``Profile.memory``), so the same run has another energy on another board.
"""

from dataclasses import replace

import numpy as np

from energymodel import power
from energymodel.deployment import Deployment
from energymodel.power import StepLoad
from energymodel.profile import Profile
from energymodel.steps import Floats

# The temperature follows the mean power and the static power follows the temperature; the second
# round changes the energy by less than 1e-4.
THERMAL_ROUNDS = 2


def settle(
    load: StepLoad, weight: Floats, submit_s: float, deployment: Deployment, profile: Profile
) -> tuple[Floats, float]:
    """Relative clock of each step and the static power, at the temperature of the run."""
    p = profile.power
    limit_w = deployment.power_limit_w or profile.gpu.power_limit_w
    cap_w, exponent = p.limit_share.value * limit_w, p.exponent.value
    mean_w = cap_w
    for _ in range(THERMAL_ROUNDS):
        static_w = power.static_power_w(p, mean_w)
        watts = power.capped_power_w(load, static_w, exponent, cap_w)
        duration = weight * (load.fixed_s + load.clocked_s)
        energy_j = float(watts @ duration) + static_w * submit_s
        mean_w = energy_j / (float(duration.sum()) + submit_s)
    static_w = power.static_power_w(p, mean_w)
    return power.limited_clock(load, static_w, exponent, cap_w), static_w


def on_other_boards(
    load: StepLoad, weight: Floats, submit_s: float, deployment: Deployment, profile: Profile
) -> tuple[float, float]:
    """Energy of the run with the memories that cost least and most, over that of the board asked for.

    (1, 1) where the deployment says what a byte costs, or boards are not known to differ.
    """
    usual = profile.memory[0].byte_j.value if profile.memory else 0.0
    if deployment.hbm_byte_j is not None or len(profile.memory) < 2 or not usual:
        return 1.0, 1.0

    def energy_j(memory: float) -> float:
        there = replace(load, hbm_j=load.hbm_j * memory)
        clock, static_w = settle(there, weight, submit_s, deployment, profile)
        watts = power.mean_power_w(there, clock, static_w, profile.power.exponent.value)
        seconds = weight * (load.fixed_s + load.clocked_s / clock)
        return float(watts @ seconds) + static_w * submit_s

    ratios = np.array([energy_j(kind.byte_j.value / usual) for kind in profile.memory])
    ratios /= ratios[0]
    return float(ratios.min()), float(ratios.max())
