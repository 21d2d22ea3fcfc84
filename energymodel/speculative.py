"""Speculative decoding: how many tokens a step yields, and a workload counted in such steps.

A small model (or a look-up of n-grams) drafts G tokens for each sequence, the model verifies them
in one step and keeps those before the first that it would not have chosen, and one of its own. Is a
draft token accepted with probability A where those before it were, a step that verifies one yields

    X = 1 ... G + 1 tokens,   P(X = j) = A^(j-1) (1 - A) for j <= G,   P(X = G + 1) = A^G,
    E[X] = (1 - A^(G+1)) / (1 - A)

(Leviathan, Kalman, Matias, arXiv 2211.17192, eq. 1). Sequences that began together end apart: the
steps N(n) that n tokens take are a renewal process, E[N(n)] = 1 + sum_j P(X = j) E[N(n - j)], of
variance n Var[X] / E[X]^3 (W. Feller, An Introduction to Probability Theory, vol. 2, XI.3).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, pairwise
from statistics import NormalDist

import numpy as np

from energymodel.blocks import CrossAttention, Mlp, Moe, SoftmaxAttention
from energymodel.deployment import NGRAM, Deployment
from energymodel.errors import InputError
from energymodel.model import ModelSpec
from energymodel.serving import Schedule
from energymodel.workload import Workload

# How what is drafted was measured, and nothing else.
PLAIN: Mapping[str, object] = {
    "sampling": "greedy",
    "penalties": False,
    "detokenize": False,
    "server": False,
}
# Beyond this many tokens the steps that they take grow by 1 / E[X] each.
EXACT_TOKENS = 4096
# Groups of a bin that need different numbers of steps: of a request each at the slow end, whose
# steps have least company, of up to this share of all at the other.
LARGEST_GROUP = 1 / 8
# Waves of requests, one after the other, that a bin is split into at most.
MOST_WAVES = 8


def yields(deployment: Deployment) -> tuple[float, ...]:
    """P(X = 1) ... P(X = G + 1), where a draft is found in a share of the steps alone."""
    rate, found = deployment.acceptance_rate or 0.0, deployment.draft_rate
    reached = [rate**i for i in range(deployment.num_speculative_tokens + 1)]
    chances = [found * p for p in (*(a - b for a, b in pairwise(reached)), reached[-1])]
    return (chances[0] + 1.0 - found, *chances[1:])


def tokens_per_step(deployment: Deployment) -> float:
    """Mean tokens that a step yields: E[X] of the module's equations where every step drafts."""
    return sum(p * j for j, p in enumerate(yields(deployment), start=1))


@lru_cache(maxsize=256)
def _mean_steps(chances: tuple[float, ...]) -> tuple[float, ...]:
    """E[N(n)] for n = 0 ... EXACT_TOKENS."""
    means = [0.0]
    for n in range(1, EXACT_TOKENS + 1):
        means.append(1.0 + sum(p * means[max(n - j, 0)] for j, p in enumerate(chances, start=1)))
    return tuple(means)


def mean_steps(tokens: int, chances: tuple[float, ...]) -> float:
    """E[N(n)]: steps that ``tokens`` tokens take on average, with the ``yields`` of a step."""
    each = sum(p * j for j, p in enumerate(chances, start=1))
    beyond = max(tokens - EXACT_TOKENS, 0)
    return _mean_steps(chances)[tokens - beyond] + beyond / each


def step_groups(requests: int, tokens: int, chances: tuple[float, ...]) -> list[tuple[int, int]]:
    """(requests, steps that each takes for ``tokens`` tokens) of requests that begin together.

    The order statistics of a normal distribution with the mean and the variance of N(n); the steps
    of all sum to ``requests`` E[N(n)] up to rounding. ``chances`` are the ``yields`` of a step.
    """
    mean = mean_steps(tokens, chances)
    each = sum(p * j for j, p in enumerate(chances, start=1))
    square = sum(p * j * j for j, p in enumerate(chances, start=1))
    deviation = math.sqrt(max(tokens * (square - each**2) / each**3, 0.0))
    sizes = _sizes(requests)
    ends = np.cumsum(sizes)
    levels = (ends - np.array(sizes) / 2) / requests  # from the slow end
    offsets = np.array([NormalDist().inv_cdf(1.0 - level) for level in levels])
    offsets -= offsets @ sizes / requests
    least, most = math.ceil(tokens / len(chances)), tokens
    steps = np.clip(np.rint(mean + deviation * offsets), least, most).astype(int)
    pairs = groupby(zip(sizes, steps.tolist(), strict=True), key=lambda pair: pair[1])
    return [(sum(size for size, _ in alike), n) for n, alike in pairs]


def _sizes(requests: int) -> list[int]:
    """1, 1, 2, 4, ... up to a share of all, and what is left."""
    most = max(1, math.ceil(requests * LARGEST_GROUP))
    sizes, left, size = [], requests, 1
    while left:
        taken = min(size, most, left)
        sizes.append(taken)
        left -= taken
        size = max(1, sum(sizes))
    return sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class InSteps:
    """A workload whose ``output_tokens`` are the steps that yield a token or more.

    ``origin`` is the bin of the asked workload that each bin came from, ``growth`` how many tokens
    its requests' caches grow in a step. ``kept_share``: places in the cache that requests hold on
    average as they are counted here, over those that they hold in truth.
    """

    workload: Workload
    asked: Workload
    origin: tuple[int, ...]
    growth: tuple[float, ...]
    kept_share: float
    queries: float
    tokens_per_step: float

    def in_tokens(self, schedule: Schedule) -> Schedule:
        """A schedule of ``workload`` with contexts and bins of what was asked."""
        steps = schedule.steps
        decodes, chunks = steps.decodes, steps.chunks
        origin = np.array(self.origin, dtype=np.int64)
        prompts = np.array([b.input_tokens for b in self.workload.bins], dtype=np.float64)
        prompt = prompts[decodes.bin]
        grown = (decodes.context - prompt) * np.array(self.growth)[decodes.bin]
        return replace(
            schedule,
            steps=replace(
                steps,
                chunks=replace(chunks, bin=origin[chunks.bin]),
                decodes=replace(
                    decodes,
                    bin=origin[decodes.bin],
                    context=prompt + grown,
                    queries=self.queries,
                    samples=self.queries,
                ),
            ),
            milestones=replace(schedule.milestones, bin=origin[schedule.milestones.bin]),
            tokens_per_step=self.tokens_per_step,
        )


def scheduled(deployment: Deployment) -> Deployment:
    """The deployment with the tokens that the scheduler may give out.

    Of those of a step a draft model takes one more for each sequence
    (``_set_max_num_scheduled_tokens`` in ``vllm/config/vllm.py``).
    """
    if deployment.speculative_model in (None, NGRAM):
        return deployment
    left = deployment.max_num_batched_tokens - deployment.max_num_seqs
    return replace(deployment, max_num_batched_tokens=left)


def in_steps(workload: Workload, deployment: Deployment) -> InSteps:
    """The workload as verified steps see it; as it is, where nothing is drafted."""
    bins = workload.bins
    if deployment.speculative_model is None:
        return InSteps(
            workload=workload,
            asked=workload,
            origin=tuple(range(len(bins))),
            growth=(1.0,) * len(bins),
            kept_share=1.0,
            queries=1.0,
            tokens_per_step=1.0,
        )
    drafted, chances = deployment.num_speculative_tokens, yields(deployment)
    split, origin, growth = [], [], []
    held = np.zeros(2)  # places x steps, as counted and in truth
    made = taken = 0.0
    for index, b in enumerate(bins):
        tokens = max(b.output_tokens - 1, 0)
        waves = min(math.ceil((b.count or 0) / deployment.max_num_seqs), MOST_WAVES)
        for wave in range(waves):
            count = (b.count or 0) * (wave + 1) // waves - (b.count or 0) * wave // waves
            for size, steps in step_groups(count, tokens, chances):
                split.append(replace(b, count=size, output_tokens=min(b.output_tokens, 1) + steps))
                origin.append(index)
                growth.append(tokens / steps if steps else 1.0)
                counted, true = b.input_tokens + steps / 2, b.input_tokens + tokens / 2 + drafted
                held += size * max(steps, 1) * np.array([counted, true])
                made, taken = made + size * tokens, taken + size * steps
    return InSteps(
        workload=Workload(bins=tuple(split)),
        asked=workload,
        origin=tuple(origin),
        growth=tuple(growth),
        kept_share=float(held[0] / held[1]),
        queries=1.0 + deployment.draft_rate * drafted,
        tokens_per_step=made / taken if taken else 1.0,
    )


@lru_cache(maxsize=16)
def _found(name: str) -> ModelSpec:
    from energymodel.diffusion.pipeline import Pipeline
    from energymodel.find_model import find_any

    spec, _ = find_any(name)
    if isinstance(spec, Pipeline):
        raise InputError(f"speculative_model '{name}' makes images or videos: it drafts no tokens.")
    return spec


def draft_model(deployment: Deployment) -> ModelSpec | None:
    """The model that drafts; None where nothing does, or n-grams are looked up.

    Raises:
        InputError: there is no such model.
    """
    name = deployment.speculative_model
    return None if name is None or name == NGRAM else _found(name)


def check(model: ModelSpec, deployment: Deployment, workload: Workload) -> None:
    """Refuse speculative decoding that vLLM refuses, or that cannot be predicted.

    Raises:
        InputError: says what and why.
    """
    if deployment.speculative_model is None:
        for field in ("num_speculative_tokens", "acceptance_rate"):
            if getattr(deployment, field):
                raise InputError(f"{field} needs speculative_model, which says what drafts.")
        return
    if deployment.speculative_model != NGRAM and deployment.draft_rate != 1.0:
        raise InputError(
            "draft_rate must be 1 unless speculative_model is ngram: models always draft."
        )
    if deployment.num_speculative_tokens < 1:
        raise InputError("num_speculative_tokens must be at least 1 with speculative_model.")
    if deployment.acceptance_rate is None:
        raise InputError(
            "acceptance_rate must be given with speculative_model: it depends on the texts, and "
            "vLLM's log of a running server says it."
        )
    if workload.online:
        raise InputError(
            "speculative_model must be left out with requests_per_s: speculative decoding is "
            "predicted for bins with count."
        )
    _check_replica(deployment)
    _check_models(model, draft_model(deployment))


def _check_replica(deployment: Deployment) -> None:
    for field in ("tensor_parallel_size", "pipeline_parallel_size"):
        if getattr(deployment, field) > 1:
            raise InputError(
                f"{field} must be 1 with speculative_model: drafts over several GPUs are not "
                "predicted."
            )
    for field, measured in PLAIN.items():
        if getattr(deployment, field) != measured:
            raise InputError(
                f"{field} must be left out with speculative_model: what the host and the sampler "
                "take was measured without it."
            )
    # The tokens of every sequence, and a place more for what a draft model reads.
    least = (deployment.num_speculative_tokens + 2) * deployment.max_num_seqs
    if least > deployment.max_num_batched_tokens:
        raise InputError(
            f"max_num_batched_tokens must be at least {least:,} with {deployment.max_num_seqs:,} "
            f"sequences of {deployment.num_speculative_tokens} speculative tokens, got "
            f"{deployment.max_num_batched_tokens:,}."
        )


def _check_models(model: ModelSpec, draft: ModelSpec | None) -> None:
    for spec in (model, *([draft] if draft else [])):
        _check_attention(spec)
    if draft and draft.vocab_size != model.vocab_size:
        raise InputError(
            f"speculative_model '{draft.name}' has a vocabulary of {draft.vocab_size:,} tokens and "
            f"'{model.name}' one of {model.vocab_size:,}: vLLM wants them alike."
        )


def _check_attention(model: ModelSpec) -> None:
    mixers = (
        leaf
        for layer, _ in model.layer_groups()
        for leaf in layer.leaves
        if not isinstance(leaf, (Mlp, Moe))
    )
    if model.kind != "decoder" or any(
        not isinstance(leaf, SoftmaxAttention) or isinstance(leaf, CrossAttention)
        for leaf in mixers
    ):
        raise InputError(
            f"speculative decoding is predicted for decoders with softmax attention, and "
            f"'{model.name}' is none."
        )


def warnings(deployment: Deployment) -> Sequence[str]:
    """What a prediction with speculative decoding takes as given."""
    if deployment.speculative_model is None:
        return []
    found = [
        (
            f"acceptance_rate {deployment.acceptance_rate:g} is taken as given: the speed-up is "
            "that of texts of which it holds."
        )
    ]
    if deployment.speculative_model == NGRAM:
        found.append(
            f"draft_rate {deployment.draft_rate:g} is taken as given: the share of a sequence's "
            "steps for which n-grams find a draft."
        )
    return found
