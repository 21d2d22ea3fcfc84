"""Static batches: requests of one bin start together, decode in step and end together.

So ``generate`` of transformers works: a batch is one forward pass over its prompts, which samples
the first token, and one pass for each token after it; the next batch waits until it has ended.
"""

from dataclasses import dataclass

import numpy as np

from energymodel.errors import InputError
from energymodel.serving import Milestones, Schedule
from energymodel.steps import Chunks, Decodes, Ints, Steps
from energymodel.workload import Workload

# Rows of a prediction; more batches than this are no workload but a service.
MOST_BATCHES = 50_000
# Rows that the decode passes of a batch are split into: each stands for their mean. What bends
# with context does so gently here. With many batches of a bin one row is enough.
ROWS, MANY = 8, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """``times`` batches of ``size`` requests of a bin; ``rows``: iterations of each row of decode."""

    bin: int
    input_tokens: int
    size: int
    times: int
    rows: tuple[int, ...]


def static_batches(workload: Workload, most: int, *, samples_always: bool) -> Schedule:
    """The passes of all requests, in batches of up to ``most`` of one bin.

    ``samples_always``: a prompt has the logits of its last token computed even where nothing is
    generated from them.

    Raises:
        InputError: there are more batches than can be followed.
    """
    batches = [b for i in range(len(workload.bins)) for b in _of_bin(workload, i, most)]
    if sum(b.times for b in batches) > MOST_BATCHES:
        raise InputError(
            f"count must be at most {MOST_BATCHES:,} batches of max_num_seqs ({most:,}) requests: "
            "predict a part of the workload and scale it."
        )
    generates = [b.output_tokens > 0 for b in workload.bins]
    weights: list[Ints] = []
    chunks: list[Ints] = []  # columns: row, tokens, count, last, bin
    decodes: list[Ints] = []  # columns: row, twice the context, count, bin
    milestones: list[Ints] = []  # columns: bin, count, first row, last row
    begin = 0
    for b in batches:
        own = np.array([1, *b.rows], dtype=np.int64)
        firsts = begin + len(own) * np.arange(b.times)
        weights.append(np.tile(own, b.times))
        last = int(samples_always or generates[b.bin])
        chunks.append(_columns(firsts, b.input_tokens, b.size, last, b.bin))
        contexts = 2 * b.input_tokens + 2 * np.cumsum(b.rows) - np.array(b.rows) - 1
        rows = (firsts[:, None] + 1 + np.arange(len(b.rows))).ravel()
        decodes.append(_columns(rows, np.tile(contexts, b.times), b.size, b.bin))
        milestones.append(_columns(b.bin, b.size, firsts, firsts + len(own) - 1))
        begin += len(own) * b.times
    chunk, decode, mile = (np.concatenate(x) for x in (chunks, decodes, milestones))
    weight = np.concatenate(weights)
    return Schedule(
        steps=Steps(
            weight=weight.astype(np.float64),
            chunks=Chunks(
                step=chunk[:, 0],
                tokens=chunk[:, 1],
                context=np.zeros(len(chunk), dtype=np.int64),
                count=chunk[:, 2],
                last=chunk[:, 3],
                bin=chunk[:, 4],
            ),
            decodes=Decodes(
                step=decode[:, 0], context=decode[:, 1] / 2.0, count=decode[:, 2], bin=decode[:, 3]
            ),
        ),
        milestones=Milestones(
            bin=mile[:, 0], count=mile[:, 1], first_token_row=mile[:, 2], finish_row=mile[:, 3]
        ),
        iterations=int(weight.sum()),
    )


def _of_bin(workload: Workload, index: int, most: int) -> list[_Batch]:
    """Full batches of a bin, and what is left over."""
    b = workload.bins[index]
    full, rest = divmod(b.count or 0, most)
    found = []
    for size, times in ((most, full), (rest, 1)):
        if size and times:
            steps = max(b.output_tokens - 1, 0)
            count = min(1 if times > MANY else ROWS, steps)
            ends = np.arange(count + 1) * steps // max(count, 1)
            found.append(
                _Batch(
                    bin=index,
                    input_tokens=b.input_tokens,
                    size=size,
                    times=times,
                    rows=tuple(np.diff(ends).tolist()),
                )
            )
    return found


def _columns(*values: Ints | int) -> Ints:
    """Columns side by side, single values repeated."""
    return np.stack(np.broadcast_arrays(*values), axis=1).astype(np.int64)
