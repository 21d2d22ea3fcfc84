"""What decoding sequences see of the cache, summed while they come, grow and go."""

import heapq
from collections import Counter
from collections.abc import Sequence


class ContextSums:
    """Sums over decoding sequences whose caches hold ``offset + iteration`` tokens.

    A new token sees min(context + 1, W) keys in layers with a window of W. The sums are kept from
    event to event, so that a look at them takes the same time however many sequences there are.
    """

    def __init__(self, windows: Sequence[int | None]) -> None:
        self._windows = tuple(_Window(w) for w in windows)
        self.sequences = 0

    def add(self, offset: int, sequences: int) -> None:
        """Count ``sequences`` more with this offset, or fewer where it is negative."""
        self.sequences += sequences
        for window in self._windows:
            window.add(offset, sequences)

    def visible(self, iteration: float) -> tuple[float, ...]:
        """Keys that all of them see at an iteration, for each window; iterations only grow."""
        return tuple(window.visible(iteration, self.sequences) for window in self._windows)


class _Window:
    """Sequences that are still within one window; the others see exactly so many keys."""

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._within = 0
        self._offsets = 0  # sum over those within
        self._at: Counter[int] = Counter()  # sequences within, by offset
        self._passings: list[tuple[int, int]] = []  # heap of (iteration of passing, offset)
        self._now = -1.0

    def add(self, offset: int, sequences: int) -> None:
        if self._size is not None:
            passing = self._size - offset
            if passing <= self._now:
                return
            if sequences > 0 and not self._at[offset]:
                heapq.heappush(self._passings, (passing, offset))
            self._at[offset] += sequences
        self._within += sequences
        self._offsets += offset * sequences

    def visible(self, iteration: float, sequences: int) -> float:
        if self._size is None:
            return self._offsets + sequences * (iteration + 1)
        self._now = iteration
        while self._passings and self._passings[0][0] <= iteration:
            offset = heapq.heappop(self._passings)[1]
            passed = self._at.pop(offset, 0)
            self._within -= passed
            self._offsets -= offset * passed
        inside = self._offsets + self._within * (iteration + 1)
        return inside + (sequences - self._within) * self._size
