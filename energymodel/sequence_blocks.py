"""Blocks of the KV cache that a sequence holds, and how those of many grow from step to step.

Facts of vLLM 0.24 (``v1/core/single_type_kv_cache_manager.py``, ``SlidingWindowManager``;
``v1/core/kv_cache_manager.py``, ``allocate_slots``; ``SlidingWindowSpec`` in
``v1/kv_cache_interface.py``): before a step computes the tokens behind the first c, layers with a
window of W free their blocks that lie wholly in the first c - W + 1 tokens; then they take blocks
for the new tokens, as all layers do. So a step of n tokens leaves a group of layers with

    ceil((c + n) / size) - floor(max(c - W + 1, 0) / size)

blocks. A waiting request is admitted where its whole prompt fits the free blocks, of which windowed
layers are counted to need no more than they may ever hold at once.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

# Iterations that are faster walked than added up as arrays.
FEW = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGroups:
    """``count`` groups of layers, each of which takes blocks for the tokens of a sequence.

    ``window``: tokens that the layers see; None where they see and keep all. ``ratio``: tokens in
    one of their blocks, over those in the blocks of the groups that cache most of a token.
    """

    count: int = 1
    window: int | None = None
    ratio: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceBlocks:
    """Blocks of one sequence, over all groups; ``size`` tokens in a block of ``ratio`` 1.

    ``state_blocks``: those beside its tokens, however long it is. ``budget``: most tokens of a step.
    """

    size: int
    groups: tuple[TokenGroups, ...]
    state_blocks: int
    budget: int

    def held(self, computed: int, tokens: int) -> int:
        """Blocks once ``tokens`` have places, where the first ``computed`` were there before."""
        held = self.state_blocks
        for g in self.groups:
            size = g.ratio * self.size
            behind = 0 if g.window is None else max(computed - g.window + 1, 0)
            held += g.count * (-(-tokens // size) - behind // size)
        return held

    def reserved(self, tokens: int) -> int:
        """Free blocks that a waiting request of ``tokens`` is admitted with."""
        reserved = self.state_blocks
        for g in self.groups:
            size = g.ratio * self.size
            blocks = -(-tokens // size)
            if g.window is not None:
                # One more, as a window need not begin where a block does.
                blocks = min(blocks, 1 - (-(g.window - 1 + self.budget) // size))
            reserved += g.count * blocks
        return reserved


class BlockGrowth:
    """Blocks that decoding sequences take and free at each iteration; ``windows`` in their order.

    A sequence whose cache holds ``offset + iteration`` tokens takes a block whenever this is a
    multiple of the block's tokens, and frees one whenever it is a multiple of them and W - 1, once
    it is beyond the window. Both repeat after as many iterations as the largest block has tokens.
    """

    def __init__(self, blocks: SequenceBlocks) -> None:
        sizes = [(g.count, g.ratio * blocks.size) for g in blocks.groups]
        self._sizes = sizes
        self._windows = sorted(
            (g.window, *sized)
            for g, sized in zip(blocks.groups, sizes, strict=True)
            if g.window is not None
        )
        self.windows = [window for window, _, _ in self._windows]
        self._period = math.lcm(*(size for _, size in sizes))
        self._order = np.arange(2 * self._period) % self._period
        # Lists: a number at a time is what is looked at most.
        self._taken = [0] * self._period
        self._freed = [0] * self._period

    def add(self, offset: int, sequences: int, passed: int) -> None:
        """Count ``sequences`` more that have passed the first ``passed`` windows."""
        for count, size in self._sizes:
            for phase in range(-offset % size, self._period, size):
                self._taken[phase] += count * sequences
        for index in range(passed):
            self.pass_window(offset, sequences, index)

    def pass_window(self, offset: int, sequences: int, index: int) -> None:
        """Count that so many sequences have passed a window and free blocks from now on."""
        window, count, size = self._windows[index]
        for phase in range((window - 1 - offset) % size, self._period, size):
            self._freed[phase] += count * sequences

    def at(self, iteration: int) -> tuple[int, int]:
        """Blocks that all take and free at an iteration."""
        phase = iteration % self._period
        return self._taken[phase], self._freed[phase]

    def run(self, first: int, iterations: int, free: int, enough: float) -> tuple[int, int]:
        """How many of the iterations from ``first`` on pass, and how many blocks are free then.

        One does where it finds what it takes, before anything that it frees, and does not leave
        ``enough`` free. A sequence never frees more in a period than it takes.
        """
        if iterations <= FEW:
            return self._walk(first, iterations, free, enough)
        start = first % self._period
        order = self._order[start : start + min(iterations, self._period)]
        freed = np.array(self._freed)[order]
        net = (
            np.array(self._taken)[order] - freed
        ).cumsum()  # after each iteration of the first period
        need = net + freed  # what each asks for, as those before it left less
        periods = iterations // self._period
        each = int(net[-1])  # of a whole period; not used otherwise
        if periods and (free < need.max() or free - net.min() >= enough):
            periods = 0
        elif periods and each > 0:
            periods = min(periods, (free - int(need.max())) // each + 1)
        free -= periods * each
        rest = min(iterations - periods * self._period, self._period)
        ended = (need[:rest] > free) | (free - net[:rest] >= enough)
        if ended.any():
            rest = int(ended.argmax())
        return periods * self._period + rest, free - (int(net[rest - 1]) if rest else 0)

    def _walk(self, first: int, iterations: int, free: int, enough: float) -> tuple[int, int]:
        """The same, iteration by iteration."""
        for done in range(iterations):
            taken, freed = self.at(first + done)
            if taken > free or free - taken + freed >= enough:
                return done, free
            free += freed - taken
        return iterations, free


def longest(blocks: SequenceBlocks, free: int, most: int) -> int:
    """The most tokens of a request, up to ``most``, that is admitted with ``free`` blocks."""
    return max(bisect_right(range(most + 1), free, key=blocks.reserved) - 1, 0)
