import numpy as np
import pytest

from energymodel.suspects import split, suspect


def runs(parts: np.ndarray, measured_j: np.ndarray, model: list[int] | None = None) -> object:
    rows = [dict(zip("abc", row, strict=False)) for row in parts]
    return split(rows, list(measured_j), np.array(model or [0] * len(rows)))


PARTS = np.array([[10.0, 1.0], [20.0, 8.0], [5.0, 9.0], [12.0, 30.0], [3.0, 2.0]])


def test_the_component_that_explains_the_residual() -> None:
    found = suspect(runs(PARTS, PARTS @ [1.0, 0.8]), 2)
    assert found is not None
    assert (found.component, found.rows) == ("b", 5)
    assert found.scale == pytest.approx(0.8)
    assert found.explains == pytest.approx(1.0)


def test_nobody_is_accused_without_need() -> None:
    assert suspect(runs(PARTS, PARTS.sum(axis=1)), 0) is None  # nothing is wrong
    assert suspect(runs(PARTS[:3], PARTS[:3] @ [1.0, 2.0]), 0) is None  # three runs
    # Errors of both signs in runs that are split alike are no component's.
    alike = np.tile([4.0, 6.0], (6, 1))
    assert suspect(runs(alike, 10.0 + np.array([1, -1, 1, -1, 1, -1])), 0) is None


def test_a_small_component_is_not_blamed_for_everything() -> None:
    parts = np.array([[100.0 + i, 0.1] for i in range(6)])
    found = suspect(runs(parts, 1.2 * parts.sum(axis=1)), 0)
    assert found is not None
    assert found.component == "a"


def test_runs_of_the_same_model_come_first() -> None:
    parts = np.tile(PARTS, (2, 1))
    scales = np.repeat([[1.5, 1.0], [1.0, 0.7]], 5, axis=0)
    both = runs(parts, (parts * scales).sum(axis=1), [0] * 5 + [1] * 5)
    assert [suspect(both, i).component for i in (0, 5)] == ["a", "b"]  # type: ignore[union-attr]
    # A model of two runs is judged with runs of others that are split alike.
    few = runs(PARTS, PARTS @ [1.5, 1.0], [0, 0, 1, 1, 1])
    found = suspect(few, 0)
    assert found is not None
    assert found.rows == 5


def test_a_component_that_some_runs_lack() -> None:
    rows = [{"a": 1.0}, {"a": 2.0, "c": 4.0}, {"c": 1.0}]
    found = split(rows, [1.0, 6.0, 1.0], np.zeros(3, dtype=int))
    assert found.names == ("a", "c")
    assert found.energy_j.tolist() == [[1, 0], [2, 4], [0, 1]]
