"""Engine steps to operations: what runs, how often, how many FLOP, how many bytes.

``lower`` walks once through the model in the order of execution and describes every call that the
vLLM engine makes in a step, for all steps at once. Conventions:

- ``flop``: matrix products only, a multiply-add is 2, biases and softmax 0 (as torch counts them).
- ``hbm_bytes``: compulsory traffic of one call. Weights are read once, activations are read and
  written once; what one call writes and the next reads is counted in both. A call on no rows does
  not happen: it has 0 FLOP and 0 bytes.
- Rows of the LM head are the sampled ones: decoding sequences and chunks that complete a prompt.
- ``quantization="fp8"``: weights of projections and experts take 1 byte, their inputs are quantised
  by an elementwise call just before; norms, embeddings, router and LM head keep 16 bits.
"""

import numpy as np

from energymodel.attention import SoftmaxAttention
from energymodel.deployment import Deployment
from energymodel.errors import InputError
from energymodel.model import (
    DTYPE_BYTES,
    NORM_VECTORS,
    LayerSpec,
    Mlp,
    ModelSpec,
    Moe,
    linear_dtypes,
)
from energymodel.op_kinds import (
    Context,
    Op,
    Shape,
    elementwise,
    in_place,
    linear,
    normalise,
    quantise,
)
from energymodel.steps import Floats, Steps

__all__ = ["Op", "Shape", "lower"]


def lower(model: ModelSpec, deployment: Deployment, steps: Steps) -> tuple[Op, ...]:
    """Every call of a step of ``model``, in order; like layers are merged through ``count``."""
    ctx = _context(model, deployment, steps)
    ops = [_embedding(ctx)]
    for layer, count in model.layer_groups():
        ops += _layer(ctx, layer, count, deployment.quantization)
    return (*ops, *_head(ctx, model))


def _context(model: ModelSpec, deployment: Deployment, steps: Steps) -> Context:
    for flag in ("tensor_parallel_size", "pipeline_parallel_size"):
        if getattr(deployment, flag) != 1:
            raise InputError(f"{flag} must be 1: models split over GPUs are not supported yet")
    dtype = "bfloat16" if deployment.dtype == "auto" else deployment.dtype
    if dtype not in ("bfloat16", "float16"):
        raise InputError(f"dtype is '{deployment.dtype}'; it must be auto, bfloat16 or float16")
    decodes = steps.decoding
    return Context(
        steps=steps,
        hidden_size=model.hidden_size,
        dtype=dtype,
        kv_element_bytes=_kv_element_bytes(deployment.kv_cache_dtype, dtype),
        tokens=steps.sum_chunks(steps.chunks.tokens) + decodes,
        sampled=steps.sum_chunks(steps.chunks.last) + decodes,
    )


def _kv_element_bytes(kv_cache_dtype: str, dtype: str) -> float:
    if kv_cache_dtype.startswith("fp8"):  # vLLM: fp8, fp8_e4m3, fp8_e5m2
        return DTYPE_BYTES["fp8"]
    name = dtype if kv_cache_dtype == "auto" else kv_cache_dtype
    if name not in ("bfloat16", "float16"):
        raise InputError(
            f"kv_cache_dtype is '{kv_cache_dtype}'; it must be auto, bfloat16, float16 or fp8"
        )
    return DTYPE_BYTES[name]


# --- layers ---------------------------------------------------------------------------------------


def _layer(ctx: Context, layer: LayerSpec, count: int, quantization: str | None) -> list[Op]:
    projections, expert = linear_dtypes(layer, dtype=ctx.dtype, quantization=quantization)
    before_attention, after_attention, before_mlp, after_mlp = _norms(ctx, layer, count)
    return [
        *before_attention,
        *_attention_block(ctx, layer, count, projections),
        *after_attention,
        *before_mlp,
        *_feed_forward(ctx, layer.feed_forward, count, projections, expert),
        *after_mlp,
    ]


def _norms(ctx: Context, layer: LayerSpec, count: int) -> tuple[list[Op], ...]:
    """Normalisations and residual sums, as (before attention, after it, before the MLP, after it).

    A normalisation that also adds the residual reads two tensors and writes two ("fused"). The
    first one of a model has no residual to add; it is counted like the others.
    """

    def norm(name: str, *, fused: bool) -> Op:
        vectors = NORM_VECTORS[layer.norm] * ctx.hidden_size
        tensors = 4 if fused else 2
        return normalise(ctx, name, count, tensors=tensors, weights=vectors)

    def residual(tensors: int) -> Op:
        """One sum: reads all but one of ``tensors``, writes one."""
        width = ctx.hidden_size
        per_row = tensors * width * ctx.wide
        return elementwise(ctx, "residual_add", "norm", count, width=width, row_bytes=per_row)

    if layer.layout == "pre":
        attention, mlp = norm("input_norm", fused=True), norm("post_attention_norm", fused=True)
        return [attention], [], [mlp], []
    if layer.layout == "post":
        attention = norm("post_attention_norm", fused=False)
        mlp = norm("post_feedforward_norm", fused=False)
        return [], [attention, residual(3)], [], [mlp, residual(3)]
    if layer.layout == "sandwich":
        attention = norm("input_norm", fused=True)
        after = norm("post_attention_norm", fused=False)
        mlp = norm("pre_feedforward_norm", fused=True)
        return [attention], [after], [mlp], [norm("post_feedforward_norm", fused=False)]
    return [norm("input_norm", fused=False)], [], [], [residual(4)]


def _attention_block(ctx: Context, layer: LayerSpec, count: int, dtype: str) -> list[Op]:
    a, h = layer.attention, ctx.hidden_size
    projections = "attention_projections"
    ops = linear(ctx, "qkv_proj", projections, count, dtype, n=a.qkv_size, k=h, bias=a.qkv_bias)
    if a.clip_qkv:
        ops.append(in_place(ctx, "clip_qkv", "attention", count, width=a.qkv_size))
    if a.qk_norm is not None:
        width = a.q_size + a.kv_size
        weights = NORM_VECTORS[layer.norm] * (2 * a.head_dim if a.qk_norm == "head" else width)
        ops.append(normalise(ctx, "qk_norm", count, width=width, tensors=2, weights=weights))
    rotated = (a.num_attention_heads + a.num_key_value_heads) * a.rotary_dim
    ops.append(in_place(ctx, "rotary", "attention", count, width=rotated))
    ops.append(_kv_cache_write(ctx, a, count))
    ops.append(_prefill_attention(ctx, a, count))
    ops.append(_decode_attention(ctx, a, count))
    ops += linear(ctx, "o_proj", projections, count, dtype, n=h, k=a.q_size, bias=a.o_bias)
    return ops


def _kv_cache_write(ctx: Context, a: SoftmaxAttention, count: int) -> Op:
    """Copy of the new keys and values into the cache, converted where the cache is narrower."""
    width = a.kv_size
    row_bytes = 2 * width * ctx.wide + a.kv_bytes_per_token(ctx.kv_element_bytes)
    return elementwise(ctx, "kv_cache_write", "attention", count, width=width, row_bytes=row_bytes)


def _prefill_attention(ctx: Context, a: SoftmaxAttention, count: int) -> Op:
    """Attention of prompt chunks: reads queries and visible keys and values, writes outputs."""
    steps, chunks = ctx.steps, ctx.steps.chunks
    tokens = steps.sum_chunks(chunks.tokens)
    pairs = steps.sum_chunks(a.chunk_pairs(chunks.tokens, chunks.context))
    kv_tokens = steps.sum_chunks(a.chunk_kv_tokens(chunks.tokens, chunks.context))
    max_chunk = np.zeros(steps.size)
    np.maximum.at(max_chunk, chunks.step, np.where(chunks.count > 0, chunks.tokens, 0))
    shape = _attention_shape(ctx, a, kv_tokens) | {
        "tokens": tokens,
        "pairs": pairs,
        "num_seqs": steps.sum_chunks(np.ones_like(chunks.tokens)),
        "max_chunk": max_chunk,
    }
    return Op(
        name="attention_prefill",
        kind="prefill_attention",
        component="attention",
        dtype=ctx.dtype,
        count=count,
        flop=a.flop(pairs),
        hbm_bytes=_attention_bytes(ctx, a, tokens, kv_tokens),
        weight_bytes=kv_tokens * a.kv_bytes_per_token(ctx.kv_element_bytes),
        shape=shape,
    )


def _decode_attention(ctx: Context, a: SoftmaxAttention, count: int) -> Op:
    """Attention of decoding sequences, one query each, over what the window leaves of the cache."""
    steps, decodes = ctx.steps, ctx.steps.decodes
    num_seqs = steps.decoding
    kv_tokens = steps.sum_decodes(a.decode_kv_tokens(decodes.context))
    span = steps.weight[decodes.step]
    block_tokens = steps.sum_decodes(a.decode_block_tokens(decodes.context, span))
    return Op(
        name="attention_decode",
        kind="decode_attention",
        component="attention",
        dtype=ctx.dtype,
        count=count,
        flop=a.flop(kv_tokens),
        hbm_bytes=_attention_bytes(ctx, a, num_seqs, kv_tokens),
        weight_bytes=kv_tokens * a.kv_bytes_per_token(ctx.kv_element_bytes),
        shape=_attention_shape(ctx, a, kv_tokens)
        | {"num_seqs": num_seqs, "block_tokens": block_tokens},
    )


def _attention_bytes(ctx: Context, a: SoftmaxAttention, rows: Floats, kv_tokens: Floats) -> Floats:
    kv_bytes = kv_tokens * a.kv_bytes_per_token(ctx.kv_element_bytes)
    return kv_bytes + rows * (2 * a.q_size * ctx.wide)


def _attention_shape(
    ctx: Context, a: SoftmaxAttention, kv_tokens: Floats
) -> dict[str, Floats | float]:
    return {
        "kv_tokens": kv_tokens,
        "heads": float(a.num_attention_heads),
        "kv_heads": float(a.num_key_value_heads),
        "head_dim": float(a.head_dim),
        "window": float("inf") if a.sliding_window is None else float(a.sliding_window),
        "kv_element_bytes": ctx.kv_element_bytes,
    }


def _feed_forward(ctx: Context, block: Mlp | Moe, count: int, dtype: str, expert: str) -> list[Op]:
    if isinstance(block, Mlp):
        return _mlp(ctx, block, count, dtype, component="mlp", prefix="")
    return [*_shared_expert(ctx, block, count, dtype), *_experts(ctx, block, count, expert)]


def _mlp(
    ctx: Context, mlp: Mlp, count: int, dtype: str, *, component: str, prefix: str
) -> list[Op]:
    h, inner = ctx.hidden_size, mlp.intermediate_size
    up = f"{prefix}gate_up_proj" if mlp.gated else f"{prefix}up_proj"
    activation = elementwise(
        ctx,
        f"{prefix}activation",
        component,
        count,
        width=inner,
        row_bytes=(mlp.up_size + inner) * ctx.wide,
    )
    down = f"{prefix}down_proj"
    return [
        *linear(ctx, up, component, count, dtype, n=mlp.up_size, k=h, bias=mlp.bias),
        activation,
        *linear(ctx, down, component, count, dtype, n=h, k=inner, bias=mlp.bias),
    ]


def _shared_expert(ctx: Context, moe: Moe, count: int, dtype: str) -> list[Op]:
    """The expert that every token visits; its sum with the routed ones reads two, writes one."""
    if moe.shared_expert is None:
        return []
    h = ctx.hidden_size
    ops = _mlp(ctx, moe.shared_expert, count, dtype, component="moe", prefix="shared_")
    if moe.shared_expert_gate:
        ops += linear(ctx, "shared_expert_gate", "moe", count, ctx.dtype, n=1, k=h)
    add = elementwise(ctx, "shared_add", "moe", count, width=h, row_bytes=3 * h * ctx.wide)
    return [*ops, add]


def _experts(ctx: Context, moe: Moe, count: int, dtype: str) -> list[Op]:
    h, inner, top_k = ctx.hidden_size, moe.moe_intermediate_size, moe.num_experts_per_tok
    router = linear(
        ctx, "router", "moe", count, ctx.dtype, n=moe.num_experts, k=h, bias=moe.router_bias
    )
    # Reads the router logits, writes a float32 weight and an int32 expert for each choice.
    row_bytes = moe.num_experts * ctx.wide + top_k * 8
    top = elementwise(ctx, "topk", "moe", count, width=moe.num_experts, row_bytes=row_bytes)
    ops = [*router, top]
    if dtype == "fp8":
        ops.append(quantise(ctx, "experts_quant_input", "moe", count, width=h))
        ops.append(quantise(ctx, "experts_quant_inner", "moe", count, width=top_k * inner))
    ops.append(_fused_experts(ctx, moe, count, dtype))
    return ops


def _fused_experts(ctx: Context, moe: Moe, count: int, dtype: str) -> Op:
    """Routed experts: gate-up product, activation, down product, weighted sum over the choices.

    Under uniform routing n tokens touch E(1-(1-k/E)^n) of E experts, each of whose weights are read
    once. The kernels in it pass intermediates through memory: k copies of 2I written and read, of I
    written and read, of H written and read, beside the input and the output of H.
    """
    h, inner = ctx.hidden_size, moe.moe_intermediate_size
    top_k, experts, n = moe.num_experts_per_tok, moe.num_experts, ctx.tokens
    touched = experts * (1.0 - (1.0 - top_k / experts) ** n)
    narrow = 1.0 if dtype == "fp8" else ctx.wide
    matrices = 3 * h * inner
    weights = matrices * DTYPE_BYTES[dtype]
    weights += (moe.expert_param_count(h) - matrices) * ctx.wide  # biases
    inner_bytes = 5 * inner * ctx.wide + inner * narrow
    row_bytes = h * (narrow + ctx.wide) + top_k * (inner_bytes + 2 * h * ctx.wide)
    return Op(
        name="experts",
        kind="moe",
        component="moe",
        # Four-bit weights are widened inside the kernel: the arithmetic stays in 16 bits.
        dtype="fp8" if dtype == "fp8" else ctx.dtype,
        count=count,
        flop=2.0 * matrices * top_k * n,
        hbm_bytes=touched * weights + n * row_bytes,
        weight_bytes=touched * weights,
        shape={
            "tokens": n,
            "hidden_size": float(h),
            "intermediate_size": float(inner),
            "num_experts": float(experts),
            "top_k": float(top_k),
            "experts_touched": touched,
            "weight_element_bytes": DTYPE_BYTES[dtype],
        },
    )


# --- ends of the model ----------------------------------------------------------------------------


def _embedding(ctx: Context) -> Op:
    """Look-up of one row of the table for each token."""
    row_bytes = 2 * ctx.hidden_size * ctx.wide
    return elementwise(
        ctx, "embedding", "embedding", 1, width=ctx.hidden_size, row_bytes=row_bytes, kind="gather"
    )


def _head(ctx: Context, model: ModelSpec) -> list[Op]:
    """Final norm on all tokens, then sampled rows only: gather, LM head, greedy sampling."""
    h, vocabulary, rows = ctx.hidden_size, model.vocab_size, ctx.sampled
    last = model.layers[-1]
    vectors = NORM_VECTORS[last.norm] * h
    # Where layers carry the residual apart, the last sum is fused into this norm.
    tensors = 4 if last.layout in ("pre", "sandwich") else 2
    ops = [
        normalise(ctx, "final_norm", 1, tensors=tensors, weights=vectors),
        elementwise(
            ctx,
            "sampled_rows",
            "lm_head",
            1,
            width=h,
            row_bytes=2 * h * ctx.wide,
            rows=rows,
            kind="gather",
        ),
        *linear(
            ctx,
            "lm_head",
            "lm_head",
            1,
            ctx.dtype,
            n=vocabulary,
            k=h,
            bias=model.lm_head_bias,
            rows=rows,
        ),
    ]
    if model.final_logit_softcapping is not None:
        ops.append(in_place(ctx, "logit_softcap", "lm_head", 1, width=vocabulary, rows=rows))
    # Logits are read once, written as float32, and read again for the maximum.
    row_bytes = vocabulary * (ctx.wide + 4 + 4)
    ops.append(
        elementwise(
            ctx,
            "sampling",
            "sampling",
            1,
            width=vocabulary,
            row_bytes=row_bytes,
            rows=rows,
            kind="sampling",
        )
    )
    return ops
