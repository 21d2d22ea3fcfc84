"""How many requests of each pair of lengths a trace has: all that bins are made of.

However long the trace, there are only so many pairs, so this is also what an engine is asked for
where the trace is larger than memory or lives elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from energymodel.errors import InputError
from energymodel.steps import Floats, Ints
from energymodel.traces import files
from energymodel.traces.formats import Columns
from energymodel.traces.reader import read_trace
from energymodel.traces.trace import FAILED, Limits, Trace, exclusions

LARGE_BYTES = 64 * 1024 * 1024
"""From this size on, DuckDB reads a file where it is installed."""
OUTSIDE, NOT_DRAWN = "outside_range", "not_drawn"
"""Why a request is left out though nothing is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Distinct pairs of lengths, ascending, and how many requests have each. Shapes [n_pairs].

    ``per_minute`` counts all requests of the range in each of its minutes, ``span_s`` is its
    length; both are None where the trace gives no times. ``prefix_share`` is the share of prompt
    tokens that earlier requests had as well, if known. ``left_out`` counts requests by reason.
    """

    name: str
    format: str
    input_tokens: Ints
    output_tokens: Ints
    count: Ints
    per_minute: Ints | None = None
    span_s: float | None = None
    prefix_share: float | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def requests(self) -> int:
        """Number of requests."""
        return int(self.count.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Part of a trace: from ``start_s`` until before ``end_s``, in seconds since its first request.

    The end None is that of the trace.
    """

    start_s: float = 0.0
    end_s: float | None = None

    @property
    def whole(self) -> bool:
        """Whether it is all of any trace."""
        return self.start_s == 0 and self.end_s is None


def read_lengths(
    path: str | Path,
    columns: Columns | None = None,
    part: Range | None = None,
    *,
    chars_per_token: float | None = None,
    progress: files.Progress = lambda *_: None,
) -> Lengths:
    """Lengths of the requests of a file; ``read_trace`` names the arguments and what is refused."""
    path, columns, part = Path(path), columns or Columns(), part or Range()
    kind = files.kind_of(path)
    rows = kind in (".csv", ".jsonl", ".ndjson") and path.stat().st_size > LARGE_BYTES
    if kind == ".parquet" or rows:
        from energymodel.traces import engines

        if kind == ".parquet" or engines.reads(path):
            return engines.file_lengths(path, columns, part)
    trace = read_trace(path, columns, chars_per_token=chars_per_token, progress=progress)
    return lengths_of(trace, part)


def lengths_of(trace: Trace, part: Range | None = None) -> Lengths:
    """Lengths of the requests of a trace.

    Raises:
        InputError: There is none in the range, or the trace has no times.
    """
    part = part or Range()
    if trace.arrival_s is None:
        if not part.whole:
            raise InputError(f"{trace.name} gives no times, so no range of them can be chosen.")
        return _counted(trace, trace, None, None)
    chosen = trace.within(part.start_s, part.end_s)
    assert chosen.arrival_s is not None  # noqa: S101 (the whole trace has times)
    last_s = float(trace.arrival_s[-1])
    span_s = part_span_s(trace.name, part, last_s, chosen.requests)
    minutes = np.floor((chosen.arrival_s - part.start_s) / 60)
    return _counted(trace, chosen, span_s, counts_per_minute(minutes, None, span_s))


def _counted(trace: Trace, chosen: Trace, span_s: float | None, minutes: Ints | None) -> Lengths:
    pairs, count = np.unique(
        np.stack([chosen.input_tokens, chosen.output_tokens]), axis=1, return_counts=True
    )
    share = None
    if chosen.prefix_tokens is not None:
        share = float(chosen.prefix_tokens.sum() / max(chosen.input_tokens.sum(), 1))
    left_out = {OUTSIDE: trace.requests - chosen.requests, FAILED: trace.failed}
    return Lengths(
        name=trace.name,
        format=trace.format,
        input_tokens=pairs[0],
        output_tokens=pairs[1],
        count=count.astype(np.int64),
        per_minute=minutes,
        span_s=span_s,
        prefix_share=share,
        left_out={reason: n for reason, n in left_out.items() if n},
        notes=trace.notes,
    )


def part_span_s(name: str, part: Range, last_s: float, requests: int) -> float:
    """Length of the range; a range without an end ends with the last request, at ``last_s``."""
    if not requests:
        raise InputError(
            f"{name} has no request in the chosen range; its last one arrives {last_s:,.1f} s "
            "after its first."
        )
    return (last_s if part.end_s is None else part.end_s) - part.start_s


def counts_per_minute(minutes: Floats, count: Ints | None, span_s: float) -> Ints:
    """Requests in each whole minute of the range. A last minute that is not whole is left out.

    Args:
        minutes: Numbers of minutes that have requests.
        count: How many each has; None: one.
        span_s: Length of the range.
    """
    whole = int(span_s // 60)
    index = minutes.astype(np.int64)
    amounts = np.ones(len(index), dtype=np.int64) if count is None else count
    counts = np.bincount(index, weights=amounts, minlength=whole)[:whole]
    return counts.astype(np.int64)


def usable(lengths: Lengths, limits: Limits) -> Lengths:
    """Without what the engine would not serve, counted in ``left_out``."""
    why = exclusions(lengths.input_tokens, lengths.output_tokens, limits)
    excluded = {reason: int(lengths.count[mask].sum()) for reason, mask in why.items()}
    kept = ~np.logical_or.reduce(list(why.values()))
    if not kept.any():
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in excluded.items() if n)
        raise InputError(f"{lengths.name} has no request that is left: {reasons}.")
    return _with_count(lengths, np.where(kept, lengths.count, 0), excluded)


def drawn(lengths: Lengths, requests: int, seed: int) -> Lengths:
    """A sample of so many requests, drawn at random without replacement; all if there are fewer."""
    total = lengths.requests
    if requests >= total:
        return lengths
    chosen = np.random.default_rng(seed).choice(total, requests, replace=False, shuffle=False)
    pair = np.searchsorted(np.cumsum(lengths.count), chosen, side="right")
    count = np.bincount(pair, minlength=len(lengths.count)).astype(np.int64)
    return _with_count(lengths, count, {NOT_DRAWN: total - requests})


def _with_count(lengths: Lengths, count: Ints, left_out: Mapping[str, int]) -> Lengths:
    kept = count > 0
    return replace(
        lengths,
        input_tokens=lengths.input_tokens[kept],
        output_tokens=lengths.output_tokens[kept],
        count=count[kept],
        left_out={**lengths.left_out, **{reason: n for reason, n in left_out.items() if n}},
    )
