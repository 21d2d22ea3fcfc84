"""Engine steps to operations: what runs, how often, how many FLOP, how many bytes.

``lower`` walks once through the model in the order of execution and describes every call that the
engine makes in a step, for all steps at once. Conventions:

- ``flop``: matrix products only, a multiply-add is 2, biases and softmax 0 (as torch counts them).
- ``hbm_bytes``: compulsory traffic of one call. Weights are read once, activations are read and
  written once; what one call writes and the next reads is counted in both. A call on no rows does
  not happen: it has 0 FLOP and 0 bytes.
- Rows of the LM head are the sampled ones: decoding sequences and chunks that complete a prompt.
- Narrow formats: weights of projections and experts take what the format takes; where it narrows
  the arithmetic too (fp8, int8), inputs are quantised by an elementwise call just before. Norms,
  embeddings, router and LM head keep 16 bits.
- Images and sound pass the towers of the model in the step that computes the first of their tokens.
- Where GPUs share a model, the operations are those of one of them, its collectives among them
  (``sharding.py``, ``collectives.py``); of a pipeline, those of one GPU in each stage.
- Of an encoder-decoder the prompt passes the encoder; the decoder starts from its start tokens.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from energymodel import collectives
from energymodel.blocks import BesideExperts, Block, CrossAttention, Moe, Together
from energymodel.deployment import Deployment
from energymodel.dtypes import DTYPE_BYTES
from energymodel.errors import InputError
from energymodel.model import (
    NORM_VECTORS,
    LayerSpec,
    ModelSpec,
    Stack,
    cache_dtype,
    layer_formats,
    quantized,
)
from energymodel.op_kinds import (
    Context,
    Op,
    Shape,
    elementwise,
    in_place,
    linear,
    normalise,
)
from energymodel.parallel import Parallel, parallel_of
from energymodel.sharding import shard
from energymodel.steps import Ints, Steps
from energymodel.towers import features, loads
from energymodel.workload import Bin

__all__ = ["Op", "Shape", "lower"]

NO_PROMPTS: Ints = np.zeros(0, dtype=np.int64)


def lower(
    model: ModelSpec,
    deployment: Deployment,
    steps: Steps,
    prompt_tokens: Ints = NO_PROMPTS,
    bins: Sequence[Bin] = (),
) -> tuple[Op, ...]:
    """Every call of a step of ``model``, in order; like layers are merged through ``count``.

    ``prompt_tokens``: input tokens of a request of each bin, which cross attention needs;
    ``bins``: what its requests show to the towers of the model (nothing unless given).
    """
    source = features(model.towers, bins, steps) if model.encoder is None else prompt_tokens
    ctx = _context(model, deployment, steps, source)
    vocab_size, model = model.vocab_size, shard(model, ctx.parallel)
    online = quantized(model, deployment.quantization)
    ops = _towers(ctx, model, bins)
    if model.encoder is not None:
        reading = _of_stack(ctx, model.encoder, _prompts(steps, prompt_tokens))
        reading = replace(reading, captured=False)
        ops += _asked_by(reading, _stack(reading, model, model.encoder, online))
        ctx = _of_stack(ctx, model.text, _generation(steps, prompt_tokens, model.start_tokens))
        ops += _asked_by(ctx, _stack(ctx, model, model.text, online))
    else:
        ops += _stack(ctx, model, model.text, online)
    head = _head(ctx, model, vocab_size) if model.has_head else []
    return (*ops, *collectives.handed_on(ctx), *head)


def _context(
    model: ModelSpec, deployment: Deployment, steps: Steps, source_tokens: Ints
) -> Context:
    dtype = "bfloat16" if deployment.dtype == "auto" else deployment.dtype
    if dtype not in ("bfloat16", "float16"):
        raise InputError(f"dtype is '{deployment.dtype}'; it must be auto, bfloat16 or float16")
    return Context(
        steps=steps,
        hidden_size=model.hidden_size,
        dtype=dtype,
        kv_element_bytes=_kv_element_bytes(cache_dtype(model, deployment.kv_cache_dtype, dtype)),
        tokens=steps.tokens,
        sampled=steps.sampled,
        source_tokens=source_tokens,
        parallel=parallel_of(deployment),
    )


def _kv_element_bytes(kv_cache_dtype: str) -> float:
    if kv_cache_dtype.startswith("fp8"):  # vLLM: fp8, fp8_e4m3, fp8_e5m2
        return DTYPE_BYTES["fp8"]
    if kv_cache_dtype not in ("bfloat16", "float16"):
        raise InputError(
            f"kv_cache_dtype is '{kv_cache_dtype}'; it must be auto, bfloat16, float16 or fp8"
        )
    return DTYPE_BYTES[kv_cache_dtype]


# --- towers ---------------------------------------------------------------------------------------


def _towers(ctx: Context, model: ModelSpec, bins: Sequence[Bin]) -> list[Op]:
    """What runs for the images and the sound of the prompts, in 16 bits."""
    ops: list[Op] = []
    # Towers are taken to run whole on every GPU.
    ctx = replace(ctx, parallel=Parallel(), captured=False)
    for tower, load_of in loads(model.towers, ctx.steps, bins):
        for part in tower.parts:
            load, work = load_of[part.rows], part.work
            if isinstance(work, Stack):
                inside = _of_stack(ctx, work, load.steps)
                made = _stack(inside, model, work, None)
            else:
                inside = _of_stack(ctx, model.text, load.steps)
                made = [op for piece in work for op in piece.operations(inside)]
            for op in made:
                asked = load.asked_rows if op.asked is None else load.asked(op.asked[0])
                name = f"{tower.component}_{op.name}"
                ops.append(replace(op, name=name, component=tower.component, asked=asked))
    return ops


# --- encoder-decoders -----------------------------------------------------------------------------


def _of_stack(ctx: Context, stack: Stack, steps: Steps) -> Context:
    """The context of another stack, on other steps."""
    return replace(
        ctx,
        steps=steps,
        hidden_size=stack.hidden_size,
        tokens=steps.tokens,
        sampled=steps.sampled,
    )


def _prompts(steps: Steps, prompt_tokens: Ints) -> Steps:
    """What an encoder sees: the prompts, whole, and nothing that decodes.

    Rows stay aligned with those of ``steps``; what is not there has a count of 0.
    """
    chunks, decodes = steps.chunks, steps.decodes
    tokens = np.minimum(chunks.tokens, prompt_tokens[chunks.bin])
    return replace(
        steps,
        chunks=replace(chunks, tokens=tokens),
        decodes=replace(decodes, count=np.zeros_like(decodes.count)),
    )


def _generation(steps: Steps, prompt_tokens: Ints, start_tokens: int) -> Steps:
    """What the decoder sees: the start of each answer, then what it generates.

    After a preemption a chunk holds what was generated before, too. A request that generates
    nothing ends with the encoder. Rows stay aligned with those of ``steps``.
    """
    chunks, decodes = steps.chunks, steps.decodes
    tokens = np.maximum(chunks.tokens - prompt_tokens[chunks.bin], 0) + start_tokens
    starts = replace(
        chunks, tokens=np.where(chunks.last > 0, tokens, 0), count=chunks.count * chunks.last
    )
    # The cache holds the start tokens where that of a decoder holds the prompt.
    generated = decodes.context - prompt_tokens[decodes.bin] + start_tokens
    return replace(steps, chunks=starts, decodes=replace(decodes, context=generated))


def _asked_by(ctx: Context, ops: list[Op]) -> list[Op]:
    """The operations of a stack that sees other rows than the schedule has: by those rows."""
    steps = ctx.steps
    tokens = np.where(steps.chunks.count > 0, steps.chunks.tokens, 0).astype(np.float64)
    asked = tokens, (steps.decodes.count > 0).astype(np.float64)
    return [op if op.asked is not None else replace(op, asked=asked) for op in ops]


# --- layers ---------------------------------------------------------------------------------------


def _stack(ctx: Context, model: ModelSpec, stack: Stack, online: str | None) -> list[Op]:
    """Embedding, all layers and the normalisation behind the last, and what is around them."""
    ops = []
    if stack.embeds:
        ops = [_embedding(ctx, model), *collectives.all_reduce(ctx, "embedding_all_reduce")]
    ops += [op for end in stack.before for op in end.operations(ctx)]
    for layer, count in stack.layer_groups():
        formats = layer_formats(layer, stack.hidden_size, online)
        inside = ctx.within(count=count, formats=formats, norm_vectors=layer.norm_vectors)
        if model.encoder is None and layer.find(CrossAttention) is not None:
            inside = _with_images(inside)
            ops += _asked_by(inside, _layer(inside, layer))
        else:
            ops += _layer(inside, layer)
    if stack.final_norm is not None:
        # Where layers carry the residual apart, the last sum is fused into this norm.
        tensors = 4 if stack.layers[-1].layout in ("pre", "sandwich") else 2
        weights = NORM_VECTORS[stack.final_norm] * stack.hidden_size
        ops.append(normalise(ctx, "final_norm", tensors=tensors, weights=weights))
    return ops + [op for end in stack.after for op in end.operations(ctx)]


def _with_images(ctx: Context) -> Context:
    """The requests whose images a layer attends to; the others skip it."""
    steps, chunks, decodes = ctx.steps, ctx.steps.chunks, ctx.steps.decodes
    seen = ctx.source_tokens > 0
    kept = replace(
        steps,
        chunks=replace(chunks, count=np.where(seen[chunks.bin], chunks.count, 0)),
        decodes=replace(decodes, count=np.where(seen[decodes.bin], decodes.count, 0)),
    )
    return replace(ctx, steps=kept, tokens=kept.tokens)


def _layer(ctx: Context, layer: LayerSpec) -> list[Op]:
    outside = [op for block in layer.outside for op in block.operations(ctx)]
    return [*_within(ctx, layer), *outside]


def _within(ctx: Context, layer: LayerSpec) -> list[Op]:
    """Blocks within residual connections, their norms and sums."""
    if layer.layout in ("parallel", "parallel_two"):
        norms = [_norm(ctx, name, 2) for name in _names(layer)[: layer.norms]]
        blocks = [op for block in layer.blocks for op in _summed(ctx, block)]
        return [*norms, *blocks, _residual(ctx, len(layer.blocks) + 2)]
    ops: list[Op] = []
    for block, name in zip(layer.blocks, _names(layer), strict=True):
        before, after = _around(ctx, layer, name)
        ops += [*before, *_summed(ctx, block), *after]
    return ops


def _summed(ctx: Context, block: Block) -> list[Op]:
    """The calls of a block, and what adds up the parts that GPUs computed of its result."""
    parts = block.parts if isinstance(block, Together | BesideExperts) else (block,)
    # Behind experts that route different tokens on each GPU, nothing is left to add up.
    done = sum(isinstance(part, Moe) and ctx.parallel.sequence_parallel for part in parts)
    sums = collectives.all_reduce(ctx, "all_reduce") * (len(parts) - done)
    return [*block.operations(ctx), *sums]


def _names(layer: LayerSpec) -> list[str]:
    """What the normalisations that belong to the blocks of a layer are called."""
    first = "post_attention_norm" if layer.layout in ("post", "post_sum") else "input_norm"
    second = {
        "pre": "post_attention_norm",
        "post": "post_feedforward_norm",
        "post_sum": "post_feedforward_norm",
    }.get(layer.layout, "pre_feedforward_norm")
    middle = [f"norm_{i}" for i in range(1, len(layer.blocks) - 1)]
    return [first, *middle, second][: len(layer.blocks)]


def _around(ctx: Context, layer: LayerSpec, name: str) -> tuple[list[Op], list[Op]]:
    """Normalisations and residual sums (before a block, after it).

    A normalisation that also adds the residual reads two tensors and writes two. The first one of
    a model has no residual to add; it is counted like the others.
    """
    if layer.layout == "pre":
        return [_norm(ctx, name, 4)], []
    if layer.layout == "post":
        return [], [_norm(ctx, name, 2), _residual(ctx, 3)]
    if layer.layout == "post_sum":
        return [], [_norm(ctx, name, 3)]
    behind = "post_attention_norm" if name == "input_norm" else "post_feedforward_norm"
    return [_norm(ctx, name, 4)], [_norm(ctx, behind, 2)]


def _norm(ctx: Context, name: str, tensors: int) -> Op:
    return normalise(ctx, name, tensors=tensors)


def _residual(ctx: Context, tensors: int) -> Op:
    """One sum: reads all but one of ``tensors``, writes one."""
    width = ctx.hidden_size
    row_bytes = tensors * width * ctx.wide
    return elementwise(
        ctx, "residual_add", "norm", width=width, row_bytes=row_bytes, kind="residual_add"
    )


# --- ends of the model ----------------------------------------------------------------------------


def _embedding(ctx: Context, model: ModelSpec) -> Op:
    """Look-up of one row of the table for each token."""
    width = model.embedding_size or ctx.hidden_size
    row_bytes = 2 * width * ctx.wide
    return elementwise(
        ctx, "embedding", "embedding", width=width, row_bytes=row_bytes, kind="gather"
    )


def _head(ctx: Context, model: ModelSpec, vocab_size: int) -> list[Op]:
    """Sampled rows only: gather, LM head, greedy sampling.

    Where GPUs share the LM head, each samples from the gathered logits of ``vocab_size`` tokens.
    """
    h, rows = ctx.hidden_size, ctx.sampled
    ops = [
        elementwise(
            ctx,
            "sampled_rows",
            "lm_head",
            width=h,
            row_bytes=2 * h * ctx.wide,
            rows=rows,
            kind="gather",
        ),
        *linear(
            ctx,
            "lm_head",
            "lm_head",
            n=model.vocab_size,
            k=model.embedding_size or h,
            bias=model.lm_head_bias,
            rows=rows,
        ),
        *collectives.gathered_logits(ctx, vocab_size),
    ]
    if model.final_logit_softcapping is not None:
        ops.append(in_place(ctx, "logit_softcap", "lm_head", width=vocab_size, rows=rows))
    # Logits are read once, written as float32, and read again for the maximum.
    row_bytes = vocab_size * (ctx.wide + 4 + 4)
    ops.append(
        elementwise(
            ctx,
            "sampling",
            "sampling",
            width=vocab_size,
            row_bytes=row_bytes,
            rows=rows,
            kind="sampling",
        )
    )
    return ops
