"""What bins change about the requests that they stand for."""

from dataclasses import dataclass

import numpy as np

from energymodel.steps import Floats, Ints
from energymodel.traces.binning import Binned, log2_tokens
from energymodel.traces.lengths import Lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Inflation:
    """Sums over the binned requests divided by those over the requests; None where that is 0.

    ``prefill_attention`` is the sum of I (I + 1) / 2, the pairs of tokens that causal attention
    looks at in prompts of I tokens; ``decode_attention`` that of (O - 1) (I + O / 2), the tokens
    that the O - 1 decoding steps read from the KV cache. Energy goes with tokens where products
    dominate and with these where attention does.
    """

    input_tokens: float
    output_tokens: float | None
    prefill_attention: float
    decode_attention: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """Wasserstein-1 distance between the distributions of log2 of the lengths: mean octaves."""

    input_tokens: float
    output_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """How requests arrive; bins with rates make a Poisson process of them.

    ``dispersion`` is the variance over the mean of the requests in a minute: 1 for a Poisson
    process. ``peak`` is the busiest minute over the mean. None below two whole minutes.
    """

    span_s: float
    requests_per_s: float
    dispersion: float | None
    peak: float | None


def inflation(lengths: Lengths, binned: Binned) -> Inflation:
    """Sums over the binned requests over the true ones."""
    true = _sums(lengths.input_tokens, lengths.output_tokens, lengths.count)
    made = _sums(binned.input_tokens, binned.output_tokens, binned.count)
    return Inflation(
        input_tokens=made[0] / true[0],
        output_tokens=made[1] / true[1] if true[1] else None,
        prefill_attention=made[2] / true[2],
        decode_attention=made[3] / true[3] if true[3] else None,
    )


def _sums(inputs: Ints, outputs: Ints, count: Ints) -> tuple[float, ...]:
    i, o, n = (x.astype(np.float64) for x in (inputs, outputs, count))
    steps = np.maximum(o - 1, 0)
    columns = (i, o, i * (i + 1) / 2, steps * (i + o / 2))
    return tuple(float(n @ column) for column in columns)


def distance(lengths: Lengths, binned: Binned) -> Distance:
    """Wasserstein-1 distances of each length on its own."""
    true = (lengths.input_tokens, lengths.output_tokens)
    made = (binned.input_tokens, binned.output_tokens)
    far = [
        _wasserstein(log2_tokens(t), lengths.count, log2_tokens(m), binned.count)
        for t, m in zip(true, made, strict=True)
    ]
    return Distance(input_tokens=far[0], output_tokens=far[1])


def _wasserstein(x: Floats, n: Ints, y: Floats, m: Ints) -> float:
    """The integral of the difference between the cumulative distributions of x and y."""
    values = np.concatenate([x, y])
    mass = np.concatenate([n / n.sum(), -m / m.sum()])
    order = np.argsort(values)
    between = np.cumsum(mass[order])[:-1]
    return float(np.abs(between) @ np.diff(values[order]))


def arrivals(lengths: Lengths) -> Arrivals | None:
    """How the requests of the range arrive, those that are left out of the bins included."""
    if lengths.per_minute is None or not lengths.span_s:
        return None
    minutes = lengths.per_minute
    mean = minutes.mean() if len(minutes) > 1 else 0.0
    return Arrivals(
        span_s=lengths.span_s,
        requests_per_s=lengths.requests / lengths.span_s,
        dispersion=float(minutes.var(ddof=1) / mean) if mean else None,
        peak=float(minutes.max() / mean) if mean else None,
    )
