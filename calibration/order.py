"""The most informative points first: every beginning of the order covers the space of shapes.

Farthest-point design (Gonzalez 1985, "Clustering to minimize the maximum intercluster distance"):
each next shape is the one that is farthest, in doublings, from all that were taken before.
"""

from collections.abc import Sequence

import numpy as np

Shape = dict[str, int]


def farthest_first(shapes: Sequence[Shape], most: int) -> list[Shape]:
    """Up to ``most`` of ``shapes``, which have the same keys, each farthest from those before it."""
    if not shapes:
        return []
    axes = sorted({key for shape in shapes for key in shape})
    table = np.log2([[shape.get(key, 0) + 1.0 for key in axes] for shape in shapes])
    first = int(np.argmin(np.square(table - table.mean(axis=0)).sum(axis=1)))
    chosen = [first]
    nearest = np.square(table - table[first]).sum(axis=1)
    while len(chosen) < min(most, len(shapes)) and nearest.max() > 0:
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, np.square(table - table[chosen[-1]]).sum(axis=1))
    return [shapes[i] for i in chosen]
