"""Index decomposition: why one sum is larger than another, as factors that multiply back exactly.

A quantity V is a sum of terms, each a product of factors along a chain of amounts, such as tokens,
bytes, joules:

    V = sum_i V_i,    V_i = n x (b / n) x (V_i / b)

The logarithmic mean Divisia index, multiplicative form LMDI-I (B. W. Ang and F. L. Liu, Energy
26(6), 2001, pages 537-548; B. W. Ang, Energy Policy 33(7), 2005, pages 867-871, table 1), gives each
factor k its share of the ratio between two states A and B of the sum:

    ln D_k = sum_i  L(V_i^B, V_i^A) / L(V^B, V^A)  ln(x_ki^B / x_ki^A)
    L(a, b) = (a - b) / (ln a - ln b),   L(a, a) = a

The product of all D_k is V^B / V^A, exactly, because L(V_i^B, V_i^A) ln(V_i^B / V_i^A) is the
difference of the terms; exchanging A and B turns every D_k into 1 / D_k. A term that is zero in one
state is the limit of one that goes to zero with the factor that makes it so (B. W. Ang and N. Liu,
Energy Policy 35(1), 2007, pages 238-246): all of its difference belongs to that factor.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One term of the sum in both states.

    ``a`` and ``b`` are the amounts along the chain; the last is the term itself. Factor ``names[0]``
    is the first amount, factor ``names[k]`` is amount k over amount k - 1. ``group`` is free.
    """

    names: Sequence[str]
    a: Sequence[float]
    b: Sequence[float]
    group: str = ""


def log_mean(a: float, b: float) -> float:
    """L(a, b), the logarithmic mean of two positive numbers; between them."""
    if a == b:
        return a
    low, high = min(a, b), max(a, b)
    ratio = high / low
    # log1p keeps its digits where a and b are nearly the same.
    log = math.log1p((high - low) / low) if ratio < 2.0 else math.log(high) - math.log(low)
    return (high - low) / log


def contributions(terms: Iterable[Term]) -> dict[tuple[str, str], float]:
    """Part of ln(V^B / V^A) by (factor, group); they sum to it.

    Both sums must be positive, and every amount of a term that is not zero as well.
    """
    terms = tuple(terms)
    mean = log_mean(sum(t.a[-1] for t in terms), sum(t.b[-1] for t in terms))
    found: dict[tuple[str, str], float] = {}

    def add(name: str, group: str, difference: float) -> None:
        found[name, group] = found.get((name, group), 0.0) + difference / mean

    for t in terms:
        if t.a[-1] > 0 and t.b[-1] > 0:
            term_mean, before = log_mean(t.a[-1], t.b[-1]), 0.0
            for name, a, b in zip(t.names, t.a, t.b, strict=True):
                log = math.log(b) - math.log(a)
                add(name, t.group, term_mean * (log - before))
                before = log
        elif t.a[-1] > 0 or t.b[-1] > 0:
            gone = t.a if t.a[-1] == 0 else t.b
            first = next(k for k, amount in enumerate(gone) if amount == 0)
            add(t.names[first], t.group, t.b[-1] - t.a[-1])
    return found
