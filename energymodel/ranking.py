"""Whether two estimates order the same things alike, pair by pair."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energymodel.steps import Floats

Pairs = NDArray[np.bool_]

# Energies this close, in log, are the same: two boards of a GPU differ by more.
SAME = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """How a simple estimate, such as FLOP-only, orders pairs.

    ``kendall_tau`` is tau-b: 1 where all pairs are in the right order, 0 where it says nothing.
    Of the pairs that differ in truth, the shares ``inverted`` are in the wrong order and ``blind``
    the same to the estimate; ``blind_ratio`` is the most that such a pair differs by.
    """

    pairs: int
    kendall_tau: float | None
    inverted: float
    blind: float
    blind_ratio: float


def equal(keys: Sequence[object]) -> Pairs:
    """Whether the keys of a pair are equal; [n, n]."""
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    own = np.array([numbers[key] for key in keys])
    return np.asarray(own[:, None] == own[None, :])


def rank(
    truth: Floats,
    simple: Floats,
    among: Pairs | None = None,
) -> Ranking:
    """Agreement of two orders, both logarithms [n], over the pairs in ``among`` [n, n] (all).

    Differences within ``SAME`` are ties. Kendall's tau-b (M. G. Kendall, Biometrika 33(3), 1945) of
    C pairs in the same order, D in opposite orders, X and Y pairs not tied in either one:
    (C - D) / sqrt(X Y).
    """
    first, second = np.triu_indices(truth.size, 1)
    if among is not None:
        chosen = among[first, second]
        first, second = first[chosen], second[chosen]
    by_truth, by_simple = (
        np.where(np.abs(d) > SAME, np.sign(d), 0.0)
        for d in (truth[first] - truth[second], simple[first] - simple[second])
    )
    differ = by_truth != 0
    blind = differ & (by_simple == 0)
    known = np.sqrt(float(differ.sum()) * float((by_simple != 0).sum()))
    gaps = np.abs(truth[first] - truth[second])
    most = max(int(differ.sum()), 1)
    return Ranking(
        pairs=int(first.size),
        kendall_tau=float(by_truth @ by_simple / known) if known else None,
        inverted=float((by_truth * by_simple < 0).sum()) / most,
        blind=float(blind.sum()) / most,
        blind_ratio=float(np.exp(gaps[blind].max())) if blind.any() else 1.0,
    )
