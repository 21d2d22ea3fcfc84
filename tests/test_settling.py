"""Runs settle alone as they do together, and the limit holds the mean power, waits included."""

from dataclasses import replace

import numpy as np
import pytest

from energymodel import profile as profiles
from energymodel.deployment import Deployment
from energymodel.power import StepLoad
from energymodel.settling import AVERAGED_S, Runs, on_other_boards, settle, settle_all, totals

PROFILE = profiles.load("h200")
POWER = PROFILE.power
CAP_W = POWER.limit_share.value * PROFILE.gpu.power_limit_w


def load(*, seconds: float, watts: float, steps: int = 1, fixed: float = 0.2) -> StepLoad:
    """Steps that draw ``watts`` above static power at full clock, a share of them fixed."""
    each = np.full(steps, seconds)
    return StepLoad(
        fixed_s=fixed * each,
        clocked_s=(1.0 - fixed) * each,
        core_j=0.8 * watts * each,
        hbm_j=0.2 * watts * each,
    )


def runs(work: StepLoad, wait_s: float, weight: float = 1.0) -> Runs:
    size = len(work.fixed_s)
    return Runs(
        load=work,
        weight=np.full(size, weight),
        run=np.zeros(size, dtype=np.int64),
        submit_s=np.array([wait_s]),
        limit_w=np.array([PROFILE.gpu.power_limit_w]),
    )


def test_many_runs_settle_as_each_does() -> None:
    random = np.random.default_rng(0)
    sizes = (3, 1, 7)
    each = [
        load(seconds=0.004 * (i + 1), watts=float(random.uniform(200, 900)), steps=size)
        for i, size in enumerate(sizes)
    ]
    waits, limits = np.array([1e-3, 0.0, 2e-3]), np.array([700.0, 500.0, 600.0])
    together = Runs(
        load=StepLoad(
            **{
                name: np.concatenate([getattr(one, name) for one in each])
                for name in ("fixed_s", "clocked_s", "core_j", "hbm_j")
            }
        ),
        weight=np.arange(1.0, 1.0 + sum(sizes)),
        run=np.repeat(np.arange(3), sizes),
        submit_s=waits,
        limit_w=limits,
    )
    clock, static_w = settle_all(together, POWER)
    duration_s, energy_j = totals(together, POWER)
    for i, one in enumerate(each):
        weight = together.weight[together.run == i]
        deployment = Deployment(power_limit_w=float(limits[i]))
        alone_clock, alone_w = settle(one, weight, float(waits[i]), deployment, PROFILE)
        assert clock[together.run == i] == pytest.approx(alone_clock, rel=1e-12)
        assert static_w[i] == pytest.approx(alone_w, rel=1e-12)
        single = replace(runs(one, float(waits[i])), weight=weight, limit_w=limits[i : i + 1])
        alone_s, alone_j = totals(single, POWER)
        assert (duration_s[i], energy_j[i]) == pytest.approx((alone_s[0], alone_j[0]), rel=1e-12)


def test_the_limit_holds_the_mean_of_work_and_short_waits() -> None:
    """Prompts of 6 to 90 ms, one at a time, drew the limit in the mean (settling.py)."""
    work = load(seconds=0.010, watts=800.0)
    for wait_s in (0.0, 0.5e-3, 1e-3):
        duration_s, energy_j = totals(runs(work, wait_s), POWER)
        assert energy_j[0] / duration_s[0] == pytest.approx(CAP_W, rel=5e-3)
    quick, slow = (settle_all(runs(work, wait_s), POWER)[0][0] for wait_s in (1e-3, 0.0))
    assert slow < quick < 1.0


def test_a_wait_gives_no_power_to_what_the_limit_does_not_hold() -> None:
    work = load(seconds=0.010, watts=300.0)
    assert settle_all(runs(work, 1e-3), POWER)[0] == [1.0]
    heavy = load(seconds=0.010, watts=600.0)  # above the limit, but not once the wait is counted
    assert settle_all(runs(heavy, 0.0), POWER)[0][0] < 1.0
    assert settle_all(runs(heavy, 0.010), POWER)[0] == [1.0]


def test_a_long_wait_is_soon_forgotten() -> None:
    work = load(seconds=1.0, watts=800.0)
    some, long, longer = (
        settle_all(runs(work, wait_s), POWER)[0][0] for wait_s in (0.0, AVERAGED_S, 100.0)
    )
    assert some < long
    # The static power differs a little, as the mean power and the temperature do.
    assert longer == pytest.approx(long, rel=0.02)


def test_other_boards_differ_by_their_memory_alone() -> None:
    work, weight = load(seconds=0.010, watts=300.0), np.ones(1)
    ratios = on_other_boards(work, weight, 0.0, Deployment(), PROFILE)
    assert len(ratios) == len(PROFILE.memory) == 2
    assert ratios[0] == 1.0
    usual, other = (kind.byte_j.value for kind in PROFILE.memory)
    # Below the limit, a fifth of the energy above static grows as the byte's does.
    _, energy_j = totals(runs(work, 0.0), POWER)
    more_j = (other / usual - 1.0) * float(work.hbm_j[0])
    assert ratios[1] == pytest.approx(1.0 + more_j / energy_j[0], rel=5e-3)
    told = Deployment(hbm_byte_j=usual)
    assert on_other_boards(work, weight, 0.0, told, PROFILE) == (1.0,)
