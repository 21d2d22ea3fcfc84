"""Bins of requests of similar length, each with one length for all of its requests."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from energymodel.errors import InputError
from energymodel.steps import Floats, Ints
from energymodel.traces.columns import MAX_TOKENS
from energymodel.traces.lengths import Lengths

METHODS = ("powers-of-two", "quantile", "k-means", "exact")
DEFAULT_BINS = 32
MAX_BINS = 100_000
"""As many as bins.json may hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binned:
    """Bins in ascending order of their lengths, and the bin of each pair of ``Lengths``.

    Shapes [n_bins], and [n_pairs] for ``bin``.
    """

    method: str
    input_tokens: Ints
    output_tokens: Ints
    count: Ints
    bin: Ints


def bin_lengths(lengths: Lengths, method: str, bins: int | None = None, seed: int = 0) -> Binned:
    """Put requests into bins.

    - ``powers-of-two``: both lengths are rounded up to a power of two, as in "Energy
      Considerations of Large Language Model Inference" (arXiv 2504.17674).
    - ``quantile``: groups of equal numbers of requests by input, each cut into groups of equal
      numbers by output.
    - ``k-means``: clusters of the logarithms of both lengths (needs scikit-learn).
    - ``exact``: every pair of lengths is a bin.

    Quantile and k-means give a bin the mean lengths of its requests, so that tokens are kept.

    Args:
        lengths: Of requests with 1 input token or more.
        method: One of ``METHODS``.
        bins: Most bins, for quantile and k-means; ``DEFAULT_BINS`` unless given.
        seed: Of k-means.
    """
    if bins is not None and method not in ("quantile", "k-means"):
        raise InputError(f"--bins does not go with --method {method}, which sets their number.")
    if method in ("powers-of-two", "exact"):
        up = method == "powers-of-two"
        inputs, outputs = (
            _power_of_two(n) if up else n for n in (lengths.input_tokens, lengths.output_tokens)
        )
        return _merged(method, lengths, inputs, outputs)
    group = _quantiles if method == "quantile" else _clusters
    label = group(lengths, min(bins or DEFAULT_BINS, len(lengths.count)), seed)
    # Requests that generate are never averaged with those that do not.
    label = 2 * label + (lengths.output_tokens == 0)
    means = (_means(label, tokens, lengths.count) for tokens in _pair(lengths))
    return _merged(method, lengths, *means)


def _pair(lengths: Lengths) -> tuple[Ints, Ints]:
    return lengths.input_tokens, lengths.output_tokens


def _power_of_two(tokens: Ints) -> Ints:
    """The power of two that is not below; 0 stays 0."""
    power = 2.0 ** np.ceil(log2_tokens(tokens))
    rounded: Ints = np.where(tokens > 0, np.minimum(power, MAX_TOKENS), 0).astype(np.int64)
    return rounded


def _quantiles(lengths: Lengths, bins: int, _: int) -> Ints:
    """About sqrt(bins) groups by input, over which the bins are spread as groups by output."""
    inputs, outputs = _pair(lengths)
    rows = max(int(np.sqrt(bins)), 1)
    row = _cut(inputs, lengths.count, rows)
    label = np.zeros(len(inputs), dtype=np.int64)
    for i in range(rows):
        here = row == i
        groups = bins // rows + (i < bins % rows)
        label[here] = i * (bins + 1) + _cut(outputs[here], lengths.count[here], groups)
    return label


def _cut(tokens: Ints, count: Ints, groups: int) -> Ints:
    """Group of each value, so that groups have about equal counts and equal values stay together."""
    values, index = np.unique(tokens, return_inverse=True)
    share = np.bincount(index, weights=count, minlength=len(values))
    middle = (np.cumsum(share) - share / 2) / max(share.sum(), 1)
    group: Ints = np.minimum(middle * groups, groups - 1).astype(np.int64)
    return group[index]


def _clusters(lengths: Lengths, bins: int, seed: int) -> Ints:
    """k-means of the binary logarithms, each pair weighted by its requests."""
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise InputError(
            "--method k-means needs scikit-learn: pip install 'energymodel[traces]'."
        ) from error
    points = np.stack([log2_tokens(tokens) for tokens in _pair(lengths)], axis=1)
    clusters: Any = KMeans(n_clusters=bins, n_init=1, random_state=seed)
    return np.asarray(clusters.fit(points, sample_weight=lengths.count).labels_, dtype=np.int64)


def log2_tokens(tokens: Ints) -> Floats:
    """Binary logarithm; no tokens count as one."""
    return np.log2(np.maximum(tokens, 1).astype(np.float64))


def _means(label: Ints, tokens: Ints, count: Ints) -> Ints:
    """Of each pair, the mean over the requests of its group, rounded. Shape [n_pairs]."""
    _, index = np.unique(label, return_inverse=True)
    total = np.bincount(index, weights=count)
    mean = np.bincount(index, weights=count * tokens) / total
    return np.rint(mean).astype(np.int64)[index]


def _merged(method: str, lengths: Lengths, inputs: Ints, outputs: Ints) -> Binned:
    """Bins of the lengths that the requests of each pair are given."""
    pairs, index = np.unique(np.stack([inputs, outputs]), axis=1, return_inverse=True)
    index = index.reshape(-1).astype(np.int64)
    if pairs.shape[1] > MAX_BINS:
        raise InputError(
            f"{lengths.name} would have {pairs.shape[1]:,} bins, but there may be {MAX_BINS:,}: "
            "choose another --method or draw a --sample."
        )
    count = np.bincount(index, weights=lengths.count).astype(np.int64)
    return Binned(
        method=method, input_tokens=pairs[0], output_tokens=pairs[1], count=count, bin=index
    )
