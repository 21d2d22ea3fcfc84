"""Which observations are held out together: every comparison in a fit uses the same folds."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

Array = NDArray[np.float64]

MOST = 10
# With fewer shape families than this, single shapes are held out instead.
LEAST_FAMILIES = 3


def together(family: Array, point: Array) -> Array:
    """Number of what is held out together, [n]: the shape family, or the shape where those are few.

    All trials of a shape and all boards stay together: one would give the other away.
    """
    return family if len(np.unique(family)) >= LEAST_FAMILIES else point


def folds(group: Array, most: int = MOST) -> Iterator[NDArray[np.bool_]]:
    """Masks of the observations to hold out, one a fold: whole groups, in random order.

    Args:
        group: what is held out together (``together``), [n].
        most: number of folds at most.

    Yields:
        [n], true where held out; each observation is held out exactly once. Nothing is held out
        of fewer than two groups.
    """
    parts = min(most, len(np.unique(group)))
    if parts < 2:
        return
    for _, held in GroupKFold(parts, shuffle=True, random_state=0).split(group, groups=group):
        mask = np.zeros(len(group), dtype=np.bool_)
        mask[held] = True
        yield mask
