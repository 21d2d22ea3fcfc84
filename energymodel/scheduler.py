"""State of vLLM's scheduler, moved from event to event; the rules are told in serving.py."""

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from energymodel.context_sums import ContextSums
from energymodel.deployment import Deployment
from energymodel.prefix_cache import SharedPrefixes
from energymodel.sequence_blocks import BlockGrowth, SequenceBlocks
from energymodel.stretches import MIN_STEPS, split_stretch
from energymodel.workload import Workload

# Iterations that no run has.
FOREVER = 2**62


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
        contexts: ContextSums | None = None,
    ) -> None:
        self._bins = workload.bins
        self._blocks = blocks
        self._max_seqs = deployment.max_num_seqs
        self._budget = deployment.max_num_batched_tokens
        self._queries = 1 + deployment.num_speculative_tokens  # of each decoding request
        self._free = kv_tokens // deployment.block_size
        self._prefixes = SharedPrefixes(workload.bins, deployment, blocks)
        self.overlap = overlap  # a step is scheduled before the one before it has returned
        self._whole_prompts = whole_prompts
        self._contexts = contexts

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
        self.decoding: list[int] = []  # sequences that decode in each row
        # Keys that those see in the middle of each row, for each window of ``contexts``, if given.
        self.visible: list[tuple[float, ...]] = []
        # (row, tokens, context, count, samples, bin)
        self.chunks: list[tuple[int, int, int, int, int, int]] = []
        # (bin, count, offset, first row, row after the last)
        self.segments: list[tuple[int, int, int, int, int]] = []
        # (bin, count, row of the first token, row of the finish)
        self.milestones: list[tuple[int, int, int, int]] = []
        self.finished = 0  # requests

    @property
    def busy(self) -> bool:
        """Whether any request is left."""
        return bool(self._waiting or self._groups or self._unfinished)

    def arrive(self, index: int) -> None:
        """Queue one more request of a bin."""
        self._waiting.append(_Queued(index, 1, self._bins[index].input_tokens))

    def schedule(self, horizon: Callable[[], int] = lambda: FOREVER) -> None:
        """Do one iteration, or all up to the next event where the ones between are pure decode.

        ``horizon`` is asked how many iterations of pure decode there may be at most, 1 or more.
        """
        self._preempted = False
        self._grow()
        complete = self._prefill()
        prefilled = bool(self.chunks) and self.chunks[-1][0] == len(self.weights)
        if prefilled or self._preempted or (self._leaving and self._waiting):
            steps = [1] if prefilled or self._decoding else []
        elif self._decoding:
            steps = self._decode_rows(self._stretch(horizon()))
        else:
            steps = []  # only requests that are leaving; the GPU has nothing to do
        row = len(self.weights)
        self.weights += steps
        self._note(steps)
        for queued in complete:
            self._start(queued, row)
        self.iteration += sum(steps)
        self._release()
        self._finish()
        if not self.overlap:
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
            self._free += queued.held - self._prefixes.leave(queued.bin, 1)
            queued.computed = 0
            self._waiting.appendleft(queued)
            return
        key, group = next(reversed(self._groups.items()))
        stored = group.offset + self.iteration
        self._free += self._held(group, stored) - self._prefixes.leave(group.bin, 1)
        if not group.finished:
            self._record(group)
            self._count(group, -1)
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
        budget = self._budget - self._queries * self._decoding
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
            fitting = self._prefixes.fitting(head.bin, blocks, self._free)
            places = min(self._max_seqs - self._running, fitting)
            cached = self._prefixes.cached[head.bin]
            uncached = head.tokens - cached
            count = min(head.count, places, budget // uncached)
            if count:
                whole = _Queued(head.bin, count, head.tokens, head.first_token_row, cached)
                self._free += self._prefixes.join(head.bin, count)
                self._compute(whole, uncached, complete)
                budget -= count * uncached
                head.count -= count
            if not head.count:
                self._waiting.popleft()
                continue
            if places > count and budget and not self._whole_prompts:
                part = _Queued(head.bin, 1, head.tokens, head.first_token_row, cached)
                self._free += self._prefixes.join(head.bin, 1)
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
        self._count(group, group.count)
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

    def _stretch(self, most: int) -> int:
        """Iterations, this one included, until a request finishes, or there are too few blocks.

        Or until there are enough, freed behind windows, for a request that waits for blocks. At
        most ``most``.
        """
        self._release()  # this iteration did not need those blocks, and nobody waits for them
        while self._finishes[0][1] not in self._groups:
            heapq.heappop(self._finishes)
        enough = math.inf
        if self._waiting and self._running < self._max_seqs:
            head = self._waiting[0]
            needed = self._prefixes.needed(head.bin, self._blocks.reserved(head.tokens))
            enough = needed if self._free < needed else math.inf
        last, done = min(self._finishes[0][0], self.iteration + most - 1), self.iteration
        while done < last:
            self._pass_windows(done + 1)
            until = min(last, self._passings[0][0] - 1) if self._passings else last
            ran, self._free = self._growth.run(done + 1, until - done, self._free, enough)
            done += ran
            if done < until:
                break
        return 1 + done - self.iteration

    def _note(self, rows: list[int]) -> None:
        """Write down who decodes in the new rows, and what they see."""
        self.decoding += [self._decoding] * len(rows)
        if self._contexts is None:
            return
        start = self.iteration
        for iterations in rows:
            self.visible.append(self._contexts.visible(start + (iterations - 1) / 2))
            start += iterations

    def _count(self, group: _Group, sequences: int) -> None:
        """So many sequences of a group begin to decode, or stop where it is negative."""
        self._decoding += sequences
        self._growth.add(group.offset, sequences, group.passed)
        if self._contexts is not None:
            self._contexts.add(group.offset, sequences)

    def _decode_rows(self, iterations: int) -> list[int]:
        if iterations <= MIN_STEPS:
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
            self._count(group, -group.count)
            row = len(self.weights) - 1
            self.milestones.append((group.bin, group.count, group.first_token_row, row))
            group.finished = True
            self.finished += group.count
            self._leaving.append(key)

    def _release(self) -> None:
        for key in self._leaving:
            group = self._groups.pop(key, None)
            if group:
                self._running -= group.count
                stored = group.offset + group.last_iteration + 1
                self._free += group.count * self._held(group, stored)
                self._free -= self._prefixes.leave(group.bin, group.count)
        self._leaving.clear()

    def _record(self, group: _Group) -> None:
        """Close the rows in which the group decoded with its present count."""
        row = len(self.weights)
        if row > group.since_row:
            self.segments.append((group.bin, group.count, group.offset, group.since_row, row))
            group.since_row = row
