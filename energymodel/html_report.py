"""A prediction as one HTML file: tables and drawings, no scripts, nothing from outside.

Every text passes ``html.escape``, names of models and warnings too, and a content security policy
allows the browser nothing but the styles of the file itself.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from energymodel import html_pieces as pieces
from energymodel.render import (
    BYTES,
    ENERGY,
    FLOP,
    MAX_ROWS,
    POWER,
    TIME,
    digits,
    headings,
    integer,
    quantity,
    totals,
)

if TYPE_CHECKING:
    from energymodel.prediction import BinEnergy, Cause, PhaseCauses, Prediction

# Fields of ``PhaseCauses`` in the order of reading, and the unit of their amounts.
CAUSES = {
    "flop": ("FLOP", FLOP),
    "weights": ("bytes of weights", BYTES),
    "data": ("bytes of other data", BYTES),
    "time": ("kernel time", TIME),
    "gaps": ("gaps", TIME),
    "collective": ("collectives", TIME),
}


def html_report(p: "Prediction") -> str:
    """The whole document."""
    title, load = headings(p)
    parts = [
        f"<h1>{pieces.safe(title)}</h1>",
        f'<p class="dim">{pieces.safe(load)}</p>',
        *pieces.warnings(p.warnings),
        *_interval(p),
        pieces.table(("", ""), totals(p)),
        *_phases(p),
        *_components(p),
        *_bins(p.bins),
        *_baselines(p),
        *_causes(p.causes),
        *_facts("Deployment", p.deployment),
        *_facts("Provenance", p.provenance),
    ]
    return pieces.page(title, parts)


# Sections ------------------------------------------------------------------------------------


def _interval(p: "Prediction") -> list[str]:
    """The interval of the energy around the prediction, and what FLOP alone would say."""
    low, high = p.energy_interval_j
    most = 1.05 * max(high, p.flop_only.energy_j)

    def x(joules: float) -> float:
        return pieces.NAMES + (pieces.WIDTH - pieces.NAMES) * joules / most

    said = quantity(p.energy_j, ENERGY)
    marks = [
        pieces.line(x(0.0), pieces.BAR, x(most), pieces.BAR, "#c5ced8"),
        pieces.box(x(low), pieces.BAR - 7, x(high) - x(low), 14, colour="#a9c1da", title=said),
        pieces.line(
            x(p.energy_j), pieces.BAR - 11, x(p.energy_j), pieces.BAR + 11, pieces.COLOURS[0]
        ),
        pieces.line(
            x(p.flop_only.energy_j),
            pieces.BAR - 8,
            x(p.flop_only.energy_j),
            pieces.BAR + 8,
            pieces.COLOURS[4],
        ),
        pieces.label(0, pieces.BAR + 5, f"{100 * p.interval_level:.0f} % interval"),
        pieces.label(x(low), pieces.BAR + 25, quantity(low, ENERGY), "middle"),
        pieces.label(x(high), pieces.BAR + 25, quantity(high, ENERGY), "middle"),
        pieces.label(x(p.flop_only.energy_j), pieces.BAR - 11, "FLOP-only", "middle"),
    ]
    return [pieces.drawing(marks, 2 * pieces.BAR + 8, "Predicted energy and its interval")]


def _phases(p: "Prediction") -> list[str]:
    rows = [
        (
            name,
            quantity(phase.energy_j, ENERGY),
            pieces.share(phase.energy_j, p.energy_j),
            quantity(phase.duration_s, TIME),
            quantity(phase.energy_j / phase.duration_s if phase.duration_s > 0 else None, POWER),
        )
        for name, phase in p.phases.items()
    ]
    drawing = pieces.bars(
        {name: phase.energy_j for name, phase in p.phases.items()}, "Energy of phases"
    )
    return [
        pieces.heading("Phases"),
        drawing,
        pieces.table(("phase", "energy", "share", "time", "power"), rows),
    ]


def _components(p: "Prediction") -> list[str]:
    found = sorted(p.components.items(), key=lambda item: -item[1].energy_j)
    rows = [
        (
            name,
            quantity(c.energy_j, ENERGY),
            pieces.share(c.energy_j, p.energy_j),
            quantity(c.duration_s, TIME),
            quantity(c.flop or None, FLOP),
            quantity(c.hbm_bytes or None, BYTES),
            quantity(1e9 * c.energy_j / c.flop if c.flop > 0 else None, ENERGY),
        )
        for name, c in found
    ]
    heads = ("component", "energy", "share", "time", "FLOP", "HBM traffic", "per GFLOP")
    drawing = pieces.bars({name: c.energy_j for name, c in found}, "Energy of components")
    return [pieces.heading("Components"), drawing, pieces.table(heads, rows)]


def _bins(bins: Sequence["BinEnergy"]) -> list[str]:
    shown = sorted(bins, key=lambda b: -b.energy_j)[:MAX_ROWS] if len(bins) > MAX_ROWS else bins
    rows = [
        (
            integer(b.input_tokens) + (f" + {b.media_tokens:,}" if b.media_tokens else ""),
            integer(b.output_tokens),
            integer(b.count),
            quantity(b.energy_j, ENERGY),
            quantity(b.prefill_j, ENERGY),
            quantity(b.decode_j, ENERGY),
            quantity(b.energy_per_output_token_j, ENERGY),
        )
        for b in shown
    ]
    heads = ("input", "output", "requests", "energy", "prefill", "decode", "per output token")
    more = len(bins) - len(shown)
    note = f"The {MAX_ROWS} bins with the most energy; {more:,} more in --json." if more else ""
    return [pieces.heading("Bins"), pieces.table(heads, rows, note)]


def _baselines(p: "Prediction") -> list[str]:
    found = {"flop_only": p.flop_only, **p.baselines}
    rows = [
        (name.replace("_", " "), quantity(b.energy_j, ENERGY), digits(b.ratio))
        for name, b in found.items()
    ]
    bars = {name.replace("_", " "): b.energy_j for name, b in found.items()}
    return [
        pieces.heading("Simpler estimates"),
        pieces.bars({"this prediction": p.energy_j, **bars}, "Energy by estimate"),
        pieces.table(("estimate", "energy", "of the prediction"), rows),
    ]


def _causes(phases: Mapping[str, "PhaseCauses"]) -> list[str]:
    rows = []
    for phase, causes in phases.items():
        for key, (name, ladder) in CAUSES.items():
            cause: Cause = getattr(causes, key)
            if cause.energy_j:
                rows.append(
                    (
                        phase,
                        name,
                        quantity(cause.amount, ladder),
                        quantity(cause.energy_j, ENERGY),
                        quantity(cause.full_clock_j, ENERGY),
                    )
                )
    if not rows:
        return []
    heads = ("phase", "spent on", "amount", "energy", "at full clock")
    return [pieces.heading("Causes"), pieces.table(heads, rows)]


def _facts(title: str, facts: Mapping[str, object]) -> list[str]:
    rows = [(name, _plain(value)) for name, value in facts.items() if value not in (None, "", [])]
    return [pieces.heading(title), pieces.table(("", ""), rows)]


def _plain(value: object) -> str:
    """A fact in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return f"{len(value)}" if len(value) > MAX_ROWS else ", ".join(map(_plain, value))
    return str(value)
