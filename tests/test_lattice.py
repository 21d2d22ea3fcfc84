"""Lattices: values by hand, and one place at a time as many at once."""

import numpy as np
import pytest

from energymodel.lattice import Curve, Lattice, Lookup, nodes
from energymodel.steps import Floats

PLANE = Lattice(
    axes=(np.array([1.0, 3.0]), np.array([0.0, 10.0, 30.0])),
    # 10 x + y, so that what lies between is known.
    values=np.array([[[10.0], [20.0], [40.0]], [[30.0], [40.0], [60.0]]]),
)


def places(*columns: float) -> tuple[Floats, ...]:
    return tuple(np.array([x]) for x in columns)


def test_between_nodes_values_are_linear_in_each_axis() -> None:
    assert PLANE.at(*places(2.0, 5.0))[0, 0] == pytest.approx(25.0)
    assert PLANE.at(*places(1.5, 25.0))[0, 0] == pytest.approx(40.0)


def test_the_last_cell_goes_on_and_the_first_value_holds() -> None:
    assert PLANE.at(*places(5.0, 40.0))[0, 0] == pytest.approx(90.0)
    assert PLANE.at(*places(0.0, -5.0))[0, 0] == pytest.approx(10.0)


def test_one_place_at_a_time_is_the_same() -> None:
    random = np.random.default_rng(0)
    axes = (nodes(300, 4, 2), nodes(50, 8, 3), np.array([0.0, 64.0, 500.0]))
    lattice = Lattice(axes=axes, values=random.random((*map(len, axes), 4)))
    asked = [random.uniform(0, 1.5 * axis[-1], 50) for axis in axes]
    asked[0][:5] = axes[0][:5]  # on nodes, too
    many = lattice.at(*asked)
    lookup = Lookup(lattice)
    for row, place in zip(many, np.stack(asked, axis=1), strict=True):
        assert lookup.at(*place) == pytest.approx(row.tolist())
    curve = Curve(axes[0], lattice.values[:, 0, 0])
    line = Lattice(axes=axes[:1], values=lattice.values[:, 0, 0]).at(asked[0])
    for row, x in zip(line, asked[0], strict=True):
        assert curve.at(float(x)) == pytest.approx(row.tolist())


def test_nodes_are_whole_numbers_first_and_reach_the_last() -> None:
    assert nodes(20, 4, 1).tolist() == [1, 2, 3, 4, 8, 16, 32]
    assert nodes(3, 8, 4).tolist() == [1, 2, 3]
    assert nodes(1, 8, 4).tolist() == [1, 2]
