"""Micro-workloads: one builder for each operation kind, as the engine runs it.

A builder takes a shape and returns the calls to rotate over. Weights and KV caches are rotated
over enough copies to miss the L2 cache, as they do in a model; activations are not, because in
a model they were written by the operation before. Data are normal(0, 1) for activations and
normal(0, 0.02) for weights: zeros cost up to a third less energy than real data.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling

Call = Callable[[], Any]
Shape = Mapping[str, int]

# Distinct operands add up to at least this, several times the L2 of any current GPU.
COLD_BYTES = 256_000_000
BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Calls to run in turn, and the name of the code that they exercise."""

    calls: tuple[Call, ...]
    stack: str


def copies(bytes_each: int) -> int:
    """How many copies of an operand keep it out of the L2 cache."""
    return max(1, min(64, -(-COLD_BYTES // max(1, bytes_each))))


def _weight(*size: int, device: str, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*size, device=device, dtype=dtype).normal_(0.0, 0.02)


def _activation(*size: int, device: str, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*size, device=device, dtype=dtype).normal_()


def gemm(shape: Shape, device: str) -> Prepared:
    """y[m, n] = x[m, k] @ w[n, k].T through torch (cuBLAS on NVIDIA), as vLLM runs bf16 layers."""
    m, n, k = shape["m"], shape["n"], shape["k"]
    x = _activation(m, k, device=device)
    weights = [_weight(n, k, device=device) for _ in range(copies(2 * n * k))]
    return Prepared(
        calls=tuple(lambda w=w: F.linear(x, w) for w in weights),  # type: ignore[misc]
        stack=f"torch {torch.__version__} linear",
    )


def _paged_cache(
    num_seqs: int, kv_tokens: int, kv_heads: int, head_dim: int, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys, values [blocks, block, kv_heads, head_dim] and a shuffled block table [seqs, blocks]."""
    blocks_each = -(-kv_tokens // BLOCK_SIZE)
    blocks = num_seqs * blocks_each
    cache = _activation(blocks, 2, BLOCK_SIZE, kv_heads, head_dim, device=device)
    table = torch.randperm(blocks, device=device).to(torch.int32).view(num_seqs, blocks_each)
    return cache[:, 0], cache[:, 1], table


def attention(shape: Shape, device: str) -> Prepared:
    """Causal attention of ``tokens`` new tokens a sequence over a paged cache (FlashAttention 3).

    ``tokens`` = 1 is decode. ``context`` counts the cached tokens before the new ones.
    """
    from vllm.vllm_flash_attn import flash_attn_varlen_func, get_scheduler_metadata

    seqs, tokens = shape["num_seqs"], shape["tokens"]
    heads, kv_heads, head_dim = shape["heads"], shape["kv_heads"], shape["head_dim"]
    kv_tokens = shape["context"] + tokens
    window = shape.get("window", 0)
    window_size = [window - 1, 0] if window else [-1, -1]
    query = _activation(seqs * tokens, heads, head_dim, device=device)
    out = torch.empty_like(query)
    starts = torch.arange(0, (seqs + 1) * tokens, tokens, dtype=torch.int32, device=device)
    lengths = torch.full((seqs,), kv_tokens, dtype=torch.int32, device=device)
    # Steps inside the captured batch sizes bound the number of KV splits; larger ones do not.
    num_splits = 32 if seqs * tokens <= 512 else 0
    metadata = get_scheduler_metadata(
        batch_size=seqs,
        max_seqlen_q=tokens,
        max_seqlen_k=kv_tokens,
        num_heads_q=heads,
        num_heads_kv=kv_heads,
        headdim=head_dim,
        cache_seqlens=lengths,
        qkv_dtype=torch.bfloat16,
        cu_seqlens_q=starts,
        page_size=BLOCK_SIZE,
        causal=True,
        window_size=tuple(window_size),
        num_splits=num_splits,
    )
    cache_bytes = 4 * seqs * kv_tokens * kv_heads * head_dim
    caches = [
        _paged_cache(seqs, kv_tokens, kv_heads, head_dim, device)
        for _ in range(copies(cache_bytes))
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
        )

    return Prepared(calls=tuple(call(*c) for c in caches), stack="vllm FlashAttention 3")


def moe(shape: Shape, device: str) -> Prepared:
    """Fused experts of vLLM (Triton) with uniform random routing."""
    from vllm.model_executor.layers.fused_moe import fused_experts

    tokens, hidden, inter = shape["tokens"], shape["hidden_size"], shape["intermediate_size"]
    experts, top_k = shape["num_experts"], shape["top_k"]
    x = _activation(tokens, hidden, device=device)
    bytes_each = 6 * experts * hidden * inter
    weights = [
        (
            _weight(experts, 2 * inter, hidden, device=device),
            _weight(experts, hidden, inter, device=device),
        )
        for _ in range(copies(bytes_each))
    ]
    scores = torch.rand(tokens, experts, device=device)
    gates, ids = torch.topk(scores, top_k, dim=-1)
    gates, ids = torch.softmax(gates, dim=-1), ids.to(torch.int32)
    return Prepared(
        calls=tuple(
            lambda w1=w1, w2=w2: fused_experts(x, w1, w2, gates, ids)  # type: ignore[misc]
            for w1, w2 in weights
        ),
        stack="vllm fused_experts (Triton)",
    )


def moe_routing(shape: Shape, device: str) -> Prepared:
    """Softmax and top-k over router logits, as vLLM fuses them."""
    from vllm.model_executor.layers.fused_moe.router.fused_topk_router import fused_topk

    tokens, experts, top_k = shape["tokens"], shape["num_experts"], shape["top_k"]
    x = _activation(tokens, 128, device=device)
    logits = _activation(tokens, experts, device=device)
    return Prepared(calls=(lambda: fused_topk(x, logits, top_k, True),), stack="vllm topk_softmax")


def rms_norm(shape: Shape, device: str) -> Prepared:
    """Add to the residual and normalise it, in one pass: r += x; x = w * r / rms(r)."""
    import vllm._custom_ops as ops

    x = _activation(shape["rows"], shape["width"], device=device)
    residual, weight = torch.randn_like(x), _weight(shape["width"], device=device)
    return Prepared(
        calls=(lambda: ops.fused_add_rms_norm(x, residual, weight, 1e-6),),
        stack="vllm fused_add_rms_norm",
    )


def silu_and_mul(shape: Shape, device: str) -> Prepared:
    """silu(x[:, :w]) * x[:, w:] for x [rows, 2 w]."""
    import vllm._custom_ops  # noqa: F401 - registers torch.ops._C

    x = _activation(shape["rows"], 2 * shape["width"], device=device)
    out = torch.empty(shape["rows"], shape["width"], device=device, dtype=x.dtype)
    return Prepared(calls=(lambda: torch.ops._C.silu_and_mul(out, x),), stack="vllm silu_and_mul")


def rotary(shape: Shape, device: str) -> Prepared:
    """Rotary embedding of queries and keys in place; ``width`` = (heads + kv_heads) x head_dim."""
    import vllm._custom_ops as ops

    rows, head_dim = shape["rows"], shape["head_dim"]
    heads = shape["width"] // head_dim
    kv_heads = max(1, heads // 5)
    query = _activation(rows, (heads - kv_heads) * head_dim, device=device)
    key = _activation(rows, kv_heads * head_dim, device=device)
    table = _activation(8192, head_dim, device=device)
    positions = torch.randint(0, 8192, (rows,), device=device)
    return Prepared(
        calls=(lambda: ops.rotary_embedding(positions, query, key, head_dim, table, True),),
        stack="vllm rotary_embedding",
    )


def kv_write(shape: Shape, device: str) -> Prepared:
    """Write new keys and values into their cache slots; ``width`` = kv_heads x head_dim."""
    import vllm._custom_ops as ops

    rows, head_dim = shape["rows"], shape["head_dim"]
    kv_heads = shape["width"] // head_dim
    key = _activation(rows, kv_heads, head_dim, device=device)
    value = torch.randn_like(key)
    keys, values, _ = _paged_cache(1, max(rows, 4096), kv_heads, head_dim, device)
    slots = torch.randperm(max(rows, 4096), device=device)[:rows]
    one = torch.ones((), device=device)
    return Prepared(
        calls=(
            lambda: ops.reshape_and_cache_flash(key, value, keys, values, slots, "auto", one, one),
        ),
        stack="vllm reshape_and_cache_flash",
    )


def embedding(shape: Shape, device: str) -> Prepared:
    """Gather ``rows`` rows of a table of ``vocab`` x ``width``."""
    table = _weight(shape["vocab"], shape["width"], device=device)
    ids = torch.randint(0, shape["vocab"], (shape["rows"],), device=device)
    return Prepared(
        calls=(lambda: F.embedding(ids, table),), stack=f"torch {torch.__version__} embedding"
    )


def sampling(shape: Shape, device: str) -> Prepared:
    """Greedy sampling: logits to float32, then argmax over ``width`` = vocabulary."""
    logits = _activation(shape["rows"], shape["width"], device=device)
    return Prepared(
        calls=(lambda: logits.float().argmax(dim=-1),), stack=f"torch {torch.__version__} argmax"
    )


def copy(shape: Shape, device: str) -> Prepared:
    """Device-to-device copy of ``bytes``."""
    pairs = [
        (
            _activation(shape["bytes"] // 2, device=device),
            torch.empty(shape["bytes"] // 2, device=device, dtype=torch.bfloat16),
        )
        for _ in range(copies(2 * shape["bytes"]))
    ]
    return Prepared(
        calls=tuple(lambda a=a, b=b: b.copy_(a) for a, b in pairs),  # type: ignore[misc]
        stack=f"torch {torch.__version__} copy",
    )


BUILDERS: dict[str, Callable[[Shape, str], Prepared]] = {
    "gemm": gemm,
    "attention": attention,
    "moe": moe,
    "moe_routing": moe_routing,
    "rms_norm": rms_norm,
    "silu_and_mul": silu_and_mul,
    "rotary": rotary,
    "kv_write": kv_write,
    "embedding": embedding,
    "sampling": sampling,
    "copy": copy,
}
