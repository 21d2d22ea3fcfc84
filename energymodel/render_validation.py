"""``validate`` as tables for people; conventions are those of ``render``."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from energymodel.render import (
    ENERGY,
    MAX_ROWS,
    columns,
    digits,
    integer,
    line,
    percent,
    printable,
    quantity,
    stack,
)
from energymodel.scores import ModelScore
from energymodel.validate import Row, Validation

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

_TOTALS = {
    "median_ape": "median error of energy",
    "p90_ape": "90th percentile",
    "mape": "mean",
    "bias": "bias (mean signed)",
    "duration_median_ape": "median error of duration",
    "interval_coverage": "inside the interval, energy",
    "duration_interval_coverage": "inside the interval, duration",
}


def validation(v: Validation) -> "Group":
    """Errors against measured runs, by class of run, with the baselines and the worst runs."""
    parts: list[RenderableType] = [
        line(f"{integer(v.rows)} runs predicted", "bold"),
        "",
        _totals(v),
    ]
    for header, scores in (
        ("model", v.by_model),
        ("phase", v.by_phase),
        ("requests", v.by_batch),
        ("tokens each", v.by_context),
    ):
        if scores is v.by_model or len(scores) > 1:
            parts += ["", _scores(header, scores)]
    if v.baselines:
        table = columns("baseline", ">runs", ">median", ">95 % interval", ">mean")
        for name, b in v.baselines.items():
            table.add_row(
                printable(name),
                integer(b.rows),
                percent(b.median_ape),
                _interval(b.interval_95, "median_ape"),
                percent(b.mape),
            )
        parts += ["", table]
    parts += ["", _worst(v.worst)]
    if v.skipped:
        parts += ["", line(f"{sum(s.rows for s in v.skipped):,} runs skipped", "bold")]
        parts += [line(f"{s.rows:,} x {s.reason}") for s in v.skipped[:MAX_ROWS]]
        if len(v.skipped) > MAX_ROWS:
            parts.append(line(f"... and {len(v.skipped) - MAX_ROWS:,} other reasons"))
    return stack(parts)


def _totals(v: Validation) -> "Table":
    table = columns("", ">value", ">95 % interval")
    for name, label in _TOTALS.items():
        value = percent(getattr(v, name), signed=name == "bias")
        covers = name.endswith("interval_coverage")
        nominal = f" (nominal {percent(v.interval_level)})" if covers else ""
        table.add_row(label + nominal, value, _interval(v.interval_95, name))
    return table


def _interval(intervals: Mapping[str, tuple[float, float]] | None, name: str) -> str:
    if intervals is None:
        return "-"
    low, high = intervals[name]
    signed = name == "bias"
    return f"{percent(low, signed=signed)} to {percent(high, signed=signed)}"


def _scores(header: str, scores: Mapping[str, ModelScore]) -> "Table":
    table = columns(header, ">runs", ">median", ">p90", ">bias", ">duration", ">covered")
    for name, m in scores.items():
        table.add_row(
            printable(name),
            integer(m.rows),
            percent(m.median_ape),
            percent(m.p90_ape),
            percent(m.bias, signed=True),
            percent(m.duration_median_ape),
            percent(m.interval_coverage),
        )
    return table


def _worst(rows: tuple[Row, ...]) -> "Table":
    """``suspect``: a component, what it would have to be multiplied by, what that explains."""
    table = columns("worst runs", "workload", ">measured", ">error", "suspect", ">explains")
    for r in rows:
        s = r.suspect
        table.add_row(
            printable(r.model),
            printable(r.workload),
            quantity(r.energy_j, ENERGY),
            percent(r.error, signed=True),
            printable(f"{s.component} x {digits(s.scale)}") if s else "-",
            percent(s.explains) if s else "-",
        )
    return table
