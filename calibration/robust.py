"""Robust non-linear least squares with a covariance, as every fit here uses it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Array = NDArray[np.float64]

# Median absolute deviation to standard deviation of a normal distribution.
NORMAL = 1.4826
# No law is trusted to better than this (residuals are relative), however few observations agree.
LEAST_SCALE = 5e-3
# From 0, in units of the parameters (logarithms or ratios); more than any of them moves.
FAR = 10.0


def robust_fit(
    residuals: Callable[[Array], Array],
    start: Array,
    *,
    data: int,
    outlier_at: float,
    lower: Array | float = -np.inf,
    upper: Array | float = np.inf,
    step: float | None = None,
    repeats: float = 1.0,
) -> tuple[Array, Array]:
    """(solution, covariance [p, p]) with a soft-L1 loss.

    Args:
        residuals: of parameters [p] to [data + priors]; the first ``data`` are observations.
        start: where to begin, [p].
        data: how many residuals are observations.
        outlier_at: size of a residual from which it counts linearly.
        lower: bound of all parameters, or one for each.
        upper: likewise.
        step: absolute step of the finite differences; the library's own where None.
        repeats: how many observations there are of each shape; what a law misses of a shape is
            the same in all of them, so they count as one.

    Observations count with their robust scale, priors as if ``outlier_at`` were theirs: what no
    observation tells apart comes out as wide as its prior.
    """
    # The library takes steps relative to a value: far from 0, such a step is an absolute one.
    origin = start - FAR

    def shifted(values: Array) -> Array:
        return residuals(values + origin)

    solution: Any = least_squares(
        shifted,
        start - origin,
        bounds=(lower - origin, upper - origin),
        loss="soft_l1",
        f_scale=outlier_at,
        diff_step=None if step is None else np.full_like(start, step / FAR),
        max_nfev=100,
    )
    found = np.asarray(solution.x, dtype=np.float64) + origin
    jacobian = np.asarray(solution.jac, dtype=np.float64)
    scale = NORMAL * float(np.median(np.abs(residuals(found)[:data])))
    known = jacobian[:data] / (max(scale, LEAST_SCALE) * np.sqrt(repeats))
    prior = jacobian[data:] / outlier_at
    inverse = np.asarray(np.linalg.pinv(known.T @ known + prior.T @ prior), dtype=np.float64)
    # Rounding errors alone would make it lopsided.
    return found, 0.5 * (inverse + inverse.T)


def deviations(covariance: Array) -> Array:
    """Standard errors from a covariance."""
    return np.sqrt(np.maximum(np.diag(covariance), 0.0))
