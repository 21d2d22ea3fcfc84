"""Bins of a trace as bins.json, and what they change."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from energymodel.errors import InputError
from energymodel.traces.binning import Binned
from energymodel.traces.distortion import (
    Arrivals,
    Distance,
    Inflation,
    arrivals,
    distance,
    inflation,
)
from energymodel.traces.lengths import NOT_DRAWN, OUTSIDE, Lengths

if TYPE_CHECKING:
    from rich.console import RenderableType

_CHOSEN = (OUTSIDE, NOT_DRAWN)
_REASONS = {
    "failed": "failed",
    "no_input": "without input",
    "no_output": "without output",
    "too_long": "too long",
    OUTSIDE: "outside the range",
    NOT_DRAWN: "not drawn",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Energy of all requests of a trace by one way, and its relative error.

    ``error`` is against the replay, or, where a trace has no times, against all requests at once.
    """

    energy_j: float
    energy_per_request_j: float
    energy_per_output_token_j: float | None
    ttft_mean_s: float | None
    saturated: bool | None
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Energy of a trace on one replica by its bins and by a ``replay`` (``binned_estimate.py``).

    ``rates``: bins with rates, Poisson arrivals, for as long as the trace. ``counts``: bins with
    counts, all at once. ``at_once``: all at once with their own lengths; ``binning_error`` is of
    ``counts`` against it.
    """

    model: str
    gpu: str
    replay: Estimate | None
    rates: Estimate | None
    counts: Estimate
    at_once: Estimate
    binning_error: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """``energymodel bins --json``; shares are fractions.

    ``left_out`` counts requests by reason; ``excluded_share`` is the share of those in the range
    that no engine would serve. ``estimate``, where a model was named: energy by the bins, and of a
    replay.
    """

    trace: str
    format: str
    requests: int
    left_out: Mapping[str, int]
    excluded_share: float
    method: str
    seed: int
    inflation: Inflation
    distance_log2: Distance
    arrivals: Arrivals | None
    prefix_share: float | None
    bins: tuple[Mapping[str, Any], ...]
    warnings: tuple[str, ...]
    estimate: Comparison | None = None


def report(lengths: Lengths, binned: Binned, *, online: bool, seed: int) -> Report:
    """What the bins are and what they change.

    Args:
        lengths: What the bins were made of.
        binned: The bins.
        online: Give rates instead of counts: requests over the span of the trace.
        seed: What was drawn with.
    """
    if online and not lengths.span_s:
        raise InputError(f"{lengths.name} gives no span of time, which --online needs.")
    scale = 1 / (lengths.span_s or 1.0)
    columns = (binned.input_tokens, binned.output_tokens, binned.count)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    excluded = sum(n for reason, n in lengths.left_out.items() if reason not in _CHOSEN)
    drawn_from = lengths.requests + lengths.left_out.get(NOT_DRAWN, 0)
    return Report(
        trace=lengths.name,
        format=lengths.format,
        requests=lengths.requests,
        left_out=dict(lengths.left_out),
        excluded_share=excluded / (drawn_from + excluded),
        method=binned.method,
        seed=seed,
        inflation=inflation(lengths, binned),
        distance_log2=distance(lengths, binned),
        arrivals=arrivals(lengths),
        prefix_share=lengths.prefix_share,
        bins=tuple(
            {"input_tokens": i, "output_tokens": o}
            | ({"requests_per_s": n * scale} if online else {"count": n})
            for i, o, n in rows
        ),
        warnings=tuple(_warnings(lengths, online=online)),
    )


def bins_document(made: Report) -> dict[str, Any]:
    """bins.json."""
    return {"schema_version": 1, "bins": list(made.bins)}


def _warnings(lengths: Lengths, *, online: bool) -> list[str]:
    texts = list(lengths.notes)
    if lengths.prefix_share:
        texts.append(
            f"{lengths.prefix_share:.0%} of the prompt tokens repeat the beginning of an earlier "
            "request; bins do not carry that."
        )
    load = arrivals(lengths)
    if online and load and load.dispersion and load.dispersion > 2:
        texts.append(
            f"Requests arrive in bursts: a minute varies {load.dispersion:,.0f} times as much as "
            "at random, which bins with rates lose."
        )
    return texts


def tables(made: Report) -> "RenderableType":
    """The report for people."""
    from rich.console import Group
    from rich.table import Table

    from energymodel import render

    facts = Table.grid(padding=(0, 2))
    facts.add_row("requests", f"{made.requests:,} in {len(made.bins):,} bins ({made.method})")
    for reason, n in made.left_out.items():
        facts.add_row(_REASONS[reason], f"{n:,}")
    facts.add_row("excluded", render.percent(made.excluded_share))
    if made.arrivals:
        facts.add_row("span", render.quantity(made.arrivals.span_s, render.TIME))
        facts.add_row("requests per second", render.digits(made.arrivals.requests_per_s))
        if made.arrivals.dispersion is not None and made.arrivals.peak is not None:
            facts.add_row("busiest minute", f"{render.digits(made.arrivals.peak)} x the mean")
            dispersion = render.digits(made.arrivals.dispersion)
            facts.add_row("dispersion by minute", f"{dispersion} (Poisson 1)")

    changed = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    changed.add_column("bins over trace")
    for name in ("tokens", "attention", "distance"):
        changed.add_column(name, justify="right")
    a, b = made.inflation, made.distance_log2
    for name, tokens, attention, far in (
        ("input (prefill)", a.input_tokens, a.prefill_attention, b.input_tokens),
        ("output (decode)", a.output_tokens, a.decode_attention, b.output_tokens),
    ):
        changed.add_row(name, _factor(tokens), _factor(attention), f"{far:.2f} octaves")
    title = f"{render.printable(made.trace)} ({made.format})"
    estimate = [] if made.estimate is None else ["", _estimates(made.estimate)]
    return Group(title, "", facts, "", changed, *estimate, *render.warnings(made.warnings))


def _estimates(found: Comparison) -> "RenderableType":
    from energymodel import render

    table = render.columns(f"{found.model} on {found.gpu}", ">energy", ">per request", ">error")
    for name, estimate in (
        ("replay as it arrived", found.replay),
        ("bins with rates", found.rates),
        ("bins with counts, all at once", found.counts),
        ("own lengths, all at once", found.at_once),
    ):
        if estimate is not None:
            table.add_row(
                name,
                render.quantity(estimate.energy_j, render.ENERGY),
                render.quantity(estimate.energy_per_request_j, render.ENERGY),
                render.percent(estimate.error, signed=True),
            )
    return table


def _factor(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3f} x"
