"""What is not known of the power of a replica: the model's error, and which boards it will get.

Boards of one GPU carry memories of different kinds (``Profile.memory``), and nobody is told which
will be delivered. A fleet is planned with what a byte costs on average over the calibrated boards;
how far single boards are from that averages out over a fleet.
"""

from dataclasses import dataclass, replace

import numpy as np

from energymodel.deployment import Deployment
from energymodel.model import ModelSpec
from energymodel.planning.operating import Mix
from energymodel.planning.sureness import NINETY
from energymodel.predict import predict
from energymodel.profile import Profile
from energymodel.workload import Bin, Workload

# Requests of the run whose interval stands for that of a replica.
REQUESTS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """Standard deviations in log energy: of the model, for all replicas alike, and of one board."""

    model: float
    board: float


def mean_byte_j(profile: Profile) -> float | None:
    """Joules per byte of memory on average over the calibrated boards; None where none is known."""
    boards = [(kind.byte_j.value, len(kind.boards)) for kind in profile.memory]
    if not boards or not boards[0][0]:
        return None
    values, counts = np.array(boards, dtype=np.float64).T
    return float(np.average(values, weights=np.maximum(counts, 1.0)))


def doubt_of(model: ModelSpec, deployment: Deployment, profile: Profile, mix: Mix) -> Doubt:
    """How wrong the energy of a replica may be, from the interval of a run of the same requests."""
    workload = _run_of(mix)
    given = replace(deployment, hbm_byte_j=mean_byte_j(profile))
    energy_j, (low_j, high_j) = _energy(model, given, workload, profile)
    apart = 0.0
    if profile.memory:
        kinds = [
            _energy(model, replace(given, hbm_byte_j=kind.byte_j.value), workload, profile)[0]
            for kind in profile.memory
        ]
        boards = np.array([max(len(kind.boards), 1) for kind in profile.memory], dtype=np.float64)
        apart = float(np.sqrt(np.average(np.log(np.array(kinds) / energy_j) ** 2, weights=boards)))
    return Doubt(
        model=0.5 * float(np.log(high_j / low_j)) / NINETY,
        board=float(np.hypot(apart, profile.accuracy.board_energy)),
    )


def _energy(
    model: ModelSpec, deployment: Deployment, workload: Workload, profile: Profile
) -> tuple[float, tuple[float, float]]:
    found = predict(model, deployment, workload, profile)
    return found.energy_j, found.energy_interval_j


def _run_of(mix: Mix) -> Workload:
    """A run of a few requests in the proportions of the mix, one of each bin at least."""
    return Workload(
        bins=tuple(
            Bin(
                input_tokens=int(tokens),
                output_tokens=int(output),
                count=max(round(REQUESTS * float(share)), 1),
            )
            for tokens, output, share in zip(
                mix.input_tokens, mix.output_tokens, mix.share, strict=True
            )
        )
    )
