"""The clock, temperature and energy that runs settle at, on the board asked for and on others.

The power limit sets the clock of each step, static power follows the temperature, the temperature
the mean power of the run. Boards of one GPU differ in what a byte costs in their memory
(``Profile.memory``), so the same run has another energy on another board.
"""

from dataclasses import dataclass

import numpy as np

from energymodel import power
from energymodel.deployment import Deployment
from energymodel.power import StepLoad
from energymodel.profile import PowerProfile, Profile
from energymodel.steps import Floats, Ints

# The temperature follows the mean power and the static power follows the temperature; the second
# round changes the energy by less than 1e-4.
THERMAL_ROUNDS = 2
# Of a longer wait the firmware remembers no more than this; waits of up to 30 ms were seen to count.
AVERAGED_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """The steps of one or more runs, one run after the other.

    ``load`` and ``weight`` (how often a step runs) have shape [n_steps], and so has ``run``, which
    says whose step it is. ``submit_s``, before the first step, and ``limit_w``, the power limit,
    are of each run, [n_runs].
    """

    load: StepLoad
    weight: Floats
    run: Ints
    submit_s: Floats
    limit_w: Floats


def settle_all(runs: Runs, p: PowerProfile) -> tuple[Floats, Floats]:
    """(relative clock of each step [n_steps], static power of each run at its temperature [n_runs]).

    The firmware holds the mean power over tens of milliseconds: what the wait before the first step
    leaves of it, the steps behind may draw. Prompts of 6 to 90 ms, one at a time, drew 691 W in the
    mean whatever part of the time the GPU waited (runs.jsonl).
    """
    cap_w, exponent = p.limit_share.value * runs.limit_w, p.exponent.value
    full_s = runs.weight * (runs.load.fixed_s + runs.load.clocked_s)
    duration_s = _by_run(full_s, runs) + runs.submit_s
    mean_w = cap_w
    for _ in range(THERMAL_ROUNDS):
        static_w = power.static_power_w(p, mean_w)
        watts = power.capped_power_w(runs.load, static_w[runs.run], exponent, cap_w[runs.run])
        mean_w = (_by_run(watts * full_s, runs) + static_w * runs.submit_s) / duration_s
    static_w = power.static_power_w(p, mean_w)
    step = (static_w[runs.run], exponent)
    clock = power.limited_clock(runs.load, *step, cap_w[runs.run])
    spared_j = (cap_w - static_w) * np.minimum(runs.submit_s, AVERAGED_S)
    limited_s = runs.weight * (runs.load.fixed_s + runs.load.clocked_s / clock) * (clock < 1.0)
    limited_s = _by_run(limited_s, runs)
    if not limited_s.any():
        return clock, static_w
    more_w = np.divide(spared_j, limited_s, out=np.zeros_like(spared_j), where=limited_s > 0)
    clock = power.limited_clock(runs.load, *step, (cap_w + more_w)[runs.run])
    return clock, static_w


def totals(runs: Runs, p: PowerProfile) -> tuple[Floats, Floats]:
    """(duration in seconds, energy in joules) of each run once settled, [n_runs]."""
    clock, static_w = settle_all(runs, p)
    step_s = runs.weight * (runs.load.fixed_s + runs.load.clocked_s / clock)
    watts = power.mean_power_w(runs.load, clock, static_w[runs.run], p.exponent.value)
    return (
        _by_run(step_s, runs) + runs.submit_s,
        _by_run(watts * step_s, runs) + static_w * runs.submit_s,
    )


def _by_run(values: Floats, runs: Runs) -> Floats:
    """Sums over the steps of each run."""
    return np.asarray(np.bincount(runs.run, values, len(runs.submit_s)), dtype=np.float64)


def settle(
    load: StepLoad, weight: Floats, submit_s: float, deployment: Deployment, profile: Profile
) -> tuple[Floats, float]:
    """Relative clock of each step and the static power, at the temperature of the run."""
    run = Runs(
        load=load,
        weight=weight,
        run=np.zeros(len(weight), dtype=np.int64),
        submit_s=np.array([submit_s]),
        limit_w=np.array([deployment.power_limit_w or profile.gpu.power_limit_w]),
    )
    clock, static_w = settle_all(run, profile.power)
    return clock, float(static_w[0])


def on_other_boards(
    load: StepLoad, weight: Floats, submit_s: float, deployment: Deployment, profile: Profile
) -> tuple[float, ...]:
    """Energy of the run with each memory of ``Profile.memory``, over that with the first.

    (1,) where the deployment says what a byte costs, or boards are not known to differ.
    """
    usual = profile.memory[0].byte_j.value if profile.memory else 0.0
    if deployment.hbm_byte_j is not None or not usual:
        return (1.0,)
    kinds, ones = len(profile.memory), np.ones(len(weight))
    memory = np.concatenate([ones * (k.byte_j.value / usual) for k in profile.memory])
    runs = Runs(
        load=StepLoad(
            fixed_s=np.tile(load.fixed_s, kinds),
            clocked_s=np.tile(load.clocked_s, kinds),
            core_j=np.tile(load.core_j, kinds),
            hbm_j=np.tile(load.hbm_j, kinds) * memory,
        ),
        weight=np.tile(weight, kinds),
        run=np.repeat(np.arange(kinds), len(weight)),
        submit_s=np.full(kinds, submit_s),
        limit_w=np.full(kinds, deployment.power_limit_w or profile.gpu.power_limit_w),
    )
    _, energy_j = totals(runs, profile.power)
    return tuple((energy_j / energy_j[0]).tolist())
