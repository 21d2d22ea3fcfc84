"""Speculative decoding as vLLM 0.24 runs it: what is computed in a step, and what the host adds.

- The target computes the G drafts of a sequence and the token before them in one step; where all
  sequences do so, within the captured sizes, it replays one CUDA graph (``_is_uniform_decode`` in
  ``vllm/v1/worker/gpu_model_runner.py``).
- Logits of all G + 1 tokens are made; those of drafts are gathered, widened and copied again
  (``RejectionSampler.forward`` in ``vllm/v1/sample/rejection_sampler.py``).
- A draft model then reads what the target read and one more token for each sequence, prompts
  included, and makes the first draft; G - 1 more passes of one token follow
  (``SpecDecodeBaseProposer.propose`` in ``vllm/v1/spec_decode/llm_base_proposer.py``). It has a
  KV cache and weights of its own, is never quantised along, and its graphs are never set up
  (``initialize_cudagraph_keys`` in gpu_model_runner.py is for EAGLE alone), so that every pass is
  launched kernel by kernel. N-grams are looked up by the host.
- Neither is scheduled asynchronously (``vllm/config/vllm.py``): the host schedules and prepares a
  step after the last one has returned, while the GPU has nothing to do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from energymodel import ops
from energymodel.deployment import Deployment
from energymodel.errors import InputError
from energymodel.model import ModelSpec
from energymodel.op_kinds import Op
from energymodel.profile import Profile
from energymodel.speculative import draft_model
from energymodel.steps import Chunks, Decodes, Floats, Ints, Steps

DRAFT = "draft"
# Bytes that vLLM moves for each logit of a draft beyond what sampling one token takes: gathered in
# 16 bits (read, written), copied in 32 (read, written).
REJECTION_BYTES = 2 + 2 + 4 + 4
# Bytes of a logit in 16 bits: the draft model's likeliest token is found where they lie.
LOGIT_BYTES = 2


def rejection(
    model: ModelSpec, deployment: Deployment, verified: tuple[Op, ...], steps: Steps
) -> Op:
    """What comparing drafts with the target's choice adds to sampling."""
    sampling = next(op for op in verified if op.name == "sampling")
    drafted = deployment.draft_rate * (1 + deployment.num_speculative_tokens)
    rows = drafted * steps.decoding
    hbm_bytes = rows * (model.vocab_size * float(REJECTION_BYTES))
    return replace(
        sampling,
        name="rejection",
        kind="elementwise",
        hbm_bytes=hbm_bytes,
        shape={"rows": rows, "width": float(model.vocab_size), "bytes": hbm_bytes},
        asked=(np.zeros(steps.chunks.step.size), np.ones(steps.decodes.step.size)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """What a draft model computes in each step, next to the target.

    ``first`` pass: what the target read and a token more; ``later``: a token of each sequence in
    each of ``passes`` more. ``deployment`` is how the draft model runs.
    """

    model: ModelSpec
    deployment: Deployment
    first: Steps
    later: Steps
    passes: int


def drafting(deployment: Deployment, steps: Steps) -> Drafting | None:
    """The passes of the draft model; None where there is none."""
    draft = draft_model(deployment)
    if draft is None:
        return None
    queries = steps.decodes.queries + 1
    return Drafting(
        model=draft,
        deployment=replace(
            deployment,
            quantization=None,
            speculative_model=None,
            num_speculative_tokens=0,
        ),
        first=replace(steps, decodes=replace(steps.decodes, queries=queries, samples=1)),
        later=_one_each(steps),
        passes=deployment.num_speculative_tokens - 1,
    )


def draft_operations(drafts: Drafting, steps: Steps, prompt_tokens: Ints) -> list[Op]:
    """Every call of the draft model in a step, all of component ``draft``."""
    draft, alone = drafts.model, drafts.deployment
    made = [_named(op, draft) for op in ops.lower(draft, alone, drafts.first, prompt_tokens)]
    if drafts.passes:
        for op in ops.lower(draft, alone, drafts.later, prompt_tokens):
            count, asked = drafts.passes * op.count, _by_request(op, steps)
            named = _named(op, draft)
            made.append(replace(named, name=f"{named.name}_more", count=count, asked=asked))
    return made


def _named(op: Op, draft: ModelSpec) -> Op:
    if op.name == "sampling":
        hbm_bytes = np.asarray(op.shape["rows"]) * float(LOGIT_BYTES * draft.vocab_size)
        op = replace(op, hbm_bytes=hbm_bytes, shape={**op.shape, "bytes": hbm_bytes})
    return replace(op, name=f"{DRAFT}_{op.name}", component=DRAFT, captured=False)


def _one_each(steps: Steps) -> Steps:
    """Each sequence that decodes, or has just completed its prompt, computes one token more."""
    chunks, decodes = steps.chunks, steps.decodes
    none = np.zeros(0, dtype=np.int64)
    return replace(
        steps,
        chunks=Chunks(step=none, tokens=none, context=none, count=none, last=none, bin=none),
        decodes=Decodes(
            step=np.concatenate([decodes.step, chunks.step]),
            context=np.concatenate(
                [decodes.context + decodes.queries, (chunks.context + chunks.tokens).astype(float)]
            ),
            count=np.concatenate([decodes.count, chunks.count * chunks.last]),
            bin=np.concatenate([decodes.bin, chunks.bin]),
        ),
    )


def _by_request(op: Op, steps: Steps) -> tuple[Floats, Floats]:
    """Who asks for an operation of ``_one_each``, by the rows of ``steps``."""
    rows = steps.decodes.step.size
    each = np.ones(rows + steps.chunks.step.size) if op.asked is None else op.asked[1]
    return each[rows:] * steps.chunks.last, each[:rows]


HOST = ("sync_step_s", "sync_sequence_s", "launch_draft_layer_s")
"""What a profile knows of the host where tokens are drafted; see ``host_numbers``."""


def host_numbers(profile: Profile) -> Mapping[str, float]:
    """The engine's numbers where tokens are drafted.

    ``sync_step_s`` and ``sync_sequence_s`` pass between steps, ``launch_draft_layer_s`` launches a
    layer of a draft model.

    Raises:
        InputError: they were not measured.
    """
    engine = profile.engines["vllm"]
    lacking = [name for name in HOST if name not in engine]
    if lacking:
        raise InputError(
            f"profile '{profile.name}' has no host times of speculative decoding (engines.vllm."
            f"{lacking[0]}); leave speculative_model out."
        )
    return {name: estimate.value for name, estimate in engine.items()}


def gap_seconds(steps: Steps, engine: Mapping[str, float]) -> Floats:
    """Seconds between steps in which the host works and the GPU waits; shape [n_steps]."""
    return engine["sync_step_s"] + engine["sync_sequence_s"] * steps.sequences
