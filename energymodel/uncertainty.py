"""How far a prediction may be off: sources of error, their sum, and the interval made of it.

Relative errors (of the logarithm) of energy and of duration come from

- *coefficients*: the covariance of the fitted energies, g' C g with g the share of the energy that
  each coefficient carries (first-order propagation; operations of one kind share coefficients);
- *operations*: what laws miss on shapes held out of their fits, one independent error for each
  operation of the model, weighted by its share;
- *engine*: an error of the time outside the operations, launches and gaps, by its share;
- *boards*: what boards differ by beyond their memory;
- *model*: what none of these explains on whole runs.

Their variances add up to a scale for each prediction. Whole runs of models that no fit has seen say
how many scales 80 % and 90 % of errors stay below (``profile.Spread``, calibrated by
``calibration.fit_accuracy``): the conformal half of the interval. Boards with memories of other
kinds shift the energy, so the interval is that of the mixture of all calibrated boards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from energymodel import fabric
from energymodel.collectives import COMPONENT
from energymodel.laws import traffic
from energymodel.profile import OperationProfile, Profile, Spread
from energymodel.steps import Floats

if TYPE_CHECKING:
    from energymodel.costs import OpCost, StepCosts
    from energymodel.ops import Op

# Time of a step that is limited by power follows from its energy; limited below this clock.
LIMITED_BELOW = 0.995
# Standard deviations in the median absolute error of a normal distribution.
DEVIATIONS = 1.4826
# Halvings of a bracket of the end of an interval.
HALVINGS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Standard deviations of the logarithm by source, of a prediction of energy or of duration.

    ``outside`` is no deviation but the share of the run outside the operations (launches, gaps,
    taking requests in): the engine's error is a multiple of it, which whole runs tell.
    """

    coefficients: float
    operations: float
    boards: float
    outside: float

    def scale(self, spread: Spread) -> float:
        """Standard deviation of all sources together, with what whole runs told of the engine."""
        parts = (self.coefficients, self.operations, self.boards, spread.outside * self.outside)
        return float(np.sqrt(sum(part**2 for part in parts) + spread.model**2))


def sources(costs: "StepCosts", weight: Floats, profile: Profile) -> tuple[Sources, Sources]:
    """What a run's prediction of (energy, duration) may be off by, from its settled costs.

    ``weight``: how often each step runs, [n_steps].
    """
    total_s = float(weight @ costs.step_s) + costs.submit_s
    total_j = float(weight @ costs.step_j) + costs.submit_j
    busy_s = weight * costs.step_s
    limited = float(busy_s[costs.relative_clock < LIMITED_BELOW].sum()) / total_s
    scale = costs.relative_clock**profile.power.exponent.value
    shares: dict[str, dict[str, float]] = {}
    energy, duration = 0.0, 0.0
    for cost in costs.ops:
        op_s = float(weight @ cost.seconds)
        # Of a collective, all energy in the SMs is that of being busy (``fabric.energy_j``).
        busy_j = float(weight @ cost.core_j)
        if cost.op.component != COMPONENT:
            calibrated = profile.operation(cost.op.law)
            joules = _by_coefficient(cost, weight, scale, calibrated, profile.gpu.l2_bytes)
            law = shares.setdefault(profile.calibrated_as(cost.op.law), {})
            for name, value in joules.items():
                law[name] = law.get(name, 0.0) + value / total_j
            busy_j = joules["busy_w"]
        energy_error, time_error = _held_out(profile, cost.op)
        energy_error *= float(weight @ cost.energy_j) / total_j
        # Energy is fitted for a given time: what grows with the time errs with it, too.
        timed_j = busy_j + costs.static_w * op_s * cost.gpus
        energy += energy_error**2 + (time_error * timed_j / total_j) ** 2
        time_error *= op_s / total_s
        duration += ((1.0 - limited) * time_error) ** 2 + (limited * energy_error) ** 2
    coefficients = np.sqrt(
        sum(_propagated(part, profile.operations[law]) for law, part in shares.items())
    )
    outside_s = float(weight @ costs.overhead_s) + costs.submit_s - costs.idle_s
    boards = profile.accuracy
    return (
        Sources(
            coefficients=float(coefficients),
            operations=float(np.sqrt(energy)),
            boards=boards.board_energy,
            outside=outside_s / total_s,
        ),
        Sources(
            coefficients=limited * float(coefficients),
            operations=float(np.sqrt(duration)),
            boards=boards.board_duration,
            outside=outside_s / total_s,
        ),
    )


def _held_out(profile: Profile, op: "Op") -> tuple[float, float]:
    """Deviations of (energy, time) on what the fit of an operation had not seen."""
    if op.component != COMPONENT:
        calibrated = profile.operation(op.law)
        return DEVIATIONS * calibrated.energy_error, DEVIATIONS * calibrated.time_error
    energy_error, time_error = fabric.errors(op, profile)
    return DEVIATIONS * energy_error, DEVIATIONS * time_error


def _by_coefficient(
    cost: "OpCost", weight: Floats, scale: Floats, calibrated: OperationProfile, l2_bytes: float
) -> dict[str, float]:
    """Joules of an operation over the run, by the coefficient that they follow from.

    ``scale``: energy through the SMs at the clock of each step over that at full clock, [n_steps].
    """
    op = cost.op
    row_bytes = op.hbm_bytes - op.weight_bytes
    weights, rows, _ = traffic(op.kind, op.shape, op.weight_bytes, row_bytes, l2_bytes)
    amounts = {
        "flop_j": op.count * op.core_flop,
        "weight_byte_j": op.count * weights,
        "row_byte_j": op.count * rows,
        "busy_w": cost.full_clock_s * cost.gpus,
    }
    return {
        name: calibrated.energy[name].value * float(np.sum(weight * scale * amount))
        for name, amount in amounts.items()
    }


def _propagated(shares: dict[str, float], calibrated: OperationProfile) -> float:
    """Variance of the logarithm of the energy that the coefficients' covariance makes."""
    covariance = calibrated.energy_covariance
    if covariance is None:
        return 0.0
    gradient = np.array([shares.get(name, 0.0) for name in covariance.names])
    return float(gradient @ np.array(covariance.matrix) @ gradient)


# The interval --------------------------------------------------------------------------------


def boards(other_boards: Sequence[float], profile: Profile) -> list[tuple[float, float]]:
    """(log energy over the predicted one, share of the calibrated boards) of each kind of memory."""
    if len(other_boards) == 1:
        return [(0.0, 1.0)]
    counts = np.array([max(len(kind.boards), 1) for kind in profile.memory])
    return list(zip(np.log(other_boards).tolist(), (counts / counts.sum()).tolist(), strict=True))


def ends(
    half_width: float, inner: float, kinds: Sequence[tuple[float, float]] = ((0.0, 1.0),)
) -> tuple[float, float]:
    """Lower and upper end in log energy of the interval that holds 90 % of runs.

    Args:
        half_width: 90 % of the errors on one kind of board are below it.
        inner: 80 % of them are below it.
        kinds: of board, as ``boards`` gives them.

    5 % of the mixture of boards lie beyond each end. With kinds of board far apart, each end is the
    80 % quantile of the outermost: 90 % of the runs of either are inside.
    """

    def beyond(x: float, side: float) -> float:
        """Share of the runs that are further out than ``x`` on one side."""
        return sum(
            share * _one_sided(x - side * shift, half_width, inner) for shift, share in kinds
        )

    found = []
    for side in (-1.0, 1.0):
        reach = 3.0 * half_width + max(abs(shift) for shift, _ in kinds)
        low, high = -reach, reach
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if beyond(middle, side) > 0.05 else (low, middle)
        found.append(side * 0.5 * (low + high))
    return found[0], found[1]


def _one_sided(x: float, half_width: float, inner: float) -> float:
    """Probability that an error exceeds ``x``, errors being symmetric.

    Two quantiles are known: beyond the first, probability halves over their distance; inside,
    errors are as likely everywhere.
    """
    if x < 0:
        return 1.0 - _one_sided(-x, half_width, inner)
    if x < inner:
        return 0.5 * (1.0 - 0.8 * x / inner)
    halvings = (x - inner) / max(half_width - inner, 1e-9 * half_width)
    return float(0.5 * 0.2 * 0.5**halvings)
