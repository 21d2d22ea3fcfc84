"""Static batches: how often each network runs, on how many samples, and the calls of every pass.

A row is one kind of pass: of one stage, one size of batch and one size of sample. All rows of a run are
lowered together, as the steps of an engine are. The last batch of a bin may be smaller than the
others; bins do not share batches, but passes that are alike share a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from energymodel.deployment import Deployment
from energymodel.diffusion.calls import Call, Sizes, operation
from energymodel.diffusion.pipeline import Pipeline
from energymodel.diffusion.requests import Requests
from energymodel.op_kinds import Op
from energymodel.ops import lower
from energymodel.steps import Chunks, Decodes, Floats, Ints, Steps

PROMPT, EMPTY_PROMPT, DENOISE, DECODE = range(4)
STAGES = {"text_encoder": (PROMPT, EMPTY_PROMPT), "denoise": (DENOISE,), "vae": (DECODE,)}
"""Phases of a prediction, and the stages that they are made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Row i is ``weight[i]`` passes of ``batch[i]`` samples like ``latents``; shape [n_rows].

    Entry j says that bin ``bin[j]`` asks for ``asked[j]`` passes of row ``row[j]``; shape [n_entries].
    """

    stage: Ints
    batch: Ints
    weight: Floats
    latents: Sizes
    bin: Ints
    row: Ints
    asked: Floats


def schedule(pipeline: Pipeline, requests: Requests, most: Ints) -> Passes:
    """Batches of at most ``most`` [n_bins] samples until all are made, one batch after the other."""
    bins = np.arange(requests.count.size)
    size = np.minimum(requests.count, most)
    whole, rest = requests.count // size, requests.count % size
    # Full batches and what is left over, in each of the four stages.
    bin_ = np.tile(np.concatenate([bins, bins]), 4)
    batch = np.tile(np.concatenate([size, rest]), 4)
    times = np.tile(np.concatenate([whole, rest > 0]), 4).astype(float)
    stage = np.repeat([PROMPT, EMPTY_PROMPT, DENOISE, DECODE], 2 * bins.size)
    guided = requests.guided[bin_]
    in_turn = guided * (pipeline.plan.guidance == "sequential")
    together = (stage == DENOISE) & (guided * (pipeline.plan.guidance == "batched") > 0)
    asked = times * np.select(
        [stage == EMPTY_PROMPT, stage == DENOISE],
        [guided, requests.steps[bin_] * (1 + in_turn)],
        1.0,
    )
    x = requests.latents
    columns = (stage, np.where(together, 2 * batch, batch), *(c[bin_] for c in _columns(x)))
    kept = asked > 0
    rows, row = np.unique(np.stack(columns, axis=1)[kept], axis=0, return_inverse=True)
    frames, height, width, text = rows[:, 2:].T
    return Passes(
        stage=rows[:, 0].astype(np.int64),
        batch=rows[:, 1].astype(np.int64),
        weight=np.bincount(row.reshape(-1), asked[kept]).astype(np.float64),
        latents=Sizes(
            batch=np.ones(len(rows)), frames=frames, height=height, width=width, text=text
        ),
        bin=bin_[kept],
        row=row.reshape(-1),
        asked=asked[kept],
    )


def _columns(x: Sizes) -> tuple[Floats, ...]:
    return x.frames, x.height, x.width, x.text


def operations(pipeline: Pipeline, passes: Passes, deployment: Deployment) -> Iterator[Op]:
    """Every call of every row; a call has no work in rows of other stages."""
    dtype = "bfloat16" if deployment.dtype == "auto" else deployment.dtype
    for spec, tokens in pipeline.texts:
        yield from lower(spec, deployment, _text_steps(pipeline, passes, tokens))
    for stage, part in ((DENOISE, pipeline.denoiser), (DECODE, pipeline.autoencoder)):
        batch = np.where(passes.stage == stage, passes.batch, 0).astype(float)
        for call in part.calls(replace(passes.latents, batch=batch)):
            if call.kind:
                yield operation(call, dtype)


def _text_steps(pipeline: Pipeline, passes: Passes, tokens: int) -> Steps:
    """Prompts as a prefill of one chunk each; the instruction comes before real prompts only."""
    rows = np.flatnonzero((passes.stage == PROMPT) | (passes.stage == EMPTY_PROMPT))
    before = np.where(passes.stage[rows] == PROMPT, pipeline.plan.instruction, 0)
    nothing = np.zeros(0, dtype=np.int64)
    return Steps(
        weight=passes.weight,
        chunks=Chunks(
            step=rows,
            tokens=tokens + before,
            context=np.zeros_like(rows),
            count=passes.batch[rows],
            last=np.zeros_like(rows),
            bin=np.zeros_like(rows),
        ),
        decodes=Decodes(step=nothing, context=nothing.astype(float), count=nothing, bin=nothing),
    )


def sample_values(pipeline: Pipeline, requests: Requests) -> Floats:
    """Activations that a sample of each bin holds at once, in values; shape [n_bins].

    Twice what the largest call reads and writes: its operands, and the residual and temporaries
    around it. Videos are decoded in pieces.
    """
    x = requests.latents
    doubled = (requests.guided > 0) & (pipeline.plan.guidance == "batched")
    denoised = replace(x, batch=np.where(doubled, 2.0, 1.0))
    denoising = _largest(pipeline.denoiser.calls(denoised), x)
    pieces = pipeline.decoder.pieces(x)
    decoding = _largest(pipeline.autoencoder.calls(x), x) / pieces
    return 2.0 * np.maximum(denoising, decoding)


def _largest(calls: tuple[Call, ...], x: Sizes) -> Floats:
    largest = np.zeros_like(x.batch)
    for call in calls:
        if call.kind:
            largest = np.maximum(largest, call.moved + call.cached)
    return largest
