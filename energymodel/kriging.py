"""Interpolation of what a law leaves over: Gaussian-process mean with a Matern-3/2 kernel.

C. E. Rasmussen and C. K. I. Williams, Gaussian Processes for Machine Learning, 2006, eq. 2.25 (mean)
and 4.17 (kernel). Far from every point the mean is 0: the law alone speaks.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kriging:
    """``points`` [n, d] in units of the length scales, ``weights`` [n] = (K + noise)^-1 residual."""

    length_scales: Array
    points: Array
    weights: Array
    amplitude: float

    def mean(self, features: Array) -> Array:
        """Expected residual at ``features`` [m, d], shape [m]."""
        kernel = matern(features / self.length_scales, self.points)
        return np.asarray(self.amplitude**2 * (kernel @ self.weights))


def matern(a: Array, b: Array) -> Array:
    """Matern-3/2 correlation of two sets of points, (1 + r) exp(-r) with r = sqrt(3) distance."""
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2.0 * a @ b.T
    r = np.sqrt(3.0 * np.maximum(squared, 0.0))
    return np.asarray((1.0 + r) * np.exp(-r))


def fit_kriging(
    features: Array, residuals: Array, *, length_scales: Array, amplitude: float, noise: float
) -> Kriging:
    """Condition the process on ``residuals`` [n] at ``features`` [n, d]."""
    points = features / length_scales
    covariance = amplitude**2 * matern(points, points) + noise**2 * np.eye(len(residuals))
    weights: Array = np.asarray(np.linalg.solve(covariance, residuals), dtype=np.float64)
    return Kriging(length_scales=length_scales, points=points, weights=weights, amplitude=amplitude)
