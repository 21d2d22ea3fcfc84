"""How vLLM cuts the memory of its caches: blocks of tokens, and the states of recurrent layers.

Facts of vLLM 0.24 without prefix caching, which hybrid models have off by default
(``platforms/interface.py``, ``_align_hybrid_block_size``; ``v1/core/kv_cache_utils.py``,
``_get_kv_cache_groups_uniform_page_size``): every layer has pages of one size. The states that one
sequence has in a recurrent layer fill a page, and attention keeps as many tokens in a page as make
it no smaller. Layers of one kind are split into groups of as many layers as the rarest kind has;
a block is a page in each layer of a group, and all groups draw blocks from one pool.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace

from energymodel.deployment import Deployment
from energymodel.dtypes import DTYPE_BYTES
from energymodel.model import ModelSpec

# Tokens in an attention page are a multiple of this (FlashAttention).
PAGE_TOKENS = 16
# Where the commonest kind has less than this many times the layers of the rarest, groups have as
# many layers as the commonest.
FEW_PADDED = 1.5
# Tokens that fit a cache in which nothing is kept, as that of an encoder.
BOUNDLESS_TOKENS = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayout:
    """Blocks of ``block_bytes`` that hold ``block_tokens`` of a sequence each.

    ``state_blocks``: blocks that a sequence takes beside those of its tokens, however long it is.
    ``block_tokens`` is 0 where tokens take nothing and a block holds the states of one sequence.
    """

    block_bytes: float
    block_tokens: int
    state_blocks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRoom:
    """What fits: ``tokens`` in blocks of ``block_tokens``, and at most ``sequences`` at a time.

    ``state_blocks``: blocks that each sequence takes beside those of its tokens.
    """

    tokens: int
    block_tokens: int
    sequences: int
    state_blocks: int = 0

    @property
    def empty(self) -> bool:
        """Whether not even one sequence of one token fits."""
        return self.tokens < (1 + self.state_blocks) * self.block_tokens

    def limits(self, deployment: Deployment) -> Deployment:
        """The deployment as the scheduler finds it."""
        places = min(deployment.max_num_seqs, self.sequences)
        return replace(deployment, block_size=self.block_tokens, max_num_seqs=places)


def cache_layout(
    model: ModelSpec, deployment: Deployment, *, kv_dtype: str, dtype: str
) -> CacheLayout:
    """Blocks of the caches, of keys and values in ``kv_dtype`` and other states in ``dtype``.

    A token of an encoder-decoder is one of the prompt or a generated one, whichever takes more.
    Where several groups hold tokens, they are counted as one block of their sizes together.
    """
    states, caches = _pages(model, DTYPE_BYTES[kv_dtype], DTYPE_BYTES[dtype])
    if not states:
        written = model.kv_bytes_per_token(dtype=kv_dtype)
        per_token = max(written, model.cross_bytes_per_token(dtype=kv_dtype))
        size = deployment.block_size
        return CacheLayout(block_bytes=size * per_token, block_tokens=size)
    if not caches:
        each = sum(size * layers for size, layers in states.items())
        return CacheLayout(block_bytes=each, block_tokens=0)
    unit = max(PAGE_TOKENS, deployment.block_size)
    token_bytes = max(caches)
    tokens = unit * math.ceil(max(states) / (unit * token_bytes))
    kinds = [*states.values(), *caches.values()]
    fewest, most = min(kinds), max(kinds)
    group = most if most < FEW_PADDED * fewest else fewest
    together = sum(math.ceil(layers / group) for layers in caches.values())
    kept = sum(math.ceil(layers / group) for layers in states.values())
    return CacheLayout(
        block_bytes=tokens * token_bytes * group * together,
        block_tokens=tokens,
        state_blocks=math.ceil(kept / together),
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
    )


def _pages(
    model: ModelSpec, element_bytes: float, wide: float
) -> tuple[Counter[float], Counter[float]]:
    """Layers by (bytes of their states of one sequence), and by (bytes that they cache of a token)."""
    states: Counter[float] = Counter()
    caches: Counter[float] = Counter()
    for layer, count in model.layer_groups():
        held = sum(leaf.state_bytes(wide) for leaf in layer.leaves)
        if held:
            states[held] += count
        for leaf in layer.leaves:
            cached = leaf.kv_bytes_per_token(element_bytes)
            if cached:
                caches[cached] += count
    return states, caches
