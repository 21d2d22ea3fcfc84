"""State of vLLM's scheduler, moved from event to event; the rules are told in serving.py."""

import heapq
import itertools
import math
from collections import deque
from dataclasses import dataclass

from energymodel.deployment import Deployment
from energymodel.sequence_blocks import BlockGrowth, SequenceBlocks
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
    held: int = 0  # blocks of each


@dataclass(slots=True)
class _Group:
    """``count`` requests that decode in lockstep: their KV holds ``offset + iteration`` tokens."""

    bin: int
    count: int
    offset: int
    last_iteration: int
    first_token_row: int
    since_row: int  # first row not yet recorded for this group at this count
    prompt: int  # tokens that were there when decoding began
    held: int  # blocks of each then
    passed: int = 0  # windows that the sequences are longer than
    finished: bool = False


class Scheduler:
    """State of the scheduler between two events; blocks and places are counted, not named."""

    def __init__(
        self,
        workload: Workload,
        deployment: Deployment,
        kv_tokens: int,
        *,
        blocks: SequenceBlocks,
        overlap: bool,
        whole_prompts: bool = False,
    ) -> None:
        self._bins = workload.bins
        self._blocks = blocks
        self._max_seqs = deployment.max_num_seqs
        self._budget = deployment.max_num_batched_tokens
        self._free = kv_tokens // deployment.block_size
        self._overlap = overlap
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
        self._growth = BlockGrowth(blocks)
        # Heap of (iteration from which its sequences are beyond the next window, key of the group).
        self._passings: list[tuple[int, int]] = []
        self._behind = 0  # blocks of new groups that their first decode step finds unneeded
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

    # Running requests ------------------------------------------------------------------------

    def _grow(self) -> None:
        """Give each decoding request the block that this iteration needs; take those behind it."""
        self._pass_windows(self.iteration)
        taken, freed = self._growth.at(self.iteration)
        freed, self._behind = freed + self._behind, 0
        if taken <= self._free:
            self._free += freed - taken
            return
        for key in list(self._groups):
            group = self._groups.get(key)
            if group is None:
                break  # preempted, with everyone after it
            if group.finished:
                continue
            stored = group.offset + self.iteration
            more = self._blocks.held(stored, stored + 1) - self._held(group, stored)
            granted = 0
            while granted < group.count:
                fit = group.count - granted
                if more > 0:
                    fit = min(fit, self._free // more)
                self._free -= fit * more
                granted += fit
                if granted < group.count:
                    self._preempt()

    def _held(self, group: _Group, stored: int) -> int:
        """Blocks of each of the group when ``stored`` tokens have places."""
        return group.held if stored == group.prompt else self._blocks.held(stored - 1, stored)

    def _pass_windows(self, iteration: int) -> None:
        """Let sequences that are beyond a window at an iteration free blocks from then on."""
        while self._passings and self._passings[0][0] <= iteration:
            key = heapq.heappop(self._passings)[1]
            group = self._groups.get(key)
            if group and not group.finished:
                self._growth.pass_window(group.offset, group.count, group.passed)
                group.passed += 1
                self._await_window(key, group)

    def _await_window(self, key: int, group: _Group) -> None:
        """Note when a decoding group is beyond its next window, its first step left aside."""
        if group.passed < len(self._growth.windows):
            beyond = max(self._growth.windows[group.passed], group.prompt + 1) - group.offset
            heapq.heappush(self._passings, (beyond, key))

    def _preempt(self) -> None:
        """Take the KV of the last admitted request and queue it again at the head."""
        self._preempted = True
        self._running -= 1
        if self._unfinished:
            queued = self._unfinished
            self._unfinished = None
            self._free += queued.held
            queued.computed = 0
            self._waiting.appendleft(queued)
            return
        key, group = next(reversed(self._groups.items()))
        stored = group.offset + self.iteration
        self._free += self._held(group, stored)
        if not group.finished:
            self._record(group)
            self._decoding -= 1
            self._growth.add(group.offset, -1, group.passed)
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
            held = self._blocks.held(queued.computed, queued.computed + tokens)
            if held - queued.held > self._free:
                self._preempt()  # the last admitted is this one itself
                return complete
            self._free += queued.held
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
            blocks = self._blocks.reserved(head.tokens)
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
        queued.held = self._blocks.held(queued.computed, done)
        queued.computed = done
        self._free -= queued.count * queued.held
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
            queued.tokens,
            queued.held,
        )
        self._growth.add(group.offset, group.count, group.passed)
        self._decoding += group.count
        if self._growth.windows and group.last_iteration > self.iteration:
            needed = self._blocks.held(group.prompt, group.prompt)
            self._behind += group.count * (group.held - needed)
        if self._groups:
            previous = next(reversed(self._groups.values()))
            alike = (previous.bin, previous.offset, previous.first_token_row, previous.held)
            if alike == (group.bin, group.offset, group.first_token_row, group.held):
                previous.count += group.count
                return
        self._groups[self._next_key] = group
        heapq.heappush(self._finishes, (group.last_iteration, self._next_key))
        self._await_window(self._next_key, group)
        self._next_key += 1

    # Stretches of decode ---------------------------------------------------------------------

    def _stretch(self) -> int:
        """Iterations, this one included, until a request finishes, or there are too few blocks.

        Or until there are enough, freed behind windows, for a request that waits for blocks.
        """
        self._release()  # this iteration did not need those blocks, and nobody waits for them
        while self._finishes[0][1] not in self._groups:
            heapq.heappop(self._finishes)
        enough = math.inf
        if self._waiting and self._running < self._max_seqs:
            reserved = self._blocks.reserved(self._waiting[0].tokens)
            enough = reserved if self._free < reserved else math.inf
        last, done = self._finishes[0][0], self.iteration
        while done < last:
            self._pass_windows(done + 1)
            until = min(last, self._passings[0][0] - 1) if self._passings else last
            ran, self._free = self._growth.run(done + 1, until - done, self._free, enough)
            done += ran
            if done < until:
                break
        return 1 + done - self.iteration

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
            self._growth.add(group.offset, -group.count, group.passed)
            row = len(self.weights) - 1
            self.milestones.append((group.bin, group.count, group.first_token_row, row))
            group.finished = True
            self._leaving.append(key)

    def _release(self) -> None:
        for key in self._leaving:
            group = self._groups.pop(key, None)
            if group:
                self._running -= group.count
                stored = group.offset + group.last_iteration + 1
                self._free += group.count * self._held(group, stored)
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
