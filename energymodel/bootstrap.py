"""Bootstrap of runs that come in groups: how well so many runs of so many models know an error.

Runs of one model err alike, so groups are drawn first, with replacement, then runs inside each, with
replacement (two-stage bootstrap; A. C. Davison and D. V. Hinkley, Bootstrap Methods and their
Application, Cambridge 1997, section 3.8). With one group it is the ordinary bootstrap.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energymodel.steps import Floats, Ints

RESAMPLES, SEED, LEVEL = 1000, 2504, 0.95
# Memory stays bounded: large tables, whose errors are well known, are resampled less often.
MOST_DRAWS = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Resamples:
    """Row i is one resample: runs ``index[i]`` as far as ``used[i]``; shape [n_resamples, most]."""

    index: Ints
    used: NDArray[np.bool_]


def resample(group: Ints) -> Resamples:
    """Resamples of runs whose groups are ``group`` [n]; the same for the same groups."""
    random = np.random.default_rng(SEED)
    order = np.argsort(group, kind="stable")
    sizes = np.unique(group, return_counts=True)[1]
    starts = np.cumsum(sizes) - sizes
    times = min(RESAMPLES, max(MOST_DRAWS // (sizes.size * int(sizes.max())), 50))
    drawn = random.integers(sizes.size, size=(times, sizes.size))
    lengths = sizes[drawn].sum(axis=1)
    used = np.arange(lengths.max()) < lengths[:, None]
    of = np.zeros(used.shape, dtype=np.int64)
    of[used] = np.repeat(drawn.ravel(), sizes[drawn].ravel())
    inside = (random.random(used.shape) * sizes[of]).astype(np.int64)
    return Resamples(index=order[starts[of] + inside], used=used)


def alone(n: int) -> Resamples:
    """The one sample that there is, of ``n`` runs."""
    return Resamples(index=np.arange(n)[None, :], used=np.ones((1, n), dtype=bool))


def mean(values: Floats, r: Resamples) -> Floats:
    """Mean of ``values`` [n] in each resample."""
    total = np.where(r.used, values[r.index], 0.0).sum(axis=1)
    return np.asarray(total / r.used.sum(axis=1))


def quantile(values: Floats, r: Resamples, q: float) -> Floats:
    """Quantile of ``values`` [n] in each resample, interpolated as numpy does."""
    ordered = np.sort(np.where(r.used, values[r.index], np.inf), axis=1)
    place = (r.used.sum(axis=1) - 1) * q
    below = np.floor(place).astype(np.int64)
    above = np.ceil(place).astype(np.int64)
    rows = np.arange(len(ordered))
    low, high = ordered[rows, below], ordered[rows, above]
    return np.asarray(low + (high - low) * (place - below))


def interval(estimates: Floats) -> tuple[float, float]:
    """The central ``LEVEL`` of the estimates."""
    low, high = np.quantile(estimates, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)
