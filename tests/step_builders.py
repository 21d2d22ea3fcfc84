"""Engine steps for tests, one at a time or together."""

from collections.abc import Sequence

import numpy as np

from energymodel.steps import Chunks, Decodes, Steps

Chunk = tuple[int, int, int, int]  # tokens, context, count, last
Decode = tuple[float, int]  # context, count


def steps_of(*rows: tuple[Sequence[Chunk], Sequence[Decode]]) -> Steps:
    """Steps of weight 1, each given by its (chunks, decodes)."""
    chunks = [(i, *c) for i, (row, _) in enumerate(rows) for c in row]
    decodes = [(i, *d) for i, (_, row) in enumerate(rows) for d in row]
    step, tokens, context, count, last = _columns(chunks, 5)
    at, past, number = _columns(decodes, 3)
    ints = np.int64
    return Steps(
        weight=np.ones(len(rows)),
        chunks=Chunks(
            step=step.astype(ints),
            tokens=tokens.astype(ints),
            context=context.astype(ints),
            count=count.astype(ints),
            last=last.astype(ints),
            bin=np.zeros(len(chunks), ints),
        ),
        decodes=Decodes(
            step=at.astype(ints),
            context=past,
            count=number.astype(ints),
            bin=np.zeros(len(decodes), ints),
        ),
    )


def prefill(tokens: int, context: int = 0, count: int = 1, last: int = 1) -> Steps:
    """One step of ``count`` equal chunks."""
    return steps_of(([(tokens, context, count, last)], []))


def decode(context: float, count: int = 1) -> Steps:
    """One step of ``count`` equal decoding sequences."""
    return steps_of(([], [(context, count)]))


def _columns(rows: Sequence[tuple[float, ...]], width: int) -> list[np.ndarray]:
    table = np.array(rows, dtype=np.float64).reshape(-1, width)
    return [table[:, i] for i in range(width)]
