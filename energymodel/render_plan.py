"""``plan`` as tables for people; conventions are those of ``render``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from energymodel.deployment import changed_flags
from energymodel.planning.defer import Deferral
from energymodel.planning.document import Frontier, Plan, Replicas
from energymodel.planning.request import RULES
from energymodel.render import (
    ENERGY,
    MAX_ROWS,
    POWER,
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

BINDING = {
    "demand": "all demand is served",
    "power_w": "the power budget binds",
    "gpus": "--max-gpus binds",
    "racks": "--max-racks binds",
    "several": "several limits bind together",
}


def plan(p: Plan) -> "Group":
    """The fleet, what it draws by each rule, how sure that is, the frontier, and what is shed."""
    if not p.feasible:
        return stack([line("no fleet", "bold"), *warnings(p.warnings)])
    parts: list[RenderableType] = [
        _header(p),
        "",
        _grid(totals(p)),
        "",
        *_fleet(p),
        "",
        _provision(p),
    ]
    parts += ["", _sureness(p), "", *_frontier(p)]
    if p.unserved:
        parts += ["", _unserved(p)]
    if p.what_if:
        parts += ["", _what_if(p)]
    if p.deferral is not None:
        parts += ["", _deferral(p.deferral)]
    return stack([*parts, *warnings(p.warnings)])


def _header(p: Plan) -> "Group":
    gpus = ", ".join(f"{n:,} x {name}" for name, n in p.gpus.items())
    share = p.served_requests_per_s / p.demand_requests_per_s
    return stack(
        [
            line(f"{gpus} in {sum(p.servers.values()):,} servers, {p.racks:,} racks", "bold"),
            line(
                f"{digits(p.served_requests_per_s)} of {digits(p.demand_requests_per_s)} requests "
                f"per second served ({percent(share)}); {BINDING[p.binding_constraint]}"
            ),
        ]
    )


def totals(p: Plan) -> list[tuple[str, str]]:
    """Power, energy, carbon and cost: (what, how much)."""
    low, high = p.facility_power_interval_w
    rows = [
        ("facility power, mean", f"{quantity(p.facility_power_w, POWER)} of {_budget(p)}"),
        ("90 % interval", f"{quantity(low, POWER)} to {quantity(high, POWER)}"),
        ("within the budget", f"with probability {percent(p.probability_within_budget)}"),
        ("IT power", f"{quantity(p.it_power_w, POWER)} (PUE {p.pue:g})"),
        ("GPU power", quantity(p.gpu_power_w, POWER)),
        ("energy per request", f"{quantity(p.energy_per_request_j, ENERGY)} (facility)"),
        (
            "energy per 1,000 output tokens",
            f"{quantity(p.energy_per_1000_output_tokens_j, ENERGY)} (facility)",
        ),
    ]
    if p.sci is not None:
        parts = (
            f"{digits(p.sci.sci_g)} g CO2e (E {digits(p.sci.e_kwh)} kWh x I "
            f"{digits(p.sci.i_g_per_kwh)} g/kWh + M {digits(p.sci.m_g)} g)"
        )
        rows.append((f"SCI per {p.sci.unit}", parts))
    if p.cost.per_hour is not None:
        rows.append(("cost per hour", digits(p.cost.per_hour)))
        if p.cost.per_million_output_tokens is not None:
            tokens = digits(p.cost.per_million_output_tokens)
            rows.append(("cost per million output tokens", tokens))
    if p.budget_for_all_w is not None:
        rows.append(("budget that would serve all", quantity(p.budget_for_all_w, POWER)))
    return rows


def _grid(rows: list[tuple[str, str]]) -> "Table":
    grid = columns()
    for key, value in rows:
        grid.add_row(key, value)
    return grid


def _budget(p: Plan) -> str:
    return quantity(p.budget_w, POWER)


def _fleet(p: Plan) -> "list[RenderableType]":
    table = columns(
        *("for", "replicas of", ">n", ">req/s", ">W each", ">J/req"),
        *(">TTFT p90", ">ITL p90"),
    )
    for r in p.replicas[:MAX_ROWS]:
        table.add_row(
            printable(r.demand),
            _name(r),
            f"{r.count:,}" + (f" ({r.spare} spare)" if r.spare else ""),
            digits(r.requests_per_s),
            digits(r.power_w),
            digits(r.energy_per_request_j),
            quantity(r.ttft_s.p90, TIME),
            quantity(r.itl_s.p90, TIME),
        )
    rest = len(p.replicas) - MAX_ROWS
    return [table, *([line(f"and {rest} kinds more")] if rest > 0 else [])]


def _name(r: Replicas) -> str:
    flags = " ".join(changed_flags(r.deployment))
    model = r.model.rpartition("/")[2]
    return printable(f"{model} on {r.gpus} x {r.gpu}" + (f" {flags}" if flags else ""))


def _provision(p: Plan) -> "Table":
    table = columns("power to set aside", ">facility", ">of the budget")
    if p.provisioning is None:
        return table
    for name in RULES:
        watts = getattr(p.provisioning, name)
        mark = " (planned by)" if name == p.provisioning_rule else ""
        table.add_row(f"{name}{mark}", quantity(watts, POWER), percent(watts / p.budget_w))
    ramp = f"{quantity(p.provisioning.ramp_w_per_s, POWER)}/s"
    table.add_row("ramp, 99 % of the time", ramp, "")
    return table


def _sureness(p: Plan) -> "Table":
    table = columns("what the doubt is of", ">half width", ">of the mean")
    for name, watts in sorted(p.sensitivity_w.items(), key=lambda item: -item[1]):
        table.add_row(name, quantity(watts, POWER), percent(watts / p.facility_power_w))
    if p.measure_next:
        table.add_row(f"measure next: {p.measure_next}", "", "")
    return table


def best_first(frontier: Sequence[Frontier]) -> list[Frontier]:
    """Candidates that were chosen, then the others, each by requests per joule."""
    return sorted(frontier, key=lambda f: (not f.chosen, -f.requests_per_j))


def _frontier(p: Plan) -> "list[RenderableType]":
    table = columns(
        *("", "candidates", ">req/s", ">req/J", ">tok/s/W", ">TTFT", ">ITL"),
    )
    best = best_first(p.frontier)
    for f in best[:MAX_ROWS]:
        flags = " ".join(changed_flags(f.deployment))
        model = f.model.rpartition("/")[2]
        table.add_row(
            "*" if f.chosen else "",
            printable(f"{model} on {f.gpus} x {f.gpu} {flags}".rstrip()),
            digits(f.requests_per_s),
            digits(f.requests_per_j),
            digits(f.output_tokens_per_s_per_w),
            quantity(f.ttft_s, TIME),
            quantity(f.itl_s, TIME),
        )
    rest = len(best) - MAX_ROWS
    return [table, *([line(f"and {integer(rest)} candidates more")] if rest > 0 else [])]


def _unserved(p: Plan) -> "Table":
    table = columns("not served", ">req/s")
    for name, rate in sorted(p.unserved.items(), key=lambda item: -item[1])[:MAX_ROWS]:
        table.add_row(printable(name), digits(rate))
    return table


def _deferral(d: Deferral) -> "Table":
    table = columns("work that can wait", ">requests a day", ">of it")
    for name, served in (
        ("asked for", d.requests_per_day),
        ("served at a constant rate", d.served_without_per_day),
        ("served when there is room", d.served_with_per_day),
    ):
        table.add_row(name, digits(served), percent(served / d.requests_per_day))
    return table


def _what_if(p: Plan) -> "Table":
    table = columns("with a budget of", ">req/s", "not served")
    demand = {name: 0.0 for served in p.what_if.values() for name in served}
    for served in p.what_if.values():
        for name, rate in served.items():
            demand[name] = max(demand[name], rate)
    for budget_w, served in sorted(p.what_if.items()):
        shed = [name for name, rate in served.items() if rate < 0.999 * demand[name]]
        text = ", ".join(shed[:4]) + (f" and {len(shed) - 4} more" if len(shed) > 4 else "")
        table.add_row(
            quantity(budget_w, POWER), digits(sum(served.values())), printable(text) or "-"
        )
    return table
