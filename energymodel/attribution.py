"""Whose energy was it: phases and bins, conserving the total of every step.

Within a step each operation's time and energy go to the requests by what they ask of it, which the
operation says (``Op.asked``): attention by query-key pairs, an encoder by the prompt. Else the LM
head and sampling go by sampled rows, everything else by tokens.
Time outside the layers goes by sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from energymodel.ops import Op
from energymodel.prediction import BinEnergy, PhaseEnergy
from energymodel.serving import Schedule
from energymodel.steps import Floats, Steps
from energymodel.workload import Workload

if TYPE_CHECKING:
    from energymodel.costs import StepCosts

SAMPLED = ("lm_head", "sampling")

Sharing = Literal["proportional", "marginal"]
"""How the energy of a step goes to its requests: by what they ask of each operation (this module), or
by what each adds and equal parts of the rest (``marginal.py``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One operation (or the overhead) of every step and who asked for it; all calls of a step.

    ``chunk`` [n_chunks] and ``decode`` [n_decodes] are what one request of a row asks, ``prefill``
    [n_steps] is the share of all that prompts ask.
    """

    chunk: Floats
    decode: Floats
    total: Floats
    prefill: Floats
    seconds: Floats
    energy_j: Floats


def shares(schedule: Schedule, costs: "StepCosts") -> list[Share]:
    """Who asked for each operation of each step, and for the time outside the operations."""
    steps = schedule.steps
    found: dict[tuple[object, ...], tuple[Floats, ...]] = {}
    result = []
    for cost in costs.ops:
        key = _demand_key(cost.op)
        if key not in found:
            found[key] = _split(steps, *_demand(cost.op, steps))
        result.append(_share(found[key], cost.seconds, cost.energy_j))
    ones = np.ones(steps.chunks.tokens.size), np.ones(steps.decodes.context.size)
    result.append(_share(_split(steps, *ones), costs.overhead_s, costs.overhead_j))
    return result


def _split(steps: Steps, chunk: Floats, decode: Floats) -> tuple[Floats, ...]:
    prefill = steps.sum_chunks(chunk)
    total = prefill + steps.sum_decodes(decode)
    share = np.divide(prefill, total, out=np.zeros(steps.size), where=total > 0)
    return chunk, decode, total, share


def _share(split: tuple[Floats, ...], seconds: Floats, energy_j: Floats) -> Share:
    chunk, decode, total, prefill = split
    return Share(
        chunk=chunk, decode=decode, total=total, prefill=prefill, seconds=seconds, energy_j=energy_j
    )


# Shares of decode below this are what rounding left of a sum to one.
ROUNDING = 1e-12


def _decode(part: Share) -> Floats:
    """What is not asked for by prefill; exactly nothing in a run that only prefills."""
    share: Floats = 1.0 - part.prefill
    return np.where(share > ROUNDING, share, 0.0)


def phases(
    schedule: Schedule, costs: "StepCosts", parts: Sequence[Share]
) -> dict[str, PhaseEnergy]:
    """Prefill, decode and idle: energy and time that sum to those of the run."""
    weight = schedule.steps.weight
    prefill_j = sum(float((weight * part.energy_j) @ part.prefill) for part in parts)
    prefill_s = sum(float((weight * part.seconds) @ part.prefill) for part in parts)
    decode_j = sum(float((weight * part.energy_j) @ _decode(part)) for part in parts)
    decode_s = sum(float((weight * part.seconds) @ _decode(part)) for part in parts)
    return {
        "prefill": PhaseEnergy(energy_j=prefill_j, duration_s=prefill_s),
        "decode": PhaseEnergy(energy_j=decode_j, duration_s=decode_s),
        "idle": PhaseEnergy(energy_j=costs.submit_j, duration_s=costs.submit_s),
    }


def _demand_key(op: Op) -> tuple[object, ...]:
    """Operations with the same key are asked for in the same proportions."""
    if op.asked is not None:
        return id(op.asked[0]), id(op.asked[1])
    return ("sampled",) if op.component in SAMPLED else ("tokens",)


def _demand(op: Op, steps: Steps) -> tuple[Floats, Floats]:
    """What each chunk and each decoding sequence asks of ``op``, in the same unit."""
    chunks, decodes = steps.chunks, steps.decodes
    if op.asked is not None:
        return op.asked
    if op.component in SAMPLED:
        return chunks.last.astype(np.float64), np.full_like(decodes.context, decodes.samples)
    return chunks.tokens.astype(np.float64), np.full_like(decodes.context, decodes.queries)


def bins(
    workload: Workload, schedule: Schedule, costs: "StepCosts", parts: Sequence[Share]
) -> tuple[BinEnergy, ...]:
    """Energy of each bin's requests by what they ask of each operation."""
    return by_bin(workload, schedule, costs, by_request(schedule.steps, parts))


def by_request(steps: Steps, parts: Sequence[Share]) -> tuple[Floats, Floats]:
    """Joules of one request of each row of chunks and of decoding ones, in one iteration."""
    chunks, decodes = steps.chunks, steps.decodes
    chunk_j, decode_j = np.zeros(chunks.step.size), np.zeros(decodes.step.size)
    for part in parts:
        unit_j = np.divide(
            part.energy_j,
            part.total,
            out=np.zeros(steps.size),
            where=part.total > 0,
        )
        chunk_j += unit_j[chunks.step] * part.chunk
        decode_j += unit_j[decodes.step] * part.decode
    return chunk_j, decode_j


def by_bin(
    workload: Workload, schedule: Schedule, costs: "StepCosts", each_j: tuple[Floats, Floats]
) -> tuple[BinEnergy, ...]:
    """Energy of each bin's requests, from joules of each request in each iteration.

    Idle energy goes by requests, so that bins sum to the total.
    """
    steps, size = schedule.steps, len(workload.bins)
    chunks, decodes, (chunk_j, decode_j) = steps.chunks, steps.decodes, each_j
    chunk_j = chunk_j * chunks.count * steps.weight[chunks.step]
    decode_j = decode_j * decodes.count * steps.weight[decodes.step]
    prefill = np.bincount(chunks.bin, chunk_j, minlength=size)
    decode = np.bincount(decodes.bin, decode_j, minlength=size)
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
            if b.output_tokens and b.count
            else None,
        )
        for b, p, d in zip(workload.bins, prefill, decode, strict=True)
    )
