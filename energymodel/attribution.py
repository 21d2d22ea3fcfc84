"""Whose energy was it: phases and bins, conserving the total of every step.

Within a step each operation's time and energy go to the requests by what they ask of it:
attention by query-key pairs, the LM head and sampling by sampled rows, everything else by tokens.
Time outside the layers goes by sequences.
"""

from typing import TYPE_CHECKING

import numpy as np

from energymodel.attention import visible_pairs
from energymodel.ops import Op
from energymodel.prediction import BinEnergy, PhaseEnergy
from energymodel.serving import Schedule
from energymodel.steps import Floats, Steps
from energymodel.workload import Workload

if TYPE_CHECKING:
    from energymodel.predict import StepCosts

SAMPLED = ("lm_head", "sampling")


def phases(schedule: Schedule, costs: "StepCosts") -> dict[str, PhaseEnergy]:
    """Prefill, decode and idle: energy and time that sum to those of the run."""
    steps = schedule.steps
    prefill_j, prefill_s = 0.0, 0.0
    for share, seconds, energy_j in _parts(steps, costs):
        prefill_s += float((steps.weight * seconds) @ share)
        prefill_j += float((steps.weight * energy_j) @ share)
    total_s = float(steps.weight @ costs.step_s)
    total_j = float(steps.weight @ costs.step_j)
    return {
        "prefill": PhaseEnergy(energy_j=prefill_j, duration_s=prefill_s),
        "decode": PhaseEnergy(energy_j=total_j - prefill_j, duration_s=total_s - prefill_s),
        "idle": PhaseEnergy(energy_j=costs.submit_j, duration_s=costs.submit_s),
    }


def _parts(steps: Steps, costs: "StepCosts") -> list[tuple[Floats, Floats, Floats]]:
    """(share of prefill, seconds, joules) of each operation and of the overhead, per step."""
    parts = [
        (_prefill_share(steps, *_demand(cost.op, steps)), cost.seconds, cost.energy_j)
        for cost in costs.ops
    ]
    ones = np.ones(steps.chunks.tokens.size), np.ones(steps.decodes.context.size)
    return [*parts, (_prefill_share(steps, *ones), costs.overhead_s, costs.overhead_j)]


def _demand(op: Op, steps: Steps) -> tuple[Floats, Floats]:
    """What each chunk and each decoding sequence asks of ``op``, in the same unit."""
    chunks, decodes = steps.chunks, steps.decodes
    if op.kind in ("prefill_attention", "decode_attention"):
        window = float(np.max(op.shape["window"]))
        pairs = visible_pairs(chunks.tokens, chunks.context, window)
        one = visible_pairs(np.ones_like(decodes.context), decodes.context, window)
        prefill = op.kind == "prefill_attention"
        return (pairs, np.zeros_like(one)) if prefill else (np.zeros_like(pairs), one)
    if op.component in SAMPLED:
        return chunks.last.astype(np.float64), np.ones_like(decodes.context)
    return chunks.tokens.astype(np.float64), np.ones_like(decodes.context)


def _prefill_share(steps: Steps, chunk: Floats, decode: Floats) -> Floats:
    prefill, total = steps.sum_chunks(chunk), steps.sum_chunks(chunk) + steps.sum_decodes(decode)
    return np.divide(prefill, total, out=np.zeros(steps.size), where=total > 0)


def bins(workload: Workload, schedule: Schedule, costs: "StepCosts") -> tuple[BinEnergy, ...]:
    """Energy of each bin's requests; idle energy goes by requests, so that bins sum to the total."""
    steps, size = schedule.steps, len(workload.bins)
    prefill, decode = np.zeros(size), np.zeros(size)
    ones = np.ones(steps.chunks.tokens.size), np.ones(steps.decodes.context.size)
    overhead = (*ones, costs.overhead_j)
    demands = [(*_demand(c.op, steps), c.energy_j) for c in costs.ops]
    for chunk, one, energy_j in [*demands, overhead]:
        total = steps.sum_chunks(chunk) + steps.sum_decodes(one)
        unit_j = np.divide(
            steps.weight * energy_j, total, out=np.zeros(steps.size), where=total > 0
        )
        by_chunk = unit_j[steps.chunks.step] * chunk * steps.chunks.count
        by_decode = unit_j[steps.decodes.step] * one * steps.decodes.count
        prefill += np.bincount(steps.chunks.bin, by_chunk, minlength=size)
        decode += np.bincount(steps.decodes.bin, by_decode, minlength=size)
    counts = np.array([b.count or 0 for b in workload.bins], dtype=np.float64)
    prefill += costs.submit_j * counts / counts.sum()
    return tuple(
        BinEnergy(
            input_tokens=b.input_tokens,
            output_tokens=b.output_tokens,
            count=b.count or 0,
            energy_j=float(p + d),
            prefill_j=float(p),
            decode_j=float(d),
            energy_per_output_token_j=float(p + d) / (b.output_tokens * (b.count or 0))
            if b.output_tokens
            else None,
        )
        for b, p, d in zip(workload.bins, prefill, decode, strict=True)
    )
