"""Board-to-board variance of the same GPU model: a mixed-effects model over operations and boards.

The log of what a call costs is a fixed effect of the operation plus a random intercept of the
board plus a residual. J. C. Pinheiro and D. M. Bates, Mixed-Effects Models in S and S-PLUS, 2000,
chapter 2, fitted by restricted maximum likelihood (statsmodels MixedLM).
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import statsmodels.api as sm
from numpy.typing import NDArray
from scipy.stats import chi2

from calibration.observations import Observation

Array = NDArray[np.float64]
Quantity = Literal["energy", "time", "burst time"]

# Each operation is a column of a dense matrix; those seen on the most boards come first.
MOST_OPERATIONS = 200
INTERVAL = 0.9
# statsmodels tells a variance from nothing on an absolute scale that suits percent.
PERCENT = 100.0
# A smaller deviation is a variance estimated at nothing: its offsets are nothing as well.
NEGLIGIBLE = 1e-5

_MODE: Mapping[str, str] = {"energy": "sustained", "time": "sustained", "burst time": "burst"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Offset:
    """How far one board's logarithm lies from the mean board, with its standard error.

    The estimate is shrunk towards 0 as far as the board was seen too little.
    """

    board: str
    value: float
    stderr: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardSpread:
    """Standard deviation between boards of the log of what the same operation costs.

    ``interval`` is the 90 % interval of ``deviation``: with k boards, (k - 1) times the squared
    deviation over its true value is close to chi-squared with k - 1 degrees of freedom.
    ``residual`` is what neither operation nor board explains. None where it cannot be told;
    ``note`` then says why.
    """

    what: Quantity
    boards: int
    operations: int
    deviation: float | None
    interval: tuple[float, float] | None
    residual: float | None
    offsets: tuple[Offset, ...]
    note: str


def board_spread(observations: Iterable[Observation], what: Quantity) -> BoardSpread:
    """Variance between boards of gross energy or time of the operations that several boards ran.

    Energy and time are of sustained windows, so at the clock that the power limit left; "burst
    time" is at full clock.
    """
    cells: dict[str, dict[str, list[float]]] = {}
    boards = set()
    for o in observations:
        value = _logarithm(o, what)
        if value is not None:
            boards.add(o.board)
            cells.setdefault(o.point, {}).setdefault(o.board, []).append(value)
    if len(boards) < 2:
        count = "one board" if boards else "no board"
        return _unknown(what, len(boards), f"{count} was measured: a spread needs two")
    shared = sorted((c for c in cells.values() if len(c) > 1), key=len, reverse=True)
    seen_on = {board for cell in shared for board in cell}
    if len(seen_on) < 2:
        return _unknown(what, len(boards), "no operation was measured on two boards")
    chosen = shared[:MOST_OPERATIONS]
    spread = _fit(what, [{b: float(np.mean(v)) for b, v in cell.items()} for cell in chosen])
    left = len(boards) - spread.boards
    alone = (
        f"{left} board{'s' if left > 1 else ''} shared no operation with another" if left else ""
    )
    return replace(spread, note="; ".join(filter(None, (spread.note, alone))))


def _logarithm(o: Observation, what: Quantity) -> float | None:
    if o.mode != _MODE[what]:
        return None
    if what != "energy":
        return float(np.log(o.call_s)) if o.call_s > 0 else None
    if not o.energy_j or not o.calls or o.energy_j < 0:
        return None
    return float(np.log(o.energy_j / o.calls))


def _fit(what: Quantity, cells: list[dict[str, float]]) -> BoardSpread:
    boards = sorted({board for cell in cells for board in cell})
    index = np.array([i for i, cell in enumerate(cells) for _ in cell])
    board = np.array([b for cell in cells for b in cell])
    value = np.array([v for cell in cells for v in cell.values()])
    # The fixed effect of the operation takes its mean; what is left is small and safe to square.
    value = PERCENT * (value - (np.bincount(index, value) / np.bincount(index))[index])
    if not value.any():
        return _unknown(what, len(boards), "every board gave the same values")
    operations = (index[:, None] == np.arange(len(cells))).astype(np.float64)
    try:
        result, notes = _quietly(
            lambda: sm.MixedLM(value, operations, groups=board).fit(reml=True, method=["bfgs"])
        )
    except (np.linalg.LinAlgError, ValueError) as error:
        return _unknown(what, len(boards), f"the mixed-effects model failed: {error}")
    if not result.converged:
        return _unknown(what, len(boards), "the mixed-effects model did not converge")
    deviation = float(np.sqrt(np.asarray(result.cov_re)[0, 0])) / PERCENT
    free = len(boards) - 1
    tail = (1 - INTERVAL) / 2
    low, high = (float(np.sqrt(free / chi2.ppf(q, free))) for q in (1 - tail, tail))
    if deviation < NEGLIGIBLE:
        notes = ["boards differ by no more than repeated measurements do"]
    return BoardSpread(
        what=what,
        boards=len(boards),
        operations=len(cells),
        deviation=deviation,
        interval=(deviation * low, deviation * high),
        residual=float(np.sqrt(result.scale)) / PERCENT,
        offsets=_offsets(result, boards) if deviation >= NEGLIGIBLE else (),
        note="; ".join(notes),
    )


def _offsets(result: Any, boards: list[str]) -> tuple[Offset, ...]:
    effects, variances = result.random_effects, result.random_effects_cov
    return tuple(
        Offset(
            board=board,
            value=float(np.asarray(effects[board])[0]) / PERCENT,
            stderr=float(np.sqrt(max(np.asarray(variances[board])[0, 0], 0.0))) / PERCENT,
        )
        for board in boards
    )


def _quietly(fit: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Run ``fit``; its warnings become notes, each once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fit()
    return result, sorted({str(w.message) for w in caught})


def _unknown(what: Quantity, boards: int, reason: str) -> BoardSpread:
    return BoardSpread(
        what=what,
        boards=boards,
        operations=0,
        deviation=None,
        interval=None,
        residual=None,
        offsets=(),
        note=reason,
    )
