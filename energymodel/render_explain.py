"""``explain`` as tables for people; conventions are those of ``render``."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from energymodel.explain import FACTORS, ROUNDING, UNEXPLAINED, Change, Explanation, Side
from energymodel.flop_gap import Configuration, FlopGap, Spread, WorkGap
from energymodel.render import (
    ENERGY,
    TIME,
    columns,
    digits,
    integer,
    line,
    percent,
    printable,
    quantity,
    stack,
    warnings,
)

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

# Factors this close to 1 are named together.
NOTHING = 5e-4
MOST_WARNINGS = 5
MOST_ROWS = 12


def explanation(e: Explanation) -> "Group":
    """Both sides, what was set differently, the factors one after the other, phases, components."""
    parts: list[RenderableType] = [*_side("A", e.a), *_side("B", e.b)]
    settings = [
        f"{name} {_value(a)} -> {_value(b)}"
        for name, (a, b) in e.differs.items()
        if name not in ("model", "requests", "input_tokens", "output_tokens")
    ]
    if settings:
        parts.append(line("changed: " + ", ".join(settings)))
    parts += ["", line(f"B takes {_ratio(e.ratio)} times the energy of A", "bold"), ""]
    parts += [
        *_waterfall(e),
        "",
        _changes("phase", e.phases),
        "",
        _changes("component", e.components),
    ]
    return stack([*parts, *warnings(e.warnings)])


def _side(name: str, s: Side) -> list["RenderableType"]:
    load = (
        f"{integer(s.requests)} requests, {integer(s.input_tokens)} input, "
        f"{integer(s.output_tokens)} output tokens"
    )
    spent = f"{quantity(s.energy_j, ENERGY)} in {quantity(s.duration_s, TIME)}"
    title = f"{name}  {s.model} on {s.gpu}, {s.engine} ({s.file})"
    return [line(title), line(f"   {load}: {spent}")]


def _value(value: object) -> str:
    return "default" if value is None else str(value)


def _ratio(ratio: float) -> str:
    return f"{ratio:,.4g}" if 1e-3 <= ratio < 1e6 else f"{ratio:.3g}"


def _waterfall(e: Explanation) -> list["RenderableType"]:
    """Largest factors first, with the energy after each; the product is the whole ratio."""
    rows = columns("factor", "of what", ">times", ">energy")
    rows.add_row("", "A", "", quantity(e.a.energy_j, ENERGY))
    by_size = sorted(
        e.factors, key=lambda n: (n == UNEXPLAINED, -abs(math.log(e.factors[n].ratio)))
    )
    energy_j, same = e.a.energy_j, []
    for name in by_size:
        ratio = e.factors[name].ratio
        energy_j *= ratio
        if abs(math.log(ratio)) < NOTHING and name != UNEXPLAINED:
            same.append(name)
        else:
            rows.add_row(name, FACTORS[name], _ratio(ratio), quantity(energy_j, ENERGY))
    rows.add_row("", "B", _ratio(e.ratio), quantity(e.b.energy_j, ENERGY))
    return [rows, *([line("the same: " + ", ".join(same))] if same else [])]


def _changes(header: str, changes: Mapping[str, Change]) -> "Table":
    rows = columns(header, ">A", ">B", ">B - A", ">B / A")
    total_j = sum(c.a_j + c.b_j for c in changes.values())
    for name, c in sorted(changes.items(), key=lambda item: -abs(item[1].change_j)):
        a_j, b_j = (j if j > ROUNDING * total_j else None for j in (c.a_j, c.b_j))
        if a_j is not None or b_j is not None:
            rows.add_row(
                printable(name),
                quantity(a_j, ENERGY),
                quantity(b_j, ENERGY),
                quantity(c.change_j, ENERGY),
                _ratio(b_j / a_j) if a_j is not None and b_j is not None else "-",
            )
    return rows


# FLOP-only -----------------------------------------------------------------------------------


def flop_gap(g: FlopGap) -> "Group":
    """How far FLOP-only is off in each kind of work, and the pairs that it ranks wrongly."""
    profiles = ", ".join(f"{name} ({kind})" for name, kind in g.profiles.items())
    of = f"measured; FLOP counted with profile {profiles}"
    if g.source == "predicted":
        of = f"predicted with profile {profiles}"
    parts: list[RenderableType] = [
        line(f"FLOP-only against energies {of}", "bold"),
        line(f"{integer(len(g.configurations))} configurations"),
    ]
    for work, gap in g.work.items():
        parts += ["", line(work, "bold"), *_work(gap)]
    if g.left_out:
        parts += ["", line(f"{len(g.left_out):,} configurations left out", "bold")]
        parts += [line(f"{x.configuration}: {x.reason}") for x in g.left_out[:MOST_WARNINGS]]
    parts += warnings(g.warnings[:MOST_WARNINGS])
    rest = max(len(g.warnings) - MOST_WARNINGS, 0) + max(len(g.left_out) - MOST_WARNINGS, 0)
    return stack([*parts, *([line(f"... and {rest:,} more in --json")] if rest else [])])


def _work(gap: WorkGap) -> list["RenderableType"]:
    facts = columns()
    fitted = (
        f"{percent(gap.fitted_median_ape)} median, {percent(gap.fitted_p90_ape)} 90th percentile, "
        f"at {percent(gap.fitted_efficiency)} of peak"
    )
    facts.add_row("FLOP-only over energy", _spread(gap.ratio))
    facts.add_row("median error", percent(gap.median_ape))
    facts.add_row("at one fitted efficiency", fitted)
    order = columns(
        "pairs of", ">pairs", ">Kendall tau", ">wrong order", ">blind", ">differ by up to"
    )
    names = {"all": "all", "models": "models, same load", "settings": "loads, same model"}
    for key, rank in gap.rankings.items():
        if rank.pairs:
            tau = "-" if rank.kendall_tau is None else f"{rank.kendall_tau:.2f}"
            order.add_row(
                names[key],
                integer(rank.pairs),
                tau,
                percent(rank.inverted),
                percent(rank.blind),
                f"{digits(rank.blind_ratio)} x" if rank.blind else "-",
            )
    blind = line("blind: pairs that differ, but not in FLOP per token")
    parts: list[RenderableType] = [facts, "", order, blind]
    for header, spreads in (
        ("model", gap.by_model),
        ("batch", gap.by_batch),
        ("context", gap.by_context),
    ):
        if 1 < len(spreads) <= MOST_ROWS:
            parts += ["", _spreads(header, spreads)]
    if gap.inversions:
        parts += ["", *_inversions(gap)]
    return parts


def _spread(s: Spread) -> str:
    return f"{_ratio(s.median)} median, {_ratio(s.lowest)} to {_ratio(s.highest)}"


def _spreads(header: str, spreads: Mapping[str, Spread]) -> "Table":
    rows = columns(header, ">points", ">lowest", ">median", ">highest")
    for name, s in spreads.items():
        label = integer(int(name)) if name.isdecimal() else printable(name)
        rows.add_row(
            label, integer(s.configurations), _ratio(s.lowest), _ratio(s.median), _ratio(s.highest)
        )
    return rows


def _inversions(gap: WorkGap) -> list["RenderableType"]:
    rows = columns("FLOP-only prefers", "to", ">it says", ">in truth")
    for pair in gap.inversions:
        rows.add_row(
            _label(pair.chosen),
            _label(pair.other),
            f"{_ratio(pair.flop_only_ratio)} x",
            f"{_ratio(pair.energy_ratio)} x",
        )
    return [rows, line("batch x prompt tokens behind each model; energy per token")]


def _label(c: Configuration) -> str:
    name = c.model.split("/", 1)[-1]
    return printable(f"{name} {c.flags}".strip() + f" {c.batch:,}x{c.context:,}")
