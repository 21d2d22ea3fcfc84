"""Inputs of each layer's own (Gemma 3n, Gemma 4): rows of a second table, a few values a layer.

Before the first layer one look-up and one projection give every layer its ``width`` values of each
token; behind its other blocks a layer multiplies them in and adds the result to the hidden state.
"""

from dataclasses import dataclass

from energymodel.blocks.nothing import CachesNothing, KeepsNothing
from energymodel.op_kinds import Context, Op, elementwise, linear, normalise
from energymodel.weights import Weight, matrix, table, vector


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLayerInputs:
    """Table of ``rows`` tokens and projection of the embedding, ``width`` values for each layer."""

    rows: int
    layers: int
    width: int

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Table, projection and the norm of each layer's values, which all layers share."""
        size = self.layers * self.width
        return (
            table("per_layer_embedding", self.rows * size),
            vector("per_layer_model_projection", size * hidden_size),
            vector("per_layer_projection_norm", self.width),
        )

    def operations(self, ctx: Context) -> list[Op]:
        """Look-up, projection, norm, sum."""
        size = self.layers * self.width
        name, component = "per_layer_model_projection", "embedding"
        return [
            elementwise(
                ctx,
                "per_layer_embedding",
                component,
                width=size,
                row_bytes=2 * size * ctx.wide,
                kind="gather",
            ),
            *linear(ctx, name, component, n=size, k=ctx.hidden_size),
            normalise(ctx, "per_layer_projection_norm", tensors=2, width=size, weights=self.width),
            elementwise(ctx, "per_layer_sum", component, width=size, row_bytes=3 * size * ctx.wide),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLayerGate(CachesNothing, KeepsNothing):
    """What a layer does with its ``width`` values: gate, product, projection, norm, sum.

    ``streams``: copies of the hidden state that the result is added to (Gemma 3n: all but one).
    """

    width: int
    streams: int = 1

    def weights(self, hidden_size: int, _norm_vectors: int = 0) -> tuple[Weight, ...]:
        """Two projections and a norm."""
        return (
            *matrix("per_layer_input_gate", self.width, hidden_size),
            *matrix("per_layer_projection", hidden_size, self.width),
            vector("per_layer_norm", hidden_size),
        )

    def operations(self, ctx: Context) -> list[Op]:
        """Five calls."""
        h, p = ctx.hidden_size, self.width
        return [
            *linear(ctx, "per_layer_input_gate", "mlp", n=p, k=h),
            elementwise(ctx, "per_layer_product", "mlp", width=p, row_bytes=3 * p * ctx.wide),
            *linear(ctx, "per_layer_projection", "mlp", n=h, k=p),
            normalise(ctx, "per_layer_norm", tensors=2, weights=h),
            elementwise(
                ctx,
                "per_layer_add",
                "norm",
                width=h,
                row_bytes=(1 + 2 * self.streams) * h * ctx.wide,
            ),
        ]
