"""Time laws of the operation kinds: seconds at full clock as smooth rooflines over shapes.

Each law is a pure function of shape arrays and named parameters and returns the time of one call
and the part of it that the SM clock does not touch. The same functions are fitted by
``calibration.fit`` and evaluated by ``timing``. What a law leaves over is smooth in shape and is
interpolated from the calibration points (``kriging``).

Parameters are in SI units: ``launch_s`` is the time of a call that does nothing, ``*_per_s`` are
attainable rates, the others are dimensionless or in tokens, rows or elements, as documented.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energymodel.steps import Floats

Parameters = Mapping[str, float]
Shapes = Mapping[str, Floats]

SM_COUNT = 132.0
"""Streaming multiprocessors of Hopper SXM boards; tiles are dealt out in waves of this many."""


TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one call at full clock, and the part of them that the SM clock does not touch."""

    seconds: Floats
    memory_s: Floats


def smooth_max(a: Floats, b: Floats, sharpness: float) -> Floats:
    """(a^p + b^p)^(1/p) without overflow: nearly max(a, b), rounded where they are close."""
    return blend(a, b, sharpness)[0]


def blend(a: Floats, b: Floats, sharpness: float) -> tuple[Floats, Floats]:
    """(smooth maximum m of a and b, share of ``a`` in it: d log m / d log a)."""
    high = np.maximum(np.maximum(a, b), TINY)
    ratio = (np.minimum(a, b) / high) ** sharpness
    return high * (1.0 + ratio) ** (1.0 / sharpness), np.where(a >= b, 1.0, ratio) / (1.0 + ratio)


def gemm(s: Shapes, p: Parameters) -> Timed:
    """y[m, n] = x[m, k] w[n, k]^T: weights streamed from HBM against tiles computed.

    Small outputs leave multiprocessors idle (``fill_tiles``, in tiles of 128 x 128), short inner
    dimensions leave the pipeline to fill (``fill_k``), long ones are reduced in pieces
    (``reduce_s`` per element of k).
    """
    m, n, k = s["m"], s["n"], s["k"]
    memory = (s["weight_bytes"] + 2.0 * m * (n + k)) / p["bytes_per_s"]
    tiles = np.maximum(m, 16.0) * n / 128.0**2
    compute = 2.0 * m * n * k / p["flop_per_s"]
    compute *= (1.0 + p["fill_k"] / k) * (1.0 + p["fill_tiles"] / tiles)
    longer, share = blend(memory, compute, p["sharpness"])
    seconds = p["launch_s"] + p["reduce_s"] * k + longer
    return Timed(seconds, seconds * share)


def decode_attention(s: Shapes, p: Parameters) -> Timed:
    """One query a sequence over a paged KV cache, split over the context to fill the GPU.

    ``groups`` of query heads that share a KV head are packed into one block of up to 64 rows;
    contexts are walked in whole blocks of about 128 keys and split at most 32 ways.
    """
    seqs, kv_heads, head_dim = s["num_seqs"], s["kv_heads"], s["head_dim"]
    length = s["block_tokens"] / np.maximum(seqs, 1.0)
    blocks = seqs * kv_heads * np.ceil(s["heads"] / kv_heads / 64.0)
    splits = np.clip(np.ceil(length / 128.0), 1.0, 32.0)
    busy = np.minimum(blocks * splits, SM_COUNT)
    rate = 1.0 / smooth_max(
        np.full_like(busy, 1.0 / p["bytes_per_s"]), 1.0 / (busy * p["sm_bytes_per_s"]), 4.0
    )
    per_block = blocks / SM_COUNT * p["block_s"] * (head_dim / 128.0) ** p["block_power"]
    moved = 4.0 * head_dim * (s["block_tokens"] * kv_heads + seqs * s["heads"])
    stream = moved / rate + p["block_share"] * per_block
    combine = p["combine_s"] * (1.0 - np.exp(-(splits - 1.0) / 4.0))
    seconds = p["launch_s"] + combine + smooth_max(per_block, stream, p["sharpness"])
    # What a stream at the full rate of the memory would take; the rest waits for the SMs.
    return Timed(seconds, np.minimum(moved / p["bytes_per_s"], seconds))


def prefill_attention(s: Shapes, p: Parameters) -> Timed:
    """Causal attention of prompt chunks: blocks of 128 query rows over blocks of 128 keys.

    A key block costs its products and a softmax worth ``softmax_dims`` more head dimensions.
    ``pairs`` are the query-key pairs of one head, so mean key blocks of a query block are
    pairs / tokens / 128, plus half a block of masked waste.
    """
    heads, kv_heads, head_dim = s["heads"], s["kv_heads"], s["head_dim"]
    tokens = np.maximum(s["tokens"], 1e-9)
    seqs = np.maximum(s["num_seqs"], 1e-9)
    length = tokens / seqs
    query_blocks = seqs * kv_heads * np.ceil(length * heads / kv_heads / 128.0)
    key_blocks = s["pairs"] / tokens / 128.0 + 0.5
    block_s = 4.0 * 128.0**2 * (head_dim + p["softmax_dims"]) / (p["flop_per_s"] / SM_COUNT)
    waves = query_blocks / SM_COUNT
    wide = waves * (p["block_s"] + key_blocks * block_s)
    # One block's walk over its keys bounds the time where there are fewer blocks than SMs.
    longest = np.ceil((s["kv_tokens"] / seqs) / 128.0)
    walk = longest * block_s * p["walk_share"] * np.minimum(1.0, waves) ** p["walk_power"]
    compute = smooth_max(wide, p["block_s"] + walk, p["sharpness"])
    memory = s["bytes"] / p["bytes_per_s"]
    longer, share = blend(memory, compute, 3.0)
    seconds = p["launch_s"] + longer
    return Timed(seconds, seconds * share)


def moe(s: Shapes, p: Parameters) -> Timed:
    """Fused experts: two grouped products in row blocks padded per expert, and what joins them.

    ``touched`` experts stream their weights; each gets tokens x top_k / touched rows, padded to
    the best of the block sizes 16 to 128. Alignment costs ``expert_s`` for each touched expert;
    activations pass through memory in between.
    """
    n, hidden, inner, top_k = s["tokens"], s["hidden_size"], s["intermediate_size"], s["top_k"]
    touched = np.maximum(s["experts_touched"], 1.0)
    rows = n * top_k
    best = np.full_like(n, np.inf)
    share = np.zeros_like(n)
    for block_m in (16.0, 32.0, 64.0, 128.0):
        row_blocks = np.maximum(touched * (rows / touched / block_m + 0.5), touched)
        total = np.zeros_like(n)
        clocked = np.zeros_like(n)
        for width, depth in ((2.0 * inner, hidden), (hidden, inner)):
            weights = touched * width * depth * s["weight_element_bytes"]
            memory = (weights + 2.0 * rows * (width + depth)) / p["bytes_per_s"]
            tiles = row_blocks * np.maximum(width / 128.0, 1.0)
            compute = row_blocks * (block_m + p["fill_rows"]) * 2.0 * np.maximum(width, 128.0)
            compute = compute * (depth + p["fill_k"]) / p["flop_per_s"]
            compute = compute * np.maximum(1.0, SM_COUNT / tiles)
            part, computing = blend(compute, memory, p["sharpness"])
            total += part
            clocked += part * computing
        better = total < best
        best = np.where(better, total, best)
        share = np.where(better, clocked / total, share)
    joined = 2.0 * rows * (p["hidden_passes"] * hidden + p["inner_passes"] * inner)
    extra = p["launch_s"] + p["expert_s"] * touched + joined / p["bytes_per_s"]
    return Timed(extra + best, extra + best * (1.0 - share))


def streaming(s: Shapes, p: Parameters) -> Timed:
    """Element by element: a fixed start, then bytes; what fits the L2 cache moves faster."""
    memory = s["bytes"] / p["bytes_per_s"]
    cached = s["bytes"] / p["cache_bytes_per_s"]
    # Between half the cache and twice it, the rate goes over from one to the other.
    spill = 1.0 / (1.0 + (p["cache_bytes"] / np.maximum(s["bytes"], 1.0)) ** 2)
    seconds = p["launch_s"] + spill * memory + (1.0 - spill) * cached
    return Timed(seconds, seconds)


LAWS: Mapping[str, Callable[[Shapes, Parameters], Timed]] = {
    "gemm": gemm,
    "decode_attention": decode_attention,
    "prefill_attention": prefill_attention,
    "moe": moe,
    "elementwise": streaming,
    "gather": streaming,
    "sampling": streaming,
}


PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "gemm": (
        "launch_s", "bytes_per_s", "flop_per_s", "fill_k", "fill_tiles", "sharpness", "reduce_s",
    ),
    "decode_attention": (
        "launch_s", "bytes_per_s", "block_s", "sharpness", "sm_bytes_per_s", "combine_s",
        "block_share", "block_power",
    ),
    "prefill_attention": (
        "launch_s", "flop_per_s", "softmax_dims", "block_s", "walk_share", "walk_power",
        "sharpness", "bytes_per_s",
    ),
    "moe": (
        "launch_s", "bytes_per_s", "flop_per_s", "fill_rows", "fill_k", "sharpness",
        "hidden_passes", "inner_passes", "expert_s",
    ),
    "elementwise": ("launch_s", "bytes_per_s", "cache_bytes_per_s", "cache_bytes"),
    "gather": ("launch_s", "bytes_per_s", "cache_bytes_per_s", "cache_bytes"),
    "sampling": ("launch_s", "bytes_per_s", "cache_bytes_per_s", "cache_bytes"),
}  # fmt: skip
"""Parameters of each law; all are positive."""

WIDTHS: Mapping[str, tuple[str, ...]] = {
    "gemm": ("n", "k"),
    "moe": ("hidden_size", "intermediate_size", "num_experts", "top_k"),
}
"""Shape axes that are fixed by the model, for the kinds whose other axis is the tokens alone."""


def domain_axes(kind: str, s: Shapes) -> dict[str, Floats]:
    """What a prediction is compared in with the calibrated range; one array or scalar each."""
    if kind in WIDTHS:
        rows = "m" if kind == "gemm" else "tokens"
        return {name: s[name] for name in (rows, *WIDTHS[kind])}
    if kind == "decode_attention":
        length = s["block_tokens"] / np.maximum(s["num_seqs"], 1.0)
        return {n: s[n] for n in ("num_seqs", "heads", "kv_heads")} | {"keys_per_sequence": length}
    if kind == "prefill_attention":
        reach = s["pairs"] / np.maximum(s["tokens"], 1.0)
        return {n: s[n] for n in ("tokens", "heads", "kv_heads")} | {"keys_per_query": reach}
    return {}


def features(kind: str, s: Shapes) -> NDArray[np.float64]:
    """Coordinates in which residuals of a law are smooth, log2; shape [n, d]."""
    if kind == "gemm":
        columns = [s["m"], s["n"], s["k"]]
    elif kind == "decode_attention":
        length = s["block_tokens"] / np.maximum(s["num_seqs"], 1.0)
        columns = [s["num_seqs"], length, s["kv_heads"], s["heads"] / s["kv_heads"], s["head_dim"]]
    elif kind == "prefill_attention":
        length = s["tokens"] / np.maximum(s["num_seqs"], 1.0)
        reach = s["pairs"] / np.maximum(s["tokens"], 1.0)
        columns = [s["num_seqs"], length, reach, s["kv_heads"]]
        columns += [s["heads"] / s["kv_heads"], s["head_dim"]]
    elif kind == "moe":
        per_expert = s["tokens"] * s["top_k"] / s["num_experts"]
        columns = [s["tokens"], per_expert, s["hidden_size"], s["intermediate_size"]]
        columns += [s["num_experts"], s["top_k"]]
    else:
        raise ValueError(f"operations of kind '{kind}' have no residual")
    table: Floats = np.stack(np.broadcast_arrays(*columns), axis=1)
    return np.log2(np.maximum(table, 1e-3)).astype(np.float64, copy=False)
