"""A calibration report as sections of sentences and tables, which text and HTML both print."""

from collections.abc import Sequence

from calibration.judgement.boards import Quantity
from calibration.judgement.simple_fits import NAMES
from calibration.judgement.variation import Variation
from calibration.report import details
from calibration.report.cells import (
    Grid,
    Section,
    board_name,
    estimate,
    grid,
    three_errors,
    two_errors,
)
from calibration.report.contents import Report
from calibration.report.verdict import verdict
from energymodel.profile import MemoryKind
from energymodel.render import integer, percent

ALL, ENERGY, TIME = "all", "energy, held out", "time, held out"
SIMPLE_HEADERS = {"flop_only": "FLOP only", "time_only": "time only", "roofline": "roofline"}


ENERGY_TEXT = (
    "Sustained windows, whole shape families held out; median, 90th percentile and mean signed "
    "error. The time at full clock is given; clock and energy follow through the power limit."
)
VARIATION_TEXT = (
    "Coefficient of variation of a call's energy (gross) and time over the trials of a point, in "
    "one mode on one board."
)
BOARDS_TEXT = (
    "Mixed-effects model (restricted maximum likelihood): the log of a call is an effect of its "
    "operation, a random one of its board, and a residual. Energy and time are of sustained "
    "windows, burst time is at full clock."
)
SIMPLE_TEXT = (
    "Simpler estimates on the same folds: one coefficient on FLOP, on measured time or on a "
    "datasheet roofline, and boosted trees alone on log energy. Time and trees are told the "
    "measured time of the very window, which a prediction never knows. The last line gives each "
    "simple estimate one coefficient for all components."
)


def sections(r: Report) -> tuple[Section, ...]:
    """The whole report, verdict first."""
    return (
        _verdict(r),
        _measured(r),
        _energy(r),
        _time(r),
        _variation(r),
        _boards(r),
        _power(r),
        _memory(r),
        details.structure(r),
        details.coefficients(r),
        details.diagnostics(r),
        details.domain(r),
        details.left_out(r),
    )


def _verdict(r: Report) -> Section:
    found = {(t.what, t.component): t for t in r.targets}
    names = list(dict.fromkeys(t.component for t in r.targets if t.component != ALL))

    def cells(what: str, component: str) -> tuple[str, str]:
        t = found.get((what, component))
        return ("-", "") if t is None else (percent(t.value), t.word)

    overall = [
        (t.what, percent(t.value), percent(t.limit), t.word)
        for t in r.targets
        if t.component == ALL
    ]
    each = [(name, *cells(ENERGY, name), *cells(TIME, name)) for name in names]
    limit = {t.what: f"median <= {percent(t.limit)}" for t in r.targets}
    headers = (
        "component",
        f">energy: {limit.get(ENERGY, '')}",
        "",
        f">time: {limit.get(TIME, '')}",
    )
    return Section(
        title="Verdict",
        paragraphs=verdict(r),
        grids=(
            grid(*headers, "", rows=each),
            grid("over the grid", ">reached", ">at most", "", rows=overall),
        ),
    )


def _measured(r: Report) -> Section:
    minutes = r.gpu_time
    spent = f"{minutes.windows_s / 60:.1f} min inside energy windows"
    if minutes.total_s is not None:
        spent = f"{minutes.total_s / 60:.1f} min in all, {spent}"
    low_high = r.temperature_c
    facts = [
        ("GPU", f"{r.gpu_name} (datasheet {r.gpu})"),
        ("origin", r.kind),
        ("observations", integer(r.observations)),
        ("bursts, energy windows, idle windows", f"{r.bursts:,}, {r.windows:,}, {r.idle:,}"),
        ("boards", ", ".join(board_name(r, b) for b in r.boards)),
        ("GPU time", "; ".join(filter(None, (spent, minutes.note)))),
        ("temperature", f"{low_high[0]:.0f} to {low_high[1]:.0f} degC" if low_high else "unknown"),
        ("driver", ", ".join(r.drivers)),
        *((f"software: {k}", v) for k, v in r.software.items()),
        *((f"kernels: {k}", f"{v:,} observations") for k, v in r.stacks.items()),
    ]
    return Section(title="What was measured", grids=(grid("", "", rows=facts),))


def _energy(r: Report) -> Section:
    own = [c for c in r.components if c.shared is None]
    ours = [
        (c.name, integer(c.windows), integer(c.window_families), *three_errors(c.energy))
        for c in own
    ]
    others = [
        (c.name, two_errors(c.energy), *(two_errors(c.simple.get(n)) for n in NAMES),
         two_errors(c.trees))
        for c in own
    ]  # fmt: skip
    if r.pooled:
        totals = tuple(two_errors(r.pooled.get(n)) for n in ("ours", *NAMES))
        others.append(("all components", *totals, "-"))
    headers = ("median / p90, %", ">ours", *(f">{SIMPLE_HEADERS[n]}" for n in NAMES), ">trees")
    return Section(
        title="Energy of shapes that the fit had not seen",
        paragraphs=(ENERGY_TEXT, SIMPLE_TEXT),
        grids=(
            grid("component", ">windows", ">families", ">median", ">p90", ">bias", rows=ours),
            grid(*headers, rows=others),
        ),
        figures=(
            "energy",
            "energy_by_component",
            "energy_residual_by_rows",
            "energy_residual_by_clock",
            "intensity",
        ),
    )


def _time(r: Report) -> Section:
    rows = [
        (
            c.name,
            integer(c.shapes),
            integer(c.bursts),
            *three_errors(c.time),
            two_errors(c.limited_time),
        )
        for c in r.components
    ]
    headers = ("component", ">shapes", ">bursts", ">median", ">p90", ">bias", ">at the limit, %")
    return Section(
        title="Time of shapes that the fit had not seen",
        paragraphs=(
            (
                "Bursts at full clock, whole shape families held out. The last column is the time of "
                "sustained windows, given that at full clock: how the power limit stretches it."
            ),
        ),
        grids=(Grid(headers=headers, rows=tuple(rows)),),
        figures=("time", "time_by_component", "time_residual_by_rows"),
    )


def _variation(r: Report) -> Section:
    both = (("energy", r.energy_variation), ("time", r.time_variation))
    notes = [f"{what.capitalize()}: {v.note}." for what, v in both if v.note]
    text = (VARIATION_TEXT, *notes)
    if not any(v.points for _, v in both):
        return Section(title="Variation over trials", paragraphs=text)

    def cells(v: Variation) -> tuple[str, ...]:
        return integer(v.points), percent(v.median), percent(v.p95)

    rows = [(ALL, *cells(r.energy_variation), *cells(r.time_variation))]
    rows += [(c.name, *cells(c.energy_variation), *cells(c.time_variation)) for c in r.components]
    worst = [
        (s.point, what, s.mode, board_name(r, s.board), integer(s.trials), percent(s.coefficient))
        for what, v in both
        for s in v.worst
    ]
    headers = (">energy: points", ">median", ">p95", ">time: points", ">median", ">p95")
    return Section(
        title="Variation over trials",
        paragraphs=text,
        grids=(
            grid("component", *headers, rows=rows),
            grid("most variable points", "", "mode", "board", ">trials", ">CV", rows=worst),
        ),
    )


def _boards(r: Report) -> Section:
    rows = []
    for s in r.board_spreads:
        interval = f"{percent(s.interval[0])} to {percent(s.interval[1])}" if s.interval else "-"
        counts = (integer(s.boards), integer(s.operations))
        rows.append((s.what, *counts, percent(s.deviation), interval, percent(s.residual), s.note))
    offsets = {(o.board, s.what): o for s in r.board_spreads for o in s.offsets}
    seen = [b for b in r.boards if any(board == b for board, _ in offsets)]
    kinds = [s.what for s in r.board_spreads if s.offsets]

    def cell(board: str, what: Quantity) -> str:
        o = offsets.get((board, what))
        return "-" if o is None else f"{100 * o.value:+.2f} ± {100 * o.stderr:.2f} %"

    each = [(board_name(r, b), *(cell(b, what) for what in kinds)) for b in seen]
    headers = (">boards", ">operations", ">deviation", ">90 % interval", ">residual", "note")
    spread = grid("", *headers, rows=rows)
    return Section(
        title="Boards of the same GPU",
        paragraphs=(BOARDS_TEXT,),
        grids=(spread, grid("offset", *(f">{k}" for k in kinds), rows=each)) if each else (spread,),
    )


def _power(r: Report) -> Section:
    rows = [
        ("static power at 0 degC", estimate(r.static_w)),
        ("static power for each degree", estimate(r.static_w_per_c)),
        ("energy in SMs goes with the clock to the power", estimate(r.exponent)),
        ("share of the limit at which power is held", estimate(r.limit_share)),
    ]
    return Section(
        title="Static power and the power limit",
        grids=(grid("", ">value", rows=rows),),
        figures=("static", "duty_power", "duty_clock"),
    )


def _memories(kinds: Sequence[MemoryKind]) -> list[tuple[str, str]]:
    """What a byte costs, on the boards that are alike in it."""
    if len(kinds) == 1:
        return [("energy of an HBM byte", estimate(kinds[0].byte_j))]
    return [
        (f"energy of an HBM byte, {len(kind.boards)} boards", estimate(kind.byte_j))
        for kind in kinds
    ]


def _memory(r: Report) -> Section:
    m = r.memory
    if m.byte_j is None:
        return Section(title="Memory power", paragraphs=(f"Not told: {m.note}.",))
    rows = [
        *_memories(m.memories),
        ("memory power without traffic, fitted", f"{m.base_w:.1f} W"),
        ("memory power in idle windows", "-" if m.idle_w is None else f"{m.idle_w:.1f} W"),
        ("share of variance explained", percent(m.r2)),
        ("median error of memory power", percent(m.median_error)),
    ]
    by_kind = [(name, percent(e, signed=True)) for name, e in m.by_kind.items()]
    return Section(
        title="Memory power, a second target",
        paragraphs=(
            (
                f"The memory's own power sensor against bytes per second, in {m.windows:,} sustained "
                "windows. The slope comes from streaming kernels only; the errors below (predicted "
                "over measured, median) are of all, those whose bytes may stay in the L2 cache "
                "included."
            ),
        ),
        grids=(grid("", ">value", rows=rows), grid("component", ">error", rows=by_kind)),
        figures=("memory",),
    )
