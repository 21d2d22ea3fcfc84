"""Attention over a cache of keys and values: prefill (many new tokens) and decode (one)."""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

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

# vLLM bounds the number of KV splits inside its captured batch sizes, and not in larger steps.
CAPTURED_TOKENS = 512
CAPTURED_SPLITS = 32


def paged_cache(
    num_seqs: int, kv_tokens: int, kv_heads: int, head_dim: int, how: How
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys, values [blocks, block, kv_heads, head_dim] and a shuffled block table [seqs, blocks].

    With dtype fp8 they are float8_e4m3fn at a scale of 1.
    """
    blocks_each = -(-kv_tokens // BLOCK_SIZE)
    blocks = num_seqs * blocks_each
    cache = activation(blocks, 2, BLOCK_SIZE, kv_heads, head_dim, how=how)
    if how.dtype == "fp8":
        cache = cache.to(torch.float8_e4m3fn)
    return cache[:, 0], cache[:, 1], block_table(num_seqs, blocks_each, how)


def block_table(num_seqs: int, blocks_each: int, how: How) -> torch.Tensor:
    """Blocks of each sequence [seqs, blocks], shuffled as they are after a while of serving."""
    blocks = num_seqs * blocks_each
    return torch.randperm(blocks, device=how.device).to(torch.int32).view(num_seqs, blocks_each)


def starts_of(num_seqs: int, tokens: int, device: torch.device | str) -> torch.Tensor:
    """First token of each of ``num_seqs`` equally long sequences, and the end: int32."""
    return torch.arange(0, (num_seqs + 1) * tokens, tokens, dtype=torch.int32, device=device)


def paged(shape: Shape, how: How) -> Prepared:
    """Causal attention of ``tokens`` new tokens a sequence over a paged cache (FlashAttention 3).

    ``tokens`` = 1 is decode. ``context`` counts the cached tokens before the new ones. With dtype
    fp8 the queries come in fp8 as well, quantised by the layer before.
    """
    from vllm.vllm_flash_attn import flash_attn_varlen_func, get_scheduler_metadata

    seqs, tokens = shape["num_seqs"], shape["tokens"]
    heads, kv_heads, head_dim = shape["heads"], shape["kv_heads"], shape["head_dim"]
    kv_tokens = shape["context"] + tokens
    window = shape.get("window", 0)
    window_size = [window - 1, 0] if window else [-1, -1]
    query = activation(seqs * tokens, heads, head_dim, how=how)
    out = torch.empty_like(query)
    descales = {}
    if how.dtype == "fp8":
        query = query.to(torch.float8_e4m3fn)
        one = torch.ones(1, dtype=torch.float32, device=how.device).expand(seqs, kv_heads)
        descales = {"q_descale": one, "k_descale": one, "v_descale": one}
    starts = starts_of(seqs, tokens, how.device)
    lengths = torch.full((seqs,), kv_tokens, dtype=torch.int32, device=how.device)
    num_splits = CAPTURED_SPLITS if seqs * tokens <= CAPTURED_TOKENS else 0
    metadata = get_scheduler_metadata(
        batch_size=seqs,
        max_seqlen_q=tokens,
        max_seqlen_k=kv_tokens,
        num_heads_q=heads,
        num_heads_kv=kv_heads,
        headdim=head_dim,
        cache_seqlens=lengths,
        qkv_dtype=query.dtype,
        cu_seqlens_q=starts,
        page_size=BLOCK_SIZE,
        causal=True,
        window_size=tuple(window_size),
        num_splits=num_splits,
    )
    cache_bytes = 2 * query.element_size() * seqs * kv_tokens * kv_heads * head_dim
    caches = [
        paged_cache(seqs, kv_tokens, kv_heads, head_dim, how)
        for _ in range(copies(cache_bytes, warm=how.warm))
    ]

    def call(keys: torch.Tensor, values: torch.Tensor, table: torch.Tensor) -> Call:
        return lambda: flash_attn_varlen_func(
            q=query,
            k=keys,
            v=values,
            out=out,
            cu_seqlens_q=starts,
            max_seqlen_q=tokens,
            seqused_k=lengths,
            max_seqlen_k=kv_tokens,
            softmax_scale=head_dim**-0.5,
            causal=True,
            window_size=window_size,
            block_table=table,
            scheduler_metadata=metadata,
            fa_version=3,
            num_splits=num_splits,
            **descales,
        )

    keys, values, table = caches[0]
    return Prepared(
        calls=tuple(call(*c) for c in caches),
        stack="vllm FlashAttention 3",
        operands={"query": query, "keys": keys, "values": values, "table": table},
    )


def contiguous(shape: Shape, how: How) -> Prepared:
    """The same over a contiguous cache through scaled_dot_product_attention (flash backend)."""
    seqs, tokens = shape["num_seqs"], shape["tokens"]
    heads, kv_heads, head_dim = shape["heads"], shape["kv_heads"], shape["head_dim"]
    if shape.get("window", 0):
        raise ValueError("attention: torch has no flash kernel with a window; use library vllm")
    kv_tokens = shape["context"] + tokens
    query = activation(seqs, heads, tokens, head_dim, how=how)
    size = (seqs, kv_heads, kv_tokens, head_dim)
    cache_bytes = 2 * query.element_size() * seqs * kv_heads * kv_tokens * head_dim
    caches = [
        (activation(*size, how=how), activation(*size, how=how))
        for _ in range(copies(cache_bytes, warm=how.warm))
    ]
    # A plain causal mask is aligned to the first key; new tokens end at the last one.
    mask = causal_lower_right(tokens, kv_tokens) if 1 < tokens < kv_tokens else None

    def call(keys: torch.Tensor, values: torch.Tensor) -> Call:
        def run() -> torch.Tensor:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return F.scaled_dot_product_attention(
                    query,
                    keys,
                    values,
                    attn_mask=mask,
                    is_causal=1 < tokens == kv_tokens,
                    enable_gqa=heads != kv_heads,
                )

        return run

    keys, values = caches[0]
    return Prepared(
        calls=tuple(call(*c) for c in caches),
        stack=torch_stack("scaled_dot_product_attention flash"),
        operands={"query": query, "keys": keys, "values": values},
    )
