"""Softmax attention: what one layer stores, reads and multiplies, and the calls that it makes.

The methods are pure functions over arrays of prompt chunks or decoding sequences; what they mean
physically is in the docstring of each. A multiply-add is 2 FLOP; softmax, masks, soft-caps and
sinks are not counted, as in ``torch.utils.flop_counter``.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from energymodel.blocks.nothing import KeepsNothing
from energymodel.blocks.pairs import (
    band_pairs,
    blocks_up_to,
    piece_blocks,
    piece_pairs,
    visible_pairs,
)
from energymodel.op_kinds import Context, Op, elementwise, in_place, linear, normalise
from energymodel.steps import Floats, Ints
from energymodel.weights import Weight, matrix, vector

QkNorm = Literal["head", "hidden", "plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxAttention(KeepsNothing):
    """Multi-head, grouped-query or multi-query softmax attention, optionally windowed.

    ``sliding_window`` = W: a query sees itself and the W-1 tokens before it (None: all of them).
    ``chunk_size`` = C: a query sees what came before it in its own piece of C tokens (Llama 4).
    ``causal`` is off in encoders, where every token sees every other; a window then reaches both
    ways, W tokens in all. ``qk_norm``: "head" normalises each head of q and k alone (Qwen3, Gemma
    3), "hidden" the whole projection (OLMo 2, OLMoE), "plain" without learnt values (Llama 4);
    ``qk_norm_vectors`` are its learnt vectors, where not as many as those of the layer's norms.
    ``rotary_dim``: how many of the ``head_dim`` values of a head are rotated by position.
    ``sinks``: one learnt extra logit for each head (gpt-oss). ``clip_qkv``: the projections are
    clamped (OLMo). ``gated``: the query projection also gives a gate for the output (Qwen3-Next).
    ``k_bias`` is off where queries and values have a bias and keys have none (Whisper).
    ``score_bias``: a learnt number for each head and distance is added to the scores (T5);
    ``alibi``: a fixed one that grows with the distance (BLOOM).
    ``input_size``: width of what is projected, where it is not that of the layer (Zamba).
    ``shares_kv``: keys and values are those that an earlier layer cached (Gemma 3n). ``k_is_v``:
    values are the keys before their norm and rotation (Gemma 4). ``v_norm``: values are normalised.
    """

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary_dim: int
    sliding_window: int | None = None
    chunk_size: int | None = None
    causal: bool = True
    qkv_bias: bool = False
    k_bias: bool = True
    o_bias: bool = False
    qk_norm: QkNorm | None = None
    qk_norm_vectors: int | None = None
    sinks: bool = False
    clip_qkv: bool = False
    gated: bool = False
    score_bias: bool = False
    alibi: bool = False
    input_size: int | None = None
    shares_kv: bool = False
    k_is_v: bool = False
    v_norm: bool = False

    @property
    def q_size(self) -> int:
        """Width of the query projection, values per token."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the key projection (the value projection is as wide), values per token."""
        return self.num_key_value_heads * self.head_dim

    @property
    def new_kv_size(self) -> int:
        """Width of the keys that the layer computes itself."""
        return 0 if self.shares_kv else self.kv_size

    @property
    def qkv_size(self) -> int:
        """Width of the fused projection of queries, keys, values and the gate of the output."""
        q_size = (2 if self.gated else 1) * self.q_size
        return q_size + (1 if self.k_is_v else 2) * self.new_kv_size

    def weights(self, hidden_size: int, norm_vectors: int) -> tuple[Weight, ...]:
        """Projections, their biases, the norms of q and k, and sinks."""
        bias = self.qkv_size - (0 if self.k_bias else self.kv_size)
        vectors = [
            vector("qkv_proj.bias", bias if self.qkv_bias else 0),
            vector("qk_norm", self._qk_norm_params(norm_vectors)),
            vector("sinks", self.num_attention_heads if self.sinks else 0),
        ]
        return (
            *matrix(
                "qkv_proj",
                self.qkv_size,
                self.input_size or hidden_size,
                parts=("q_proj", "k_proj", "v_proj"),
            ),
            *matrix("o_proj", hidden_size, self.q_size, bias=self.o_bias),
            *(v for v in vectors if v.params),
        )

    def kv_bytes_per_token(self, element_bytes: float) -> float:
        """Bytes that one token adds to the cache of one layer; an encoder has none."""
        cached = self.causal and not self.shares_kv
        return self.key_value_bytes(element_bytes) if cached else 0.0

    def key_value_bytes(self, element_bytes: float) -> float:
        """Bytes of a key and a value for each KV head."""
        return 2 * self.kv_size * element_bytes

    def chunk_pairs(self, tokens: Floats | Ints, context: Floats | Ints) -> Floats:
        """(query, key) pairs that the mask lets through, for each head; shape as the inputs.

        ``tokens`` new queries follow ``context`` cached tokens, so query number x of the sequence
        (x = context+1 ... context+tokens) sees min(x, W) keys. With S(n) = sum of min(x, W) over
        x = 1 ... n, the pairs are S(context + tokens) - S(context). In pieces of C tokens query x
        sees (x - 1) mod C + 1 keys. Without a mask all queries see all tokens, or those within
        W/2 to either side.
        """
        if self.chunk_size is not None:
            start = np.asarray(context, dtype=np.float64)
            pieces = float(self.chunk_size)
            return piece_pairs(start + tokens, pieces) - piece_pairs(start, pieces)
        if not self.causal:
            n = np.asarray(tokens, dtype=np.float64) + context
            return n * n if self.sliding_window is None else band_pairs(n, self.sliding_window)
        return visible_pairs(tokens, context, self._window)

    def chunk_kv_tokens(self, tokens: Floats | Ints, context: Floats | Ints) -> Floats:
        """Keys that at least one query of the chunk sees: the new ones and those in the window."""
        before = np.minimum(context, self._window - 1)
        if self.chunk_size is not None:
            before = np.asarray(context, dtype=np.float64) % self.chunk_size
        return np.asarray(tokens, dtype=np.float64) + before

    def decode_kv_tokens(self, context: Floats | Ints, span: Floats | Ints | int = 1) -> Floats:
        """Keys that one new token sees after ``context`` cached ones, itself included.

        This is also its number of (query, key) pairs for each head. Where a context grows piece by
        piece it is the mean over ``span`` consecutive steps whose mean context is ``context``.
        """
        context = np.asarray(context, dtype=np.float64)
        if self.chunk_size is None:
            return np.minimum(context + 1, self._window)
        steps, size = np.asarray(span, dtype=np.float64), float(self.chunk_size)
        last = context + 1.0 + (steps - 1.0) / 2.0
        return (piece_pairs(last, size) - piece_pairs(last - steps, size)) / steps

    @property
    def kernel(self) -> str:
        """What runs where it is not the attention that was calibrated; empty where it is."""
        if self.score_bias or self.alibi:
            return "attention with a bias on its scores"
        return "" if self.causal else "attention without a causal mask"

    @property
    def key_block(self) -> int:
        """Keys that FlashAttention 3 walks at a time over a paged cache on Hopper.

        ``tile_size_fwd_sm90`` in hopper/tile_size.h of Dao-AILab/flash-attention, 16-bit elements,
        pages smaller than a block.
        """
        if self.head_dim <= 128:
            return 128
        if self.head_dim <= 192:
            return 96
        return 80 if self.sliding_window is None else 64

    def decode_block_tokens(self, context: Floats | Ints, span: Floats | Ints) -> Floats:
        """Keys in the whole blocks that one new token's attention walks.

        Mean over ``span`` consecutive steps whose mean context is ``context``: a kernel works on
        whole blocks, so the last of them costs as much with one key as with all.
        """
        middle = np.asarray(context, dtype=np.float64) + 1.0
        first, last = middle - (span - 1.0) / 2.0, middle + (span - 1.0) / 2.0
        size = float(self.key_block)
        if self.chunk_size is not None:
            piece = float(self.chunk_size)
            walked = piece_blocks(last, piece, size) - piece_blocks(first - 1.0, piece, size)
            return walked / span * size
        blocks = blocks_up_to(last, size) - blocks_up_to(first - 1.0, size)
        if self.sliding_window is not None:
            # Blocks wholly before the window: floor(j / size) = ceil((j + 1) / size) - 1.
            out_last = np.maximum(last - self.sliding_window, -1.0) + 1.0
            out_before = np.maximum(first - 1.0 - self.sliding_window, -1.0) + 1.0
            blocks -= blocks_up_to(out_last, size) - out_last
            blocks += blocks_up_to(out_before, size) - out_before
        return blocks / span * size

    def flop(self, pairs: Floats) -> Floats:
        """FLOP of all heads: 2 x head_dim for a score, 2 x head_dim for its share of the values."""
        return 4.0 * self.q_size * pairs

    def operations(self, ctx: Context) -> list[Op]:
        """Projections, norms of q and k, rotary, cache, attention, gate, output."""
        projections = "attention_projections"
        k = self.input_size or ctx.hidden_size
        ops = linear(ctx, "qkv_proj", projections, n=self.qkv_size, k=k, bias=self.qkv_bias)
        if self.clip_qkv:
            ops.append(in_place(ctx, "clip_qkv", "attention", width=self.qkv_size))
        if self.qk_norm is not None:
            width, learnt = self.q_size + self.new_kv_size, self._qk_norm_params(ctx.norm_vectors)
            ops.append(normalise(ctx, "qk_norm", width=width, tensors=2, weights=learnt))
        if self.v_norm and not self.shares_kv:
            ops.append(normalise(ctx, "v_norm", width=self.kv_size, tensors=2, weights=0))
        if self.rotary_dim:
            rotated = (self.q_size + self.new_kv_size) // self.head_dim * self.rotary_dim
            ops.append(in_place(ctx, "rotary", "attention", width=rotated, kind="rotary"))
        if self.causal and not self.shares_kv:
            ops.append(self._cache_write(ctx))
        ops += [self._prefill(ctx), *([self._decode(ctx)] if self.causal else [])]
        if self.gated:
            row_bytes = 3 * self.q_size * ctx.wide
            gate = elementwise(
                ctx, "output_gate", "attention", width=self.q_size, row_bytes=row_bytes
            )
            ops.append(gate)
        return ops + linear(
            ctx, "o_proj", projections, n=ctx.hidden_size, k=self.q_size, bias=self.o_bias
        )

    def _qk_norm_params(self, layer_vectors: int) -> int:
        """Learnt values of the norms of q and k."""
        if self.qk_norm is None:
            return 0
        heads = (1 if self.shares_kv else 2) * self.head_dim
        widths = {"head": heads, "hidden": self.q_size + self.new_kv_size, "plain": 0}
        vectors = layer_vectors if self.qk_norm_vectors is None else self.qk_norm_vectors
        return vectors * widths[self.qk_norm]

    def _cache_write(self, ctx: Context) -> Op:
        """Copy of the new keys and values into the cache, converted where the cache is narrower."""
        row_bytes = 2 * self.kv_size * ctx.wide + self.kv_bytes_per_token(ctx.kv_element_bytes)
        return elementwise(
            ctx,
            "kv_cache_write",
            "attention",
            width=self.kv_size,
            row_bytes=row_bytes,
            kind="kv_write",
        )

    def _prefill(self, ctx: Context) -> Op:
        """Attention of prompt chunks: reads queries and visible keys and values, writes outputs."""
        chunks = ctx.steps.chunks
        return prefill_attention(
            ctx,
            self,
            pairs=self.chunk_pairs(chunks.tokens, chunks.context),
            kv_tokens=self.chunk_kv_tokens(chunks.tokens, chunks.context),
            cached=ctx.kv_stored if self.causal else "",
        )

    def _decode(self, ctx: Context) -> Op:
        """Attention of decoding sequences, few queries each, over what the window leaves of the cache."""
        steps, decodes = ctx.steps, ctx.steps.decodes
        span = steps.weight[decodes.step]
        last = decodes.context + (decodes.queries - 1.0)
        kv_tokens = self.decode_kv_tokens(last, span)
        pairs = None
        if decodes.queries > 1:
            queries = np.full_like(last, decodes.queries)
            pairs = self.chunk_pairs(queries, decodes.context)
            kv_tokens = self.chunk_kv_tokens(queries, decodes.context)
        return decode_attention(
            ctx,
            self,
            kv_tokens=kv_tokens,
            block_tokens=self.decode_block_tokens(last, span),
            pairs=pairs,
        )

    @property
    def _window(self) -> float:
        return np.inf if self.sliding_window is None else float(self.sliding_window)


def prefill_attention(
    ctx: Context,
    a: "SoftmaxAttention",
    *,
    pairs: Floats,
    kv_tokens: Floats,
    cached: str,
    name: str = "attention_prefill",
) -> Op:
    """Attention of chunks, each with ``pairs`` query-key pairs of a head over ``kv_tokens`` keys.

    ``cached`` is the format of a KV cache that keys and values are read from; empty where they
    come straight from the projection, in 16 bits.
    """
    steps, chunks = ctx.steps, ctx.steps.chunks
    tokens = steps.sum_chunks(chunks.tokens)
    element_bytes = ctx.kv_element_bytes if cached else ctx.wide
    asked = pairs, np.zeros_like(steps.decodes.context)
    pairs, kv_tokens = steps.sum_chunks(pairs), steps.sum_chunks(kv_tokens)
    kv_bytes = kv_tokens * a.key_value_bytes(element_bytes)
    return Op(
        name=name,
        kind="prefill_attention",
        component="attention",
        dtype=ctx.dtype,
        stored=cached or ctx.dtype,
        count=ctx.count,
        flop=a.flop(pairs),
        hbm_bytes=kv_bytes + tokens * (2 * a.q_size * ctx.wide),
        weight_bytes=kv_bytes,
        shape=_attention_shape(a, kv_tokens, element_bytes)
        | {
            "tokens": tokens,
            "pairs": pairs,
            "num_seqs": steps.sum_chunks(np.ones_like(chunks.tokens)),
        },
        stands_for=a.kernel,
        asked=asked,
    )


def decode_attention(
    ctx: Context,
    a: "SoftmaxAttention",
    *,
    kv_tokens: Floats,
    block_tokens: Floats,
    pairs: Floats | None = None,
    name: str = "attention_decode",
) -> Op:
    """Attention of each sequence's few queries over ``kv_tokens`` cached keys, in whole blocks.

    ``pairs`` are the query-key pairs of one head, as many as keys unless given. The queries of a
    sequence are packed like query heads that share a KV head (``pack_gqa`` of FlashAttention 3,
    ``hopper/heuristics.h``), so they read the cache once and are counted as heads.
    """
    steps = ctx.steps
    num_seqs, queries = steps.decoding, steps.decodes.queries
    asked = np.zeros(steps.chunks.tokens.size), kv_tokens
    pairs = steps.sum_decodes(kv_tokens if pairs is None else pairs)
    kv_tokens, block_tokens = steps.sum_decodes(kv_tokens), steps.sum_decodes(block_tokens)
    kv_bytes = kv_tokens * a.key_value_bytes(ctx.kv_element_bytes)
    return Op(
        name=name,
        kind="decode_attention",
        component="attention",
        dtype=ctx.dtype,
        stored=ctx.kv_stored,
        count=ctx.count,
        flop=a.flop(pairs),
        hbm_bytes=kv_bytes + num_seqs * (2 * a.q_size * queries * ctx.wide),
        weight_bytes=kv_bytes,
        shape=_attention_shape(a, kv_tokens, ctx.kv_element_bytes)
        | {
            "num_seqs": num_seqs,
            "block_tokens": block_tokens,
            "heads": float(a.num_attention_heads * queries),
        },
        stands_for=a.kernel,
        asked=asked,
    )


def _attention_shape(
    a: "SoftmaxAttention", kv_tokens: Floats, element_bytes: float
) -> dict[str, Floats | float]:
    return {
        "kv_tokens": kv_tokens,
        "heads": float(a.num_attention_heads),
        "kv_heads": float(a.num_key_value_heads),
        "head_dim": float(a.head_dim),
        "kv_element_bytes": element_bytes,
    }
