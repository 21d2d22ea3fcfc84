"""Which observations are held out together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.folds import LEAST_FAMILIES, MOST, folds, together

groups = st.lists(st.integers(0, 30), max_size=60).map(lambda x: np.array(x, dtype=np.float64))
several = groups.filter(lambda group: len(np.unique(group)) > 1)


@given(several, st.integers(2, 12))
def test_each_observation_is_held_out_exactly_once(group: np.ndarray, most: int) -> None:
    held = list(folds(group, most))
    assert all(mask.shape == group.shape and mask.dtype == np.bool_ for mask in held)
    assert np.sum(held, axis=0).tolist() == [1] * len(group)
    # Something is always held out, and something left to fit.
    assert all(0 < mask.sum() < len(group) for mask in held)


@given(several, st.integers(2, 12))
def test_groups_are_never_split(group: np.ndarray, most: int) -> None:
    held = list(folds(group, most))
    assert len(held) == min(most, len(np.unique(group)))
    for mask in held:
        assert not set(group[mask]) & set(group[~mask])


@pytest.mark.parametrize("group", [[], [7.0], [7.0] * 5])
def test_nothing_is_held_out_of_fewer_than_two_groups(group: list[float]) -> None:
    assert list(folds(np.array(group))) == []


def test_folds_are_of_the_same_size_in_random_order_and_repeatable() -> None:
    group = np.repeat(np.arange(40.0), 3)
    held = list(folds(group))
    assert [mask.sum() for mask in held] == [120 // MOST] * MOST
    assert np.array_equal(held, list(folds(group)))
    # No fold is a run of neighbours.
    assert all(np.ptp(group[mask]) >= 8 for mask in held)


@pytest.mark.parametrize("families", range(1, 6))
def test_families_are_held_out_whole_or_single_shapes_where_they_are_few(families: int) -> None:
    # Eight shapes, each seen in three trials.
    point = np.repeat(np.arange(8.0), 3)
    family = point % families
    expected = family if families >= LEAST_FAMILIES else point
    assert np.array_equal(together(family, point), expected)
    held = list(folds(together(family, point)))
    assert len(held) == (families if families >= LEAST_FAMILIES else 8)
    # Trials of a shape are never on both sides.
    for mask in held:
        assert not set(point[mask]) & set(point[~mask])
