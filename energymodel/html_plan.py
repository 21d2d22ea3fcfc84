"""A plan as one HTML file: the frontier, the fleet, power over time, and how sure it all is."""

from collections.abc import Sequence

from energymodel import html_pieces as pieces
from energymodel.deployment import changed_flags
from energymodel.planning.document import Frontier, Plan
from energymodel.planning.request import RULES
from energymodel.render import ENERGY, MAX_ROWS, POWER, TIME, digits, percent, quantity
from energymodel.render_plan import BINDING, best_first, totals

# Height of charts in pixels, and the margins that their axes stand in.
HEIGHT, LEFT, BELOW = 260.0, 70.0, 34.0
TICKS = 5


def page(p: Plan) -> str:
    """The whole document."""
    if not p.feasible:
        said = p.reason or "no fleet meets the request."
        return pieces.page("no fleet", ["<h1>No fleet</h1>", f"<p>{pieces.safe(said)}</p>"])
    gpus = ", ".join(f"{n:,} x {name}" for name, n in p.gpus.items())
    title = f"{gpus} for {digits(p.served_requests_per_s)} requests per second"
    share = percent(p.served_requests_per_s / p.demand_requests_per_s)
    said = (
        f"{share} of the demand; {BINDING[p.binding_constraint]}. Boundaries: facility unless GPU is "
        "said."
    )
    parts = [
        f"<h1>{pieces.safe(title)}</h1>",
        f'<p class="dim">{pieces.safe(said)}</p>',
        *pieces.warnings(p.warnings),
        pieces.table(("", ""), totals(p)),
        *_fleet(p),
        *_frontier(p.frontier),
        *_over_time(p),
        *_provisioning(p),
        *_doubts(p),
        *_unserved(p),
    ]
    return pieces.page(title, parts)


def _fleet(p: Plan) -> list[str]:
    rows = [
        (
            r.demand,
            f"{r.model} on {r.gpus} x {r.gpu}",
            " ".join(changed_flags(r.deployment)),
            f"{r.count:,}" + (f" ({r.spare} spare)" if r.spare else ""),
            digits(r.requests_per_s),
            quantity(r.power_w, POWER),
            quantity(r.energy_per_request_j, ENERGY),
            quantity(r.ttft_s.p90, TIME),
            quantity(r.itl_s.p90, TIME),
            "yes" if r.meets_objective else "no",
        )
        for r in p.replicas
    ]
    heads = (
        *("for", "replicas of", "flags", "number", "requests/s", "GPU power of one"),
        *("GPU energy of a request", "TTFT p90", "ITL p90", "meets the objective"),
    )
    return [pieces.heading("Fleet"), pieces.table(heads, rows)]


def _frontier(frontier: Sequence[Frontier]) -> list[str]:
    """Tokens per second and watt against the time between tokens, chosen ones filled."""
    across = [f.itl_s for f in frontier]
    up = [f.output_tokens_per_s_per_w for f in frontier]
    chart = _Chart(0.0, max(across) * 1.1, 0.0, max(up) * 1.1)
    marks = chart.axes("time between tokens (percentile asked for)", "output tokens per s and W")
    for f in frontier:
        flags = " ".join(changed_flags(f.deployment))
        said = (
            f"{f.model} on {f.gpus} x {f.gpu} {flags}: {digits(f.output_tokens_per_s_per_w)} "
            f"tokens/s/W, ITL {quantity(f.itl_s, TIME)}, TTFT {quantity(f.ttft_s, TIME)}"
        )
        colour = pieces.COLOURS[4] if f.chosen else pieces.COLOURS[0]
        x, y = chart.at(f.itl_s, f.output_tokens_per_s_per_w)
        marks.append(pieces.dot(x, y, colour, said, 6.0 if f.chosen else 3.5))
    best = best_first(frontier)[:MAX_ROWS]
    rows = [
        (
            f"{f.model} on {f.gpus} x {f.gpu} {' '.join(changed_flags(f.deployment))}".rstrip(),
            "yes" if f.chosen else "",
            digits(f.requests_per_s),
            digits(f.requests_per_j),
            digits(f.output_tokens_per_s_per_w),
            quantity(f.ttft_s, TIME),
            quantity(f.itl_s, TIME),
        )
        for f in best
    ]
    heads = ("candidate", "chosen", "requests/s", "requests/J", "tokens/s/W", "TTFT", "ITL")
    note = "" if len(best) == len(frontier) else f"{len(frontier) - len(best):,} more in --json."
    return [
        pieces.heading("Candidates (GPU power; red: chosen)"),
        pieces.drawing(marks, HEIGHT, "Frontier of candidates"),
        pieces.table(heads, rows, note),
    ]


def _over_time(p: Plan) -> list[str]:
    parts = []
    for title, watts in (
        ("Power of the facility over time (simulated)", p.power_over_time_w),
        ("Power of the GPUs of one replica over time (simulated)", p.replica_power_over_time_w),
    ):
        if len(watts) < 2:
            continue
        chart = _Chart(0.0, len(watts) * p.slot_s, 0.0, max(watts) * 1.1)
        marks = chart.axes("seconds", "watts")
        at = [chart.at((i + 0.5) * p.slot_s, w) for i, w in enumerate(watts)]
        marks.append(pieces.curve(at, pieces.COLOURS[0]))
        parts += [pieces.heading(title), pieces.drawing(marks, HEIGHT, title)]
    return parts


def _provisioning(p: Plan) -> list[str]:
    if p.provisioning is None:
        return []
    rules: dict[str, float] = {name: getattr(p.provisioning, name) for name in RULES}
    said = f"Planned by {p.provisioning_rule}; budget {quantity(p.budget_w, POWER)}."
    ramp = quantity(p.provisioning.ramp_w_per_s, POWER)
    return [
        pieces.heading("Power to set aside"),
        pieces.bars({**rules, "budget": p.budget_w}, "Facility power by rule", POWER),
        f'<p class="dim">{pieces.safe(said)} Changes stay below {ramp}/s in 99 % of the time.</p>',
    ]


def _doubts(p: Plan) -> list[str]:
    found = dict(sorted(p.sensitivity_w.items(), key=lambda item: -item[1]))
    said = f"Measure next: {p.measure_next}." if p.measure_next else ""
    return [
        pieces.heading("What the doubt is of"),
        pieces.bars(found, "Half width of the 90 % interval with one source alone", POWER),
        f'<p class="dim">{pieces.safe(said)}</p>',
    ]


def _unserved(p: Plan) -> list[str]:
    parts = []
    if p.unserved:
        rows = [(name, digits(rate)) for name, rate in p.unserved.items()][: 10 * MAX_ROWS]
        parts += [pieces.heading("Not served"), pieces.table(("bin", "requests/s"), rows)]
    if p.what_if:
        rows = [
            (quantity(budget_w, POWER), digits(sum(served.values())))
            for budget_w, served in sorted(p.what_if.items())
        ]
        parts += [pieces.heading("Other budgets"), pieces.table(("budget", "requests/s"), rows)]
    return parts


class _Chart:
    """Two axes from values to pixels."""

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        self._x = (left, (right - left) or 1.0)
        self._y = (low, (high - low) or 1.0)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        across = LEFT + (pieces.WIDTH - LEFT - 10.0) * (x - self._x[0]) / self._x[1]
        return across, (HEIGHT - BELOW) * (1.0 - (y - self._y[0]) / self._y[1])

    def axes(self, across: str, up: str) -> list[str]:
        """Lines with numbers, and what they are of."""
        x0, y0 = self._x[0], self._y[0]
        marks = [
            pieces.label(pieces.WIDTH - 10.0, HEIGHT - 4.0, across, "end"),
            pieces.label(LEFT + 6.0, 12.0, up),
        ]
        for i in range(TICKS + 1):
            x, y = x0 + self._x[1] * i / TICKS, y0 + self._y[1] * i / TICKS
            px, _ = self.at(x, y0)
            _, py = self.at(x0, y)
            marks += [
                pieces.line(px, HEIGHT - BELOW, px, HEIGHT - BELOW + 4.0, "#c5ced8"),
                pieces.label(px, HEIGHT - BELOW + 16.0, digits(x), "middle"),
                pieces.line(LEFT, py, pieces.WIDTH - 10.0, py, "#e3e8ee"),
                pieces.label(LEFT - 6.0, py + 4.0, digits(y), "end"),
            ]
        return marks
