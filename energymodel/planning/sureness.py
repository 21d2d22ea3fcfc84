"""How sure a plan is: errors of the power model, of boards, of demand and of the facility, together.

A fleet draws, in a facility with power usage effectiveness ``pue``,

    P = pue x sum over kinds of replicas of  (a + b power_w) count,

with the server's share in a and b. What is not known for certain multiplies: the model's error is
shared by all replicas of a kind (it is systematic), boards differ one by one, demand moves the load
of all. Errors are taken as log-normal and drawn together (seeded); a plan is within its budget in the
share of draws in which P is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from energymodel.steps import Floats

DRAWS = 4096
# Standard deviations of a normal on either side that hold 90 % of it.
NINETY = 1.6449


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """``count`` like replicas of ``gpus`` each.

    ``gpu_power_w`` of one; ``idle_power_w`` what its GPUs draw when nothing is asked.
    ``model_deviation`` is the standard deviation of the model's error in log power,
    ``board_deviation`` that between boards. ``server_fixed_w`` and ``server_per_gpu_w`` are the
    server's share: watts, and watts per watt of the GPUs.
    """

    count: int
    gpus: int
    gpu_power_w: float
    idle_power_w: float
    model_deviation: float
    board_deviation: float
    server_fixed_w: float
    server_per_gpu_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubts:
    """Standard deviations in log of the demand and of the PUE."""

    demand: float = 0.0
    pue: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sureness:
    """Facility power: its 90 % interval, the chance to stay within the budget, what the doubt is of.

    ``sure_w`` is not exceeded with the probability asked for. ``sensitivity_w``: half the width of the 90 % interval with one source of error alone.
    """

    interval_w: tuple[float, float]
    probability: float
    sure_w: float
    sensitivity_w: Mapping[str, float]


SOURCES = ("power model", "boards", "demand", "pue")


def sureness(
    loads: Sequence[Load],
    *,
    pue: float,
    budget_w: float,
    doubts: Doubts,
    sure: float = 0.95,
    seed: int = 0,
) -> Sureness:
    """The facility power that a fleet may draw, and ``sure`` the probability of its ``sure_w``."""
    everything = drawn_w(loads, pue=pue, doubts=doubts, seed=seed)
    low, high = np.quantile(everything, (0.05, 0.95))
    alone = {
        source: drawn_w(loads, pue=pue, doubts=doubts, seed=seed, only=source) for source in SOURCES
    }
    return Sureness(
        interval_w=(float(low), float(high)),
        probability=float(np.mean(everything <= budget_w)),
        sure_w=float(np.quantile(everything, sure)),
        sensitivity_w={
            source: 0.5 * float(np.subtract(*np.quantile(watts, (0.95, 0.05))))
            for source, watts in alone.items()
        },
    )


def drawn_w(
    loads: Sequence[Load], *, pue: float, doubts: Doubts, seed: int = 0, only: str | None = None
) -> Floats:
    """Facility power in each draw, [DRAWS]; with one source of error ``only``, or all."""

    def error(source: str, deviation: float) -> Floats:
        normal = rng.standard_normal(DRAWS)  # drawn always, so that sources keep their draws
        return np.exp(deviation * normal) if only in (None, source) else np.ones(DRAWS)

    rng = np.random.default_rng(seed)
    factor, demand = error("pue", doubts.pue), error("demand", doubts.demand)
    total = np.zeros(DRAWS)
    for load in loads:
        if not load.count:
            continue
        # Errors of many boards average out.
        boards = load.board_deviation / np.sqrt(load.count * load.gpus)
        wrong = error("power model", load.model_deviation) * error("boards", boards)
        busy_w = load.gpu_power_w - load.idle_power_w
        # Replicas serve at most what they were chosen for: demand beyond that waits or is shed.
        gpu_w = (load.idle_power_w + busy_w * np.minimum(demand, 1.0)) * wrong
        total += load.count * (load.server_fixed_w + (1.0 + load.server_per_gpu_w) * gpu_w)
    return np.asarray(pue * factor * total)
