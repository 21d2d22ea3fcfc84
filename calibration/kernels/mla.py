"""Latent attention (DeepSeek MLA, arXiv 2405.04434): decode on latents, prefill on full heads.

Decode (``tokens`` = 1) works in the absorbed form: queries come projected into the latent space,
keys are a latent of ``kv_lora_rank`` and a rotary part shared by all heads, values the latent.
Prefill works on keys and values that were expanded from the latents just before, an activation.
Both projections are products of their own (gemm).
"""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling

from calibration.kernels.attention import (
    CAPTURED_SPLITS,
    CAPTURED_TOKENS,
    block_table,
    starts_of,
)
from calibration.kernels.common import (
    BLOCK_SIZE,
    Call,
    How,
    Prepared,
    Shape,
    activation,
    copies,
    torch_stack,
)


def _scale(shape: Shape) -> float:
    """Of the scores: one over the root of the full query size, in both forms."""
    return float((shape["qk_nope_head_dim"] + shape["qk_rope_head_dim"]) ** -0.5)


def mla(shape: Shape, how: How) -> Prepared:
    """FlashAttention 3 as vLLM's back end for MLA calls it, which Hopper has without FlashMLA."""
    return _decode(shape, how) if shape["tokens"] == 1 else _prefill(shape, how)


def _decode(shape: Shape, how: How) -> Prepared:
    from vllm.vllm_flash_attn import flash_attn_varlen_func, get_scheduler_metadata

    seqs, heads = shape["num_seqs"], shape["heads"]
    rank, rope = shape["kv_lora_rank"], shape["qk_rope_head_dim"]
    kv_tokens = shape["context"] + 1
    q_latent = activation(seqs, heads, rank, how=how)
    q_rope = activation(seqs, heads, rope, how=how)
    starts = starts_of(seqs, 1, how.device)
    lengths = torch.full((seqs,), kv_tokens, dtype=torch.int32, device=how.device)
    num_splits = CAPTURED_SPLITS if seqs <= CAPTURED_TOKENS else 0
    metadata = get_scheduler_metadata(
        batch_size=seqs,
        max_seqlen_q=1,
        max_seqlen_k=kv_tokens,
        num_heads_q=heads,
        num_heads_kv=1,
        headdim=rope,
        cache_seqlens=lengths,
        qkv_dtype=q_rope.dtype,
        headdim_v=rank,
        page_size=BLOCK_SIZE,
        cu_seqlens_q=starts,
        causal=True,
        num_splits=num_splits,
    )
    blocks_each = -(-kv_tokens // BLOCK_SIZE)
    cache_bytes = q_rope.element_size() * seqs * kv_tokens * (rank + rope)
    caches = [
        (
            activation(seqs * blocks_each, BLOCK_SIZE, rank + rope, how=how),
            block_table(seqs, blocks_each, how),
        )
        for _ in range(copies(cache_bytes, warm=how.warm))
    ]

    def call(cache: torch.Tensor, table: torch.Tensor) -> Call:
        latents, rotary = cache[..., :rank].unsqueeze(-2), cache[..., rank:].unsqueeze(-2)
        return lambda: flash_attn_varlen_func(
            q=q_rope,
            k=rotary,
            v=latents,
            q_v=q_latent,
            max_seqlen_q=1,
            cu_seqlens_q=starts,
            max_seqlen_k=kv_tokens,
            seqused_k=lengths,
            block_table=table,
            softmax_scale=_scale(shape),
            causal=True,
            fa_version=3,
            scheduler_metadata=metadata,
            num_splits=num_splits,
        )

    cache, table = caches[0]
    return Prepared(
        calls=tuple(call(*c) for c in caches),
        stack="vllm FlashAttention 3 MLA",
        operands={"q_latent": q_latent, "q_rope": q_rope, "cache": cache, "table": table},
    )


def _prefill(shape: Shape, how: How) -> Prepared:
    """New tokens among themselves; a context in a second pass, merged by their log-sums."""
    from vllm.v1.attention.ops.merge_attn_states import merge_attn_states
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    seqs, tokens, context = shape["num_seqs"], shape["tokens"], shape["context"]
    query, keys, values = _full_heads(shape, seqs * tokens, how)
    starts = starts_of(seqs, tokens, how.device)
    common = {
        "q": query,
        "cu_seqlens_q": starts,
        "max_seqlen_q": tokens,
        "softmax_scale": _scale(shape),
        "fa_version": 3,
    }
    new = {"k": keys, "v": values, "cu_seqlens_k": starts, "max_seqlen_k": tokens}
    operands = {"query": query, "keys": keys, "values": values}
    stack = "vllm FlashAttention 3 MLA prefill"
    if not context:
        return Prepared(
            calls=(lambda: flash_attn_varlen_func(**common, **new, causal=True),),
            stack=stack,
            operands=operands,
        )
    _, old_keys, old_values = _full_heads(shape, seqs * context, how)
    old = {
        "k": old_keys,
        "v": old_values,
        "cu_seqlens_k": starts_of(seqs, context, how.device),
        "max_seqlen_k": context,
    }

    def call() -> torch.Tensor:
        suffix, suffix_lse = flash_attn_varlen_func(
            **common, **new, causal=True, return_softmax_lse=True
        )
        prefix, prefix_lse = flash_attn_varlen_func(
            **common, **old, causal=False, return_softmax_lse=True
        )
        out = torch.empty_like(suffix)
        merge_attn_states(out, prefix, prefix_lse, suffix, suffix_lse)
        return out

    operands |= {"old_keys": old_keys, "old_values": old_values}
    return Prepared(calls=(call,), stack=stack, operands=operands)


def _full_heads(
    shape: Shape, tokens: int, how: How
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values [tokens, heads, size] of the expanded form."""
    heads, qk = shape["heads"], shape["qk_nope_head_dim"] + shape["qk_rope_head_dim"]
    return (
        activation(tokens, heads, qk, how=how),
        activation(tokens, heads, qk, how=how),
        activation(tokens, heads, shape["v_head_dim"], how=how),
    )


def mla_torch(shape: Shape, how: How) -> Prepared:
    """The same in plain torch, over a contiguous cache; prefill without a context only."""
    return _decode_torch(shape, how) if shape["tokens"] == 1 else _prefill_torch(shape, how)


def _decode_torch(shape: Shape, how: How) -> Prepared:
    seqs, heads, rank = shape["num_seqs"], shape["heads"], shape["kv_lora_rank"]
    width = rank + shape["qk_rope_head_dim"]
    kv_tokens = shape["context"] + 1
    query = activation(seqs, heads, width, how=how)
    cache_bytes = query.element_size() * seqs * kv_tokens * width
    caches = [
        activation(seqs, kv_tokens, width, how=how)
        for _ in range(copies(cache_bytes, warm=how.warm))
    ]
    scale = _scale(shape)

    def call(cache: torch.Tensor) -> Call:
        def run() -> torch.Tensor:
            scores = torch.softmax(query @ cache.mT * scale, dim=-1)
            return scores @ cache[..., :rank]

        return run

    return Prepared(
        calls=tuple(call(cache) for cache in caches),
        stack=torch_stack("matmul and softmax"),
        operands={"query": query, "cache": caches[0]},
    )


def _prefill_torch(shape: Shape, how: How) -> Prepared:
    seqs, tokens = shape["num_seqs"], shape["tokens"]
    if shape["context"]:
        raise ValueError("mla: torch prefill takes no context; use library vllm")
    query, keys, values = (
        x.unflatten(0, (seqs, tokens)).transpose(1, 2)
        for x in _full_heads(shape, seqs * tokens, how)
    )
    scale = _scale(shape)
    return Prepared(
        calls=(
            lambda: F.scaled_dot_product_attention(
                query, keys, values, is_causal=True, scale=scale
            ),
        ),
        stack=torch_stack("scaled_dot_product_attention"),
        operands={"query": query, "keys": keys, "values": values},
    )
