"""Power of fleets over time and how sure it is: sums, limits, and many replicas played out."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energymodel.planning.provision import Course, course_of, provisioning, together
from energymodel.planning.sureness import Doubts, Load, drawn_w, sureness

# A replica that prefills a fifth of the time at the limit and decodes the rest.
COURSE = Course(
    count=200,
    slot_s=0.1,
    power_w=np.tile([690.0, 420.0, 430.0, 410.0, 400.0], 40),
    most_w=690.0,
    nameplate_w=1275.0,
)


@given(st.integers(1, 500), st.floats(0.9, 0.999))
def test_rules_are_in_order(count: int, percentile: float) -> None:
    found = provisioning([replace(COURSE, count=count)], percentile=percentile)
    assert found.mean == pytest.approx(count * 470.0)
    assert found.mean <= found.percentile <= found.worst <= found.nameplate


def test_a_large_fleet_needs_little_above_its_mean() -> None:
    one = provisioning([replace(COURSE, count=1)], percentile=0.99)
    many = provisioning([replace(COURSE, count=1000)], percentile=0.99)
    assert one.percentile == pytest.approx(690.0)
    # 2.33 deviations of 110.6 W times the root of 1000.
    assert many.percentile - many.mean == pytest.approx(2.33 * 110.6 * np.sqrt(1000), rel=0.1)


def test_the_percentile_is_that_of_replicas_played_together() -> None:
    found = provisioning([COURSE], percentile=0.99)
    played = np.concatenate([together(COURSE, 20.0, seed) for seed in range(200)])
    assert np.quantile(played, 0.99) == pytest.approx(found.percentile, rel=0.01)
    changes = np.abs(np.diff(played.reshape(200, -1), axis=1)) / COURSE.slot_s
    assert np.quantile(changes, 0.99) == pytest.approx(found.ramp_w_per_s, rel=0.1)


@given(st.lists(st.tuples(st.floats(1e-3, 0.5), st.floats(0.1, 300.0)), min_size=1, max_size=30))
def test_slots_conserve_energy(steps: list[tuple[float, float]]) -> None:
    seconds, joules = np.array(steps).T
    slot_s = float(seconds.sum()) / 7
    power_w = course_of(seconds, joules, slot_s)
    assert float(power_w.sum()) * slot_s == pytest.approx(float(joules.sum()), rel=1e-6)


LOAD = Load(
    count=100,
    gpus=2,
    gpu_power_w=900.0,
    idle_power_w=240.0,
    model_deviation=0.03,
    board_deviation=0.03,
    server_fixed_w=400.0,
    server_per_gpu_w=0.2,
)
MEAN_W = 1.25 * 100 * (400.0 + 1.2 * 900.0)


def test_without_doubt_the_power_is_the_sum() -> None:
    sure = replace(LOAD, model_deviation=0.0, board_deviation=0.0)
    assert drawn_w([sure], pue=1.25, doubts=Doubts()) == pytest.approx(MEAN_W)


def test_the_model_is_wrong_for_all_at_once_boards_one_by_one() -> None:
    found = sureness([LOAD], pue=1.25, budget_w=MEAN_W, doubts=Doubts())
    assert found.probability == pytest.approx(0.5, abs=0.03)
    wide_w = 1.645 * 0.03 * 1.25 * 100 * 1.2 * 900.0
    assert found.sensitivity_w["power model"] == pytest.approx(wide_w, rel=0.05)
    assert found.sensitivity_w["boards"] == pytest.approx(wide_w / np.sqrt(200), rel=0.05)
    assert found.sensitivity_w["pue"] == 0.0


@given(st.floats(0.8, 1.3), st.floats(1.0, 1.2))
def test_a_larger_budget_is_surer(share: float, more: float) -> None:
    doubts = Doubts(demand=0.1, pue=0.02)
    small = sureness([LOAD], pue=1.25, budget_w=share * MEAN_W, doubts=doubts)
    large = sureness([LOAD], pue=1.25, budget_w=share * more * MEAN_W, doubts=doubts)
    assert large.probability >= small.probability
    assert small.interval_w[0] <= small.interval_w[1]


def test_what_is_surely_not_exceeded_is_not_as_often_as_asked() -> None:
    doubts = Doubts(pue=0.05)
    sure_w = sureness([LOAD], pue=1.25, budget_w=1.0, doubts=doubts, sure=0.95).sure_w
    again = sureness([LOAD], pue=1.25, budget_w=sure_w, doubts=doubts, seed=1)
    assert again.probability == pytest.approx(0.95, abs=0.015)
