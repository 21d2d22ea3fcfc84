"""The mixed-effects model of boards: planted offsets come back, and what cannot be told is said."""

import numpy as np
import pytest
from report_builders import observation, world

from calibration.judgement.boards import BoardSpread, board_spread
from calibration.observations import Observation


def spread(offsets: dict[str, float], noise: float = 0.005) -> BoardSpread:
    return board_spread(world(boards=offsets, noise=noise), "energy")


def test_planted_offsets_come_back() -> None:
    planted = {"a": -0.03, "b": 0.0, "c": 0.01, "d": 0.04}
    found = spread(planted)
    assert found.boards == 4
    assert found.operations == 30
    assert found.note == ""
    middle = np.mean(list(planted.values()))
    for offset in found.offsets:
        assert offset.value == pytest.approx(planted[offset.board] - middle, abs=0.004)
        assert 0 < offset.stderr < 0.01
    assert found.deviation == pytest.approx(np.std(list(planted.values()), ddof=1), rel=0.1)
    assert found.residual == pytest.approx(0.005, rel=0.25)


def test_the_interval_is_that_of_the_degrees_of_freedom() -> None:
    found = spread({"a": -0.03, "b": 0.0, "c": 0.03})
    assert found.deviation is not None
    assert found.interval is not None
    # Chi-squared with 2 degrees of freedom has quantiles -2 log(1 - p).
    low, high = (np.sqrt(2 / (-2 * np.log(1 - p))) for p in (0.95, 0.05))
    assert found.interval == (
        pytest.approx(found.deviation * low),
        pytest.approx(found.deviation * high),
    )


def test_equal_boards_do_not_differ() -> None:
    found = spread({"a": 0.0, "b": 0.0, "c": 0.0}, noise=0.01)
    assert found.deviation is not None
    assert found.deviation < 0.005


def test_operations_that_only_one_board_ran_do_not_mislead() -> None:
    seen = list(world(boards={"a": 0.0, "b": 0.02}))
    big = {"m": 4096, "n": 512, "k": 512}
    seen.append(
        observation(board="b", shape=big, mode="sustained", energy_j=1e6, calls=1.0, call_s=1.0)
    )
    found = board_spread(seen, "energy")
    assert found.operations == 30
    a, b = (o.value for o in found.offsets)
    assert b - a == pytest.approx(0.02, abs=0.003)


def test_time_of_bursts_is_compared_at_full_clock() -> None:
    seen = [
        observation(board=board, shape={"m": m, "n": 8, "k": 8}, call_s=m * 1e-5 * np.exp(extra))
        for m in range(1, 20)
        for board, offset in (("a", 0.0), ("b", 0.05))
        for extra in (offset + 0.001 * (m % 3),)
    ]
    found = board_spread(seen, "burst time")
    a, b = (o.value for o in found.offsets)
    assert b - a == pytest.approx(0.05, abs=0.002)
    assert board_spread(seen, "time").note == "no board was measured: a spread needs two"


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (world(), "one board was measured: a spread needs two"),
        ((), "no board was measured: a spread needs two"),
        (
            [
                observation(board=b, mode="sustained", shape=s, energy_j=1.0, calls=1.0)
                for b, s in (("a", {"m": 1, "n": 8, "k": 8}), ("b", {"m": 2, "n": 8, "k": 8}))
            ],
            "no operation was measured on two boards",
        ),
        (
            [observation(board=b, mode="sustained", energy_j=1.0, calls=1.0) for b in ("a", "b")],
            "every board gave the same values",
        ),
    ],
)
def test_what_cannot_be_told_is_said(seen: list[Observation], reason: str) -> None:
    found = board_spread(seen, "energy")
    assert found.deviation is None
    assert found.offsets == ()
    assert found.note == reason


def test_a_board_that_shared_nothing_is_told() -> None:
    lonely = observation(
        board="z", mode="sustained", shape={"m": 3, "n": 8, "k": 8}, energy_j=1.0, calls=1.0
    )
    found = board_spread([*world(boards={"a": 0.0, "b": 0.02}), lonely], "energy")
    assert found.boards == 2
    assert found.note == "1 board shared no operation with another"
