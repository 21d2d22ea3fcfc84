"""Is the energy regression of a kind sound: collinearity, heteroscedasticity, drift, influence.

The regression is that of ``fit_energy``: joules of a call above static power and above the
memory's own, over the clock law, on FLOP, bytes and seconds, each window relative to its gross
energy and weighted by the share of it that was work. It has no constant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import statsmodels.api as sm
from numpy.typing import NDArray
from statsmodels.stats.diagnostic import het_breuschpagan
from statsmodels.stats.outliers_influence import OLSInfluence
from statsmodels.stats.stattools import durbin_watson, jarque_bera

from calibration.fit_energy import CORE, Windows, usable
from calibration.observations import Observation
from energymodel.profile import Estimate

Array = NDArray[np.float64]
Energy = Mapping[str, Estimate]

# With fewer degrees of freedom than this, a test of the residuals says nothing.
LEAST_FREE = 5
MOST_INFLUENTIAL = 5
# Below this smallest relative singular value the columns are the same to rounding.
SINGULAR = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class Influential:
    """A window that moves the coefficients; ``distance`` is Cook's, ``residual`` relative."""

    point: str
    board: str
    distance: float
    residual: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostics:
    """What statsmodels says of the regression of one kind; None where it cannot be told.

    ``r2`` is on the weighted scale, uncentred (there is no constant); ``r2_log`` is the share of
    the variance of log gross energy that the coefficients explain. ``condition`` is the condition
    number of the columns at unit length, ``inflation`` the variance inflation factor of each.
    ``breusch_pagan_p`` and ``jarque_bera_p`` are small where the residuals spread unevenly or are
    not normal; ``durbin_watson`` is near 2 where they do not drift over time on a board.
    """

    windows: int
    active: tuple[str, ...]
    r2: float | None
    r2_log: float | None
    condition: float | None
    inflation: dict[str, float | None]
    breusch_pagan_p: float | None
    jarque_bera_p: float | None
    durbin_watson: float | None
    influential: tuple[Influential, ...]
    note: str


def regression(w: Windows, hbm_byte_j: float, exponent: float) -> tuple[Array, Array]:
    """(regressors [n, 4] in the order of ``CORE``, target [n]) over the usable windows."""
    keep = usable(w)
    scale = (w.weight / w.gross_j)[keep]
    columns = np.stack([w.core_flop, w.weight_bytes, w.row_bytes, w.full_s], axis=1)[keep]
    target = w.work_j[keep] - hbm_byte_j * w.hbm_bytes[keep]
    return columns * (w.clock[keep] ** exponent * scale)[:, None], target * scale


def diagnose(w: Windows, energy: Energy, exponent: float) -> Diagnostics:
    """Diagnostics of the regression whose coefficients are ``energy``."""
    keep = usable(w)
    hbm_byte_j = energy["hbm_byte_j"].value
    active = [i for i, name in enumerate(CORE) if energy[name].value > 0]
    design, target = regression(w, hbm_byte_j, exponent)
    names = tuple(CORE[i] for i in active)
    if len(target) < len(active) + LEAST_FREE or not active:
        return _nothing(names, len(target))
    rows = w.rows
    rows = [o for o, k in zip(rows, keep, strict=True) if k]
    columns = _unit_columns(design[:, active])
    directions, singular, _ = np.linalg.svd(columns, full_matrices=False)
    collinear = bool(singular[-1] < SINGULAR * singular[0])
    # The same fit in independent directions: residuals and influence do not change.
    basis = directions[:, singular >= SINGULAR * singular[0]]
    result = sm.OLS(target, basis).fit()
    residual = np.asarray(result.resid)
    exact = bool(np.abs(residual).max() < 1e-12)
    order = np.lexsort(([o.time_s or 0.0 for o in rows], [o.board for o in rows]))
    stamped = len({o.time_s for o in rows}) > len(rows) // 2
    return Diagnostics(
        windows=len(target),
        active=names,
        r2=float(result.rsquared),
        r2_log=_log_share(w, energy, exponent),
        condition=None if collinear else float(singular[0] / singular[-1]),
        inflation=dict(zip(names, _inflation(columns, collinear), strict=True)),
        breusch_pagan_p=None if exact else _breusch_pagan(residual, basis),
        jarque_bera_p=None if exact else float(jarque_bera(residual)[1]),
        durbin_watson=float(durbin_watson(residual[order])) if stamped and not exact else None,
        influential=() if exact else _influential(result, rows),
        note=_notes(collinear=collinear, stamped=stamped),
    )


def _unit_columns(design: Array) -> Array:
    """Columns at unit length: they differ by twelve orders of magnitude."""
    lengths = np.linalg.norm(design, axis=0)
    lengths[lengths == 0] = 1.0
    return np.asarray(design / lengths)


def _inflation(columns: Array, collinear: bool) -> list[float | None]:
    """1 / (1 - R^2) of each unit column on the others: the diagonal of the inverse Gram matrix."""
    if collinear:
        return [None] * columns.shape[1]
    return [float(v) for v in np.diag(np.linalg.inv(columns.T @ columns))]


def _breusch_pagan(residual: Array, basis: Array) -> float:
    """P-value of equal scatter; the test needs a constant among or within its regressors."""
    with_constant = sm.add_constant(basis, has_constant="add")
    free = np.linalg.matrix_rank(with_constant) == with_constant.shape[1]
    return float(het_breuschpagan(residual, with_constant if free else basis)[1])


def _influential(result: object, rows: Sequence[Observation]) -> tuple[Influential, ...]:
    influence = OLSInfluence(result)
    distance = np.asarray(influence.cooks_distance[0])
    residual = np.asarray(influence.resid)
    worst = np.argsort(-distance)[:MOST_INFLUENTIAL]
    # The usual mark of an influential observation: a distance above 4 / n.
    return tuple(
        Influential(
            point=f"{rows[i].point}, busy {rows[i].duty or 1.0:g}",
            board=rows[i].board,
            distance=float(distance[i]),
            residual=float(residual[i]),
        )
        for i in worst
        if distance[i] > 4 / len(rows)
    )


def _log_share(w: Windows, energy: Energy, exponent: float) -> float | None:
    keep = usable(w)
    design, _ = regression(w, energy["hbm_byte_j"].value, exponent)
    scale = (w.weight / w.gross_j)[keep]
    core = design @ np.array([energy[name].value for name in CORE]) / scale
    static_j = (w.gross_j - w.work_j)[keep]
    predicted = static_j + core + energy["hbm_byte_j"].value * w.hbm_bytes[keep]
    measured = np.log(w.gross_j[keep])
    total = float(np.square(measured - measured.mean()).sum())
    if not total or predicted.min() <= 0:
        return None
    return 1.0 - float(np.square(measured - np.log(predicted)).sum()) / total


def _notes(*, collinear: bool, stamped: bool) -> str:
    notes = []
    if collinear:
        notes.append(
            "some columns are multiples of each other: their coefficients share one effect"
        )
    if not stamped:
        notes.append("times of day are missing or too coarse to see drift")
    return "; ".join(notes)


def _nothing(names: tuple[str, ...], windows: int) -> Diagnostics:
    return Diagnostics(
        windows=windows,
        active=names,
        r2=None,
        r2_log=None,
        condition=None,
        inflation={},
        breusch_pagan_p=None,
        jarque_bera_p=None,
        durbin_watson=None,
        influential=(),
        note="too few windows for tests of the residuals",
    )
