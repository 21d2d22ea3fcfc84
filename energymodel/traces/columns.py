"""From the cells of a column to an array, checked cell by cell.

Cells are strings (CSV), JSON values, or arrays (Parquet and engines).
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from energymodel.steps import Floats, Ints
from energymodel.traces.formats import SECONDS

Cells: TypeAlias = "Sequence[object] | NDArray[Any]"

MAX_TOKENS = 10_000_000
"""Most tokens of a prompt or an answer, as in bins.json."""
LAST_S = 4.1e9
"""Seconds from 1970 to about 2100; a time beyond it is in another unit."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class BadCellError(ValueError):
    """A cell that is not what its column holds: its index, and what it should be."""

    def __init__(self, index: int, needed: str, cell: object) -> None:
        super().__init__(needed)
        self.index = index
        self.needed = needed
        self.cell = cell


def tokens(cells: Cells) -> Ints:
    """Numbers of tokens. Shape [n].

    Raises:
        BadCellError: A cell is not a whole number from 0 to ``MAX_TOKENS``.
    """
    needed = f"a whole number from 0 to {MAX_TOKENS:,}"
    values = _each(cells, _number, needed)
    bad = ~((values >= 0) & (values <= MAX_TOKENS) & (values == np.floor(values)))
    _refuse(bad, cells, needed)
    return values.astype(np.int64)


def times(cells: Cells, unit: str) -> Floats:
    """Times in seconds, whatever their origin. Shape [n].

    Raises:
        BadCellError: A cell is no time, or one that would lie beyond the year 2100.
    """
    if isinstance(cells, np.ndarray) and cells.dtype.kind == "M":  # whatever the unit: typed
        values = (cells - np.datetime64(0, "s")) / np.timedelta64(1, "s")
        _refuse(~np.isfinite(values), cells, "a time")
        return values
    if unit == "timestamp":
        return _each(cells, _timestamp, "a date and time such as 2023-11-16 18:15:46.680")
    needed = f"a time in {unit}, 0 or later"
    values = _each(cells, _number, needed) * SECONDS[unit]
    _refuse(~(values >= 0) | np.isinf(values), cells, needed)
    late = values > LAST_S
    if late.any():
        index = int(late.argmax())
        fits = [u for u, s in SECONDS.items() if 9e8 < values[index] / SECONDS[unit] * s < LAST_S]
        advice = f"; if it is in {fits[0]}, say --time-unit {fits[0]}" if fits else ""
        needed = f"a time in {unit} and before the year 2100{advice}"
        raise BadCellError(index, needed, cells[index])
    return values


def hashes(cells: Cells) -> list[Ints]:
    """Lists of block hashes, one of each request.

    Raises:
        BadCellError: A cell is not a list of whole numbers.
    """
    lists = []
    for index, cell in enumerate(cells):
        if not isinstance(cell, list) or not all(type(i) is int and abs(i) < 2**63 for i in cell):
            raise BadCellError(index, "a list of whole numbers", cell)
        lists.append(np.array(cell, dtype=np.int64))
    return lists


def _each(cells: Cells, parse: Callable[[Any], float], needed: str) -> Floats:
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "iuf":
        return cells.astype(np.float64)
    try:
        if parse is _number and set(map(type, cells)) == {str}:
            return np.fromiter(map(float, cells), np.float64, len(cells))  # as parse, but faster
        return np.array([parse(cell) for cell in cells], dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        for index, cell in enumerate(cells):
            try:
                parse(cell)
            except (TypeError, ValueError, OverflowError):
                raise BadCellError(index, needed, cell) from None
        raise


def _number(cell: Any) -> float:
    if isinstance(cell, bool):
        raise TypeError
    return float(cell)


def _timestamp(cell: Any) -> float:
    """Seconds since 1970 of a date and time; without an offset it is in UTC."""
    time = datetime.fromisoformat(cell.strip() if isinstance(cell, str) else cell)
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH).total_seconds()


def _refuse(bad: NDArray[np.bool_], cells: Cells, needed: str) -> None:
    if bad.any():
        index = int(bad.argmax())
        raise BadCellError(index, needed, cells[index])
