"""Sparse latent attention (DeepSeek V3.2, GLM 5): an indexer picks the keys that a query sees.

The indexer is a small attention of its own: ``index_n_heads`` queries meet one key for each token,
their weighted scores are added up, and the ``index_topk`` best tokens are what the latent attention
works on. vLLM runs prompts like decoding sequences, in the latent space (``SparseAttnIndexer`` and
``forward_mqa`` of its ``mla_attention.py``), and keeps the keys of the indexer in 8 bits.
"""

from dataclasses import dataclass

import numpy as np

from energymodel.blocks.latent import (
    BLOCK_HEADS,
    PROJECTIONS,
    LatentAttention,
    latent_attention,
)
from energymodel.blocks.nothing import KeepsNothing
from energymodel.blocks.pairs import visible_pairs
from energymodel.op_kinds import Context, Op, elementwise, in_place, linear, normalise, quantise
from energymodel.weights import Weight, matrix, vector

# Keys of the indexer: 128 values of 8 bits share a scale of 32.
INDEX_KEY_BYTES = 1.0 + 4.0 / 128


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseLatentAttention(KeepsNothing):
    """Latent attention to at most ``index_topk`` keys.

    ``indexes`` is off in layers that see the keys which the layer before them picked (GLM 5).
    """

    latent: LatentAttention
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    indexes: bool = True

    @property
    def query_rank(self) -> int:
        """Width of the narrow layer that the queries of the indexer come from, too."""
        return self.latent.q_lora_rank or 0

    @property
    def index_pair_flop(self) -> float:
        """FLOP of the indexer for one query and one key: scores of all heads, and their sum."""
        return 2.0 * self.index_n_heads * (self.index_head_dim + 1)

    def weights(self, hidden_size: int, norm_vectors: int) -> tuple[Weight, ...]:
        """Those of the latent attention, queries, keys and head weights of the indexer."""
        own = self.latent.weights(hidden_size, norm_vectors)
        if not self.indexes:
            return own
        d, heads = self.index_head_dim, self.index_n_heads
        return (
            *own,
            *matrix("wq_b", heads * d, self.query_rank),
            vector("wk_weights_proj", (d + heads) * hidden_size),
            vector("index_k_norm", 2 * d),
        )

    def index_key_bytes(self) -> float:
        """Bytes that the indexer caches for a token."""
        return INDEX_KEY_BYTES * self.index_head_dim if self.indexes else 0.0

    def kv_bytes_per_token(self, element_bytes: float) -> float:
        """Bytes that one token adds to the cache: its latent, and its key for the indexer."""
        return self.latent.kv_bytes_per_token(element_bytes) + self.index_key_bytes()

    def operations(self, ctx: Context) -> list[Op]:
        """Projections, the indexer, absorbed queries over the keys that it picked, output."""
        into, back = self.latent.absorption(ctx, ctx.tokens, None)
        return [
            *self.latent.inputs(ctx),
            *(self._index(ctx) if self.indexes else []),
            into,
            self._attention(ctx),
            back,
            *self.latent.output(ctx),
        ]

    def _index(self, ctx: Context) -> list[Op]:
        """Queries and keys of the indexer, their scores, and the choice of the best."""
        d, heads, rope = self.index_head_dim, self.index_n_heads, self.latent.qk_rope_head_dim
        chunks, decodes = ctx.steps.chunks, ctx.steps.decodes
        pairs = visible_pairs(chunks.tokens, chunks.context, np.inf), decodes.context + 1.0
        scored = ctx.steps.sum_chunks(pairs[0]) + ctx.steps.sum_decodes(pairs[1])
        keys = ctx.steps.sum_chunks(chunks.tokens + chunks.context)
        keys += ctx.steps.sum_decodes(pairs[1])
        query_bytes = (INDEX_KEY_BYTES * d + ctx.wide) * heads
        scores = latent_attention(
            ctx,
            "indexer",
            "mla_decode",
            stored="fp8",
            flop=self.index_pair_flop * scored,
            cached=self.index_key_bytes() * keys,
            # Scores leave in 32 bits.
            rows=query_bytes * ctx.tokens + 4.0 * scored,
            blocks=ctx.tokens * max(1.0, heads / BLOCK_HEADS),
            asked=pairs,
            stands_for="scores of a sparse attention's indexer",
        )
        # Reads all scores, writes the numbers of the best.
        choice = elementwise(
            ctx, "select_keys", "attention", width=1, row_bytes=4.0, rows=scored, asked=pairs
        )
        write = INDEX_KEY_BYTES * d + ctx.wide * d
        return [
            *linear(ctx, "wq_b", PROJECTIONS, n=heads * d, k=self.query_rank),
            *linear(ctx, "wk_weights_proj", PROJECTIONS, n=d + heads, k=ctx.hidden_size),
            normalise(ctx, "index_k_norm", tensors=2, width=d, weights=2 * d),
            in_place(ctx, "index_rotary", "attention", width=(heads + 1) * rope, kind="rotary"),
            quantise(ctx, "index_q_quant", "attention", width=heads * d, narrow=INDEX_KEY_BYTES),
            elementwise(
                ctx, "index_cache_write", "attention", width=d, row_bytes=write, kind="kv_write"
            ),
            scores,
            choice,
        ]

    def _attention(self, ctx: Context) -> Op:
        """Each query over its own keys; what several queries of a prompt see is read once."""
        chunks, decodes, most = ctx.steps.chunks, ctx.steps.decodes, float(self.index_topk)
        seen = visible_pairs(chunks.tokens, chunks.context, most)
        each = np.minimum(decodes.context + 1.0, most)
        pairs = ctx.steps.sum_chunks(seen) + ctx.steps.sum_decodes(each)
        keys = ctx.steps.sum_chunks(np.minimum(seen, chunks.tokens + chunks.context))
        keys = keys + ctx.steps.sum_decodes(each)
        a = self.latent
        widths = a.num_attention_heads * a.absorbed_widths
        return latent_attention(
            ctx,
            "attention_sparse",
            "mla_decode",
            stored=ctx.kv_stored,
            flop=2.0 * widths * pairs,
            cached=a.kv_bytes_per_token(ctx.kv_element_bytes) * keys,
            rows=ctx.wide * widths * ctx.tokens,
            blocks=ctx.tokens * max(1.0, a.num_attention_heads / BLOCK_HEADS),
            asked=(seen, each),
            stands_for="sparse latent attention",
        )
