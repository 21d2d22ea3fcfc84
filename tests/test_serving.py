"""The scheduler against a literal one that moves request by request and step by step."""

import time
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energymodel.deployment import Deployment
from energymodel.errors import InputError
from energymodel.sequence_blocks import SequenceBlocks, TokenGroups
from energymodel.serving import Schedule, schedule_offline
from energymodel.stretches import split_stretch
from energymodel.workload import Bin, Workload


@dataclass(eq=False)
class Request:
    bin: int
    prompt: int
    output: int
    computed: int = 0
    sampled: int = 0  # tokens that this request will have when all its steps have returned
    blocks: list[list[bool]] = field(default_factory=list)  # of each group: is it still held?
    first_step: int = -1
    filling: bool = True  # prompt (again) unfinished


@dataclass
class Step:
    chunks: Counter[tuple[int, int, int, bool]] = field(default_factory=Counter)
    decodes: Counter[tuple[int, int]] = field(default_factory=Counter)
    running: int = 0
    tokens: int = 0
    blocks: int = 0


@dataclass
class Brute:
    steps: list[Step]
    ends: Counter[tuple[int, int, int]]  # (bin, step of the first token, last step)
    preemptions: int


def simulate(  # noqa: C901, PLR0912, PLR0917 (one loop, as literal as the rules)
    workload: Workload,
    deployment: Deployment,
    capacity: int,
    overlap: bool,
    state: int = 0,
    groups: tuple[TokenGroups, ...] = (TokenGroups(),),
) -> Brute:
    free = capacity // deployment.block_size
    # (tokens in a block, window) of each group, and states as groups with a single endless block.
    every = [(g.ratio * deployment.block_size, g.window) for g in groups for _ in range(g.count)]
    every += [(10**9, None)] * state
    waiting = deque(
        Request(i, b.input_tokens, b.output_tokens)
        for i, b in enumerate(workload.bins)
        for _ in range(b.count or 0)
    )
    running: list[Request] = []
    leaving: list[Request] = []  # done, but the scheduler has not seen it yet
    result = Brute([], Counter(), 0)

    def drop(request: Request) -> None:
        nonlocal free
        free += sum(map(sum, request.blocks))
        request.blocks = []

    def allocate(request: Request, tokens: int) -> bool:
        nonlocal free
        request.blocks = request.blocks or [[] for _ in every]
        more = 0
        for (size, window), blocks in zip(every, request.blocks, strict=True):
            behind = max(request.computed - window + 1, 0) // size if window else 0
            free += sum(blocks[:behind])
            blocks[:behind] = [False] * behind
            more += -(-(request.computed + tokens) // size) - len(blocks)
        if more > free:
            return False
        free -= more
        for (size, _), blocks in zip(every, request.blocks, strict=True):
            blocks.extend([True] * (-(-(request.computed + tokens) // size) - len(blocks)))
        return True

    def reserved(tokens: int) -> int:
        budget = deployment.max_num_batched_tokens
        return sum(
            min(-(-tokens // size), -(-(window - 1 + budget) // size) + 1 if window else tokens)
            for size, window in every
        )

    while waiting or running:
        step = Step()
        budget = deployment.max_num_batched_tokens
        scheduled: list[tuple[Request, int]] = []
        preempted = False
        i = 0
        while i < len(running) and budget > 0:
            request = running[i]
            i += 1
            if request in leaving:
                continue
            new = min(request.prompt + request.sampled - request.computed, budget)
            while not allocate(request, new):
                victim = running.pop()
                drop(victim)
                preempted = True
                result.preemptions += 1
                if victim in leaving:
                    leaving.remove(victim)
                else:
                    victim.computed = 0
                    victim.filling = True
                    waiting.appendleft(victim)
                if victim is request:
                    new = 0
                    break
            if new:
                scheduled.append((request, new))
                budget -= new
        while not preempted and waiting and budget and len(running) < deployment.max_num_seqs:
            request = waiting[0]
            whole = request.prompt + request.sampled
            if reserved(whole) > free:
                break
            new = min(whole, budget)
            assert allocate(request, new)
            running.append(waiting.popleft())
            scheduled.append((request, new))
            budget -= new
        before, leaving = leaving, []
        for request, new in scheduled:
            done = request.computed + new == request.prompt + request.sampled
            if not request.filling:
                step.decodes[request.bin, request.computed] += 1
            else:
                samples = done and request.output > 0
                step.chunks[request.bin, new, request.computed, samples] += 1
            request.computed += new
            step.tokens += new
            if done:
                request.sampled += 1
                request.filling = False
                if request.first_step < 0:
                    request.first_step = len(result.steps)
                if request.sampled >= request.output:
                    leaving.append(request)
                    result.ends[request.bin, request.first_step, len(result.steps)] += 1
        step.running = len(running)
        step.blocks = capacity // deployment.block_size - free
        for request in before if overlap else leaving:
            running.remove(request)
            drop(request)
        if not overlap:
            leaving = []
        if scheduled:
            result.steps.append(step)
    return result


def expand(schedule: Schedule) -> list[Step]:
    steps = schedule.steps
    first = np.cumsum(steps.weight) - steps.weight
    result = [Step() for _ in range(schedule.iterations)]
    c = steps.chunks
    for i in range(c.step.size):
        assert steps.weight[c.step[i]] == 1
        key = (int(c.bin[i]), int(c.tokens[i]), int(c.context[i]), bool(c.last[i]))
        result[int(first[c.step[i]])].chunks[key] += int(c.count[i])
    d = steps.decodes
    for i in range(d.step.size):
        weight = int(steps.weight[d.step[i]])
        start = d.context[i] - (weight - 1) / 2
        assert start == int(start)
        for j in range(weight):
            step = result[int(first[d.step[i]]) + j]
            step.decodes[int(d.bin[i]), int(start) + j] += int(d.count[i])
    return result


def workload_of(*bins: tuple[int, int, int]) -> Workload:
    return Workload(bins=tuple(Bin(input_tokens=i, output_tokens=o, count=n) for i, o, n in bins))


Groups = tuple[TokenGroups, ...]
GROUPS = st.builds(
    TokenGroups,
    count=st.integers(1, 3),
    window=st.one_of(st.none(), st.integers(1, 60)),
    ratio=st.sampled_from([1, 1, 2, 3]),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Workload, Deployment, int, bool, int, Groups]:
    rows = draw(
        st.lists(
            st.tuples(st.integers(1, 70), st.integers(0, 90), st.integers(1, 9)),
            min_size=1,
            max_size=6,
        )
    )
    seqs = draw(st.integers(1, 12))
    deployment = Deployment(
        max_num_seqs=seqs,
        max_num_batched_tokens=draw(st.integers(seqs, 120)),
        block_size=draw(st.sampled_from([1, 4, 16])),
    )
    size = deployment.block_size
    # Blocks of recurrent states, which a sequence takes however long it is.
    state = draw(st.integers(0, 3))
    groups = draw(st.one_of(st.just((TokenGroups(),)), st.lists(GROUPS, min_size=1, max_size=3)))
    need = SequenceBlocks(
        size=size,
        groups=tuple(groups),
        state_blocks=state,
        budget=deployment.max_num_batched_tokens,
    )
    longest = max(need.reserved(i + max(o, 1) - 1) for i, o, _ in rows)
    capacity = size * draw(st.integers(longest, 5 * longest)) + draw(st.integers(0, size - 1))
    return workload_of(*rows), deployment, capacity, draw(st.booleans()), state, tuple(groups)


@settings(max_examples=300, deadline=None)
@given(cases())
def test_every_iteration_is_that_of_the_literal_scheduler(
    case: tuple[Workload, Deployment, int, bool, int, Groups],
) -> None:
    workload, deployment, capacity, overlap, state, groups = case
    brute = simulate(workload, deployment, capacity, overlap, state, groups)
    schedule = schedule_offline(
        workload,
        deployment,
        capacity,
        async_scheduling=overlap,
        groups=groups,
        state_blocks=state,
    )
    assert schedule.iterations == len(brute.steps) == schedule.steps.weight.sum()
    for ours, theirs in zip(expand(schedule), brute.steps, strict=True):
        assert ours.chunks == theirs.chunks
        assert ours.decodes == theirs.decodes
        assert theirs.tokens <= deployment.max_num_batched_tokens
        assert theirs.running <= deployment.max_num_seqs
        assert theirs.blocks * deployment.block_size <= capacity
    check_totals(workload, schedule, recomputed=brute.preemptions > 0)
    check_milestones(schedule, brute)


def check_totals(workload: Workload, schedule: Schedule, *, recomputed: bool) -> None:
    steps = schedule.steps
    prefilled = steps.sum_chunks(steps.chunks.tokens).sum()
    if recomputed:
        assert prefilled >= workload.input_tokens
    else:
        assert prefilled == workload.input_tokens
    decoded = steps.weight @ steps.sum_decodes(np.ones(steps.decodes.step.size))
    assert steps.sum_chunks(steps.chunks.last).sum() + decoded == workload.output_tokens


def check_milestones(schedule: Schedule, brute: Brute) -> None:
    last = np.cumsum(schedule.steps.weight).astype(int) - 1
    m = schedule.milestones
    ends: Counter[tuple[int, int, int]] = Counter()
    for b, count, first, finish in zip(
        m.bin, m.count, m.first_token_row, m.finish_row, strict=True
    ):
        ends[int(b), int(last[first]), int(last[finish])] += int(count)
    assert ends == brute.ends


def test_the_cases_reach_preemption_and_recompute() -> None:
    workload = workload_of((32, 60, 8))
    deployment = Deployment(max_num_seqs=8, max_num_batched_tokens=64)
    schedule = schedule_offline(workload, deployment, 256)
    recomputed = schedule.steps.sum_chunks(schedule.steps.chunks.tokens).sum()
    assert recomputed > workload.input_tokens
    assert (schedule.steps.chunks.tokens > 32).any()  # the prompt with what was generated


def test_by_hand() -> None:
    """Two requests of 10 + 3 and one of 20 + 1, budget 16: prompts split as the budget says."""
    deployment = Deployment(max_num_seqs=4, max_num_batched_tokens=16)
    steps = schedule_offline(workload_of((10, 3, 2), (20, 1, 1)), deployment, 10_000).steps
    # 10 + 6 of the second | 1 decode, 4 of the second, 11 of the third | 2 decodes, the last 9
    # | the second's last decode: the first left one step earlier.
    assert steps.weight.tolist() == [1, 1, 1, 1]
    c, d = steps.chunks, steps.decodes
    assert list(zip(c.step, c.tokens, c.context, c.last, c.bin, strict=True)) == [
        (0, 10, 0, 1, 0),
        (0, 6, 0, 0, 0),
        (1, 4, 6, 1, 0),
        (1, 11, 0, 0, 1),
        (2, 9, 11, 1, 1),
    ]
    assert list(zip(d.step, d.context, d.count, strict=True)) == [
        (1, 10, 1),
        (2, 11, 1),
        (2, 10, 1),
        (3, 11, 1),
    ]


def test_asynchronous_scheduling_leaves_a_place_empty_for_one_step() -> None:
    """One place, two requests of one decode step: 4 steps, and no step for the empty schedule."""
    workload = workload_of((4, 2, 1), (6, 2, 2))
    one = Deployment(max_num_seqs=1)
    assert schedule_offline(workload, one, 1000, async_scheduling=True).iterations == 6
    two = Deployment(max_num_seqs=2)
    # Together: 2 steps for the first pair; the third follows, after an empty schedule.
    assert schedule_offline(workload, two, 1000, async_scheduling=True).iterations == 4
    # Staggered: the replacement of a request that ends in step 0 starts in step 1 or 2.
    staggered = workload_of((4, 1, 1), (4, 9, 1), (4, 9, 1))
    for overlap, iterations in ((False, 10), (True, 11)):
        schedule = schedule_offline(staggered, two, 1000, async_scheduling=overlap)
        assert schedule.iterations == iterations


def test_scoring_takes_prefill_steps_only() -> None:
    deployment = Deployment(max_num_batched_tokens=1000)
    schedule = schedule_offline(workload_of((500, 0, 6)), deployment, 100_000)
    assert schedule.iterations == 3
    assert schedule.steps.decodes.step.size == 0
    assert not schedule.steps.chunks.last.any()


def test_prompt_longer_than_the_budget() -> None:
    deployment = Deployment(max_num_batched_tokens=1000)
    chunks = schedule_offline(workload_of((2500, 2, 1)), deployment, 100_000).steps.chunks
    assert chunks.tokens.tolist() == [1000, 1000, 500]
    assert chunks.context.tolist() == [0, 1000, 2000]
    assert chunks.last.tolist() == [0, 0, 1]


def windowed(schedule: Schedule, window: int) -> float:
    d = schedule.steps.decodes
    read = np.minimum(d.context + 1, window)
    return float(schedule.steps.weight @ schedule.steps.sum_decodes(read))


@pytest.mark.parametrize("bins", [[(512, 1000, 200)], [(64, 900, 32), (2048, 900, 32)]])
def test_long_stretches(bins: list[tuple[int, int, int]]) -> None:
    """Linear quantities exact, sliding windows within 0.5 %, few rows."""
    workload = workload_of(*bins)
    schedule = schedule_offline(workload, Deployment(), 1_000_000)
    brute = simulate(workload, Deployment(), 1_000_000, overlap=True)
    d = schedule.steps.decodes
    contexts = np.array([(c, n) for s in brute.steps for (_, c), n in s.decodes.items()])
    assert schedule.steps.weight @ schedule.steps.sum_decodes(d.context) == (
        contexts[:, 0] @ contexts[:, 1]
    )
    for window in (128, 512, 1024, 2048):
        exact = np.minimum(contexts[:, 0] + 1, window) @ contexts[:, 1]
        assert windowed(schedule, window) == pytest.approx(exact, rel=0.005)
    stretches = np.flatnonzero(schedule.steps.weight > 1)
    assert stretches.size <= 6


def test_split_at_powers_of_two() -> None:
    assert split_stretch(1000, [(512, 8)]) == [128, 128, 128, 128, 244, 244]
    assert split_stretch(33, [(40, 1)]) == [24, 9]
    assert sum(split_stretch(12_345, [(7, 3), (900, 40), (33, 1)])) == 12_345


@pytest.mark.parametrize(
    ("bins", "deployment", "capacity", "words"),
    [
        ([(900, 200, 1)], Deployment(), 1000, r"bins\[0\].*1,099 tokens.*holds 992"),
        ([(9, 2, 1)], Deployment(max_num_seqs=32, max_num_batched_tokens=16), 1000, "max_num_seqs"),
    ],
)
def test_impossible_input(
    bins: list[tuple[int, int, int]], deployment: Deployment, capacity: int, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        schedule_offline(workload_of(*bins), deployment, capacity)


def test_rates_are_not_offline() -> None:
    online = Workload(bins=(Bin(input_tokens=1, output_tokens=1, requests_per_s=1.0),))
    with pytest.raises(InputError, match="requests_per_s"):
        schedule_offline(online, Deployment(), 1000)


def test_large_workloads_are_quick() -> None:
    """Generous limits for a loaded machine; typical are 0.5 ms and 0.1 s."""
    start = time.perf_counter()
    for _ in range(10):
        schedule_offline(workload_of((512, 1000, 200)), Deployment(), 1_000_000)
    assert time.perf_counter() - start < 0.1
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 400, size=(3000, 2)).tolist()
    start = time.perf_counter()
    schedule_offline(workload_of(*((i, o, 1) for i, o in lengths)), Deployment(), 500_000)
    assert time.perf_counter() - start < 3
