"""How vLLM cuts the memory of its caches: blocks of tokens, and the states of recurrent layers.

Facts of vLLM 0.24 (``v1/core/kv_cache_utils.py``, ``get_kv_cache_groups``): layers that all keep
the same tokens, all of them or those in the same window, are one group, and a block is that of
``block_size`` tokens in every layer. Other models have pages of one size in every layer
(``unify_kv_cache_spec_page_size``). Where one layer caches a whole multiple less of a token than
another, it keeps that many times the tokens in a page; otherwise part of its page is left empty.
Layers of one kind (what they cache of a token, their window) are split into groups of as many
layers as the rarest kind has; a block is a page in each layer of a group, and all groups draw
blocks from one pool (``_get_kv_cache_groups_uniform_page_size``).

The states that one sequence has in a recurrent layer fill a page, and attention keeps as many
tokens in a page as make it no smaller (``platforms/interface.py``, ``_align_hybrid_block_size``;
without prefix caching, which such models have off by default).

Layers that attend within pieces (Llama 4) keep all tokens: vLLM turns the pool of several groups
off for them (``config/vllm.py``, ``VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE``).
"""

import math
from collections import Counter
from dataclasses import dataclass, replace

from energymodel.blocks import SoftmaxAttention
from energymodel.deployment import Deployment
from energymodel.dtypes import DTYPE_BYTES
from energymodel.model import ModelSpec
from energymodel.sequence_blocks import TokenGroups

# Tokens in an attention page are a multiple of this (FlashAttention).
PAGE_TOKENS = 16
# Where the commonest kind has less than this many times the layers of the rarest, groups have as
# many layers as the commonest.
FEW_PADDED = 1.5
# Tokens that fit a cache in which nothing is kept, as that of an encoder.
BOUNDLESS_TOKENS = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayout:
    """Blocks of ``block_bytes`` that hold ``block_tokens`` of a sequence each, in one of ``groups``.

    ``state_blocks``: blocks that a sequence takes beside those of its tokens, however long it is.
    ``block_tokens`` is 0 where tokens take nothing and a block holds the states of one sequence.
    """

    block_bytes: float
    block_tokens: int
    state_blocks: int = 0
    groups: tuple[TokenGroups, ...] = (TokenGroups(),)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRoom:
    """What fits: ``tokens`` in blocks of ``block_tokens``, and at most ``sequences`` at a time.

    Each of ``groups`` takes blocks of its own for the same tokens. ``state_blocks``: blocks that
    each sequence takes beside those of its tokens.
    """

    tokens: int
    block_tokens: int
    sequences: int
    state_blocks: int = 0
    groups: tuple[TokenGroups, ...] = (TokenGroups(),)

    @property
    def empty(self) -> bool:
        """Whether not even one sequence of one token fits."""
        blocks = sum(g.count for g in self.groups) + self.state_blocks
        return self.tokens < blocks * self.block_tokens

    @property
    def tokens_within_windows(self) -> int:
        """Tokens that fit, in sequences that no window is too short for."""
        return int(self.tokens / sum(g.count / g.ratio for g in self.groups))

    def part(self, count: int) -> "CacheRoom":
        """What each of ``count`` micro-batches finds that share it."""
        if count == 1:
            return self
        blocks = self.tokens // self.block_tokens // count
        sequences = max(self.sequences // count, 1)
        return replace(self, tokens=blocks * self.block_tokens, sequences=sequences)

    def limits(self, deployment: Deployment) -> Deployment:
        """The deployment as the scheduler finds it."""
        places = min(deployment.max_num_seqs, self.sequences)
        return replace(deployment, block_size=self.block_tokens, max_num_seqs=places)


def cache_layout(
    model: ModelSpec, deployment: Deployment, *, kv_dtype: str, dtype: str
) -> CacheLayout:
    """Blocks of the caches, of keys and values in ``kv_dtype`` and other states in ``dtype``.

    A token of an encoder-decoder is one of the prompt or a generated one, whichever takes more.
    """
    states, caches = _pages(model, DTYPE_BYTES[kv_dtype], DTYPE_BYTES[dtype])
    size = deployment.block_size
    windows = {window for _, window in caches}
    if not states and len(windows) <= 1:
        written = model.kv_bytes_per_token(dtype=kv_dtype)
        per_token = max(written, model.cross_bytes_per_token(dtype=kv_dtype))
        groups = tuple(TokenGroups(window=window) for window in windows) or (TokenGroups(),)
        return CacheLayout(block_bytes=size * per_token, block_tokens=size, groups=groups)
    if not caches:
        each = sum(size * layers for size, layers in states.items())
        return CacheLayout(block_bytes=each, block_tokens=0)
    token_bytes = max(cached for cached, _ in caches)
    if states:
        unit = max(PAGE_TOKENS, size)
        size = unit * math.ceil(max(states) / (unit * token_bytes))
    kinds = [*states.values(), *caches.values()]
    fewest, most = min(kinds), max(kinds)
    group = most if most < FEW_PADDED * fewest else fewest
    return CacheLayout(
        block_bytes=size * token_bytes * group,
        block_tokens=size,
        state_blocks=sum(math.ceil(layers / group) for layers in states.values()),
        groups=tuple(
            TokenGroups(
                count=math.ceil(layers / group),
                window=window,
                ratio=int(token_bytes // cached) if token_bytes % cached == 0 else 1,
            )
            for (cached, window), layers in caches.items()
        ),
    )


def room_in(layout: CacheLayout, left_bytes: float) -> CacheRoom:
    """What fits into ``left_bytes``. Where nothing is cached any number of tokens does."""
    blocks = int(max(left_bytes, 0.0) / layout.block_bytes) if layout.block_bytes else None
    if blocks is None:
        tokens = BOUNDLESS_TOKENS if left_bytes > 0 else 0
        return CacheRoom(tokens=tokens, block_tokens=layout.block_tokens, sequences=tokens)
    if not layout.block_tokens:
        tokens = BOUNDLESS_TOKENS if blocks else 0
        return CacheRoom(tokens=tokens, block_tokens=PAGE_TOKENS, sequences=blocks)
    return CacheRoom(
        tokens=blocks * layout.block_tokens,
        block_tokens=layout.block_tokens,
        sequences=BOUNDLESS_TOKENS,
        state_blocks=layout.state_blocks,
        groups=layout.groups,
    )


def _pages(
    model: ModelSpec, element_bytes: float, wide: float
) -> tuple[Counter[float], Counter[tuple[float, int | None]]]:
    """Layers by bytes of their states of one sequence, and by (bytes cached of a token, window)."""
    states: Counter[float] = Counter()
    caches: Counter[tuple[float, int | None]] = Counter()
    for layer, count in model.layer_groups():
        held = sum(leaf.state_bytes(wide) for leaf in layer.leaves)
        if held:
            states[held] += count
        for leaf in layer.leaves:
            cached = leaf.kv_bytes_per_token(element_bytes)
            if cached:
                window = leaf.sliding_window if isinstance(leaf, SoftmaxAttention) else None
                caches[cached, window] += count
    return states, caches
