"""Whose energy was it, by what each request adds: marginal energies and an equal share of the rest.

Requests in a step share what none of them causes alone, above all the weights that are streamed
once for all. With E(N) the energy of a step and E(N - i) that of the step without request i, each
of the n requests gets

    e_i = m_i + (E(N) - sum_j m_j) / n,    m_i = E(N) - E(N - i)

the equal division of the non-separable cost (T. Driessen, Y. Funaki, Coincidence of and collinearity
between game theoretic solutions, OR Spektrum 13, 1991), which is Shapley's value where the energy of
a step is a constant and a sum over its requests. Without its only request there is no step. A
marginal energy below 0 (a step may be padded less, or fill the GPU better, with one request more)
counts as 0, and marginal energies that sum to more than the step took are scaled down to it.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from energymodel.steps import Floats, Ints, Steps

# Rows of chunks and decoding sequences that are priced at a time: bounds memory at any run.
BLOCK_ROWS = 100_000


def by_request(
    steps: Steps, step_j: Floats, price: Callable[[Steps], Floats]
) -> tuple[Floats, Floats]:
    """Joules of one request of each row of chunks [n_chunks] and of decoding ones [n_decodes].

    They are of one iteration of the row's step, and sum over its requests to ``step_j`` [n_steps].

    Args:
        steps: The steps of a run.
        step_j: Energy of each.
        price: Energy of any steps, in any unit; [n_steps] of its argument.
    """
    step = np.concatenate([steps.chunks.step, steps.decodes.step])
    count = np.concatenate([steps.chunks.count, steps.decodes.count]).astype(np.float64)
    there = np.flatnonzero(count > 0)
    whole = price(steps)
    requests = np.bincount(step, count, steps.size)
    rows_in = np.bincount(step[there], minlength=steps.size)
    added = np.zeros(step.size)
    for rows in _blocks(there, rows_in[step[there]]):
        alone = requests[step[rows]] <= 1.0
        left = price(_without(steps, step[rows], rows))
        added[rows] = np.where(alone, 1.0, 1.0 - left / whole[step[rows]])
    added = np.maximum(added, 0.0) * step_j[step]
    separable = np.bincount(step, count * added, steps.size)
    scale = np.minimum(
        np.divide(step_j, separable, out=np.ones(steps.size), where=separable > 0), 1.0
    )
    rest = np.divide(
        step_j - scale * separable, requests, out=np.zeros(steps.size), where=requests > 0
    )
    each = np.where(count > 0, scale[step] * added + rest[step], 0.0)
    return each[: steps.chunks.step.size], each[steps.chunks.step.size :]


def _blocks(rows: Ints, sizes: Ints) -> list[Ints]:
    """``rows`` in pieces whose steps hold about ``BLOCK_ROWS`` rows in all."""
    ends = np.cumsum(sizes)
    cuts = np.flatnonzero(np.diff(ends // BLOCK_ROWS)) + 1
    return np.split(rows, cuts)


def _without(steps: Steps, step: Ints, row: Ints) -> Steps:
    """One step for each of ``row``: its own, which is ``step``, without one of its requests.

    Rows are numbered chunks first.
    """
    chunks, decodes, size = steps.chunks, steps.decodes, steps.chunks.step.size
    new_step, old = _members(chunks.step, step)
    chosen = replace(
        chunks,
        step=new_step,
        tokens=chunks.tokens[old],
        context=chunks.context[old],
        count=chunks.count[old] - (old == row[new_step]),
        last=chunks.last[old],
        bin=chunks.bin[old],
    )
    new_step, old = _members(decodes.step, step)
    return Steps(
        weight=steps.weight[step],
        chunks=chosen,
        decodes=replace(
            decodes,
            step=new_step,
            context=decodes.context[old],
            count=decodes.count[old] - (old + size == row[new_step]),
            bin=decodes.bin[old],
        ),
    )


def _members(step_of_row: Ints, wanted: Ints) -> tuple[Ints, Ints]:
    """(position in ``wanted``, row) of every row of each wanted step."""
    order = np.argsort(step_of_row, kind="stable")
    ordered = step_of_row[order]
    first = np.searchsorted(ordered, wanted)
    many = np.searchsorted(ordered, wanted, side="right") - first
    position = np.repeat(np.arange(wanted.size), many)
    within = np.arange(position.size) - np.repeat(np.cumsum(many) - many, many)
    return position, order[np.repeat(first, many) + within]
