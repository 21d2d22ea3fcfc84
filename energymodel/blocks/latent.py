"""Latent attention (MLA, DeepSeek V2: arXiv 2405.04434): keys and values cached as one vector.

For each token the cache holds a latent of ``kv_lora_rank`` values, from which keys and values of
all heads can be computed, and ``qk_rope_head_dim`` values that carry its position. Engines work in
two forms (``mla_attention.py`` of vLLM), which give the same result:

- prompts: keys and values of every visible token are expanded, then attention runs as usual;
- decoding: queries are projected into the latent space, so that the latents themselves serve as
  keys and values, and each head's result is projected back.
"""

from dataclasses import dataclass, replace

import numpy as np

from energymodel.blocks.nothing import KeepsNothing
from energymodel.blocks.pairs import visible_pairs
from energymodel.op_kinds import Context, Op, elementwise, in_place, linear, normalise
from energymodel.steps import Floats
from energymodel.weights import Weight, matrix, vector

PROJECTIONS = "attention_projections"
# Rows of queries that one block of the prefill kernel takes, heads that one of the decode takes.
BLOCK_QUERIES, BLOCK_HEADS = 128.0, 64.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention(KeepsNothing):
    """Heads of ``qk_nope_head_dim`` values without and ``qk_rope_head_dim`` with position.

    ``q_lora_rank``: queries pass a narrow layer of that width, too (None: they do not). ``bias``:
    the projections into narrow layers and out of the heads have one.
    """

    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    bias: bool = False

    @property
    def latent_size(self) -> int:
        """Values that the cache holds for a token."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def qk_head_dim(self) -> int:
        """Values of one head's query, or key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def q_size(self) -> int:
        """Values of all queries of a token."""
        return self.num_attention_heads * self.qk_head_dim

    @property
    def expanded_size(self) -> int:
        """Values that the latent of a token expands to: keys without positions, and values."""
        return self.num_attention_heads * (self.qk_nope_head_dim + self.v_head_dim)

    @property
    def o_size(self) -> int:
        """Values that all heads give for a token."""
        return self.num_attention_heads * self.v_head_dim

    def weights(self, hidden_size: int, _norm_vectors: int = 0) -> tuple[Weight, ...]:
        """Projections down, their norms, projections up, output."""
        down = (
            *matrix("kv_a_proj_with_mqa", self.latent_size, hidden_size, bias=self.bias),
            *matrix("q_proj", self.q_size, hidden_size),
        )
        if self.q_lora_rank is not None:
            down = (
                *matrix(
                    "qkv_a_proj",
                    self.q_lora_rank + self.latent_size,
                    hidden_size,
                    bias=self.bias,
                    parts=("q_a_proj", "kv_a_proj_with_mqa"),
                ),
                vector("q_a_norm", self.q_lora_rank),
                *matrix("q_b_proj", self.q_size, self.q_lora_rank),
            )
        return (
            *down,
            vector("kv_a_norm", self.kv_lora_rank),
            *matrix("kv_b_proj", self.expanded_size, self.kv_lora_rank),
            *matrix("o_proj", hidden_size, self.o_size, bias=self.bias),
        )

    def kv_bytes_per_token(self, element_bytes: float) -> float:
        """Bytes that one token adds to the cache of one layer, whatever the number of heads."""
        return self.latent_size * element_bytes

    def operations(self, ctx: Context) -> list[Op]:
        """Projections down and up, rotary, cache, prompts expanded, decoding absorbed, output."""
        return [
            *self.inputs(ctx),
            *self._prefill(ctx),
            *self._decode(ctx),
            *self.output(ctx),
        ]

    def inputs(self, ctx: Context) -> list[Op]:
        """Queries, and the latent of each new token, which is written to the cache."""
        rotated = (self.num_attention_heads + 1) * self.qk_rope_head_dim
        row_bytes = self.latent_size * ctx.wide + self.kv_bytes_per_token(ctx.kv_element_bytes)
        write = elementwise(
            ctx,
            "kv_cache_write",
            "attention",
            width=self.latent_size,
            row_bytes=row_bytes,
            kind="kv_write",
        )
        return [
            *self._down(ctx),
            in_place(ctx, "rotary", "attention", width=rotated, kind="rotary"),
            write,
        ]

    def output(self, ctx: Context) -> list[Op]:
        """Projection of what the heads give."""
        return linear(ctx, "o_proj", PROJECTIONS, n=ctx.hidden_size, k=self.o_size, bias=self.bias)

    def _down(self, ctx: Context) -> list[Op]:
        h, rank = ctx.hidden_size, self.q_lora_rank
        norm = normalise(
            ctx, "kv_a_norm", tensors=2, width=self.kv_lora_rank, weights=self.kv_lora_rank
        )
        if rank is None:
            down = linear(
                ctx, "kv_a_proj_with_mqa", PROJECTIONS, n=self.latent_size, k=h, bias=self.bias
            )
            return [*down, norm, *linear(ctx, "q_proj", PROJECTIONS, n=self.q_size, k=h)]
        width = rank + self.latent_size
        return [
            *linear(ctx, "qkv_a_proj", PROJECTIONS, n=width, k=h, bias=self.bias),
            normalise(ctx, "q_a_norm", tensors=2, width=rank, weights=rank),
            norm,
            *linear(ctx, "q_b_proj", PROJECTIONS, n=self.q_size, k=rank),
        ]

    def _prefill(self, ctx: Context) -> list[Op]:
        """Prompt chunks: visible tokens are expanded, those of earlier chunks once more."""
        steps, chunks = ctx.steps, ctx.steps.chunks
        tokens, none = chunks.tokens.astype(np.float64), np.zeros_like(steps.decodes.context)
        visible = tokens + chunks.context
        pairs = visible_pairs(chunks.tokens, chunks.context, np.inf)
        heads, widths = self.num_attention_heads, self.qk_head_dim + self.v_head_dim
        blocks = heads * np.maximum(1.0, tokens / BLOCK_QUERIES)
        # Keys without positions are copied next to the position that all heads share.
        joined = heads * (self.qk_nope_head_dim + self.qk_head_dim)
        return [
            *linear(
                ctx,
                "kv_b_proj",
                PROJECTIONS,
                n=self.expanded_size,
                k=self.kv_lora_rank,
                rows=steps.sum_chunks(visible),
                asked=(visible, none),
            ),
            elementwise(
                ctx,
                "join_keys",
                "attention",
                width=heads * self.qk_head_dim,
                row_bytes=joined * ctx.wide,
                rows=steps.sum_chunks(visible),
                asked=(visible, none),
            ),
            latent_attention(
                ctx,
                "attention_prefill",
                "mla_prefill",
                stored=ctx.dtype,
                flop=2.0 * heads * widths * steps.sum_chunks(pairs),
                cached=ctx.wide * heads * widths * steps.sum_chunks(visible),
                rows=ctx.wide * heads * widths * steps.sum_chunks(tokens),
                blocks=steps.sum_chunks(blocks),
                asked=(pairs, none),
            ),
        ]

    def _decode(self, ctx: Context) -> list[Op]:
        """Decoding sequences: one query each, in the latent space and back."""
        steps, heads = ctx.steps, self.num_attention_heads
        seqs, none = steps.decoding, np.zeros(steps.chunks.tokens.size)
        visible = steps.decodes.context + 1.0
        attention = latent_attention(
            ctx,
            "attention_decode",
            "mla_decode",
            stored=ctx.kv_stored,
            flop=2.0 * heads * self.absorbed_widths * steps.sum_decodes(visible),
            cached=self.kv_bytes_per_token(ctx.kv_element_bytes) * steps.sum_decodes(visible),
            rows=ctx.wide * heads * self.absorbed_widths * seqs,
            blocks=seqs * max(1.0, heads / BLOCK_HEADS),
            asked=(none, visible),
        )
        each = none, np.ones_like(steps.decodes.context)
        into, back = self.absorption(ctx, seqs, each)
        return [into, attention, back]

    @property
    def absorbed_widths(self) -> int:
        """Values of a key and of a value of one head, in the latent space."""
        return self.latent_size + self.kv_lora_rank

    def absorption(
        self, ctx: Context, rows: Floats, asked: tuple[Floats, Floats] | None
    ) -> tuple[Op, Op]:
        """Products of each head with its own part of ``kv_b_proj``: of queries, of results.

        Engines keep copies of those parts in 16 bits.
        """
        nope, rank = self.qk_nope_head_dim, self.kv_lora_rank
        return (
            self._for_each_head(ctx, "q_absorb", n=rank, k=nope, rows=rows, asked=asked),
            self._for_each_head(ctx, "v_expand", n=self.v_head_dim, k=rank, rows=rows, asked=asked),
        )

    def _for_each_head(
        self,
        ctx: Context,
        name: str,
        *,
        n: int,
        k: int,
        rows: Floats,
        asked: tuple[Floats, Floats] | None,
    ) -> Op:
        """As one product of ``heads`` x n outputs it has the right weights, FLOP and results.

        Each head also reads k values of its own.
        """
        heads = self.num_attention_heads
        (op,) = linear(
            ctx,
            name,
            PROJECTIONS,
            n=heads * n,
            k=k,
            rows=rows,
            stands_for="product of each head with a matrix of its own",
            asked=asked,
        )
        return replace(op, hbm_bytes=op.hbm_bytes + rows * (heads - 1) * k * ctx.wide)


def latent_attention(
    ctx: Context,
    name: str,
    kind: str,
    *,
    stored: str,
    flop: Floats,
    cached: Floats,
    rows: Floats,
    blocks: Floats,
    asked: tuple[Floats, Floats],
    stands_for: str = "",
) -> Op:
    """Attention that reads ``cached`` bytes of keys and values and moves ``rows`` bytes of others."""
    return Op(
        name=name,
        kind=kind,
        component="attention",
        dtype=ctx.dtype,
        stored=stored,
        count=ctx.count,
        flop=flop,
        hbm_bytes=cached + rows,
        weight_bytes=cached,
        shape={"blocks": blocks, "steps": 0.0, "flop": flop, "bytes": cached + rows},
        stands_for=stands_for,
        asked=asked,
    )
