"""Cross attention: queries of a decoder over what an encoder or a vision tower gave."""

from dataclasses import dataclass

import numpy as np

from energymodel.blocks.nothing import KeepsNothing
from energymodel.blocks.softmax import QkNorm, SoftmaxAttention, decode_attention, prefill_attention
from energymodel.op_kinds import Context, Op, elementwise, linear, normalise
from energymodel.weights import Weight, matrix, vector


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossAttention(KeepsNothing):
    """Keys and values of ``source_size`` wide inputs are computed once a request and cached.

    The inputs are the prompt as the encoder leaves it, or the images as the vision tower leaves
    them. The biases are those of the projections of queries, keys, values and outputs.
    """

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    source_size: int
    q_bias: bool = False
    k_bias: bool = False
    v_bias: bool = False
    o_bias: bool = False
    qk_norm: QkNorm | None = None

    @property
    def softmax(self) -> SoftmaxAttention:
        """The attention between queries and cached keys, without its projections."""
        return SoftmaxAttention(
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            rotary_dim=0,
        )

    def weights(self, hidden_size: int, norm_vectors: int) -> tuple[Weight, ...]:
        """Projections, biases, norms of q and k."""
        a = self.softmax
        bias = (self.k_bias + self.v_bias) * a.kv_size
        qk_widths = {"head": 2 * a.head_dim, "hidden": a.q_size + a.kv_size, "plain": 0}
        norms = norm_vectors * qk_widths[self.qk_norm] if self.qk_norm else 0
        vectors = [vector("cross_kv_proj.bias", bias), vector("cross_qk_norm", norms)]
        return (
            *matrix("cross_q_proj", a.q_size, hidden_size, bias=self.q_bias),
            *matrix("cross_kv_proj", 2 * a.kv_size, self.source_size, parts=("k_proj", "v_proj")),
            *matrix("cross_o_proj", hidden_size, a.q_size, bias=self.o_bias),
            *(v for v in vectors if v.params),
        )

    def kv_bytes_per_token(self, element_bytes: float) -> float:
        """Bytes that one source token takes in the cache of one layer."""
        return self.softmax.kv_bytes_per_token(element_bytes)

    def operations(self, ctx: Context) -> list[Op]:
        """Queries of new tokens; keys and values of the source of each answer that begins."""
        a, component = self.softmax, "attention_projections"
        steps, chunks, decodes = ctx.steps, ctx.steps.chunks, ctx.steps.decodes
        source = np.where(chunks.count > 0, ctx.source_tokens[chunks.bin], 0).astype(np.float64)
        read = ctx.source_tokens[decodes.bin].astype(np.float64)
        # The first chunk of a prompt brings its source.
        new = np.where(chunks.context == 0, source, 0.0)
        rows, asked = steps.sum_chunks(new), (new, np.zeros_like(read))
        q_bias, kv_bias = self.q_bias, self.k_bias or self.v_bias
        ops = linear(ctx, "cross_q_proj", component, n=a.q_size, k=ctx.hidden_size, bias=q_bias)
        ops += linear(
            ctx,
            "cross_kv_proj",
            component,
            n=2 * a.kv_size,
            k=self.source_size,
            bias=kv_bias,
            rows=rows,
            asked=asked,
        )
        if self.qk_norm is not None:
            ops.append(normalise(ctx, "cross_qk_norm", width=a.q_size, tensors=2))
        row_bytes = 2 * a.kv_size * (ctx.wide + ctx.kv_element_bytes)
        write = elementwise(
            ctx,
            "cross_cache_write",
            "attention",
            width=a.kv_size,
            row_bytes=row_bytes,
            rows=rows,
            kind="kv_write",
            asked=asked,
        )
        prefill = prefill_attention(
            ctx,
            a,
            pairs=source * chunks.tokens,
            kv_tokens=source,
            cached=ctx.kv_stored,
            name="cross_attention_prefill",
        )
        # The source does not grow: every step walks the same whole blocks.
        blocks = np.ceil(read / a.key_block) * a.key_block
        decode = decode_attention(
            ctx, a, kv_tokens=read, block_tokens=blocks, name="cross_attention_decode"
        )
        out = linear(
            ctx, "cross_o_proj", component, n=ctx.hidden_size, k=a.q_size, bias=self.o_bias
        )
        return [*ops, write, prefill, decode, *out]
