"""The power limit over time, against the equation stepped through, and at its two ends."""

import itertools
import math
from dataclasses import replace

import pytest

from energymodel import power_in_time
from energymodel.deployment import Deployment
from energymodel.one_step import Load
from energymodel.power_in_time import Limit
from energymodel.profile import load
from energymodel.settling import AVERAGED_S

PROFILE, STATIC_W = load("h200"), 125.0
CAP_W = PROFILE.power.limit_share.value * PROFILE.gpu.power_limit_w
EXPONENT = PROFILE.power.exponent.value


def prompt(seconds: float) -> Load:
    """A step that draws 950 W at full clock."""
    return 0.1 * seconds, 0.9 * seconds, 0.8 * 825.0 * seconds, 0.2 * 825.0 * seconds


def decode(seconds: float) -> Load:
    """A step that draws 485 W."""
    return 0.8 * seconds, 0.2 * seconds, 200.0 * seconds, 160.0 * seconds


def watts(load_: Load, clock: float) -> float:
    step_s = load_[0] + load_[1] / clock
    return STATIC_W + (load_[2] * clock**EXPONENT + load_[3]) / step_s


@pytest.fixture
def limit() -> Limit:
    return Limit(Deployment(), PROFILE, STATIC_W)


def test_a_long_step_draws_the_limit(limit: Limit) -> None:
    step_s, clock = limit.run(prompt(5.0), 1)
    assert watts(prompt(5.0), clock) == pytest.approx(CAP_W, rel=1e-3)
    assert step_s == pytest.approx(limit.seconds(prompt(5.0)), rel=1e-3)


def test_a_short_one_behind_a_wait_runs_at_full_clock_and_its_followers_do_not(
    limit: Limit,
) -> None:
    clocks = [limit.run(prompt(0.01), 1)[1] for _ in range(40)]
    assert clocks[0] == 1.0
    assert all(after <= before + 1e-3 for before, after in itertools.pairwise(clocks))
    assert watts(prompt(0.01), clocks[-1]) == pytest.approx(CAP_W, rel=2e-3)
    limit.wait(1.0)
    assert limit.run(prompt(0.01), 1)[1] == 1.0


def test_the_mean_never_exceeds_the_limit(limit: Limit) -> None:
    # dA/dt = (P - A) / T, stepped through between prompts and decode.
    mean_w = STATIC_W
    for asked, iterations in [(decode(0.006), 5), (prompt(0.04), 1)] * 10:
        step_s, clock = limit.run(asked, iterations)
        drawn_w, steps = watts(asked, clock), 1000
        for _ in range(steps):
            mean_w += (drawn_w - mean_w) * iterations * step_s / steps / AVERAGED_S
        assert mean_w <= CAP_W * 1.003
    assert mean_w > 0.95 * CAP_W


def test_a_step_that_does_nothing_takes_no_time(limit: Limit) -> None:
    assert limit.run((0.0, 0.0, 0.0, 0.0), 3) == (0.0, 1.0)


def test_a_lower_limit_takes_a_lower_clock() -> None:
    clocks = [
        Limit(replace(Deployment(), power_limit_w=w), PROFILE, STATIC_W).run(prompt(5.0), 1)[1]
        for w in (700.0, 500.0, 300.0)
    ]
    assert clocks[0] > clocks[1] > clocks[2]


def test_without_memory_every_step_is_limited(
    monkeypatch: pytest.MonkeyPatch, limit: Limit
) -> None:
    monkeypatch.setattr(power_in_time, "AVERAGED_S", 1e-9)
    step_s, clock = limit.run(prompt(0.01), 1)
    assert math.isclose(step_s, limit.seconds(prompt(0.01)), rel_tol=1e-9)
    assert clock < 1.0
