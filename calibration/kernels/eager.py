"""What eager transformers launches: torch's own choice of attention, and expressions of row kernels.

``scaled_dot_product_attention`` chooses the kernel by shapes, mask and GPU; here it is called as
``integrations/sdpa_attention.py`` of transformers 5.17 calls it. The expressions are those of
``models/llama/modeling_llama.py``, on operands that lie in memory as they do there: each is one
operation, however many kernels it takes.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling

from calibration.kernels.common import (
    Call,
    How,
    Prepared,
    Shape,
    activation,
    copies,
    torch_stack,
    weight,
)

EPSILON = 1e-6


def sdpa(shape: Shape, how: How) -> Prepared:
    """Attention of ``tokens`` new tokens a sequence after ``context`` cached ones.

    ``causal`` 0: every token sees all (encoders).
    """
    seqs, tokens = shape["num_seqs"], shape["tokens"]
    heads, kv_heads, head_dim = shape["heads"], shape["kv_heads"], shape["head_dim"]
    kv_tokens = shape["context"] + tokens
    if 1 < tokens < kv_tokens:
        raise ValueError("sdpa: transformers computes a prompt in one piece, so context must be 0")
    causal = bool(shape.get("causal", 1))
    # Queries come from a projection [sequences, tokens, heads, head_dim].
    query = activation(seqs, tokens, heads, head_dim, how=how).transpose(1, 2)
    size = (seqs, kv_heads, kv_tokens, head_dim)
    cache_bytes = 2 * query.element_size() * seqs * kv_heads * kv_tokens * head_dim
    caches = [
        (activation(*size, how=how), activation(*size, how=how))
        for _ in range(copies(cache_bytes, warm=how.warm))
    ]

    def call(keys: torch.Tensor, values: torch.Tensor) -> Call:
        return lambda: F.scaled_dot_product_attention(
            query,
            keys,
            values,
            is_causal=causal and tokens > 1,
            enable_gqa=heads != kv_heads,
        )

    keys, values = caches[0]
    return Prepared(
        calls=tuple(call(*c) for c in caches),
        stack=torch_stack("scaled_dot_product_attention"),
        operands={"query": query, "keys": keys, "values": values},
    )


def append(shape: Shape, how: How) -> Prepared:
    """One more token behind the ``context`` of each sequence: keys, or values, are copied whole."""
    seqs, kv_heads = shape["num_seqs"], shape["kv_heads"]
    head_dim, context = shape["head_dim"], shape["context"]
    new = activation(seqs, 1, kv_heads, head_dim, how=how).transpose(1, 2)
    held = 2 * new.element_size() * seqs * kv_heads * context * head_dim
    caches = [
        activation(seqs, kv_heads, context, head_dim, how=how)
        for _ in range(copies(held, warm=how.warm))
    ]

    def call(cache: torch.Tensor) -> Call:
        return lambda: torch.cat([cache, new], dim=-2)

    return Prepared(
        calls=tuple(call(c) for c in caches),
        stack=torch_stack("cat"),
        operands={"cache": caches[0], "new": new},
    )


def norm(shape: Shape, how: How) -> Prepared:
    """``LlamaRMSNorm.forward``: x / rms(x) in float32, times the weights in bfloat16; 8 kernels."""
    x = activation(shape["rows"], shape["width"], how=how)
    w = weight(shape["width"], how=how)

    def call() -> torch.Tensor:
        wide = x.to(torch.float32)
        variance = wide.pow(2).mean(-1, keepdim=True)
        wide = wide * torch.rsqrt(variance + EPSILON)
        return w * wide.to(x.dtype)

    return Prepared(calls=(call,), stack=torch_stack("LlamaRMSNorm"), operands={"x": x, "w": w})


def rotary(shape: Shape, how: How) -> Prepared:
    """``apply_rotary_pos_emb`` of one tensor, heads x head_dim wide, heads behind tokens; 5 kernels.

    Half of the 10 of queries and keys; the cosines and sines of the tokens are there already.
    """
    rows, head_dim = shape["rows"], shape["head_dim"]
    x = activation(1, rows, shape["width"] // head_dim, head_dim, how=how).transpose(1, 2)
    cos, sin = (activation(1, 1, rows, head_dim, how=how) for _ in range(2))

    def call() -> torch.Tensor:
        half = head_dim // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return (x * cos) + (turned * sin)

    return Prepared(
        calls=(call,),
        stack=torch_stack("apply_rotary_pos_emb"),
        operands={"x": x, "cos": cos, "sin": sin},
    )


def gated(shape: Shape, how: How) -> Prepared:
    """silu(gate) * up of two tensors of their own; 2 kernels."""
    gate = activation(shape["rows"], shape["width"], how=how)
    up = torch.randn_like(gate)
    return Prepared(
        calls=(lambda: F.silu(gate) * up,),
        stack=torch_stack("silu, mul"),
        operands={"gate": gate, "up": up},
    )


def fill(shape: Shape, how: How) -> Prepared:
    """The first keys, or values, of a cache: copied from where heads lie behind tokens."""
    seqs, tokens, heads = shape["num_seqs"], shape["tokens"], shape["kv_heads"]
    new = activation(seqs, tokens, heads, shape["head_dim"], how=how).transpose(1, 2)
    empty = torch.tensor([], dtype=new.dtype, device=new.device)
    return Prepared(
        calls=(lambda: torch.cat([empty, new], dim=-2),),
        stack=torch_stack("cat"),
        operands={"new": new},
    )
