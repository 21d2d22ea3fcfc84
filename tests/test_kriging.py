import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energymodel.kriging import fit_kriging, matern

RNG = np.random.default_rng(7)
POINTS = RNG.uniform(-4, 4, (40, 3))
VALUES = np.sin(POINTS).sum(axis=1)
SCALES = np.array([2.0, 1.0, 3.0])


def test_matern_by_hand() -> None:
    # Distance 1 in two dimensions: (1 + sqrt 3) exp(-sqrt 3) = 0.48335...
    origin, point = np.zeros((1, 2)), np.array([[0.6, 0.8]])
    expected = (1 + 3**0.5) * np.exp(-(3**0.5))
    assert matern(origin, point) == pytest.approx(np.array([[expected]]))
    assert matern(point, point) == pytest.approx(np.ones((1, 1)))


def test_one_point_by_hand() -> None:
    # K = a^2, so mean at distance d = residual a^2 / (a^2 + noise^2) x correlation(d).
    kriging = fit_kriging(
        np.array([[1.0]]), np.array([0.2]), length_scales=np.array([2.0]), amplitude=0.5, noise=0.25
    )
    shrunk = 0.2 * 0.25 / (0.25 + 0.0625)
    r = 3**0.5 * (4.0 - 1.0) / 2.0
    at = kriging.mean(np.array([[1.0], [4.0]]))
    assert at == pytest.approx([shrunk, shrunk * (1 + r) * np.exp(-r)])


def test_points_without_noise_are_met() -> None:
    kriging = fit_kriging(POINTS, VALUES, length_scales=SCALES, amplitude=1.0, noise=0.0)
    assert kriging.mean(POINTS) == pytest.approx(VALUES, abs=1e-5)


def test_between_points_a_smooth_function_is_followed() -> None:
    x = np.linspace(0, 6, 25)[:, None]
    kriging = fit_kriging(
        x, np.sin(x[:, 0]), length_scales=np.array([2.0]), amplitude=1.0, noise=0.0
    )
    between = np.linspace(0.1, 5.9, 101)[:, None]
    assert kriging.mean(between) == pytest.approx(np.sin(between[:, 0]), abs=0.01)


def test_far_away_nothing_is_left() -> None:
    kriging = fit_kriging(POINTS, VALUES, length_scales=SCALES, amplitude=1.0, noise=0.03)
    far = POINTS + np.array([100.0, 0.0, 0.0])
    assert np.abs(kriging.mean(far)).max() < 1e-15
    steps = np.array([[4.0 + d, 0.0, 0.0] for d in (10, 20, 40, 80)])
    decay = np.abs(kriging.mean(steps))
    assert (np.diff(decay) < 0).all()


@given(st.permutations(range(len(POINTS))))
def test_the_order_of_the_points_does_not_matter(order: list[int]) -> None:
    where = POINTS[:5] + 0.3
    one = fit_kriging(POINTS, VALUES, length_scales=SCALES, amplitude=1.0, noise=0.03)
    other = fit_kriging(
        POINTS[order], VALUES[order], length_scales=SCALES, amplitude=1.0, noise=0.03
    )
    assert other.mean(where) == pytest.approx(one.mean(where), rel=1e-9, abs=1e-9)


@given(st.floats(0.01, 10), st.floats(1e-3, 1))
def test_residuals_in_another_unit_scale_the_mean(unit: float, noise: float) -> None:
    where = POINTS[:5] - 0.2
    one = fit_kriging(POINTS, VALUES, length_scales=SCALES, amplitude=1.0, noise=noise)
    other = fit_kriging(
        POINTS, unit * VALUES, length_scales=SCALES, amplitude=unit, noise=unit * noise
    )
    assert other.mean(where) == pytest.approx(unit * one.mean(where), rel=1e-6, abs=1e-9)


def test_noise_pulls_towards_zero() -> None:
    errors = [
        np.abs(
            fit_kriging(POINTS, VALUES, length_scales=SCALES, amplitude=1.0, noise=noise).mean(
                POINTS
            )
        ).sum()
        for noise in (0.0, 0.3, 1.0, 3.0)
    ]
    assert errors == sorted(errors, reverse=True)
