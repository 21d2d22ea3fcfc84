"""Stretches of pure decode, split into rows that stand for several steps."""

import itertools

# A stretch of decode steps becomes at most MAX_ROWS rows, none split below MIN_STEPS steps:
# inside a row of n steps, min(context, window) is then wrong by n / 8 tokens at most.
MAX_ROWS = 6
MIN_STEPS = 32


def split_stretch(iterations: int, contexts: list[tuple[int, int]]) -> list[int]:
    """Split a stretch of decode iterations into rows that stand for their mean.

    What depends linearly on context is exact however the stretch is split. What bends does so
    at a window or a chunk length, and those are powers of two in practice: the splits go first
    to where most sequences pass one, then to the middle of the longest row.

    Args:
        iterations: Length of the stretch.
        contexts: (tokens in the KV cache at its first iteration, sequences) of each group.

    Returns:
        Iterations of each row; they sum to ``iterations``.
    """
    crossings: list[tuple[int, int]] = []  # (iteration, sequences that pass a power of two)
    for context, count in contexts:
        power = 1 << context.bit_length()
        while power < context + iterations:
            crossings.append((power - context, count))
            power *= 2
    near = iterations // MIN_STEPS  # groups that pass this close to each other share a split
    clusters: list[list[int]] = []  # [sequences, sum of their iterations, last iteration]
    for iteration, count in sorted(crossings):
        if not clusters or iteration - clusters[-1][2] > near:
            clusters.append([0, 0, 0])
        cluster = clusters[-1]
        cluster[:] = cluster[0] + count, cluster[1] + count * iteration, iteration
    heaviest = sorted(clusters, reverse=True)[: MAX_ROWS // 2]
    cuts = sorted({0, iterations, *(round(total / count) for count, total, _ in heaviest)})
    rows = [b - a for a, b in itertools.pairwise(cuts)]
    while len(rows) < MAX_ROWS and max(rows) > MIN_STEPS:
        i = rows.index(max(rows))
        rows[i : i + 1] = [rows[i] // 2, rows[i] - rows[i] // 2]
    return rows
