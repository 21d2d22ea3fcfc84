"""What structure do the residuals still hold? Boosted trees as the judge, never as the model.

The residuals are those of held-out predictions, in log. A boosted tree (scikit-learn's
HistGradientBoostingRegressor) is trained on them with what is known of each observation and
predicts the residuals of shape families that it has not seen. What it explains is structure that
the physical law lacks; which feature carries it is told by permutation (L. Breiman, Random Forests,
Machine Learning 45, 2001, section 10), on held-out observations only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.inspection import permutation_importance
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from calibration.fit_energy import Windows
from calibration.fit_power import HELD_OUT_PARTS
from calibration.folds import folds
from calibration.judgement.simple_fits import Errors, errors
from calibration.observations import Observation
from calibration.tables import Table

Array = NDArray[np.float64]
Features = Mapping[str, Array]

LEAST_ROWS, LEAST_FAMILIES = 30, 4
# Shares of residual variance: below the first nothing is left, above the second it is much.
NOTHING, MUCH = 0.05, 0.3
MOST_FEATURES = 3
SHUFFLES = 5
# Residuals beyond this many median absolute deviations say that a window went wrong, not how
# energy depends on shape; they count, but no more than this.
CLIP_AT = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """A feature and the share of residual variance that is lost when it is shuffled."""

    feature: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """``explained``: share of held-out residual variance that the trees explain; 0 or less: none.

    ``carriers`` are the features that carry it, largest first; empty where nothing is left.
    None where there is too little to judge by; ``note`` then says so.
    """

    rows: int
    explained: float | None
    carriers: tuple[Carrier, ...]
    note: str

    @property
    def words(self) -> str:
        """The verdict as a person would say it."""
        if self.explained is None:
            return f"not judged: {self.note}"
        if self.explained <= NOTHING:
            return "no structure left in the residuals"
        much = "much" if self.explained > MUCH else "some"
        named = ", ".join(c.feature for c in self.carriers) or "no single feature"
        return f"{much} structure left ({100 * self.explained:.0f} % of the variance): {named}"


def window_features(w: Windows, predicted_j: Array, keep: NDArray[np.bool_]) -> dict[str, Array]:
    """What is known of energy windows without knowing their energy; ``keep`` chooses of [n].

    Power is that of the prediction over the measured time: measured power holds the residual
    itself and would explain it.
    """
    rows = w.rows
    known = shape_features(w.table, w.chosen)
    known |= {
        "relative clock": w.clock,
        "temperature": _column(rows, "temperature_c"),
        "predicted power": predicted_j / w.call_s,
        "board": _board_numbers(rows),
    }
    return _varying({name: values[keep] for name, values in known.items()})


def shape_features(table: Table, chosen: NDArray[np.bool_]) -> dict[str, Array]:
    """Log2 of each axis of the shapes, and arithmetic intensity."""
    known = {
        name: np.log2(np.maximum(values[chosen], 1e-3)) for name, values in table.shapes.items()
    }
    moved = (table.weight_bytes + table.row_bytes)[chosen]
    intensity = table.flop[chosen] / np.maximum(moved, 1.0)
    return _varying({**known, "arithmetic intensity": np.log2(np.maximum(intensity, 1e-3))})


def cost_features(w: Windows, keep: NDArray[np.bool_]) -> dict[str, Array]:
    """What the structured model reads of a window, times included: a fair start for trees."""
    columns = {
        "FLOP": w.flop,
        "weight bytes": w.weight_bytes,
        "row bytes": w.row_bytes,
        "time at full clock": w.full_s,
        "time": w.call_s,
        "relative clock": w.clock,
        "static power": w.static_w,
    }
    return _varying({n: np.log(np.maximum(v[keep], 1e-30)) for n, v in columns.items()})


def judge(residual: Array, features: Features, group: Array) -> Judgement:
    """Judge log ``residual`` [n] of held-out predictions by ``features``, families held out.

    ``group`` numbers the shape family of each residual.
    """
    reason = _too_little(len(residual), group)
    if not reason and not features:
        reason = "no feature varies"
    if not reason and not np.ptp(residual):
        reason = "the residuals are all the same"
    if reason:
        return Judgement(rows=len(residual), explained=None, carriers=(), note=reason)
    clipped, names = _clip(residual), list(features)
    table = np.stack([features[name] for name in names], axis=1)
    total = float(np.square(clipped - clipped.mean()).sum())
    left, lost = 0.0, np.zeros(len(names))
    with threadpool_limits(1):
        models = []
        for test in folds(group, HELD_OUT_PARTS):
            model = _trees(len(clipped)).fit(table[~test], clipped[~test])
            models.append((model, test))
            left += float(np.square(clipped[test] - model.predict(table[test])).sum())
        explained = 1.0 - left / total
        if explained > NOTHING:
            for model, test in models:
                shuffled = permutation_importance(
                    model,
                    table[test],
                    clipped[test],
                    scoring="neg_mean_squared_error",
                    n_repeats=SHUFFLES,
                    random_state=0,
                )
                lost += shuffled.importances_mean * test.sum() / total
    order = np.argsort(-lost)[:MOST_FEATURES]
    carriers = tuple(
        Carrier(feature=names[i], share=float(lost[i])) for i in order if lost[i] > NOTHING / 2
    )
    return Judgement(rows=len(residual), explained=explained, carriers=carriers, note="")


def tree_errors(energy_j: Array, features: Features, group: Array) -> Errors | None:
    """Held-out relative errors of boosted trees alone on log energy: a competitor without physics."""
    if _too_little(len(energy_j), group) or not features:
        return None
    table, target = np.stack(list(features.values()), axis=1), np.log(energy_j)
    relative = np.full(len(target), np.nan)
    with threadpool_limits(1):
        for test in folds(group, HELD_OUT_PARTS):
            model = _competitor().fit(table[~test], target[~test])
            relative[test] = np.exp(model.predict(table[test]) - target[test]) - 1.0
    return errors(relative)


def _trees(rows: int) -> HistGradientBoostingRegressor:
    """Shallow trees on large leaves: few rows of few families invite learning them by heart."""
    return HistGradientBoostingRegressor(
        max_iter=60,
        learning_rate=0.03,
        max_depth=2,
        min_samples_leaf=max(5, rows // 15),
        l2_regularization=10.0,
        early_stopping=False,
        random_state=0,
    )


def _competitor() -> HistGradientBoostingRegressor:
    """Trees that must carry log energy over orders of magnitude, so deeper and longer."""
    return HistGradientBoostingRegressor(
        max_iter=120,
        learning_rate=0.1,
        max_depth=4,
        min_samples_leaf=3,
        early_stopping=False,
        random_state=0,
    )


def _too_little(rows: int, group: Array) -> str:
    if rows < LEAST_ROWS:
        return f"{rows} observations are too few"
    families = len(np.unique(group))
    if families < LEAST_FAMILIES:
        return f"{families} shape famil{'y is' if families == 1 else 'ies are'} too few to hold out"
    return ""


def _clip(residual: Array) -> Array:
    middle = np.median(residual)
    reach = CLIP_AT * float(np.median(np.abs(residual - middle)))
    return np.clip(residual, middle - reach, middle + reach) if reach else residual


def _varying(columns: Features) -> dict[str, Array]:
    return {n: v for n, v in columns.items() if len(v) and np.nanmax(v) > np.nanmin(v)}


def _column(rows: Sequence[Observation], name: str) -> Array:
    return np.array([getattr(o, name) for o in rows], dtype=np.float64)


def _board_numbers(rows: Sequence[Observation]) -> Array:
    names = sorted({o.board for o in rows})
    return np.array([float(names.index(o.board)) for o in rows])
