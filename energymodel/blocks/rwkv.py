"""Time mixing and channel mixing of RWKV 4 (arXiv 2305.13048)."""

from dataclasses import dataclass

from energymodel.blocks.nothing import CachesNothing
from energymodel.blocks.recurrence import MIXING, PROJECTIONS, channelwise
from energymodel.dtypes import DTYPE_BYTES
from energymodel.op_kinds import Context, Op, elementwise, in_place, linear
from energymodel.weights import Weight, matrix, vector

STATES = 3
"""float32 values for each channel: numerator, denominator, largest exponent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeMix(CachesNothing):
    """A weighted mean of all values so far, with a decay for each of ``width`` channels.

    ``hidden_size`` is that of the stack: a sequence keeps its last input to mix with the next.
    """

    width: int
    hidden_size: int

    def weights(self, hidden_size: int, _norm_vectors: int = 0) -> tuple[Weight, ...]:
        """Keys, values, receptance, output; decay and bonus; how inputs mix with the last ones."""
        return (
            *matrix("key", self.width, hidden_size),
            *matrix("value", self.width, hidden_size),
            *matrix("receptance", self.width, hidden_size),
            *matrix("output", hidden_size, self.width),
            vector("time_decay", 2 * self.width),
            vector("time_mix", 3 * hidden_size),
        )

    def state_bytes(self, element_bytes: float) -> float:
        """Bytes of the last input, and of the running means."""
        return self.hidden_size * element_bytes + STATES * self.width * DTYPE_BYTES["float32"]

    def operations(self, ctx: Context) -> list[Op]:
        """Shift, projections, recurrence, gate, output."""
        width, h = self.width, ctx.hidden_size
        projections = [
            op
            for name in ("key", "value", "receptance")
            for op in linear(ctx, name, PROJECTIONS, n=width, k=h)
        ]
        return [
            *_shift(ctx, "time_shift", mixtures=3),
            *projections,
            *channelwise(
                ctx,
                "wkv",
                width=width,
                row_values=3 * width,
                state_bytes=STATES * width * DTYPE_BYTES["float32"],
                stands_for="the WKV recurrence of RWKV",
            ),
            elementwise(ctx, "gate", MIXING, width=width, row_bytes=3 * width * ctx.wide),
            *linear(ctx, "output", PROJECTIONS, n=h, k=width),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelMix(CachesNothing):
    """Feed-forward block with a gate from the input, which is mixed with the token before it."""

    intermediate_size: int
    hidden_size: int

    def weights(self, hidden_size: int, _norm_vectors: int = 0) -> tuple[Weight, ...]:
        """Up, gate and down; how inputs mix with the last ones."""
        return (
            *matrix("channel_key", self.intermediate_size, hidden_size),
            *matrix("channel_receptance", hidden_size, hidden_size),
            *matrix("channel_value", hidden_size, self.intermediate_size),
            vector("channel_mix", 2 * hidden_size),
        )

    def state_bytes(self, element_bytes: float) -> float:
        """Bytes of the last input."""
        return self.hidden_size * element_bytes

    def operations(self, ctx: Context) -> list[Op]:
        """Shift, up, squared ReLU, gate, down, product."""
        inner, h = self.intermediate_size, ctx.hidden_size
        return [
            *_shift(ctx, "channel_shift", mixtures=2),
            *linear(ctx, "channel_key", "mlp", n=inner, k=h),
            in_place(ctx, "channel_activation", "mlp", width=inner),
            *linear(ctx, "channel_receptance", "mlp", n=h, k=h),
            *linear(ctx, "channel_value", "mlp", n=h, k=inner),
            elementwise(ctx, "channel_gate", "mlp", width=h, row_bytes=3 * h * ctx.wide),
        ]


def _shift(ctx: Context, name: str, *, mixtures: int) -> list[Op]:
    """Each input mixed with the one before it, ``mixtures`` times; the last one is kept."""
    h = ctx.hidden_size
    return channelwise(ctx, name, width=h, row_values=(1 + mixtures) * h, state_bytes=h * ctx.wide)
