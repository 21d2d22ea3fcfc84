"""Coefficients of variation over trials, on trials that can be done by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_builders import observation

from calibration.judgement.variation import variation
from calibration.observations import Observation


def window(energy_j: float, **fields: object) -> Observation:
    usual: dict[str, object] = {"mode": "sustained", "duty": 1.0, "calls": 2.0}
    return observation(**(usual | {"energy_j": energy_j} | fields))


def test_three_trials_by_hand() -> None:
    # 1, 2 and 3 J a call: mean 2, standard deviation 1.
    v = variation([window(e, trial=i) for i, e in enumerate((2.0, 4.0, 6.0))], "energy")
    assert (v.points, v.single, v.note) == (1, 0, "")
    assert v.median == v.p95 == pytest.approx(0.5)
    (only,) = v.worst
    assert (only.trials, only.mean) == (3, pytest.approx(2.0))
    assert only.point.startswith("gemm:k=4096,m=1")


def test_time_is_of_the_call_and_idle_windows_do_not_count() -> None:
    seen = [observation(call_s=s) for s in (9e-6, 11e-6)]
    seen += [observation(op="idle", shape={}, mode="idle", call_s=s) for s in (1.0, 2.0)]
    v = variation(seen, "time")
    assert v.points == 1
    assert v.median == pytest.approx(2**0.5 * 0.1)


@pytest.mark.parametrize(
    "other",
    [
        {"board": "board-b"},
        {"duty": 0.5, "mode": "duty"},
        {"shape": {"m": 2, "n": 4096, "k": 4096}},
        {"dtype": "fp8"},
        {"cache": "warm"},
    ],
)
def test_only_trials_of_the_same_point_are_compared(other: dict[str, object]) -> None:
    v = variation([window(2.0), window(4.0, **other)], "energy")
    assert (v.points, v.single) == (0, 2)
    assert v.median is None
    assert "one trial" in v.note


def test_median_and_95th_percentile_are_over_points() -> None:
    # Relative spreads of 1 to 21 %; the most variable point comes first.
    seen = [
        window(value, shape={"m": m, "n": 8, "k": 8})
        for m in range(1, 22)
        for value in (1.0 - m / 200 * 2**0.5, 1.0 + m / 200 * 2**0.5)
    ]
    v = variation(seen, "energy")
    assert v.median == pytest.approx(0.11)
    assert v.p95 == pytest.approx(0.20)
    assert [s.coefficient for s in v.worst[:2]] == [pytest.approx(0.21), pytest.approx(0.20)]


def test_points_with_one_trial_are_told() -> None:
    v = variation([window(2.0), window(2.2), window(1.0, board="board-b")], "energy")
    assert (v.points, v.single) == (1, 1)
    assert v.note == "1 of 2 points have one trial and are not counted"


def test_nothing_measured() -> None:
    assert variation([], "energy").note == "not measured"


@given(
    st.lists(st.floats(0.5, 2.0), min_size=2, max_size=6),
    st.floats(1e-3, 1e3),
)
def test_a_spread_is_relative(energies: list[float], scale: float) -> None:
    plain = variation([window(e) for e in energies], "energy")
    scaled = variation([window(scale * e) for e in energies], "energy")
    assert plain.median is not None
    assert scaled.median == pytest.approx(plain.median, rel=1e-9, abs=1e-12)
