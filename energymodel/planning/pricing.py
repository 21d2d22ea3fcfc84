"""The price of a step of a replica, from a step table: what ``operating`` asks for."""

import numpy as np

from energymodel import power
from energymodel.parallel import parallel_of
from energymodel.planning.operating import Price
from energymodel.power import StepLoad
from energymodel.settling import THERMAL_ROUNDS
from energymodel.step_table import StepSums, StepTable, step_loads
from energymodel.steps import Floats


def pricer(table: StepTable, power_limit_w: float | None = None) -> Price:
    """Seconds and joules of steps of the model that ``table`` is of, on all GPUs of its replica.

    Args:
        table: Of the model on its deployment; the power limit of that deployment does not matter.
        power_limit_w: Of each GPU; None is the limit that it was calibrated at.

    Returns:
        A function of (decoding sequences, mean context of each, prompts, tokens of each prompt),
        arrays of one shape.
    """

    def price(
        sequences: Floats, context: Floats, prompts: Floats, tokens: Floats
    ) -> tuple[Floats, Floats]:
        load = load_of(table, sequences, context, prompts, tokens)
        return limited(table, load, power_limit_w)

    return price


def load_of(
    table: StepTable, sequences: Floats, context: Floats, prompts: Floats, tokens: Floats
) -> StepLoad:
    """What steps ask of each GPU at full clock; arguments as of ``Price``."""
    return step_loads(table, _sums(table, sequences, context, prompts, tokens))


def limited(table: StepTable, load: StepLoad, power_limit_w: float | None) -> tuple[Floats, Floats]:
    """(seconds, joules of all GPUs of the replica) of steps at the clock that a power limit allows.

    Each step is taken to go on for long: its static power is that of the temperature that its own
    power leads to. The GPUs of a tensor-parallel group do the same at the same time, and ``load`` is
    of each of them.
    """
    profile, gpus = table.profile, parallel_of(table.deployment).gpus
    p, exponent = profile.power, profile.power.exponent.value
    cap_w = profile.held_w(power_limit_w)
    watts = np.full_like(load.core_j, cap_w)
    for _ in range(THERMAL_ROUNDS):
        static_w = power.static_power_w(p, watts)
        watts = power.capped_power_w(load, static_w, exponent, cap_w)
    seconds, joules = power.limited(load, power.static_power_w(p, watts), exponent, cap_w)
    return seconds, gpus * joules


def _sums(
    table: StepTable, sequences: Floats, context: Floats, prompts: Floats, tokens: Floats
) -> StepSums:
    keys = context + 1.0
    windows = [np.inf if w is None else float(w) for w in table.windows]
    some = np.flatnonzero(prompts > 0)
    return StepSums(
        decoding=sequences,
        visible=np.stack([sequences * np.minimum(keys, w) for w in windows]),
        tokens=sequences + prompts * tokens,
        sampled=sequences + prompts,
        chunks=prompts,
        chunk_step=some,
        chunk_tokens=tokens[some],
        chunk_context=np.zeros(len(some)),
        chunk_count=prompts[some],
    )
