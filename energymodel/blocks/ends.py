"""What a stack does before its first layer and after its last: tables, norms, projections, pooling.

An end knows its own parameters and calls, like a block, but no residual connection runs around it
and nothing is cached. Engines keep all of it in 16 bits.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from energymodel.blocks.per_layer import PerLayerInputs
from energymodel.op_kinds import Context, Op, elementwise, in_place, linear, normalise
from energymodel.weights import Weight, table, vector

Rows = Literal["tokens", "sequences"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """A table of ``rows`` values for each unit of ``width``, one added to each token's embedding.

    Learnt positions, token types. ``width`` is that of the layers unless given.
    """

    name: str
    rows: int
    width: int | None = None

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """The table."""
        return (table(self.name, self.rows * (self.width or hidden_size)),)

    def operations(self, ctx: Context) -> list[Op]:
        """Reads the sum so far and a row of the table, writes the new sum."""
        width = self.width or ctx.hidden_size
        row_bytes = 3 * width * ctx.wide
        return [elementwise(ctx, self.name, "embedding", width=width, row_bytes=row_bytes)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndNorm:
    """A normalisation with ``vectors`` learnt vectors of ``width`` (that of the layers)."""

    name: str
    vectors: int
    width: int | None = None

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Its scale, and its shift."""
        return (vector(self.name, self.vectors * (self.width or hidden_size)),)

    def operations(self, ctx: Context) -> list[Op]:
        """Reads and writes every token."""
        width = self.width or ctx.hidden_size
        return [
            normalise(ctx, self.name, tensors=2, width=width, weights=self.vectors * width),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """A product with a matrix of ``n`` outputs and ``k`` inputs, for every token or sequence."""

    name: str
    component: str
    n: int
    k: int
    bias: bool = False
    rows: Rows = "tokens"

    def weights(self, _hidden_size: int) -> tuple[Weight, ...]:
        """Matrix and bias."""
        return (vector(self.name, self.n * self.k + (self.n if self.bias else 0)),)

    def operations(self, ctx: Context) -> list[Op]:
        """One product; that of sequences waits for the whole prompt, which is in one step."""
        chunks = ctx.steps.chunks
        each = np.ones(chunks.tokens.size)
        sequences = self.rows == "sequences"
        return linear(
            ctx,
            self.name,
            self.component,
            n=self.n,
            k=self.k,
            bias=self.bias,
            rows=ctx.steps.sum_chunks(each) if sequences else None,
            asked=(each, np.zeros_like(ctx.steps.decodes.context)) if sequences else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """A convolution over time, then GELU, with ``outputs_per_token`` for each token of the stack.

    Computed as the matrix product that it is equal to: one row for each output, with
    ``kernel_size`` x ``channels_in`` inputs.
    """

    name: str
    component: str
    channels_in: int
    channels_out: int
    kernel_size: int
    outputs_per_token: int = 1

    def weights(self, _hidden_size: int) -> tuple[Weight, ...]:
        """Kernel and bias."""
        kernel = self.channels_out * self.channels_in * self.kernel_size
        return (vector(self.name, kernel + self.channels_out),)

    def operations(self, ctx: Context) -> list[Op]:
        """The product and the activation."""
        rows = ctx.tokens * self.outputs_per_token
        product = linear(
            ctx,
            self.name,
            self.component,
            n=self.channels_out,
            k=self.channels_in * self.kernel_size,
            bias=True,
            rows=rows,
            stands_for="convolution",
        )
        gelu = in_place(
            ctx, f"{self.name}_activation", self.component, width=self.channels_out, rows=rows
        )
        return [*product, gelu]


End = Lookup | EndNorm | Projection | Convolution | PerLayerInputs
