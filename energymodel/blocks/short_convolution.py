"""Gated short convolution: the token mixer of LFM2."""

from dataclasses import dataclass

from energymodel.blocks.nothing import CachesNothing
from energymodel.blocks.recurrence import MIXING, PROJECTIONS, convolution
from energymodel.op_kinds import Context, Op, elementwise, linear
from energymodel.weights import Weight, matrix, vector


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConvolution(CachesNothing):
    """y = C * conv(B * x) over the last ``kernel`` tokens, as wide as the hidden state.

    ``width`` is the hidden size; B, C and x are projections of the input.
    """

    width: int
    kernel: int
    bias: bool = False

    def weights(self, hidden_size: int, _norm_vectors: int = 0) -> tuple[Weight, ...]:
        """Two projections and the convolution."""
        taps = self.kernel + (1 if self.bias else 0)
        return (
            *matrix("in_proj", 3 * self.width, hidden_size, bias=self.bias),
            *matrix("out_proj", hidden_size, self.width, bias=self.bias),
            vector("conv", taps * self.width),
        )

    def state_bytes(self, element_bytes: float) -> float:
        """Bytes of the tokens that the convolution looks back to."""
        return (self.kernel - 1) * self.width * element_bytes

    def operations(self, ctx: Context) -> list[Op]:
        """Projection, gate, convolution, gate, projection."""
        width = self.width
        gates = [
            elementwise(ctx, name, MIXING, width=width, row_bytes=3 * width * ctx.wide)
            for name in ("input_gate", "output_gate")
        ]
        return [
            *linear(ctx, "in_proj", PROJECTIONS, n=3 * width, k=ctx.hidden_size, bias=self.bias),
            gates[0],
            *convolution(ctx, width=width, kernel=self.kernel),
            gates[1],
            *linear(ctx, "out_proj", PROJECTIONS, n=ctx.hidden_size, k=width, bias=self.bias),
        ]
