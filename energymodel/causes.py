"""What the energy of a run was spent on, phase by phase, in amounts that two runs can be compared by.

The energy of every operation (``power.py``) is taken apart into

    compute  flop_j FLOP x^a
    weights  weight_byte_j bytes x^a + hbm_byte_j bytes     of weights, read once in a pass
    data     the same of what grows with tokens: caches and activations
    time     static power t(x) + busy_w t(1) x^a

with x the relative clock, a the exponent of the clock law and t(x) the time of the kernels. What is
not an operation is in gaps; collective operations stand by themselves. The sum is the energy of the
run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from energymodel.deployment import Deployment
from energymodel.laws import traffic
from energymodel.prediction import Cause, PhaseCauses
from energymodel.profile import Profile
from energymodel.steps import Floats, Steps

if TYPE_CHECKING:
    from energymodel.attribution import Share
    from energymodel.costs import OpCost, StepCosts

# Operations whose ``weight_bytes`` are weights, which all tokens of a pass share; those of other
# kinds are cached keys, values and states, of which each sequence has its own.
WEIGHT_KINDS = ("gemm", "moe")
COLLECTIVE = "collective"


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseShare:
    """A phase's share of each operation and of the overhead, and its tokens; each [n_steps]."""

    ops: Sequence[Floats]
    overhead: Floats
    tokens: Floats


def serving_shares(steps: Steps, parts: Sequence["Share"]) -> dict[str, PhaseShare]:
    """Prefill and decode, as ``attribution`` shares each operation out; the last is the overhead."""
    prefill = [part.prefill for part in parts]
    decode = [1.0 - share for share in prefill]
    prompts = steps.sum_chunks(steps.chunks.tokens)
    return {
        "prefill": PhaseShare(ops=prefill[:-1], overhead=prefill[-1], tokens=prompts),
        "decode": PhaseShare(ops=decode[:-1], overhead=decode[-1], tokens=steps.decoding),
    }


def by_phase(
    costs: "StepCosts",
    weight: Floats,
    profile: Profile,
    deployment: Deployment,
    *,
    shares: Mapping[str, PhaseShare],
    requests: float,
) -> dict[str, PhaseCauses]:
    """Causes of each phase in ``shares``, and of the idle time before the first step, if any."""
    scale = costs.relative_clock**profile.power.exponent.value
    memory = profile.memory_over_usual(deployment.hbm_byte_j)
    # Rows: (amount, full clock, energy) of flop, weights, data and time; columns: phases.
    total = np.zeros((12, len(shares)))
    collective = np.zeros((2, len(shares)))
    for i, cost in enumerate(costs.ops):
        share = np.stack([weight * phase.ops[i] for phase in shares.values()], axis=1)
        if cost.op.component == COLLECTIVE:
            collective += np.stack([cost.seconds, cost.energy_j]) @ share
        else:
            total += _of_operation(cost, profile, memory, scale, costs.static_w) @ share
    all_tokens = np.asarray(sum(phase.tokens for phase in shares.values()))
    overhead = np.stack([costs.overhead_s, costs.overhead_j])
    found = {
        name: _phase(
            phase,
            weight=weight,
            all_tokens=all_tokens,
            overhead=overhead,
            total=total[:, k],
            collective=collective[:, k],
        )
        for k, (name, phase) in enumerate(shares.items())
    }
    return found | _idle(costs, requests)


def _of_operation(
    cost: "OpCost", profile: Profile, memory: float, scale: Floats, static_w: float
) -> Floats:
    """(Amount, joules at full clock, joules) of flop, weights, data, time; shape [12, n_steps]."""
    op, count = cost.op, cost.op.count
    energy = {name: e.value for name, e in profile.operation(op.law).energy.items()}
    row_bytes = op.hbm_bytes - op.weight_bytes
    streamed, rows, hbm_bytes = traffic(
        op.kind, op.shape, op.weight_bytes, row_bytes, profile.gpu.l2_bytes
    )
    hbm_byte_j = memory * energy["hbm_byte_j"]
    weighs = op.kind in WEIGHT_KINDS
    weight_bytes = op.weight_bytes if weighs else np.zeros_like(op.hbm_bytes)
    core_flop_j = count * energy["flop_j"] * op.core_flop
    streamed_j, rows_j = energy["weight_byte_j"] * streamed, energy["row_byte_j"] * rows
    core_weight_j = count * streamed_j if weighs else np.zeros_like(op.hbm_bytes)
    core_data_j = count * (rows_j if weighs else streamed_j + rows_j)
    memory_weight_j = count * hbm_byte_j * weight_bytes
    memory_data_j = count * hbm_byte_j * (hbm_bytes - weight_bytes)
    full_s, busy_w = cost.gpus * cost.full_clock_s, energy["busy_w"]
    return np.stack(
        [
            *(count * op.flop, core_flop_j, core_flop_j * scale),
            count * weight_bytes,
            *(core_weight_j + memory_weight_j, core_weight_j * scale + memory_weight_j),
            count * (op.hbm_bytes - weight_bytes),
            *(core_data_j + memory_data_j, core_data_j * scale + memory_data_j),
            *(
                full_s,
                (static_w + busy_w) * full_s,
                static_w * cost.gpus * cost.seconds + busy_w * full_s * scale,
            ),
        ]
    )


def _phase(
    phase: PhaseShare,
    *,
    weight: Floats,
    all_tokens: Floats,
    overhead: Floats,
    total: Floats,
    collective: Floats,
) -> PhaseCauses:
    passes = np.divide(phase.tokens, all_tokens, out=np.zeros_like(weight), where=all_tokens > 0)
    flop, weights, data, time = (_cause(*total[3 * k : 3 * k + 3]) for k in range(4))
    gap_s, gap_j = overhead @ (weight * phase.overhead)
    return PhaseCauses(
        tokens=float(weight @ phase.tokens),
        steps=float(weight @ passes),
        flop=flop,
        weights=weights,
        data=data,
        time=time,
        gaps=_cause(gap_s, gap_j, gap_j),
        collective=_cause(collective[0], collective[1], collective[1]),
    )


def _idle(costs: "StepCosts", requests: float) -> dict[str, PhaseCauses]:
    if not costs.submit_s:
        return {}
    nothing = _cause(0.0, 0.0, 0.0)
    waited = _cause(costs.submit_s, costs.submit_j, costs.submit_j)
    return {
        "idle": PhaseCauses(
            tokens=float(requests),
            steps=0.0,
            flop=nothing,
            weights=nothing,
            data=nothing,
            time=nothing,
            gaps=waited,
            collective=nothing,
        )
    }


def _cause(amount: float, full_clock_j: float, energy_j: float) -> Cause:
    return Cause(amount=float(amount), full_clock_j=float(full_clock_j), energy_j=float(energy_j))
