"""Attention kinds: what one layer of each stores, reads and multiplies.

One frozen dataclass for each kind. Its methods are pure functions over arrays of prompt chunks or
decoding sequences; what they mean physically is in the docstring of each. A multiply-add is 2 FLOP;
softmax, masks, soft-caps and sinks are not counted, as in ``torch.utils.flop_counter``.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from energymodel.steps import Floats, Ints

QkNorm = Literal["head", "hidden"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxAttention:
    """Multi-head, grouped-query or multi-query softmax attention, causal, optionally windowed.

    ``sliding_window`` = W: a query sees itself and the W-1 tokens before it (None: all of them).
    ``qk_norm``: "head" normalises each head of q and k alone (Qwen3, Gemma 3), "hidden" the whole
    projection (OLMo 2, OLMoE). ``rotary_dim``: how many of the ``head_dim`` values of a head are
    rotated by position. ``sinks``: one learnt extra logit for each head (gpt-oss). ``clip_qkv``:
    the projections are clamped (OLMo).
    """

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary_dim: int
    sliding_window: int | None = None
    logit_softcap: float | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: QkNorm | None = None
    sinks: bool = False
    clip_qkv: bool = False

    @property
    def q_size(self) -> int:
        """Width of the query projection, values per token."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the key projection (the value projection is as wide), values per token."""
        return self.num_key_value_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Width of the fused projection of queries, keys and values."""
        return self.q_size + 2 * self.kv_size

    def kv_bytes_per_token(self, element_bytes: float) -> float:
        """Bytes that one cached token takes in one layer: a key and a value for each KV head."""
        return 2 * self.kv_size * element_bytes

    def cached_tokens(self, context: Floats | Ints) -> Floats:
        """Tokens of a sequence of ``context`` that stay in the cache: min(context, window).

        The newest one is the query's own: ``transformers`` drops the oldest before the next step
        and so holds window - 1 between steps.
        """
        return np.minimum(context, self._window)

    def chunk_pairs(self, tokens: Floats | Ints, context: Floats | Ints) -> Floats:
        """(query, key) pairs that the mask lets through, for each head; shape as the inputs.

        ``tokens`` new queries follow ``context`` cached tokens, so query number x of the sequence
        (x = context+1 ... context+tokens) sees min(x, W) keys. With S(n) = sum of min(x, W) over
        x = 1 ... n, the pairs are S(context + tokens) - S(context).
        """
        return visible_pairs(tokens, context, self._window)

    def chunk_kv_tokens(self, tokens: Floats | Ints, context: Floats | Ints) -> Floats:
        """Keys that at least one query of the chunk sees: the new ones and those in the window."""
        return np.asarray(tokens, dtype=np.float64) + np.minimum(context, self._window - 1)

    def decode_kv_tokens(self, context: Floats | Ints) -> Floats:
        """Keys that one new token sees after ``context`` cached ones, itself included.

        This is also its number of (query, key) pairs for each head.
        """
        return np.minimum(np.asarray(context, dtype=np.float64) + 1, self._window)

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
        blocks = _blocks_up_to(last, size) - _blocks_up_to(first - 1.0, size)
        if self.sliding_window is not None:
            # Blocks wholly before the window: floor(j / size) = ceil((j + 1) / size) - 1.
            out_last = np.maximum(last - self.sliding_window, -1.0) + 1.0
            out_before = np.maximum(first - 1.0 - self.sliding_window, -1.0) + 1.0
            blocks -= _blocks_up_to(out_last, size) - out_last
            blocks += _blocks_up_to(out_before, size) - out_before
        return blocks / span * size

    def flop(self, pairs: Floats) -> Floats:
        """FLOP of all heads: 2 x head_dim for a score, 2 x head_dim for its share of the values."""
        return 4.0 * self.q_size * pairs

    @property
    def _window(self) -> float:
        return np.inf if self.sliding_window is None else float(self.sliding_window)


def visible_pairs(tokens: Floats | Ints, context: Floats | Ints, window: float) -> Floats:
    """(query, key) pairs of ``tokens`` queries after ``context`` tokens that see ``window`` keys."""
    start = np.asarray(context, dtype=np.float64)
    return _pairs_up_to(start + tokens, window) - _pairs_up_to(start, window)


def _pairs_up_to(n: Floats, window: float) -> Floats:
    """S(n) = m(m+1)/2 + (n-m)W with m = min(n, W); without a window m = n."""
    ramp: Floats = np.minimum(n, window)
    beyond = n - ramp
    return ramp * (ramp + 1) / 2 + (beyond * window if np.isfinite(window) else 0.0)


def _blocks_up_to(n: Floats, size: float) -> Floats:
    """Sum of ceil(i / size) over i = 1 ... n."""
    whole = np.floor(n / size)
    return size * whole * (whole + 1.0) / 2.0 + (n - whole * size) * (whole + 1.0)
