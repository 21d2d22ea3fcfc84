"""Figures of a calibration report as SVG text that stands on its own inside an HTML page.

matplotlib (the ``plot`` extra) is imported only here and only when a figure is drawn.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.report.contents import Series
from energymodel.render import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

Plots = Mapping[str, Sequence[Series]]

# Eight hues that colour-blind readers tell apart (after M. Okabe and K. Ito, Color Universal
# Design, 2008), of middle lightness: readable on white and on black.
COLOURS = (
    "#2f86d1", "#e09a1f", "#1fa37a", "#d07cb0", "#e06c3c", "#5bb8ea", "#9a7fd1", "#b39b1f",
)  # fmt: skip
MARKERS = "osD^vP*X"
LEGEND_ROWS = 14
WIDTH_IN, HEIGHT_IN, ROW_IN = 6.4, 4.0, 0.22
# Text and axes take the colour of the page: this one is replaced in the SVG.
INK = "#010203"
# More points than this become a picture inside the SVG, to keep the file small.
MOST_VECTOR_POINTS = 300
STYLE: Mapping[str, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "font.size": 9,
    "savefig.dpi": 130,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "text.usetex": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What a figure shows: whose points, its labels and how it is drawn."""

    source: str
    title: str
    x: str
    y: str
    draw: Callable[["Axes", Sequence[Series]], None]


def render(plots: Plots) -> dict[str, tuple[str, str]]:
    """(title, SVG) of every figure that has points.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    with mpl.rc_context(dict(STYLE)):
        return {
            name: (figure.title, _svg(name, figure, plots[figure.source]))
            for name, figure in FIGURES.items()
            if plots.get(figure.source)
        }


def _svg(name: str, figure: Figure, series: Sequence[Series]) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context({"svg.hashsalt": name}):
        height_in = max(HEIGHT_IN, ROW_IN * len(series)) if figure.draw is _spread else HEIGHT_IN
        canvas = Canvas(figsize=(WIDTH_IN, height_in), layout="constrained")
        axes = canvas.add_subplot()
        figure.draw(axes, series)
        axes.set_xlabel(figure.x)
        axes.set_ylabel(figure.y)
        out = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.savefig(out, format="svg", transparent=True, metadata=nothing)
    return _inline(out.getvalue(), name, figure.title)


def _inline(svg: str, name: str, title: str) -> str:
    """The <svg> element alone, in the page's ink, with identifiers of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace(INK, "currentColor").replace("xlink:href", "href")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", svg, count=1)
    svg = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1).strip()


# --- ways to draw ---------------------------------------------------------------------------------


def _scatter(axes: "Axes", series: Sequence[Series], *, legend: bool = True) -> None:
    many = sum(len(s.x) for s in series) > MOST_VECTOR_POINTS
    for i, s in enumerate(series):
        axes.plot(
            s.x,
            s.y,
            MARKERS[(i // len(COLOURS)) % len(MARKERS)],
            color=COLOURS[i % len(COLOURS)],
            markersize=3.5,
            alpha=0.75,
            markeredgewidth=0,
            label=printable(s.name),
            rasterized=many,
        )
    if legend:
        _legend(axes, len(series))


def _legend(axes: "Axes", count: int) -> None:
    if count > 1:
        axes.legend(
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            markerscale=1.5,
            fontsize=8 if count <= LEGEND_ROWS else 6,
            ncols=1 + (count - 1) // (2 * LEGEND_ROWS),
        )


def _agreement(axes: "Axes", series: Sequence[Series]) -> None:
    """Predicted over measured on logarithmic axes, with the line on which they agree."""
    values = np.concatenate([[*s.x, *s.y] for s in series])
    ends = [float(values.min()), float(values.max())]
    axes.plot(ends, ends, color=INK, linewidth=0.8, alpha=0.7)
    _logarithmic(axes, series)


def _logarithmic(axes: "Axes", series: Sequence[Series]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_ticks(axes.xaxis, axes.yaxis)
    _scatter(axes, series)


def _residual(axes: "Axes", series: Sequence[Series]) -> None:
    _zero(axes)
    _scatter(axes, series)
    _limit(axes, series)


def _log_residual(axes: "Axes", series: Sequence[Series]) -> None:
    axes.set_xscale("log", base=2)
    _plain_ticks(axes.xaxis)
    _residual(axes, series)


def _spread(axes: "Axes", series: Sequence[Series]) -> None:
    """One row a component: 5 to 95 % as a line, the middle half as a bar, the median as a dot."""
    axes.axvline(0.0, color=INK, linewidth=0.8, alpha=0.7)
    for i, s in enumerate(series):
        low, first, middle, third, high = np.quantile(s.y, (0.05, 0.25, 0.5, 0.75, 0.95))
        colour = COLOURS[i % len(COLOURS)]
        axes.plot([low, high], [i, i], color=colour, linewidth=1.2)
        axes.plot(
            [first, third], [i, i], color=colour, linewidth=6, alpha=0.7, solid_capstyle="butt"
        )
        axes.plot([middle], [i], "o", color=INK, markersize=3.5)
    axes.set_yticks(range(len(series)), [printable(s.name) for s in series])
    axes.invert_yaxis()


def _plain_ticks(*axes: "Axis") -> None:
    """Numbers as they are: labels hold names from files, so no part of a figure is parsed."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in axes:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _zero(axes: "Axes") -> None:
    axes.axhline(0.0, color=INK, linewidth=0.8, alpha=0.7)


def _limit(axes: "Axes", series: Sequence[Series]) -> None:
    """Show what most points need; say how many lie beyond."""
    values = np.concatenate([np.array(s.y) for s in series])
    reach = 1.3 * float(np.quantile(np.abs(values), 0.98)) or 1.0
    beyond = int((np.abs(values) > reach).sum())
    axes.set_ylim(-reach, reach)
    if beyond:
        axes.set_title(f"{beyond} of {len(values):,} points lie beyond", fontsize=8, loc="right")


def _lines(axes: "Axes", series: Sequence[Series]) -> None:
    for i, s in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(s.x, s.y, "o-", color=colour, markersize=3.5, linewidth=1, label=_short(s.name))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=7)


def _with_fit(axes: "Axes", series: Sequence[Series]) -> None:
    """Points, and a line for the series called "fit"."""
    _scatter(axes, [s for s in series if s.name != "fit"], legend=False)
    for s in series:
        if s.name == "fit":
            axes.plot(s.x, s.y, color=INK, linewidth=1, label="fit")
    _legend(axes, len(series))


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= 90 else f"{text[:87]}..."


_RESIDUAL = "measured above predicted, %"
FIGURES: Mapping[str, Figure] = {
    "energy": Figure(
        source="energy",
        title="Energy of a call: predicted (held out) against measured",
        x="measured, J",
        y="predicted, J",
        draw=_agreement,
    ),
    "energy_by_component": Figure(
        source="energy_residual_by_rows",
        title="Residuals of energy by component: 5 to 95 %, middle half, median",
        x=_RESIDUAL,
        y="",
        draw=_spread,
    ),
    "energy_residual_by_rows": Figure(
        source="energy_residual_by_rows",
        title="Residuals of energy by tokens or rows",
        x="tokens or rows of a call",
        y=_RESIDUAL,
        draw=_log_residual,
    ),
    "energy_residual_by_clock": Figure(
        source="energy_residual_by_clock",
        title="Residuals of energy by the clock that the power limit left",
        x="SM clock, GHz",
        y=_RESIDUAL,
        draw=_residual,
    ),
    "intensity": Figure(
        source="intensity",
        title="Energy of a FLOP against arithmetic intensity, gross, sustained",
        x="FLOP per byte",
        y="pJ per FLOP",
        draw=_logarithmic,
    ),
    "time": Figure(
        source="time",
        title="Time of a call at full clock: predicted (held out) against measured",
        x="measured, us",
        y="predicted, us",
        draw=_agreement,
    ),
    "time_by_component": Figure(
        source="time_residual_by_rows",
        title="Residuals of time by component: 5 to 95 %, middle half, median",
        x=_RESIDUAL,
        y="",
        draw=_spread,
    ),
    "time_residual_by_rows": Figure(
        source="time_residual_by_rows",
        title="Residuals of time by tokens or rows",
        x="tokens or rows of a call",
        y=_RESIDUAL,
        draw=_log_residual,
    ),
    "static": Figure(
        source="static",
        title="Static power against temperature",
        x="temperature, degC",
        y="W",
        draw=_with_fit,
    ),
    "duty_power": Figure(
        source="duty_power",
        title="Mean power against the share of time busy",
        x="share of time busy",
        y="W",
        draw=_lines,
    ),
    "duty_clock": Figure(
        source="duty_clock",
        title="Clock against the share of time busy",
        x="share of time busy",
        y="SM clock, GHz",
        draw=_lines,
    ),
    "memory": Figure(
        source="memory",
        title="Power of the memory against its traffic, sustained",
        x="TB per second",
        y="W",
        draw=_with_fit,
    ),
}
