import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from energymodel.power import (
    MIN_RELATIVE_CLOCK,
    StepLoad,
    core_energy_j,
    limited_clock,
    mean_power_w,
    static_power_w,
)
from energymodel.profile import Estimate, PowerProfile

STATIC_W = 120.0


def load(
    fixed_s: float = 0.0, clocked_s: float = 0.0, core_j: float = 0.0, hbm_j: float = 0.0
) -> StepLoad:
    values = (np.array([x]) for x in (fixed_s, clocked_s, core_j, hbm_j))
    return StepLoad(**dict(zip(("fixed_s", "clocked_s", "core_j", "hbm_j"), values, strict=True)))


def duration(step: StepLoad, clock: float | np.ndarray) -> np.ndarray:
    return step.fixed_s + step.clocked_s / clock


loads = st.builds(
    load,
    fixed_s=st.floats(1e-6, 0.1),
    clocked_s=st.floats(0, 0.1),
    core_j=st.floats(0, 100),
    hbm_j=st.floats(0, 30),
)
caps = st.floats(200, 700)
exponents = st.floats(0.2, 3.0)


def test_linear_exponent_by_hand() -> None:
    # All of 1 ms stretches, 0.85 J at full clock, exponent 1: P(x) = 120 + 0.85 x / (1e-3 / x)
    # = 120 + 850 x^2, which is 700 at x = sqrt(580 / 850).
    step = load(clocked_s=1e-3, core_j=0.85)
    clock = limited_clock(step, STATIC_W, 1.0, 700.0)
    assert clock == pytest.approx([(580 / 850) ** 0.5], abs=1e-8)


def test_nothing_stretches_by_hand() -> None:
    # A memory-bound step of 1 ms: P(x) = 120 + (0.6 x^2 + 0.2) / 1e-3 is 600 at x = sqrt(0.28/0.6).
    step = load(fixed_s=1e-3, core_j=0.6, hbm_j=0.2)
    clock = limited_clock(step, STATIC_W, 2.0, 600.0)
    assert clock == pytest.approx([(0.28 / 0.6) ** 0.5], abs=1e-8)


def test_half_fixed_half_clocked_by_hand() -> None:
    # t(x) = 1 ms + 1 ms / x and E = 0.3 x - static: 0.3 x / (1 + 1/x) mW = 0.3 x^2 / (x + 1) kW.
    # 300 x^2 = 100 (x + 1) at x = (1 + sqrt 13) / 6.
    step = load(fixed_s=1e-3, clocked_s=1e-3, core_j=0.3)
    clock = limited_clock(step, STATIC_W, 1.0, 220.0)
    assert clock == pytest.approx([(1 + 13**0.5) / 6], abs=1e-8)


@given(loads, exponents, caps)
def test_the_cap_is_met_or_the_clock_is_at_an_end(
    step: StepLoad, exponent: float, cap_w: float
) -> None:
    clock = limited_clock(step, STATIC_W, exponent, cap_w)
    power = mean_power_w(step, clock, STATIC_W, exponent)
    least = mean_power_w(step, np.array([MIN_RELATIVE_CLOCK]), STATIC_W, exponent)
    assert MIN_RELATIVE_CLOCK <= clock[0] <= 1
    if clock[0] == 1:
        assert power[0] <= cap_w * (1 + 1e-12)
    elif least[0] < cap_w:
        assert power == pytest.approx([cap_w], rel=1e-6)
        assert power[0] <= cap_w * (1 + 1e-12)
    else:
        assert clock == pytest.approx([MIN_RELATIVE_CLOCK])


@given(loads, exponents, st.tuples(caps, caps))
def test_a_lower_cap_never_speeds_up(
    step: StepLoad, exponent: float, two: tuple[float, float]
) -> None:
    low, high = (limited_clock(step, STATIC_W, exponent, cap) for cap in sorted(two))
    assert low[0] <= high[0]
    assert duration(step, low)[0] >= duration(step, high)[0]


@given(loads, exponents, st.floats(MIN_RELATIVE_CLOCK, 1), st.floats(MIN_RELATIVE_CLOCK, 1))
def test_power_rises_with_the_clock(step: StepLoad, exponent: float, a: float, b: float) -> None:
    slow, fast = (mean_power_w(step, np.array([x]), STATIC_W, exponent)[0] for x in sorted((a, b)))
    assert slow <= fast * (1 + 1e-12)


@given(loads, exponents)
def test_a_cap_above_the_demand_leaves_the_clock_alone(step: StepLoad, exponent: float) -> None:
    demand = mean_power_w(step, np.ones(1), STATIC_W, exponent)[0]
    assert limited_clock(step, STATIC_W, exponent, demand) == [1.0]
    assert limited_clock(step, STATIC_W, exponent, demand * 1.5) == [1.0]


@given(loads, exponents, caps, st.floats(1e-3, 1e3))
def test_only_the_mix_counts_not_its_length(
    step: StepLoad, exponent: float, cap_w: float, times: float
) -> None:
    longer = StepLoad(
        fixed_s=times * step.fixed_s,
        clocked_s=times * step.clocked_s,
        core_j=times * step.core_j,
        hbm_j=times * step.hbm_j,
    )
    one = limited_clock(step, STATIC_W, exponent, cap_w)
    assert limited_clock(longer, STATIC_W, exponent, cap_w) == pytest.approx(one, abs=1e-6)


@given(st.lists(loads, min_size=2, max_size=5), exponents, caps)
def test_steps_do_not_touch_each_other(
    steps: list[StepLoad], exponent: float, cap_w: float
) -> None:
    together = StepLoad(
        **{
            name: np.concatenate([getattr(step, name) for step in steps])
            for name in ("fixed_s", "clocked_s", "core_j", "hbm_j")
        }
    )
    alone = [limited_clock(step, STATIC_W, exponent, cap_w)[0] for step in steps]
    assert limited_clock(together, STATIC_W, exponent, cap_w) == pytest.approx(alone, abs=1e-7)


@given(loads, exponents, caps)
def test_work_added_at_the_cap_takes_longer(step: StepLoad, exponent: float, cap_w: float) -> None:
    clock = limited_clock(step, STATIC_W, exponent, cap_w)
    assume(MIN_RELATIVE_CLOCK < clock[0] < 1)
    more = StepLoad(
        fixed_s=step.fixed_s, clocked_s=step.clocked_s, core_j=1.1 * step.core_j, hbm_j=step.hbm_j
    )
    slower = limited_clock(more, STATIC_W, exponent, cap_w)
    assert slower[0] <= clock[0]
    energy = [
        (mean_power_w(s, x, STATIC_W, exponent) * duration(s, x))[0]
        for s, x in ((step, clock), (more, slower))
    ]
    assert energy[1] >= energy[0] * (1 - 1e-6)


def test_an_empty_step_draws_static_power() -> None:
    assert mean_power_w(load(), np.ones(1), STATIC_W, 1.5) == [STATIC_W]
    assert limited_clock(load(), STATIC_W, 1.5, 700.0) == [1.0]


def test_a_cap_for_each_step() -> None:
    step = StepLoad(
        fixed_s=np.zeros(2), clocked_s=np.full(2, 1e-3), core_j=np.full(2, 0.85), hbm_j=np.zeros(2)
    )
    clock = limited_clock(step, np.full(2, STATIC_W), 1.0, np.array([700.0, 332.5]))
    assert clock == pytest.approx([(580 / 850) ** 0.5, 0.5], abs=1e-8)


def estimate(value: float) -> Estimate:
    return Estimate(value=value, stderr=0.0, unit="1")


def test_energy_of_a_call_by_hand() -> None:
    energy = {"flop_j": 1e-12, "weight_byte_j": 5e-11, "row_byte_j": 7e-11, "busy_w": 80.0}
    flop, weights, rows = np.array([2e12]), np.array([1e9]), np.array([2e9])
    # 2 J for the arithmetic, 50 mJ for weights, 140 mJ for activations, 0.24 J for being busy.
    joules = core_energy_j(energy, flop, weights, rows, np.array([3e-3]))
    assert joules == pytest.approx([2.43])


def test_static_power_follows_the_temperature() -> None:
    power = PowerProfile(
        static_w=estimate(100.0),
        static_w_per_c=estimate(0.5),
        ambient_c=estimate(30.0),
        c_per_w=estimate(0.04),
        exponent=estimate(1.0),
        limit_share=estimate(0.985),
    )
    # 500 W settle at 30 + 20 = 50 degrees, which add 25 W.
    assert static_power_w(power, 500.0) == pytest.approx(125.0)
    assert static_power_w(power, np.array([0.0, 500.0])) == pytest.approx([115.0, 125.0])
