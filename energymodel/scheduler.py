"""State of vLLM's scheduler, moved from event to event; the rules are told in serving.py."""

import heapq
import itertools
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass

from energymodel.deployment import Deployment
from energymodel.workload import Workload

# A stretch of decode steps becomes at most _MAX_ROWS rows, none split below _MIN_STEPS steps:
# inside a row of n steps, min(context, window) is then wrong by n / 8 tokens at most.
_MAX_ROWS = 6
_MIN_STEPS = 32


@dataclass(slots=True)
class _Queued:
    """``count`` equal requests in the queue, or the one whose prompt is unfinished."""

    bin: int
    count: int
    tokens: int  # to compute: the prompt, and after a preemption what was generated
    first_token_row: int = -1
    computed: int = 0


@dataclass(slots=True)
class _Group:
    """``count`` requests that decode in lockstep: their KV holds ``offset + iteration`` tokens."""

    bin: int
    count: int
    offset: int
    last_iteration: int
    first_token_row: int
    since_row: int  # first row not yet recorded for this group at this count
    finished: bool = False


class Scheduler:
    """State of the scheduler between two events; blocks and places are counted, not named."""

    def __init__(
        self,
        workload: Workload,
        deployment: Deployment,
        kv_tokens: int,
        *,
        overlap: bool,
        state_blocks: int = 0,
        whole_prompts: bool = False,
    ) -> None:
        self._bins = workload.bins
        self._block_size = deployment.block_size
        self._max_seqs = deployment.max_num_seqs
        self._budget = deployment.max_num_batched_tokens
        self._free = kv_tokens // deployment.block_size
        self._overlap = overlap
        self._state_blocks = state_blocks
        self._whole_prompts = whole_prompts

        self._waiting = deque(
            _Queued(i, b.count, b.input_tokens) for i, b in enumerate(workload.bins) if b.count
        )
        self._groups: dict[int, _Group] = {}  # in order of admission
        self._finishes: list[tuple[int, int]] = []  # heap of (last iteration, key of the group)
        self._leaving: list[int] = []  # finished groups whose places are not free yet
        self._unfinished: _Queued | None = None  # its prompt is; always the last admitted
        self._preempted = False  # someone, in this iteration: then nobody is admitted
        self._running = 0
        self._decoding = 0
        # Sequences that need a new block at iterations t with t % block_size == phase.
        self._growing = [0] * deployment.block_size
        self.iteration = 0
        self._next_key = 0

        # What happened. A group is recorded once for all the rows in which its count stayed the
        # same, so that the work of an event does not grow with the number of running requests.
        self.weights: list[int] = []  # iterations of each row
        # (row, tokens, context, count, samples, bin)
        self.chunks: list[tuple[int, int, int, int, int, int]] = []
        # (bin, count, offset, first row, row after the last)
        self.segments: list[tuple[int, int, int, int, int]] = []
        # (bin, count, row of the first token, row of the finish)
        self.milestones: list[tuple[int, int, int, int]] = []

    @property
    def busy(self) -> bool:
        """Whether any request is left."""
        return bool(self._waiting or self._groups or self._unfinished)

    def schedule(self) -> None:
        """Do one iteration, or all up to the next event where the ones between are pure decode."""
        self._preempted = False
        self._grow()
        complete = self._prefill()
        prefilled = bool(self.chunks) and self.chunks[-1][0] == len(self.weights)
        if prefilled or self._preempted or (self._leaving and self._waiting):
            steps = [1] if prefilled or self._decoding else []
        elif self._decoding:
            steps = self._decode_rows(self._stretch())
        else:
            steps = []  # only requests that are leaving; the GPU has nothing to do
        row = len(self.weights)
        self.weights += steps
        for queued in complete:
            self._start(queued, row)
        self.iteration += sum(steps)
        self._release()
        self._finish()
        if not self._overlap:
            self._release()

    def _blocks(self, tokens: int) -> int:
        """Blocks of a sequence of ``tokens``, those of its recurrent states included."""
        return self._state_blocks - (-tokens // self._block_size)

    # Running requests ------------------------------------------------------------------------

    def _grow(self) -> None:
        """Give each decoding request the block that this iteration needs."""
        need = self._growing[self.iteration % self._block_size]
        if need <= self._free:
            self._free -= need
            return
        for key in list(self._groups):
            group = self._groups.get(key)
            if group is None:
                break  # preempted, with everyone after it
            if group.finished or (group.offset + self.iteration) % self._block_size:
                continue
            granted = 0
            while granted < group.count:
                if self._free:
                    self._free -= 1
                    granted += 1
                else:
                    self._preempt()

    def _preempt(self) -> None:
        """Take the KV of the last admitted request and queue it again at the head."""
        self._preempted = True
        self._running -= 1
        if self._unfinished:
            queued = self._unfinished
            self._unfinished = None
            self._free += self._blocks(queued.computed)
            queued.computed = 0
            self._waiting.appendleft(queued)
            return
        key, group = next(reversed(self._groups.items()))
        stored = group.offset + self.iteration
        self._free += self._blocks(stored)
        if not group.finished:
            self._record(group)
            self._decoding -= 1
            self._growing[-group.offset % self._block_size] -= 1
            self._requeue(_Queued(group.bin, 1, stored + 1, group.first_token_row))
        group.count -= 1
        if not group.count:
            del self._groups[key]

    def _requeue(self, queued: _Queued) -> None:
        head = self._waiting[0] if self._waiting else None
        if head and (head.bin, head.tokens, head.first_token_row) == (
            queued.bin,
            queued.tokens,
            queued.first_token_row,
        ):
            head.count += 1
        else:
            self._waiting.appendleft(queued)

    # Prompts ---------------------------------------------------------------------------------

    def _prefill(self) -> list[_Queued]:
        """Spend what decoding leaves of the budget on prompts; returns the completed ones."""
        budget = self._budget - self._decoding
        complete: list[_Queued] = []
        queued = self._unfinished
        if queued:
            tokens = min(queued.tokens - queued.computed, budget)
            held = self._blocks(queued.computed)
            if self._blocks(queued.computed + tokens) - held > self._free:
                self._preempt()  # the last admitted is this one itself
                return complete
            self._free += held
            self._running -= 1
            self._unfinished = None
            self._compute(queued, tokens, complete)
            budget -= tokens
        if not self._preempted:
            self._admit(budget, complete)
        return complete

    def _admit(self, budget: int, complete: list[_Queued]) -> None:
        while self._waiting and budget:
            head = self._waiting[0]
            blocks = self._blocks(head.tokens)
            places = min(self._max_seqs - self._running, self._free // blocks)
            count = min(head.count, places, budget // head.tokens)
            if count:
                whole = _Queued(head.bin, count, head.tokens, head.first_token_row)
                self._compute(whole, head.tokens, complete)
                budget -= count * head.tokens
                head.count -= count
            if not head.count:
                self._waiting.popleft()
                continue
            if places > count and budget and not self._whole_prompts:
                part = _Queued(head.bin, 1, head.tokens, head.first_token_row)
                self._compute(part, budget, complete)
                head.count -= 1
                if not head.count:
                    self._waiting.popleft()
            return

    def _compute(self, queued: _Queued, tokens: int, complete: list[_Queued]) -> None:
        """Put the next ``tokens`` of each of these prompts into this step."""
        done = queued.computed + tokens
        last = done == queued.tokens
        samples = last and self._bins[queued.bin].output_tokens > 0
        self.chunks.append(
            (len(self.weights), tokens, queued.computed, queued.count, int(samples), queued.bin)
        )
        queued.computed = done
        self._free -= queued.count * self._blocks(done)
        self._running += queued.count
        if last:
            complete.append(queued)
        else:
            self._unfinished = queued

    def _start(self, queued: _Queued, row: int) -> None:
        """Turn completed prompts into decoding requests, from the next iteration on."""
        length = self._bins[queued.bin].input_tokens + self._bins[queued.bin].output_tokens
        group = _Group(
            queued.bin,
            queued.count,
            queued.tokens - self.iteration - 1,
            # One more token is there than computed; the last one is sampled, never computed.
            self.iteration + max(length - queued.tokens - 1, 0),
            row if queued.first_token_row < 0 else queued.first_token_row,
            row + 1,
        )
        self._growing[-group.offset % self._block_size] += group.count
        self._decoding += group.count
        if self._groups:
            previous = next(reversed(self._groups.values()))
            if (previous.bin, previous.offset, previous.first_token_row) == (
                group.bin,
                group.offset,
                group.first_token_row,
            ):
                previous.count += group.count
                return
        self._groups[self._next_key] = group
        heapq.heappush(self._finishes, (group.last_iteration, self._next_key))
        self._next_key += 1

    # Stretches of decode ---------------------------------------------------------------------

    def _stretch(self) -> int:
        """Iterations, this one included, until a request finishes or blocks run out.

        Nobody can be admitted on the way: places and free blocks only become fewer.
        """
        self._release()  # this iteration did not need those blocks, and nobody waits for them
        while self._finishes[0][1] not in self._groups:
            heapq.heappop(self._finishes)
        more = self._finishes[0][0] - self.iteration
        if self._growth(more) > self._free:
            more = bisect_right(range(more), self._free, key=self._growth) - 1
        self._free -= self._growth(more)
        return 1 + more

    def _growth(self, iterations: int) -> int:
        """Blocks that the iterations after this one need."""
        cycles, rest = divmod(iterations, self._block_size)
        start = (self.iteration + 1) % self._block_size
        around = self._growing + self._growing
        return cycles * self._decoding + sum(around[start : start + rest])

    def _decode_rows(self, iterations: int) -> list[int]:
        if iterations <= _MIN_STEPS:
            return [iterations]
        contexts = [
            (group.offset + self.iteration, group.count)
            for group in self._groups.values()
            if not group.finished
        ]
        return split_stretch(iterations, contexts)

    # Ends ------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Stop the groups whose last iteration is over; their places are freed by _release."""
        while self._finishes and self._finishes[0][0] < self.iteration:
            key = heapq.heappop(self._finishes)[1]
            group = self._groups.get(key)
            if group is None:
                continue
            self._record(group)
            self._decoding -= group.count
            self._growing[-group.offset % self._block_size] -= group.count
            row = len(self.weights) - 1
            self.milestones.append((group.bin, group.count, group.first_token_row, row))
            group.finished = True
            self._leaving.append(key)

    def _release(self) -> None:
        for key in self._leaving:
            group = self._groups.pop(key, None)
            if group:
                self._running -= group.count
                self._free += group.count * self._blocks(group.offset + group.last_iteration + 1)
        self._leaving.clear()

    def _record(self, group: _Group) -> None:
        """Close the rows in which the group decoded with its present count."""
        row = len(self.weights)
        if row > group.since_row:
            self.segments.append((group.bin, group.count, group.offset, group.since_row, row))
            group.since_row = row


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
    near = iterations // _MIN_STEPS  # groups that pass this close to each other share a split
    clusters: list[list[int]] = []  # [sequences, sum of their iterations, last iteration]
    for iteration, count in sorted(crossings):
        if not clusters or iteration - clusters[-1][2] > near:
            clusters.append([0, 0, 0])
        cluster = clusters[-1]
        cluster[:] = cluster[0] + count, cluster[1] + count * iteration, iteration
    heaviest = sorted(clusters, reverse=True)[: _MAX_ROWS // 2]
    cuts = sorted({0, iterations, *(round(total / count) for count, total, _ in heaviest)})
    rows = [b - a for a, b in itertools.pairwise(cuts)]
    while len(rows) < _MAX_ROWS and max(rows) > _MIN_STEPS:
        i = rows.index(max(rows))
        rows[i : i + 1] = [rows[i] // 2, rows[i] - rows[i] // 2]
    return rows
