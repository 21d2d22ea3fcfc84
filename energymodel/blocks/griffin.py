"""Real-gated linear recurrent unit: the recurrent block of Griffin (arXiv 2402.19427)."""

from dataclasses import dataclass

from energymodel.blocks.nothing import CachesNothing
from energymodel.blocks.recurrence import MIXING, PROJECTIONS, channelwise, convolution
from energymodel.dtypes import DTYPE_BYTES
from energymodel.op_kinds import Context, Op, elementwise, in_place, linear
from energymodel.weights import Weight, matrix, vector

GATES = ("input_gate", "recurrent_gate")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedRecurrence(CachesNothing):
    """A state of one float32 value for each of ``width`` channels.

    Its two gates are products with block-diagonal matrices of ``heads`` blocks.
    """

    width: int
    heads: int
    conv_kernel: int

    def weights(self, hidden_size: int, _norm_vectors: int = 0) -> tuple[Weight, ...]:
        """Two branches in, one out, the convolution, the gates, the decay of each channel."""
        width, piece = self.width, self.width // self.heads
        return (
            *matrix("linear_y", width, hidden_size, bias=True),
            *matrix("linear_x", width, hidden_size, bias=True),
            *matrix("linear_out", hidden_size, width, bias=True),
            *(w for name in GATES for w in matrix(name, width, piece, bias=True)),
            vector("conv1d", (self.conv_kernel + 1) * width),
            vector("recurrent_param", width),
        )

    def state_bytes(self, element_bytes: float) -> float:
        """Bytes of the states of a sequence: of the convolution, and of the recurrence."""
        return self.width * ((self.conv_kernel - 1) * element_bytes + DTYPE_BYTES["float32"])

    def operations(self, ctx: Context) -> list[Op]:
        """Branch with its activation; branch with convolution, gates, recurrence; their product."""
        width, piece, h = self.width, self.width // self.heads, ctx.hidden_size
        row_bytes = 3 * width * ctx.wide
        return [
            *linear(ctx, "linear_y", PROJECTIONS, n=width, k=h, bias=True),
            in_place(ctx, "branch_activation", MIXING, width=width),
            *linear(ctx, "linear_x", PROJECTIONS, n=width, k=h, bias=True),
            *convolution(ctx, width=width, kernel=self.conv_kernel),
            *(
                op
                for name in GATES
                for op in linear(
                    ctx,
                    name,
                    PROJECTIONS,
                    n=width,
                    k=piece,
                    bias=True,
                    stands_for="a block-diagonal product",
                )
            ),
            *channelwise(
                ctx,
                "rg_lru",
                width=width,
                row_values=4 * width,
                state_bytes=width * DTYPE_BYTES["float32"],
                stands_for="the recurrence of RG-LRU",
            ),
            elementwise(ctx, "branch_product", MIXING, width=width, row_bytes=row_bytes),
            *linear(ctx, "linear_out", PROJECTIONS, n=h, k=width, bias=True),
        ]
