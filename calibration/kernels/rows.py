"""What works row by row: norms, activations, rotary, cache writes, gather, sampling, copy.

Library vllm is the fused kernel of the engine, library torch the plain expression, in which
transformers runs it in eager mode.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling

from calibration.kernels.attention import paged_cache
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
POSITIONS = 8192
ROPE_THETA = 10000.0
# Slots of the cache that new keys and values are scattered over.
CACHE_SLOTS = 4096


def rms_norm(shape: Shape, how: How) -> Prepared:
    """Add to the residual and normalise it, in one pass: r += x; x = w * r / rms(r)."""
    import vllm._custom_ops as ops

    x, residual, w = _norm_operands(shape, how)
    return Prepared(
        calls=(lambda: ops.fused_add_rms_norm(x, residual, w, EPSILON),),
        stack="vllm fused_add_rms_norm",
        operands={"x": x, "residual": residual, "w": w},
    )


def rms_norm_torch(shape: Shape, how: How) -> Prepared:
    """The same out of place, in float32 as transformers does it; returns x and r."""
    x, residual, w = _norm_operands(shape, how)

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        total = residual + x
        wide = total.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON)
        return w * (wide * scale).to(x.dtype), total

    return Prepared(
        calls=(call,),
        stack=torch_stack("rms_norm expression"),
        operands={"x": x, "residual": residual, "w": w},
    )


def _norm_operands(shape: Shape, how: How) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = activation(shape["rows"], shape["width"], how=how)
    return x, torch.randn_like(x), weight(shape["width"], how=how)


def layer_norm(shape: Shape, how: How) -> Prepared:
    """(x - mean) / std * w + b."""
    x = activation(shape["rows"], shape["width"], how=how)
    w, b = weight(shape["width"], how=how), weight(shape["width"], how=how)
    size = (shape["width"],)
    return Prepared(
        calls=(lambda: F.layer_norm(x, size, w, b, EPSILON),),
        stack=torch_stack("layer_norm"),
        operands={"x": x, "w": w, "b": b},
    )


def gelu(shape: Shape, how: How) -> Prepared:
    """Exact GELU: x times the cumulative normal distribution at x."""
    x = activation(shape["rows"], shape["width"], how=how)
    return Prepared(calls=(lambda: F.gelu(x),), stack=torch_stack("gelu"), operands={"x": x})


def residual_add(shape: Shape, how: How) -> Prepared:
    """Sum of a layer's output and its residual, out of place."""
    x = activation(shape["rows"], shape["width"], how=how)
    y = torch.randn_like(x)
    return Prepared(calls=(lambda: x + y,), stack=torch_stack("add"), operands={"x": x, "y": y})


def silu_and_mul(shape: Shape, how: How) -> Prepared:
    """silu(x[:, :w]) * x[:, w:] for x [rows, 2 w]."""
    import vllm._custom_ops  # noqa: F401 - registers torch.ops._C

    x = activation(shape["rows"], 2 * shape["width"], how=how)
    out = torch.empty(shape["rows"], shape["width"], device=how.device, dtype=x.dtype)

    def call() -> torch.Tensor:
        torch.ops._C.silu_and_mul(out, x)
        return out

    return Prepared(calls=(call,), stack="vllm silu_and_mul", operands={"x": x})


def silu_and_mul_torch(shape: Shape, how: How) -> Prepared:
    """The same as two torch kernels."""
    x = activation(shape["rows"], 2 * shape["width"], how=how)
    gate, up = x.chunk(2, dim=-1)
    return Prepared(
        calls=(lambda: F.silu(gate) * up,),
        stack=torch_stack("silu and mul"),
        operands={"x": x},
    )


def rotary(shape: Shape, how: How) -> Prepared:
    """Rotary embedding of queries and keys in place; ``width`` = (heads + kv_heads) x head_dim."""
    import vllm._custom_ops as ops

    query, key, table, positions = _rotary_operands(shape, how)
    head_dim = shape["head_dim"]
    return Prepared(
        calls=(lambda: ops.rotary_embedding(positions, query, key, head_dim, table, True),),
        stack="vllm rotary_embedding",
        operands={"query": query, "key": key, "table": table, "positions": positions},
    )


def rotary_torch(shape: Shape, how: How) -> Prepared:
    """The same out of place in plain torch; the cosines and sines are looked up beforehand."""
    query, key, table, positions = _rotary_operands(shape, how)
    head_dim = shape["head_dim"]
    cos, sin = (torch.cat([t, t], dim=-1).unsqueeze(1) for t in table[positions].chunk(2, -1))

    def turned(x: torch.Tensor) -> torch.Tensor:
        heads = x.unflatten(-1, (-1, head_dim))
        first, second = heads.chunk(2, dim=-1)
        return (heads * cos + torch.cat([-second, first], dim=-1) * sin).flatten(-2)

    return Prepared(
        calls=(lambda: (turned(query), turned(key)),),
        stack=torch_stack("rotary expression"),
        operands={"query": query, "key": key, "table": table, "positions": positions},
    )


def _rotary_operands(
    shape: Shape, how: How
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys, the table [positions, cosines and sines] and positions."""
    rows, head_dim = shape["rows"], shape["head_dim"]
    heads = shape["width"] // head_dim
    kv_heads = max(1, heads // 5)
    # Real angles: turning in place again and again must keep the length.
    frequencies = ROPE_THETA ** (-torch.arange(0, head_dim, 2, device=how.device) / head_dim)
    angles = torch.arange(POSITIONS, device=how.device).unsqueeze(-1) * frequencies
    return (
        activation(rows, (heads - kv_heads) * head_dim, how=how),
        activation(rows, kv_heads * head_dim, how=how),
        torch.cat([angles.cos(), angles.sin()], dim=-1).to(how.torch_dtype),
        torch.randint(0, POSITIONS, (rows,), device=how.device),
    )


def _write_operands(shape: Shape, how: How) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """New keys and values [rows, kv_heads, head_dim], their slots, and copies of the cache."""
    rows, head_dim = shape["rows"], shape["head_dim"]
    key = activation(rows, shape["width"] // head_dim, head_dim, how=how)
    slots = torch.randperm(_slots(rows), device=how.device)[:rows]
    element = 1 if how.dtype == "fp8" else key.element_size()
    written = 2 * element * key.numel()
    return key, torch.randn_like(key), slots, copies(written, warm=how.warm)


def _slots(rows: int) -> int:
    return max(rows, CACHE_SLOTS)


def kv_write(shape: Shape, how: How) -> Prepared:
    """Write new keys and values into their cache slots; ``width`` = kv_heads x head_dim."""
    import vllm._custom_ops as ops

    key, value, slots, count = _write_operands(shape, how)
    rows, kv_heads, head_dim = key.shape
    one = torch.ones((), device=how.device)
    fp8 = how.dtype == "fp8"
    caches = [paged_cache(1, _slots(rows), kv_heads, head_dim, how)[:2] for _ in range(count)]

    def call(keys: torch.Tensor, values: torch.Tensor) -> Call:
        if fp8:  # vLLM keeps an fp8 cache as bytes
            keys, values = keys.view(torch.uint8), values.view(torch.uint8)
        kind = "fp8" if fp8 else "auto"
        return lambda: ops.reshape_and_cache_flash(key, value, keys, values, slots, kind, one, one)

    keys, values = caches[0]
    return Prepared(
        calls=tuple(call(*c) for c in caches),
        stack="vllm reshape_and_cache_flash",
        operands={"key": key, "value": value, "slots": slots, "keys": keys, "values": values},
    )


def kv_write_torch(shape: Shape, how: How) -> Prepared:
    """The same with index_copy_ into a cache [slots, kv_heads, head_dim]."""
    key, value, slots, count = _write_operands(shape, how)
    size = (_slots(key.shape[0]), *key.shape[1:])
    caches = [(activation(*size, how=how), activation(*size, how=how)) for _ in range(count)]

    def call(keys: torch.Tensor, values: torch.Tensor) -> Call:
        return lambda: (keys.index_copy_(0, slots, key), values.index_copy_(0, slots, value))

    keys, values = caches[0]
    return Prepared(
        calls=tuple(call(*c) for c in caches),
        stack=torch_stack("index_copy_"),
        operands={"key": key, "value": value, "slots": slots, "keys": keys, "values": values},
    )


def embedding(shape: Shape, how: How) -> Prepared:
    """Gather ``rows`` rows of a table of ``vocab`` x ``width``; every call gathers others."""
    table = weight(shape["vocab"], shape["width"], how=how)
    gathered = table.element_size() * shape["rows"] * shape["width"]
    ids = [
        torch.randint(0, shape["vocab"], (shape["rows"],), device=how.device)
        for _ in range(copies(gathered, warm=how.warm))
    ]

    def call(ids: torch.Tensor) -> Call:
        return lambda: F.embedding(ids, table)

    return Prepared(
        calls=tuple(call(i) for i in ids),
        stack=torch_stack("embedding"),
        operands={"ids": ids[0], "table": table},
    )


def sampling(shape: Shape, how: How) -> Prepared:
    """Greedy sampling: logits to float32, then argmax over ``width`` = vocabulary."""
    logits = activation(shape["rows"], shape["width"], how=how)
    return Prepared(
        calls=(lambda: logits.float().argmax(dim=-1),),
        stack=torch_stack("argmax"),
        operands={"logits": logits},
    )


def copy(shape: Shape, how: How) -> Prepared:
    """Device-to-device copy of ``bytes``."""
    numbers = shape["bytes"] // how.torch_dtype.itemsize
    pairs = [
        (activation(numbers, how=how), activation(numbers, how=how))
        for _ in range(copies(2 * shape["bytes"], warm=how.warm))
    ]

    def call(source: torch.Tensor, target: torch.Tensor) -> Call:
        return lambda: target.copy_(source)

    source, target = pairs[0]
    return Prepared(
        calls=tuple(call(*pair) for pair in pairs),
        stack=torch_stack("copy"),
        operands={"source": source, "target": target},
    )
