"""Disentangled attention (DeBERTa): scores of content and of position are computed apart."""

from dataclasses import dataclass, replace

import numpy as np

from energymodel.blocks.nothing import CachesNothing, KeepsNothing
from energymodel.blocks.softmax import SoftmaxAttention
from energymodel.op_kinds import Context, Op, elementwise, linear
from energymodel.weights import Weight, matrix

NAME = "disentangled attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class DisentangledAttention(CachesNothing, KeepsNothing):
    """Attention whose scores also have terms of queries or keys with embeddings of distances.

    Scores of query i and key j are q_i k_j + q_i K(i-j) + k_j Q(j-i), arXiv 2006.03654 equation 4,
    where K and Q are projections of a table of ``distances`` rows, made anew in every layer. The
    second term is there with ``content_to_position``, the third with ``position_to_content``;
    ``share_att_key``: they are projected with the matrices of the content. ``distances`` of 0: plain
    attention.
    """

    softmax: SoftmaxAttention
    distances: int
    content_to_position: bool
    position_to_content: bool
    share_att_key: bool

    @property
    def terms(self) -> tuple[str, ...]:
        """Projections of distances that are made: of keys, of queries."""
        if not self.distances:
            return ()
        keys = ("pos_key_proj",) if self.content_to_position else ()
        return (*keys, *(("pos_query_proj",) if self.position_to_content else ()))

    def weights(self, hidden_size: int, norm_vectors: int) -> tuple[Weight, ...]:
        """Those of the attention, and the projections of distances where they are not the same."""
        content = self.softmax.weights(hidden_size, norm_vectors)
        if self.share_att_key:
            return content
        size = self.softmax.q_size
        terms = (matrix(name, size, hidden_size, bias=True) for name in self.terms)
        return (*content, *(w for term in terms for w in term))

    def operations(self, ctx: Context) -> list[Op]:
        """The attention, and before it the scores of position, which it then reads."""
        *before, attention, out = self.softmax.operations(ctx)
        if not self.terms:
            return [*before, attention, out]
        terms = [op for name in self.terms for op in self._term(ctx, name)]
        return [*before, *terms, replace(attention, stands_for=NAME), out]

    def _term(self, ctx: Context, name: str) -> list[Op]:
        """Distances projected; multiplied with every token; scores picked by distance and added.

        Every step projects the table again. Reads a score, a picked one, and writes their sum, for
        each head and pair.
        """
        a, chunks = self.softmax, ctx.steps.chunks
        size, heads = a.q_size, a.num_attention_heads
        table = np.where(ctx.tokens > 0, float(self.distances), 0.0)
        pairs = a.chunk_pairs(chunks.tokens, chunks.context)
        stem = name.removesuffix("_proj")
        picked = elementwise(
            ctx,
            f"{stem}_pick",
            "attention",
            width=heads,
            row_bytes=3 * heads * ctx.wide,
            rows=ctx.steps.sum_chunks(pairs),
            asked=(pairs, np.zeros_like(ctx.steps.decodes.context)),
        )
        return [
            *linear(
                ctx, name, "attention_projections", n=size, k=ctx.hidden_size, bias=True, rows=table
            ),
            *linear(
                ctx,
                f"{stem}_scores",
                "attention",
                n=self.distances,
                k=a.head_dim,
                rows=ctx.tokens * heads,
                stands_for=NAME,
            ),
            replace(picked, stands_for=NAME),
        ]
