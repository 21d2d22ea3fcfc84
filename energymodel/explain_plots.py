"""Figures of ``explain``: a waterfall of factors, and FLOP-only against energies.

matplotlib (the ``plot`` extra) is imported only here and only when a figure is drawn. Names from
files are drawn as they are: nothing in them is parsed, and an SVG escapes them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from energymodel.explain import UNEXPLAINED, Explanation
from energymodel.flop_gap import Configuration, FlopGap
from energymodel.render import ENERGY, printable, quantity
from energymodel.render_explain import NOTHING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Hues that colour-blind readers tell apart (M. Okabe and K. Ito, Color Universal Design, 2008).
MORE, LESS, WHOLE = "#d55e00", "#009e73", "#0072b2"
COLOURS = (WHOLE, MORE, LESS, "#cc79a7", "#e69f00", "#56b4e9", "#9a7fd1", "#8c6d1f")
MARKERS: Mapping[str, str] = {"prefill": "s", "decode": "o", "generation": "D"}
STYLE: Mapping[str, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.fonttype": "none",
    "svg.hashsalt": "energymodel",
    "text.parse_math": False,
    "text.usetex": False,
}
MOST_NAME = 40


def waterfall(e: Explanation, path: str) -> None:
    """From the energy of A to that of B, factor after factor, on a logarithmic axis."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = [n for n, f in e.factors.items() if abs(math.log(f.ratio)) >= NOTHING]
    names.sort(key=lambda n: (n == UNEXPLAINED, -abs(math.log(e.factors[n].ratio))))
    with mpl.rc_context(dict(STYLE)):
        figure = Figure(figsize=(7.0, 1.2 + 0.32 * (len(names) + 2)), layout="constrained")
        axes = figure.add_subplot()
        ends = [e.a.energy_j]
        for name in names:
            ends.append(ends[-1] * e.factors[name].ratio)
        axes.set_xscale("log")
        axes.plot([e.a.energy_j], [0], "D", color=WHOLE)
        axes.plot([e.b.energy_j], [len(names) + 1], "D", color=WHOLE)
        for row, (name, start, end) in enumerate(zip(names, ends[:-1], ends[1:], strict=True), 1):
            ratio = e.factors[name].ratio
            colour = MORE if ratio > 1 else LESS
            axes.plot([start, end], [row, row], color=colour, linewidth=9, solid_capstyle="butt")
            axes.plot([end, end], [row, row + 1], color="#888888", linewidth=0.7)
            axes.annotate(
                f"x {ratio:.3g}",
                (max(start, end), row),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
            )
        labels = [f"A: {_short(e.a.model)}", *names, f"B: {_short(e.b.model)}"]
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.6)
        axes.margins(x=0.15)
        _energy_ticks(axes.xaxis, subs=(1.0, 2.0, 5.0))
        axes.set_xlabel("energy")
        axes.set_title(f"B takes {e.ratio:.3g} times the energy of A")
        _save(figure, path)


def flop_gap(g: FlopGap, path: str) -> None:
    """Left: FLOP-only over energy per token; right: their ratio over the batch."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(c.model for c in g.configurations))
    colours = {model: COLOURS[i % len(COLOURS)] for i, model in enumerate(models)}
    with mpl.rc_context(dict(STYLE)):
        figure = Figure(figsize=(10.0, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for (model, work), rows in _series(g.configurations).items():
            style: dict[str, Any] = {"color": colours[model], "linestyle": "", "markersize": 4}
            style |= {"marker": MARKERS[work], "label": f"{_short(model)}, {work}"}
            truth = [c.energy_per_token_j for c in rows]
            left.plot(truth, [c.flop_only_per_token_j for c in rows], **style)
            right.plot([c.batch for c in rows], [c.ratio for c in rows], **style)
        _agreement(left, g.configurations)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_yscale("log")
        _energy_ticks(left.xaxis, left.yaxis)
        _worst(left, g)
        left.set_xlabel(f"energy per token, {g.source}")
        left.set_ylabel("FLOP-only per token")
        right.axhline(1.0, color="black", linewidth=0.8)
        right.set_xlabel("requests together")
        right.set_ylabel("FLOP-only over energy")
        _plain_ticks(right.xaxis, right.yaxis)
        figure.legend(*left.get_legend_handles_labels(), loc="outside right upper")
        _save(figure, path)


def _series(
    rows: Sequence[Configuration],
) -> dict[tuple[str, str], list[Configuration]]:
    found: dict[tuple[str, str], list[Configuration]] = {}
    for c in rows:
        found.setdefault((c.model, c.work), []).append(c)
    return found


def _agreement(axes: "Axes", rows: Sequence[Configuration]) -> None:
    values = [v for c in rows for v in (c.energy_per_token_j, c.flop_only_per_token_j)]
    ends = [min(values), max(values)]
    axes.plot(ends, ends, color="black", linewidth=0.8)


def _worst(axes: "Axes", g: FlopGap) -> None:
    """A line between the two of the worst inversion of each kind of work."""
    worst = [gap.inversions[0] for gap in g.work.values() if gap.inversions]
    for i, pair in enumerate(worst):
        both = (pair.chosen, pair.other)
        axes.plot(
            [c.energy_per_token_j for c in both],
            [c.flop_only_per_token_j for c in both],
            color="black",
            linestyle=":",
            label="" if i else "worst pair in the wrong order",
        )


def _short(model: str) -> str:
    name = printable(model.rsplit("/", 1)[-1])
    return name if len(name) <= MOST_NAME else f"{name[: MOST_NAME - 3]}..."


def _energy_ticks(*axes: "Axis", subs: Sequence[float] = (1.0,)) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in axes:
        axis.set_major_locator(LogLocator(subs=subs, numticks=8))
        axis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value, ENERGY)))
        axis.set_minor_formatter(NullFormatter())


def _plain_ticks(*axes: "Axis") -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in axes:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _save(figure: Any, path: str) -> None:
    # No date: the same documents give the same file.
    figure.savefig(path, metadata={"Date": None} if path.lower().endswith(".svg") else None)
