"""The CLEAR table of one model for people, and as JSON."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from calibration.components.summary import CORE, PROJECTIONS, Capture, ComponentReport, Row
from energymodel.render import FLOP, POWER, TIME, digits, percent, printable, quantity

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

# Parts of attention, which is the line above them.
_NAMES = {PROJECTIONS: "  projections", CORE: "  core"}


def as_dict(report: ComponentReport) -> dict[str, Any]:
    """The report as one JSON document; everything that the table shows and more."""
    rows = [asdict(r) | {"mj_per_layer": r.mj_per_layer} for r in report.rows]
    capture: dict[str, dict[str, Any]] = {}
    for c in report.captures:
        fields = {k: v for k, v in asdict(c).items() if k not in ("phase", "mode")}
        capture.setdefault(c.phase, {})[c.mode] = fields
    return {
        "schema_version": 1,
        **asdict(report.setting),
        "boundary": "gpu",
        "ok": report.ok,
        "failures": list(report.failures),
        "notes": list(report.notes),
        "max_cv": report.max_cv,
        "min_capture": report.min_capture,
        "idle_power_w": report.idle_power_w,
        "rows": rows,
        "capture": capture,
    }


def render(report: ComponentReport) -> "Group":
    """One table for each phase and mode, what they capture, and the verdict."""
    s = report.setting
    parts: list[RenderableType] = [
        _text(f"{s.model} ({s.architecture}) on {s.gpu}, {s.stack}", "bold"),
        _text(f"batch {s.batch:,}, prompt {s.prompt:,}, random weights; one call = all layers"),
    ]
    if report.idle_power_w is not None:
        idle = f"idle power {quantity(report.idle_power_w, POWER)}, in all of these energies"
        parts.append(_text(idle))
    groups = dict.fromkeys((r.phase, r.mode) for r in report.rows)
    captures = {(c.phase, c.mode): c for c in report.captures}
    for phase, mode in groups:
        rows = [r for r in report.rows if (r.phase, r.mode) == (phase, mode)]
        parts += ["", _text(f"{phase}, {mode}", "bold"), _rows(rows)]
        if (phase, mode) in captures:
            parts += _captured(captures[phase, mode])
    parts += ["", *(_text(f"Note: {note}", "yellow") for note in report.notes)]
    parts += [_text(f"Failed: {failure}", "red") for failure in report.failures]
    if report.ok:
        parts.append(
            _text(
                f"ok: every coefficient of variation is at most {100 * report.max_cv:g} %, every "
                f"sum of components at least {100 * report.min_capture:g} % of the whole"
            )
        )
    return _group(parts)


def _rows(rows: list[Row]) -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("component", overflow="fold")
    for name in ("mJ", "mJ/layer", "CV", "share", "FLOP", "J/GFLOP", "time", "power"):
        table.add_column(name, justify="right", no_wrap=True)
    for r in rows:
        table.add_row(
            printable(_NAMES.get(r.component, r.component)),
            digits(r.mj_per_call),
            digits(r.mj_per_layer),
            percent(r.cv),
            percent(r.share),
            quantity(r.flop or None, FLOP),
            "-" if r.j_per_gflop is None else digits(r.j_per_gflop),
            quantity(r.duration_s, TIME),
            quantity(r.power_w, POWER),
        )
    return table


def _captured(c: Capture) -> list["RenderableType"]:
    net = "" if c.net is None else f", {percent(c.net)} above idle power"
    return [
        _text(f"components: {percent(c.gross)} of the whole{net}, {percent(c.time)} of its time"),
        _text(f"{c.residual_name}: {digits(1e3 * abs(c.residual_j))} mJ, {_time(c.residual_s)}"),
    ]


def _time(seconds: float) -> str:
    return f"{'-' if seconds < 0 else ''}{quantity(abs(seconds), TIME)}"


def _text(text: str, style: str = "") -> "RenderableType":
    from rich.text import Text

    return Text(printable(text), style=style)


def _group(parts: list["RenderableType"]) -> "Group":
    from rich.console import Group

    return Group(*parts)
