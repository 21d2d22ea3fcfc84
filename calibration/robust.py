"""Robust non-linear least squares with standard errors, as every fit here uses it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Array = NDArray[np.float64]

# Median absolute deviation to standard deviation of a normal distribution.
NORMAL = 1.4826


def robust_fit(
    residuals: Callable[[Array], Array],
    start: Array,
    *,
    data: int,
    outlier_at: float,
    lower: Array | float = -np.inf,
    upper: Array | float = np.inf,
    step: float | None = None,
) -> tuple[Array, Array]:
    """(solution, standard errors) with a soft-L1 loss.

    Args:
        residuals: of parameters [p] to [data + priors]; the first ``data`` are observations.
        start: where to begin, [p].
        data: how many residuals are observations.
        outlier_at: size of a residual from which it counts linearly.
        lower: bound of all parameters, or one for each.
        upper: likewise.
        step: relative step of the finite differences.

    The errors are the robust scale of the residuals times sqrt(diag((J^T J)^-1)).
    """
    solution: Any = least_squares(
        residuals,
        start,
        bounds=(lower, upper),
        loss="soft_l1",
        f_scale=outlier_at,
        diff_step=None if step is None else np.full_like(start, step),
        max_nfev=100,
    )
    jacobian = np.asarray(solution.jac, dtype=np.float64)
    scale = NORMAL * float(np.median(np.abs(residuals(solution.x)[:data])))
    errors = scale * np.sqrt(np.diag(np.linalg.pinv(jacobian.T @ jacobian)))
    return np.asarray(solution.x, dtype=np.float64), errors
