"""Experts spread over GPUs: how much more than its share the busiest GPU has under random routing.

Each token chooses k of E experts at random. Of the T k choices a GPU has T k / n on average; the
variance is that of a draw without replacement for each token, so the expected maximum over n GPUs,
whose loads sum to a constant, is near

    T k / n + c_n sqrt(T (k / n) (E - k) / (E - 1))

with c_n the expected maximum of n independent standard normal values (H. A. David and H. N.
Nagaraja, Order Statistics, 3rd ed., section 3.2). Of the E p experts touched (p = 1 - (1 - k/E)^T)
a GPU holds E p / n on average, and the busiest near

    E p / n + c_n sqrt(E p (1 - p) / n E / (E - 1)) .
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from energymodel.steps import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Busiest:
    """Choices and touched experts of the busiest GPU over those of the mean one; [n_steps]."""

    choices: Floats
    experts: Floats


def busiest(tokens: Floats, *, experts: int, top_k: int, gpus: int) -> Busiest:
    """The busiest of ``gpus`` GPUs when ``tokens`` each choose ``top_k`` of ``experts``."""
    ones = np.ones_like(tokens)
    if gpus == 1 or experts <= top_k:
        return Busiest(choices=ones, experts=ones)
    apart = largest_of(gpus)
    n = np.maximum(tokens, 1e-9)
    # In units of the mean, never beyond all choices, or all touched experts, on one GPU.
    scatter = (experts - top_k) / (experts - 1) * gpus / (n * top_k)
    untouched = (1.0 - top_k / experts) ** n
    spread = untouched / np.maximum(1.0 - untouched, 1e-12) * gpus / (experts - 1)
    return Busiest(
        choices=np.minimum(1.0 + apart * np.sqrt(scatter), gpus),
        experts=np.minimum(1.0 + apart * np.sqrt(spread), gpus),
    )


@cache
def largest_of(count: int) -> float:
    """Expected maximum of ``count`` independent standard normal values."""
    x = np.linspace(-8.0, 8.0, 4001)
    below = np.array([0.5 * (1.0 + math.erf(value / math.sqrt(2.0))) for value in x])
    density = np.exp(-0.5 * x**2) / math.sqrt(2.0 * math.pi)
    return float(np.trapezoid(x * count * density * below ** (count - 1), x))
