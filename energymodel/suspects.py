"""Which component is wrong where a prediction is: the one whose rescaling explains the residuals.

If one component is to blame, runs of the same model whose energy is split over the components alike
err alike. For these, with relative residual r_i = (measured - predicted) / measured and component
energies c_ik over the measured energy, component k rescaled by 1 + s explains

    1 - sum_i (r_i - s c_ik)^2 / sum_i r_i^2,    best at s = sum_i c_ik r_i / sum_i c_ik^2

of the squared residuals. Components that grow together cannot be told apart, and no component is
believed to be wrong by more than a factor of two, or small ones would be blamed for anything: it is
a suspicion, for a measurement to confirm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from energymodel.steps import Floats, Ints

# Runs that are compared, this one included, the nearest ones; fewer say nothing.
NEIGHBOURS, LEAST_NEIGHBOURS = 8, 4
LEAST_SCALE, MOST_SCALE = 0.5, 2.0
# A component that explains less of the residuals is not under suspicion.
LEAST_EXPLAINED = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """``component`` times ``scale`` explains the share ``explains`` of the squared residuals.

    ``rows``: of how many similar runs.
    """

    component: str
    scale: float
    explains: float
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Runs and components: ``energy_j`` is predicted, [n_runs, n_components]; ``model`` [n_runs]."""

    names: tuple[str, ...]
    energy_j: Floats
    measured_j: Floats
    model: Ints


def split(
    components: Sequence[Mapping[str, float]], measured_j: Sequence[float], model: Ints
) -> Split:
    """Component energies of every run; what a run does not have is 0."""
    names = tuple(dict.fromkeys(name for own in components for name in own))
    rows = [[own.get(name, 0.0) for name in names] for own in components]
    return Split(names=names, energy_j=np.array(rows), measured_j=np.array(measured_j), model=model)


def suspect(runs: Split, i: int) -> Suspect | None:
    """The component under suspicion in run ``i``; None where runs are too few or none is."""
    near = _similar(runs, i)
    residual = 1.0 - runs.energy_j[near].sum(axis=1) / runs.measured_j[near]
    parts = runs.energy_j[near] / runs.measured_j[near, None]
    size = float(residual @ residual)
    if near.size < LEAST_NEIGHBOURS or size == 0.0:
        return None
    along, own = parts.T @ residual, np.square(parts).sum(axis=0)
    best = np.divide(along, own, out=np.zeros_like(own), where=own > 0)
    scale = np.clip(best, LEAST_SCALE - 1.0, MOST_SCALE - 1.0)
    explains = (2.0 * scale * along - scale**2 * own) / size
    k = int(np.argmax(explains))
    if explains[k] < LEAST_EXPLAINED:
        return None
    return Suspect(
        component=runs.names[k],
        scale=float(1.0 + scale[k]),
        explains=float(explains[k]),
        rows=int(near.size),
    )


def _similar(runs: Split, i: int) -> Ints:
    """Runs like ``i``, nearest first: of its model, or of any where its model has too few."""
    shares = runs.energy_j / runs.energy_j.sum(axis=1, keepdims=True)
    order = np.argsort(np.square(shares - shares[i]).sum(axis=1), kind="stable")
    own = order[runs.model[order] == runs.model[i]]
    return (own if own.size >= LEAST_NEIGHBOURS else order)[:NEIGHBOURS]
