"""Alternating updates and learnt augmented residuals (Gemma 3n: arXiv 2301.13310, 2411.07501)."""

from dataclasses import dataclass

from energymodel.blocks.nothing import CachesNothing, KeepsNothing
from energymodel.op_kinds import Context, Op, elementwise, linear, normalise
from energymodel.weights import Weight, matrix, vector

COMPONENT = "altup"


@dataclass(frozen=True, slots=True, kw_only=True)
class AltUp(CachesNothing, KeepsNothing):
    """``inputs`` copies of the hidden state, of which a layer computes on one.

    The others are predicted before the layer, as sums of all copies whose coefficients come from
    the active one, and corrected behind it by what the layer changed.
    """

    inputs: int

    def weights(self, hidden_size: int, _norm_vectors: int = 0) -> tuple[Weight, ...]:
        """Router of the active copy and its norm, coefficients, scale of the result."""
        n = self.inputs
        return (
            vector("altup_router", n * hidden_size),
            vector("altup_coefficients", n * n * n + n * n),
            vector("altup_norms", 2 * hidden_size),
        )

    def operations(self, ctx: Context) -> list[Op]:
        """Prediction before the blocks of the layer, correction behind them."""
        n, h = self.inputs, ctx.hidden_size
        correction = (2 * n + 1) * h * ctx.wide
        return [
            *self._routed(ctx, "predict", n * n),
            # Copies of a token as [hidden_size, inputs] times its own [inputs, inputs].
            *linear(
                ctx,
                "altup_predict",
                COMPONENT,
                n=n,
                k=n,
                rows=ctx.tokens * h,
                stands_for="product of each token with a matrix of its own",
            ),
            *self._routed(ctx, "correct", n),
            elementwise(ctx, "altup_correct", COMPONENT, width=h, row_bytes=correction),
        ]

    def _routed(self, ctx: Context, phase: str, coefficients: int) -> list[Op]:
        """Coefficients from the active copy: norm, router, projection."""
        n, h = self.inputs, ctx.hidden_size
        return [
            normalise(ctx, f"altup_{phase}_norm", tensors=2, weights=h),
            *linear(ctx, f"altup_{phase}_router", COMPONENT, n=n, k=h),
            *linear(ctx, f"altup_{phase}_coefficients", COMPONENT, n=coefficients, k=n),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Laurel(CachesNothing, KeepsNothing):
    """A product of low ``rank`` beside the attention, normalised and added to its input."""

    rank: int

    def weights(self, hidden_size: int, _norm_vectors: int = 0) -> tuple[Weight, ...]:
        """Two projections and a norm."""
        return (
            *matrix("laurel_left", self.rank, hidden_size),
            *matrix("laurel_right", hidden_size, self.rank),
            vector("laurel_norm", hidden_size),
        )

    def operations(self, ctx: Context) -> list[Op]:
        """Down, up, norm, and two sums."""
        h = ctx.hidden_size
        return [
            *linear(ctx, "laurel_left", COMPONENT, n=self.rank, k=h),
            *linear(ctx, "laurel_right", COMPONENT, n=h, k=self.rank),
            normalise(ctx, "laurel_norm", tensors=2, weights=h),
            elementwise(ctx, "laurel_add", COMPONENT, width=h, row_bytes=2 * 3 * h * ctx.wide),
        ]
