"""Time laws of the operation kinds: seconds at full clock as smooth rooflines over shapes.

Each law is a pure function of shape arrays and named parameters and returns the time of one call
and the part of it that the SM clock does not touch. The same functions are fitted by
``calibration.fit`` and evaluated by ``timing``. What a law leaves over is smooth in shape and is
interpolated from the calibration points (``kriging``).

Parameters are in SI units: ``launch_s`` is the time of a call that does nothing, ``*_per_s`` are
attainable rates, the others are dimensionless or in tokens, rows or elements, as documented.
``sm_count`` is not fitted: it is the datasheet's number of streaming multiprocessors.

A law is found by the name of what it describes: ``gemm`` is bfloat16, ``gemm.fp8`` the same law with
its own parameters (``kind_of``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energymodel.steps import Floats

Parameters = Mapping[str, float]
Shapes = Mapping[str, Floats]

SM_COUNT = 132.0
"""Streaming multiprocessors of Hopper SXM boards, for parameters that do not name ``sm_count``."""
L2_BYTES = 62_914_560.0
"""L2 cache of an H200, where no datasheet is at hand."""

# Rows that one warpgroup multiplies in decode attention.
TILE_ROWS = 64.0
HEAD_BLOCK = 64.0

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
    row_bytes = n * s.get("output_element_bytes", 2.0) + k * s.get("input_element_bytes", 2.0)
    memory = (s["weight_bytes"] + m * row_bytes) / p["bytes_per_s"]
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
    seqs, kv_heads, head_dim = s["num_seqs"], s["kv_heads"], padded_head_dim(s["head_dim"])
    sm_count = p.get("sm_count", SM_COUNT)
    length = s["block_tokens"] / np.maximum(seqs, 1.0)
    blocks = seqs * kv_heads * np.ceil(s["heads"] / kv_heads / 64.0)
    splits = np.clip(np.ceil(length / 128.0), 1.0, 32.0)
    busy = np.minimum(blocks * splits, sm_count)
    rate = 1.0 / smooth_max(
        np.full_like(busy, 1.0 / p["bytes_per_s"]), 1.0 / (busy * p["sm_bytes_per_s"]), 4.0
    )
    per_block = blocks / sm_count * p["block_s"] * (head_dim / 128.0) ** p["block_power"]
    cached = s.get("kv_element_bytes", 2.0) * s["block_tokens"] * kv_heads
    moved = 2.0 * head_dim * (cached + 2.0 * seqs * s["heads"])
    stream = moved / rate + p["block_share"] * per_block
    combine = p["combine_s"] * (1.0 - np.exp(-(splits - 1.0) / 4.0))
    seconds = p["launch_s"] + combine + smooth_max(per_block, stream, p["sharpness"])
    # What a stream at the full rate of the memory would take; the rest waits for the SMs.
    return Timed(seconds, np.minimum(moved / p["bytes_per_s"], seconds))


def padded_head_dim(head_dim: Floats | float) -> Floats:
    """Head size as the kernels walk it: in blocks of 64.

    Heads of 96 were measured to take 1.25 to 1.47 times what their bytes and FLOP would, and heads
    of 128 would take 1.33 times that.
    """
    return np.asarray(np.ceil(np.divide(head_dim, HEAD_BLOCK)) * HEAD_BLOCK)


def prefill_attention(s: Shapes, p: Parameters) -> Timed:
    """Causal attention of prompt chunks: blocks of 128 query rows over blocks of 128 keys.

    A key block costs its products and a softmax worth ``softmax_dims`` more head dimensions.
    ``pairs`` are the query-key pairs of one head, so mean key blocks of a query block are
    pairs / tokens / 128, plus half a block of masked waste.
    """
    heads, kv_heads, head_dim = s["heads"], s["kv_heads"], padded_head_dim(s["head_dim"])
    sm_count = p.get("sm_count", SM_COUNT)
    tokens = np.maximum(s["tokens"], 1e-9)
    seqs = np.maximum(s["num_seqs"], 1e-9)
    length = tokens / seqs
    query_blocks = seqs * kv_heads * np.ceil(length * heads / kv_heads / 128.0)
    key_blocks = s["pairs"] / tokens / 128.0 + 0.5
    block_s = 4.0 * 128.0**2 * (head_dim + p["softmax_dims"]) / (p["flop_per_s"] / sm_count)
    waves = query_blocks / sm_count
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
    activations pass through memory in between. ``imbalance``: of experts spread over GPUs, rows of
    the GPU with most over the mean.
    """
    n, hidden, inner, top_k = s["tokens"], s["hidden_size"], s["intermediate_size"], s["top_k"]
    up = s.get("up_size", 2.0 * inner)  # gate and up projection in one, unless there is no gate
    touched, sm_count = np.maximum(s["experts_touched"], 1.0), p.get("sm_count", SM_COUNT)
    rows = n * top_k * s.get("imbalance", 1.0)
    best = np.full_like(n, np.inf)
    share = np.zeros_like(n)
    for block_m in (16.0, 32.0, 64.0, 128.0):
        row_blocks = np.maximum(touched * (rows / touched / block_m + 0.5), touched)
        total = np.zeros_like(n)
        clocked = np.zeros_like(n)
        for width, depth in ((up, hidden), (hidden, inner)):
            weights = touched * width * depth * s["weight_element_bytes"]
            memory = (weights + 2.0 * rows * (width + depth)) / p["bytes_per_s"]
            tiles = row_blocks * np.maximum(width / 128.0, 1.0)
            compute = row_blocks * (block_m + p["fill_rows"]) * 2.0 * np.maximum(width, 128.0)
            compute = compute * (depth + p["fill_k"]) / p["flop_per_s"]
            compute = compute * np.maximum(1.0, sm_count / tiles)
            part, computing = blend(compute, memory, p["sharpness"])
            total += part
            clocked += part * computing
        better = total < best
        best = np.where(better, total, best)
        share = np.where(better, clocked / total, share)
    joined = 2.0 * rows * (p["hidden_passes"] * hidden + p["inner_passes"] * inner)
    extra = p["launch_s"] + p["expert_s"] * touched + joined / p["bytes_per_s"]
    return Timed(extra + best, extra + best * (1.0 - share))


def memory_share(moved_bytes: Floats, cache_bytes: float) -> Floats:
    """Share of what a row-by-row call moves that reaches the memory; the L2 cache holds the rest.

    Between half the cache and twice it, one goes over into the other.
    """
    return 1.0 / (1.0 + (cache_bytes / np.maximum(moved_bytes, 1.0)) ** 2)


def traffic(
    kind: str,
    shapes: Mapping[str, Floats | float],
    weight_bytes: Floats,
    row_bytes: Floats,
    l2_bytes: float,
) -> tuple[Floats, Floats, Floats]:
    """(bytes that cost ``weight_byte_j``, bytes that cost ``row_byte_j``, bytes in the memory).

    Weights and cached keys and values come from the memory and activations pass through it; of a
    row-by-row call, only what the L2 cache cannot hold, and the half of a gather or a cache write
    that is scattered over more memory than the cache covers. Attention passes whole blocks of a
    head through the SMs.
    """
    if kind in ("decode_attention", "prefill_attention"):
        padding = padded_head_dim(shapes["head_dim"]) / shapes["head_dim"]
        return weight_bytes * padding, row_bytes, weight_bytes + row_bytes
    if kind not in STREAMING_KINDS:
        return weight_bytes, row_bytes, weight_bytes + row_bytes
    moved = weight_bytes + row_bytes
    scattered = SCATTERED_SHARE.get(kind, 0.0)
    share = scattered + (1.0 - scattered) * memory_share(moved, l2_bytes)
    spilled = moved * share
    return spilled, moved - spilled, spilled


def executed_flop(kind: str, shapes: Mapping[str, Floats | float], flop: Floats) -> Floats:
    """FLOP that the tensor cores execute, which cost ``flop_j``: of decode attention, padded rows too.

    FlashAttention 3 packs the query heads of a KV head into a tile of rows and multiplies the whole
    tile with every key: 64 rows for heads of 64 and 128 (``use_one_mma_wg`` in ``hopper/heuristics.h``
    of vllm-project/flash-attention), 192 for heads of 96, 128 for larger ones (``tile_size_fwd_sm90``
    in ``hopper/tile_size.h``).
    """
    if kind != "decode_attention":
        return flop
    head_dim, kv_heads = np.asarray(shapes["head_dim"]), np.asarray(shapes["kv_heads"])
    between = (head_dim > 64.0) & (head_dim <= 96.0)
    tiles = np.where(between, 3.0, np.where(head_dim > 128.0, 2.0, 1.0))
    rows = tiles * TILE_ROWS
    rows = rows * np.ceil(shapes["heads"] / kv_heads / rows)
    return np.asarray(4.0 * rows * kv_heads * head_dim * shapes["block_tokens"])


def streaming(s: Shapes, p: Parameters) -> Timed:
    """Row by row: a fixed start, then the longer of bytes moved and rows walked.

    What fits the L2 cache moves faster, or as fast. A row is walked by one block, ``element_s`` for each of
    its ``width`` values, and ``rows_per_sm`` rows run on a multiprocessor at a time.
    """
    memory = s["bytes"] / p["bytes_per_s"]
    cached = s["bytes"] / np.maximum(p["cache_bytes_per_s"], p["bytes_per_s"])
    spill = memory_share(s["bytes"], p["cache_bytes"])
    moving = spill * memory + (1.0 - spill) * cached
    waves = 1.0 + s["rows"] / (p.get("sm_count", SM_COUNT) * p["rows_per_sm"])
    seconds = p["launch_s"] + smooth_max(moving, p["element_s"] * s["width"] * waves, 3.0)
    return Timed(seconds, seconds)


def roofline(s: Shapes, p: Parameters) -> Timed:
    """Any other call: the longer of ``bytes`` and ``flop`` at rates that ``blocks`` of work fill.

    ``blocks`` are pieces that run independently of each other, such as sequences x heads; with
    fewer than ``fill_blocks`` to a multiprocessor the rates fall. ``steps`` follow one another
    inside a call (the tokens of a scan), ``step_s`` each.
    """
    filled = s["blocks"] / p.get("sm_count", SM_COUNT)
    share = filled / (filled + p["fill_blocks"])
    memory = s["bytes"] / (p["bytes_per_s"] * share)
    longer, streamed = blend(memory, s["flop"] / (p["flop_per_s"] * share), p["sharpness"])
    seconds = p["launch_s"] + p["step_s"] * s["steps"] + longer
    return Timed(seconds, seconds * streamed)


STREAMING_KINDS = (
    "elementwise", "gather", "sampling",
    "rms_norm", "layer_norm", "silu_and_mul", "gelu", "residual_add", "rotary", "kv_write",
    "quantise", "moe_routing", "causal_conv1d", "copy",
)  # fmt: skip
"""Row by row. The first three pool what a prediction needs; the others are single kernels."""

SCATTERED_SHARE: Mapping[str, float] = {"gather": 0.5, "kv_write": 0.5}
"""Share of the bytes that are read from or written to a table far larger than the L2 cache."""

ROOFLINE_KINDS = (
    "mla_decode", "mla_prefill", "scan_decode", "scan_prefill",
    "linear_attention_decode", "linear_attention_prefill",
)  # fmt: skip
"""Latent attention, selective scans (Mamba 2) and gated delta rules."""

LAWS: Mapping[str, Callable[[Shapes, Parameters], Timed]] = {
    "gemm": gemm,
    "decode_attention": decode_attention,
    "prefill_attention": prefill_attention,
    "moe": moe,
    **dict.fromkeys(STREAMING_KINDS, streaming),
    **dict.fromkeys(ROOFLINE_KINDS, roofline),
}

_STREAMING = (
    "launch_s", "bytes_per_s", "cache_bytes_per_s", "cache_bytes", "element_s", "rows_per_sm",
)  # fmt: skip
_ROOFLINE = ("launch_s", "bytes_per_s", "flop_per_s", "sharpness", "fill_blocks", "step_s")

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
    **dict.fromkeys(STREAMING_KINDS, _STREAMING),
    **dict.fromkeys(ROOFLINE_KINDS, _ROOFLINE),
}  # fmt: skip
"""Parameters of each law; all are positive."""

REQUIRED = (
    "gemm", "decode_attention", "prefill_attention", "moe", "elementwise", "gather", "sampling",
)  # fmt: skip
"""What no prediction can do without; a profile may hold more."""


def kind_of(name: str) -> str:
    """The kind, whose law holds, of what is calibrated under ``name``: ``gemm`` of ``gemm.fp8``."""
    return name.partition(".")[0]


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
    if kind in ROOFLINE_KINDS:
        return {n: s[n] for n in ("flop", "bytes", "blocks")}
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
    elif kind in ROOFLINE_KINDS:
        columns = [s["flop"], s["bytes"], s["blocks"]]
    elif kind in STREAMING_KINDS:
        columns = [s["rows"], s["width"]]
    else:
        raise ValueError(f"operations of kind '{kind}' have no residual")
    table: Floats = np.stack(np.broadcast_arrays(*columns), axis=1)
    return np.log2(np.maximum(table, 1e-3)).astype(np.float64, copy=False)
