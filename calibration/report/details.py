"""Sections for the reader who wants to know why: structure, coefficients, diagnostics, what is left out."""

from calibration.judgement.judge import Judgement
from calibration.report.cells import (
    Section,
    board_name,
    estimate,
    grid,
    number,
    plus_minus,
    probability,
)
from calibration.report.contents import Report
from energymodel.profile import Estimate
from energymodel.render import integer, percent

# Energy coefficients: title with its unit, and the factor from SI.
COLUMNS = {
    "flop_j": ("pJ/FLOP", 1e12),
    "weight_byte_j": ("pJ/weight B", 1e12),
    "row_byte_j": ("pJ/row B", 1e12),
    "busy_w": ("W busy", 1.0),
}
DIAGNOSTICS_TEXT = (
    "R2 is on the weighted scale without a constant, R2 log of the logarithm of gross energy. "
    "Condition number and largest variance inflation factor tell collinear columns; a small p of "
    "Breusch-Pagan uneven scatter, of Jarque-Bera residuals that are not normal; Durbin-Watson "
    "away from 2 drift over time."
)


def structure(r: Report) -> Section:
    """What the boosted trees still find in the residuals."""

    def share(j: Judgement) -> str:
        return "-" if j.explained is None else percent(max(j.explained, -9.99))

    rows = [
        (c.name, what, share(j), j.words)
        for c in r.components
        for what, j in (("energy", c.energy_judge), ("time", c.time_judge))
        if j.explained is not None
    ]
    unjudged = [
        (c.name, what, j.note)
        for c in r.components
        for what, j in (("energy", c.energy_judge), ("time", c.time_judge))
        if j.explained is None
    ]
    grids = [grid("component", "", ">explained", "verdict", rows=rows)]
    if unjudged:
        grids.append(grid("not judged", "", "why", rows=unjudged))
    return Section(
        title="What structure the residuals still hold",
        paragraphs=(
            (
                "Boosted trees try to predict the held-out residuals of our model from shape, clock, "
                "temperature, predicted power and board, for shape families that they have not seen. "
                "What they explain, our model lacks; 0 % or less means that nothing is left."
            ),
        ),
        grids=tuple(grids),
    )


def coefficients(r: Report) -> Section:
    """Energy coefficients and the parameters of the time laws, with standard errors."""
    energy = [
        (c.name, *(_coefficient(c.coefficients[n], scale) for n, (_, scale) in COLUMNS.items()),
         _coefficient(c.clock_share, 1.0))
        for c in r.components
        if c.shared is None
    ]  # fmt: skip
    law = [
        (c.name, ", ".join(f"{name} {estimate(e)}" for name, e in c.law.items() if e.stderr))
        for c in r.components
    ]
    headers = (
        "component",
        *(f">{title}" for title, _ in COLUMNS.values()),
        ">share that stretches",
    )
    return Section(
        title="Coefficients",
        paragraphs=("Value and standard error. A dash means that the windows saw nothing of it.",),
        grids=(grid(*headers, rows=energy), grid("component", "time law", rows=law)),
    )


def _coefficient(e: Estimate, scale: float) -> str:
    return plus_minus(e.value * scale, e.stderr * scale) if e.value or e.stderr else "-"


def diagnostics(r: Report) -> Section:
    """Whether the energy regressions are sound, and which windows move them."""
    rows, worst, notes = [], [], []
    for c in r.components:
        d = c.diagnostics
        if d is None:
            continue
        if d.note:
            notes.append((d.note, c.name))
        if d.r2 is None:
            continue
        inflation = [v for v in d.inflation.values() if v is not None]
        rows.append(
            (c.name, integer(d.windows), number(d.r2, 4), number(d.r2_log, 4),
             number(d.condition), number(max(inflation, default=None)),
             probability(d.breusch_pagan_p), probability(d.jarque_bera_p),
             number(d.durbin_watson))
        )  # fmt: skip
        worst += [
            (c.name, i.point, board_name(r, i.board), number(i.distance),
             percent(i.residual, signed=True))
            for i in d.influential
        ]  # fmt: skip
    headers = (
        "component", ">windows", ">R2", ">R2 log", ">condition", ">VIF", ">B-P p", ">J-B p", ">D-W",
    )  # fmt: skip
    grids = [grid(*headers, rows=rows)] if rows else []
    if worst:
        grids.append(
            grid("influential windows", "point", "board", ">Cook's", ">residual", rows=worst)
        )
    return Section(
        title="Diagnostics of the energy regressions",
        paragraphs=(DIAGNOSTICS_TEXT, *_by_note(notes)),
        grids=tuple(grids),
    )


def _by_note(notes: list[tuple[str, str]]) -> tuple[str, ...]:
    """A sentence for each note, with the components that it holds for."""
    names: dict[str, list[str]] = {}
    for note, name in notes:
        names.setdefault(note, []).append(name)
    return tuple(f"{', '.join(of)}: {note}." for note, of in names.items())


def domain(r: Report) -> Section:
    """The shapes that were calibrated."""
    rows = [
        (c.name, axis, integer(low), integer(high))
        for c in r.components
        for axis, (low, high) in c.domain.items()
    ]
    return Section(
        title="Calibrated domain",
        grids=(grid("component", "axis", ">from", ">to", rows=rows),),
    )


def left_out(r: Report) -> Section:
    """Observations that no fit used, and why."""
    rows = [(x.what, integer(x.observations), x.reason) for x in r.left_out]
    nothing = () if rows else ("Every observation entered a fit.",)
    return Section(
        title="What was left out",
        paragraphs=nothing,
        grids=(grid("what", ">observations", "why", rows=rows),) if rows else (),
    )
