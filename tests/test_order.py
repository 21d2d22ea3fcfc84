"""Which shapes are measured first."""

import random
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from calibration.order import Shape, farthest_first

LINE = [{"x": 2**i - 1} for i in range(5)]
shapes = st.lists(
    st.fixed_dictionaries({"m": st.integers(0, 4096), "n": st.integers(0, 4096)}), max_size=25
)


def places(chosen: list[Shape]) -> np.ndarray:
    """Where shapes are, in doublings."""
    return np.log2([[shape["m"] + 1.0, shape["n"] + 1.0] for shape in chosen])


def distances(chosen: list[Shape]) -> list[float]:
    """Of each shape but the first from the nearest of those before it."""
    at = places(chosen)
    return [float(np.linalg.norm(at[:i] - at[i], axis=1).min()) for i in range(1, len(at))]


def test_by_hand() -> None:
    # In doublings 0, 1, 2, 3, 4: the middle, both ends, then what lies between them.
    assert [s["x"] for s in farthest_first(LINE, 9)] == [3, 0, 15, 1, 7]
    # A square of 3 x 3: the middle, the corners, then the edges.
    square = [{"x": 4**i, "y": 4**j} for i in range(3) for j in range(3)]
    found = [(s["x"], s["y"]) for s in farthest_first(square, 5)]
    assert found[0] == (4, 4)
    assert sorted(found[1:]) == [(1, 1), (1, 16), (16, 1), (16, 16)]


def test_a_missing_axis_is_a_place_of_its_own() -> None:
    assert farthest_first([{"x": 1}, {"x": 1, "window": 128}, {"x": 1, "window": 0}], 9) == [
        {"x": 1},
        {"x": 1, "window": 128},
    ]


def test_no_more_than_asked_for() -> None:
    assert farthest_first([], 3) == []
    assert [s["x"] for s in farthest_first(LINE, 2)] == [3, 0]
    assert len(farthest_first(LINE, 100)) == 5


@given(shapes, st.integers(1, 30))
def test_nothing_twice_nothing_new_and_the_same_again(given_: list[Shape], most: int) -> None:
    chosen = farthest_first(given_, most)
    distinct = {tuple(s.items()) for s in given_}
    keys = [tuple(s.items()) for s in chosen]
    assert len(set(keys)) == len(keys) == min(most, len(distinct))
    assert set(keys) <= distinct
    assert farthest_first(given_, most) == chosen


@given(shapes)
def test_every_shape_is_as_far_as_any_that_is_left(given_: list[Shape]) -> None:
    chosen = farthest_first(given_, len(given_))
    found = distances(chosen)
    # Each next one is nearer than the last, and none that comes later would have been farther.
    assert all(a >= b - 1e-9 for a, b in pairwise(found))
    for i in range(1, len(chosen)):
        at, before = places(chosen[i:]), places(chosen[:i])
        reach = np.linalg.norm(at[:, None] - before[None], axis=2).min(axis=1)
        assert found[i - 1] >= reach.max() - 1e-9


@given(shapes.filter(bool), st.integers(1, 30))
def test_a_beginning_of_the_order_is_the_order_of_a_beginning(
    given_: list[Shape], most: int
) -> None:
    assert farthest_first(given_, len(given_))[:most] == farthest_first(given_, most)


def test_a_beginning_is_spread_more_evenly_than_chance() -> None:
    grid = [{"m": 2**i, "n": 2**j} for i in range(16) for j in range(16)]
    chance = random.Random(0)  # noqa: S311 - shapes, not a secret
    spread = min(distances(farthest_first(grid, 16)))
    assert all(spread > 1.5 * min(distances(chance.sample(grid, 16))) for _ in range(100))
