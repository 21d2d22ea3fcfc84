"""From a workload to engine steps: vLLM's scheduler, run event by event instead of step by step.

The rules are those of vLLM 0.24 (``vllm/v1/core/sched/scheduler.py``, ``Scheduler.schedule``, and
``vllm/v1/core/kv_cache_manager.py``, ``allocate_slots``) with its defaults:

- Each step has a budget of ``max_num_batched_tokens``. Running requests are served first, in the
  order of admission: one token for a decoding one, the rest of the prompt for an unfinished one.
- Then waiting requests are admitted first come, first served, while budget, ``max_num_seqs`` and
  KV blocks allow. The first that does not fit ends admission. The last one may get only the part
  of its prompt that the budget allows, but its whole prompt must fit the free blocks
  (``scheduler_reserve_full_isl``). No blocks are held back (``watermark`` is 0).
- The step that completes a prompt samples the first output token, so ``output_tokens`` of O take
  that step and O - 1 decode steps, and the last sampled token never enters the KV cache.
- A running request that finds no free block preempts the last admitted one, which loses its KV
  and goes to the head of the queue with prompt and generated tokens to recompute. A step that
  preempted admits nobody.
- With ``enable_prefix_caching`` the tokens of a prompt that an earlier request left are not computed
  again, and lie in blocks that all who have them share (``prefix_cache.py``).
- Layers with a sliding window give back the blocks behind it (``sequence_blocks.py``).
- Asynchronous scheduling (the default, ``vllm/config/vllm.py``; off for pooling models) schedules
  a step before the previous one has returned. It computes nothing twice, but a request that
  finishes in step k keeps its place and its blocks while step k + 1 is scheduled, so whoever
  replaces it starts in step k + 2. A schedule that finds nothing to do costs no GPU step.

``max_num_seqs <= max_num_batched_tokens`` (vLLM refuses anything else) leaves every decoding
request its token, so at most one prompt is unfinished at a time and it is the last admitted.

Prompts whose tokens see those behind them (encoders, encoder-decoders) are never split over steps:
one that the budget of a step does not hold whole waits for the next (``enable_chunked_prefill`` is
off for them).

Copies of a model and the micro-batches of a pipeline are scheduled one by one (``replicas.py``).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from energymodel.context_sums import ContextSums
from energymodel.deployment import Deployment
from energymodel.errors import InputError
from energymodel.progress import tell
from energymodel.scheduler import Scheduler
from energymodel.sequence_blocks import SequenceBlocks, TokenGroups, longest
from energymodel.steps import Chunks, Decodes, Ints, Steps
from energymodel.workload import Workload

# Events of the scheduler between two looks at how far it is.
TELL_EVERY = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Milestones:
    """When requests got their first token and finished; row i is ``count[i]`` requests of one bin.

    Both happen at the end of the last iteration of the named row of ``Steps``. Scoring requests
    have no token; their ``first_token_row`` is where the prompt was complete. Shape [n_groups].
    """

    bin: Ints
    count: Ints
    first_token_row: Ints
    finish_row: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The steps of a run; ``iterations`` is how many engine iterations they stand for.

    ``tokens_per_step``: what a decoding sequence gains in a step on average. ``lanes``: the row with
    which each lane begins, of those that run side by side (``replicas.py``).
    """

    steps: Steps
    milestones: Milestones
    iterations: int
    tokens_per_step: float = 1.0
    lanes: tuple[int, ...] = (0,)


def schedule_offline(
    workload: Workload,
    deployment: Deployment,
    kv_capacity_tokens: int,
    *,
    async_scheduling: bool | None = None,
    groups: tuple[TokenGroups, ...] = (TokenGroups(),),
    state_blocks: int = 0,
    whole_prompts: bool = False,
) -> Schedule:
    """Run all requests, submitted at time 0 in the order of the bins, until none is left.

    Args:
        workload: Bins with ``count``.
        deployment: ``max_num_seqs``, ``max_num_batched_tokens`` and ``block_size`` are used.
        kv_capacity_tokens: Tokens that the blocks of the KV cache of the replica hold.
        async_scheduling: None is vLLM's default: on, unless nothing is generated.
        groups: Groups of layers that each take blocks for the tokens of a sequence.
        state_blocks: Blocks that a sequence takes beside those of its tokens.
        whole_prompts: No prompt is split over steps.

    Returns:
        Rows in order of time. ``Chunks.last`` is 1 only where a token is sampled, so it is 0 for
        scoring requests. ``Decodes`` rows are in order of request group, not of step.

    Raises:
        InputError: A request can never fit the KV cache, or the limits contradict each other.
    """
    if workload.online:
        raise InputError("An offline run needs bins with count, not requests_per_s.")
    scheduler = scheduler_of(
        workload,
        deployment,
        kv_capacity_tokens,
        async_scheduling=async_scheduling,
        groups=groups,
        state_blocks=state_blocks,
        whole_prompts=whole_prompts,
    )
    total = int(workload.requests)
    for event in itertools.count():
        if not scheduler.busy:
            break
        scheduler.schedule()
        if event % TELL_EVERY == 0:
            tell("scheduling", scheduler.finished, total)
    return expand(scheduler)


def scheduler_of(
    workload: Workload,
    deployment: Deployment,
    kv_capacity_tokens: int,
    *,
    async_scheduling: bool | None = None,
    groups: tuple[TokenGroups, ...] = (TokenGroups(),),
    state_blocks: int = 0,
    whole_prompts: bool = False,
    requests: Ints | None = None,
    contexts: ContextSums | None = None,
) -> Scheduler:
    """A scheduler to which the requests of bins with ``count`` have been submitted.

    Arguments and errors as of ``schedule_offline``. Of ``requests``, the bin of each, every one is
    known to the scheduler by its own number, and arrives when it is told to.
    """
    blocks = SequenceBlocks(
        size=deployment.block_size,
        groups=groups,
        state_blocks=state_blocks,
        budget=deployment.max_num_batched_tokens,
    )
    _check(workload, deployment, blocks, kv_capacity_tokens // deployment.block_size)
    if whole_prompts:
        _check_whole(workload, deployment)
    if async_scheduling is None:
        async_scheduling = any(b.output_tokens for b in workload.bins)
    if requests is not None:
        each = [b if b.count is None else replace(b, count=None) for b in workload.bins]
        workload = Workload(bins=tuple(each[i] for i in requests.tolist()))
    return Scheduler(
        workload,
        deployment,
        kv_capacity_tokens,
        blocks=blocks,
        overlap=async_scheduling,
        whole_prompts=whole_prompts,
        contexts=contexts,
    )


def _check(workload: Workload, deployment: Deployment, blocks: SequenceBlocks, pool: int) -> None:
    seqs, budget = deployment.max_num_seqs, deployment.max_num_batched_tokens
    if not 1 <= seqs <= budget:
        raise InputError(
            f"max_num_seqs must be from 1 to max_num_batched_tokens ({budget:,}), got {seqs:,}."
        )
    for index, b in enumerate(workload.bins):
        need = b.input_tokens + max(b.output_tokens, 1) - 1
        if blocks.reserved(need) > pool:
            raise InputError(
                f"bins[{index}]: a request of {b.input_tokens:,} input and {b.output_tokens:,} "
                f"output tokens needs room for {need:,} tokens, but the KV cache holds "
                f"{longest(blocks, pool, need):,}: use shorter requests or a deployment with more memory."
            )


def _check_whole(workload: Workload, deployment: Deployment) -> None:
    """A request fits one step, even where it is computed again after a preemption."""
    budget = deployment.max_num_batched_tokens
    for index, b in enumerate(workload.bins):
        need = b.input_tokens + b.output_tokens
        if need > budget:
            raise InputError(
                f"bins[{index}]: a request of {b.input_tokens:,} input and {b.output_tokens:,} "
                f"output tokens must fit one step of this model, but max_num_batched_tokens is "
                f"{budget:,}: raise it or use shorter requests."
            )


def expand(scheduler: Scheduler) -> Schedule:
    """Expand the recorded segments to arrays."""
    weight = np.array(scheduler.weights, dtype=np.int64)
    middle = np.cumsum(weight) - (weight + 1) / 2  # mean iteration of each row
    chunk = _columns(scheduler.chunks, 6)
    bins, count, offset, since, until = _columns(scheduler.segments, 5)
    rows = until - since
    ends = np.cumsum(rows)
    step = np.arange(ends[-1] if ends.size else 0) + np.repeat(since - ends + rows, rows)
    steps = Steps(
        weight=weight.astype(np.float64),
        chunks=Chunks(
            step=chunk[0],
            tokens=chunk[1],
            context=chunk[2],
            count=chunk[3],
            last=chunk[4],
            bin=chunk[5],
        ),
        decodes=Decodes(
            step=step,
            context=middle[step] + np.repeat(offset, rows),
            count=np.repeat(count, rows),
            bin=np.repeat(bins, rows),
        ),
    )
    done = _columns(scheduler.milestones, 4)
    milestones = Milestones(bin=done[0], count=done[1], first_token_row=done[2], finish_row=done[3])
    return Schedule(steps=steps, milestones=milestones, iterations=scheduler.iteration)


def _columns(rows: Sequence[tuple[int, ...]], width: int) -> list[Ints]:
    table = np.array(rows, dtype=np.int64).reshape(-1, width)
    return list(np.ascontiguousarray(table.T))
