"""The verdict of a calibration in plain words, the bad with the good."""

from calibration.report.contents import Component, Report, Target
from energymodel.render import percent

MOST_NAMED = 6


def verdict(r: Report) -> tuple[str, ...]:
    """A few sentences: what holds, what does not, what is not known."""
    said = [
        _simulated(r),
        _by_component(r, "energy, held out", "Energy (given the time at full clock)"),
        _few_families(r),
        _by_component(r, "time, held out", "Time at full clock"),
        _against_simple(r),
        _repeatability(r),
        _cost(r),
        _boards(r),
        _memory(r),
        _structure(r),
    ]
    return tuple(s for s in said if s)


def _simulated(r: Report) -> str:
    if not r.simulated:
        return ""
    return "These figures come from a simulated GPU: they test the method and say nothing of a real one."


def _by_component(r: Report, what: str, name: str) -> str:
    targets = [t for t in r.targets if t.what == what]
    known = [t for t in targets if t.met is not None]
    if not known:
        return f"{name}: nothing could be held out, so nothing is known of unseen shapes."
    met = [t for t in known if t.met]
    missed = sorted((t for t in known if not t.met), key=lambda t: -(t.value or 0.0))
    unknown = [t for t in targets if t.met is None]
    text = (
        f"{name}: {len(met)} of {len(known)} components predict shape families that they have not "
        f"seen within {percent(known[0].limit)} (median)"
    )
    if missed:
        text += f"; missed by {_listed([f'{t.component} ({percent(t.value)})' for t in missed])}"
    if unknown:
        text += f"; not known for {_listed([t.component for t in unknown])}"
    return text + "."


def _few_families(r: Report) -> str:
    few = [c.name for c in r.components if c.energy is not None and not c.families_held_out]
    if not few:
        return ""
    return (
        f"With too few shape families for that, single shapes were held out of {_listed(few)}: "
        "another shape of the same widths was not."
    )


def _against_simple(r: Report) -> str:
    ours, flop = r.pooled.get("ours"), r.pooled.get("flop_only")
    if ours is None:
        return ""
    text = f"Over all components at once the median error of energy is {percent(ours.median)}"
    others = [
        f"{percent(e.median)} {words}"
        for e, words in (
            (flop, "by FLOP alone"),
            (r.pooled.get("roofline"), "by a roofline"),
            (r.pooled.get("time_only"), "by the measured time (which no prediction has)"),
        )
        if e is not None
    ]
    if others:
        text += f", against {_listed(others)}"
    better = [c.name for c in r.components if _beaten(c)]
    if better:
        text += (
            f". A simpler estimate or trees alone did better on {_listed(better)}"
            " (median, same folds)"
        )
    return text + "."


def _beaten(c: Component) -> bool:
    """Whether an estimate that knows no more than we do had a smaller median error."""
    if c.energy is None:
        return False
    rivals = [c.simple.get("flop_only"), c.simple.get("roofline"), c.trees]
    return any(e is not None and e.median < c.energy.median for e in rivals)


def _repeatability(r: Report) -> str:
    v = r.energy_variation
    if v.median is None or v.p95 is None:
        return f"Repeatability: {v.note}."
    targets = [t for t in r.targets if t.what.startswith("variation of energy")]
    text = (
        f"Repeatability: energy of a call varies over trials by {percent(v.median)} (median) and "
        f"{percent(v.p95)} (95th percentile) over {v.points:,} points"
    )
    return f"{text}: {_all_met(targets)}."


def _cost(r: Report) -> str:
    spent = r.gpu_time
    if spent.total_s is None:
        return f"GPU time: {spent.windows_s / 60:.1f} minutes inside energy windows; {spent.note}."
    boards = f"{len(r.boards)} boards" if len(r.boards) > 1 else "one board"
    return f"GPU time: {spent.total_s / 60:.1f} minutes in all, on {boards}."


def _all_met(targets: list[Target]) -> str:
    missed = [t for t in targets if not t.met]
    if not missed:
        return "as wanted"
    return _listed(
        [f"the {t.what.rpartition(', ')[2]} should be {percent(t.limit)}" for t in missed]
    )


def _boards(r: Report) -> str:
    s = next((s for s in r.board_spreads if s.what == "energy"), None)
    if s is None or s.deviation is None or s.interval is None:
        return "" if s is None else f"Boards: {s.note}."
    return (
        f"Boards: the same operation costs {percent(s.deviation)} more or less energy from board to "
        f"board (standard deviation of {s.boards} boards, 90 % interval {percent(s.interval[0])} to "
        f"{percent(s.interval[1])})."
    )


def _memory(r: Report) -> str:
    m = r.memory
    if m.byte_j is None or m.median_error is None:
        return f"Memory: {m.note}."
    costs = [
        f"{k.byte_j.value * 1e12:.1f} ± {k.byte_j.stderr * 1e12:.1f} pJ"
        + (f" on {len(k.boards)} boards" if len(m.memories) > 1 else "")
        for k in m.memories
    ]
    return (
        f"Memory: a byte costs {' and '.join(costs)} in the HBM by its own sensor, which predicts "
        f"memory power within {percent(m.median_error)} (median)."
    )


def _structure(r: Report) -> str:
    judged = [
        (c.name, what, j)
        for c in r.components
        for what, j in (("energy", c.energy_judge), ("time", c.time_judge))
        if j.explained is not None
    ]
    if not judged:
        return "Residuals: too few observations to judge what structure is left."
    left = [x for x in judged if x[2].carriers]
    if not left:
        return "Residuals: boosted trees find no structure that our model lacks."
    left.sort(key=lambda x: -(x[2].explained or 0.0))
    named = [
        f"{name} {what} ({percent(j.explained)} of the variance, by {j.carriers[0].feature})"
        for name, what, j in left
    ]
    return f"Residuals: structure that our model lacks is left in {_listed(named)}."


def _listed(items: list[str]) -> str:
    shown = items[:MOST_NAMED]
    if len(items) > len(shown):
        shown = [*shown, f"{len(items) - len(shown)} more"]
    if len(shown) == 1:
        return shown[0]
    return f"{', '.join(shown[:-1])} and {shown[-1]}"
