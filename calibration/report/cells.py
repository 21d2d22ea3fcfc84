"""Cells, tables and sections that text and HTML both print; numbers as a person would say them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from calibration.judgement.simple_fits import Errors
from calibration.report.contents import Report
from energymodel.profile import Estimate
from energymodel.render import BYTES, FLOP, TIME, digits, percent, quantity

MOST_PLACES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table of text; a header that starts with > is of a column aligned to the right."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A titled part of the report; ``figures`` are named as in ``plots.FIGURES``."""

    title: str
    paragraphs: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()
    figures: tuple[str, ...] = ()


def board_name(r: Report, board: str) -> str:
    """Number of a board in this report, and the start of its hashed identity."""
    number = r.boards.index(board) + 1 if board in r.boards else 0
    return f"board {number} ({board[:8]})"


def estimate(e: Estimate) -> str:
    """Value and standard error in a unit that a person would use; a dash for nothing at all."""
    if not e.value and not e.stderr:
        return "-"
    if e.unit in ("J/FLOP", "J/B"):
        return f"{plus_minus(e.value * 1e12, e.stderr * 1e12)} p{e.unit}"
    ladders = {"s": TIME, "B": BYTES, "B/s": BYTES, "FLOP/s": FLOP}
    if e.unit in ladders:
        rate = "/s" if e.unit.endswith("/s") else ""
        share = f" ± {percent(e.stderr / e.value)}" if e.value else ""
        return f"{quantity(e.value, ladders[e.unit])}{rate}{share}"
    return f"{plus_minus(e.value, e.stderr)} {e.unit if e.unit != '1' else ''}".rstrip()


def plus_minus(value: float, error: float) -> str:
    """Value and error to the second digit of the error: 98.90 ± 0.60."""
    if not (math.isfinite(error) and error > 0):
        return digits(value)
    places = 1 - math.floor(math.log10(error))
    if places > MOST_PLACES:
        return f"{digits(value)} ± {error:.1g}"
    places = max(places, 0)
    return f"{value:,.{places}f} ± {error:,.{places}f}"


def three_errors(e: Errors | None) -> tuple[str, str, str]:
    """Median, 90th percentile and mean signed error, a cell each."""
    if e is None:
        return "-", "-", "-"
    return percent(e.median), percent(e.p90), percent(e.bias, signed=True)


def two_errors(e: Errors | None) -> str:
    """Median / 90th percentile in one cell, in percent."""
    return "-" if e is None else f"{100 * e.median:.1f} / {100 * e.p90:.1f}"


def number(value: float | None, places: int | None = None) -> str:
    """A number with three digits, or with ``places`` decimals."""
    if value is None:
        return "-"
    return digits(value) if places is None else f"{value:.{places}f}"


def probability(value: float | None) -> str:
    """A p-value with three decimals."""
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def grid(*headers: str, rows: Iterable[tuple[str, ...]]) -> Grid:
    """A table of ``rows`` under ``headers``."""
    return Grid(headers=headers, rows=tuple(rows))
