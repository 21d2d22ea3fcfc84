"""Linear attention whose state is a matrix for each head: delta rules, lightning attention."""

from dataclasses import dataclass

from energymodel.blocks.nothing import CachesNothing
from energymodel.blocks.recurrence import (
    MIXING,
    PROJECTIONS,
    convolution,
    recurrence,
    state_width,
)
from energymodel.op_kinds import Context, Op, elementwise, in_place, linear, normalise
from energymodel.weights import Weight, matrix, vector


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDelta(CachesNothing):
    """Gated delta rule (arXiv 2412.06464): a state of key x value dimensions for each value head.

    Heads of keys and queries are shared by value heads. ``channel_decay``: each channel of a key
    decays on its own, by a gate of low rank, and so is the gate of the output (Kimi Linear, arXiv
    2510.26692); otherwise a head decays as a whole. ``state_dtype``: format of the state where it
    is not that of activations.
    """

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int
    channel_decay: bool = False
    state_dtype: str | None = None

    @property
    def conv_size(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.num_key_heads * self.key_dim + self.value_size

    @property
    def value_size(self) -> int:
        """Width of the values of all heads, and of the output."""
        return self.num_value_heads * self.value_dim

    @property
    def gate_size(self) -> int:
        """Width of the gates: an update for each head, and a decay for each head or channel."""
        decays = self.num_key_heads * self.key_dim if self.channel_decay else self.num_value_heads
        return decays + self.num_value_heads

    def weights(self, hidden_size: int, _norm_vectors: int = 0) -> tuple[Weight, ...]:
        """Projections, convolution, decay and time step, gated norm of one head."""
        return (
            *(w for name, n, k in self._products(hidden_size) for w in matrix(name, n, k)),
            vector("conv1d", self.conv_kernel * self.conv_size),
            vector("A_log", self.gate_size),
            vector("gated_norm", self.value_dim),
        )

    def state_bytes(self, element_bytes: float) -> float:
        """Bytes of the states of a sequence: of the convolution, and of the recurrence."""
        taps = (self.conv_kernel - 1) * self.conv_size
        return taps * element_bytes + self._recurrent_bytes(element_bytes)

    def operations(self, ctx: Context) -> list[Op]:
        """Projections, convolution, delta rule, gated norm, output projection."""
        *inputs, output = self._products(ctx.hidden_size)
        ops = [op for name, n, k in inputs for op in linear(ctx, name, PROJECTIONS, n=n, k=k)]
        ops += convolution(ctx, width=self.conv_size, kernel=self.conv_kernel)
        ops += recurrence(
            ctx,
            "linear_attention",
            heads=self.num_value_heads,
            # What the state predicts, its correction, and the output: key x value each.
            flop=6.0 * self.value_size * self.key_dim,
            state_bytes=self._recurrent_bytes(ctx.wide),
            row_values=self.conv_size + self.value_size + self.gate_size,
            stands_for="Kimi delta attention" if self.channel_decay else "",
        )
        width, weights = self.value_size, self.value_dim
        ops.append(normalise(ctx, "gated_norm", tensors=3, width=width, weights=weights))
        name, n, k = output
        return ops + linear(ctx, name, PROJECTIONS, n=n, k=k)

    def _products(self, hidden_size: int) -> list[tuple[str, int, int]]:
        """(name, outputs, inputs) of every projection; the output's is the last."""
        value, heads = self.value_size, self.num_value_heads
        out = ("out_proj", hidden_size, value)
        if not self.channel_decay:
            into = self.conv_size + value
            return [
                ("in_proj_qkvz", into, hidden_size),
                ("in_proj_ba", 2 * heads, hidden_size),
                out,
            ]
        rank, keys = self.value_dim, self.num_key_heads * self.key_dim
        return [
            ("in_proj_qkv", self.conv_size, hidden_size),
            ("b_proj", heads, hidden_size),
            ("f_a_proj", rank, hidden_size),
            ("f_b_proj", keys, rank),
            ("g_a_proj", rank, hidden_size),
            ("g_b_proj", value, rank),
            out,
        ]

    def _recurrent_bytes(self, element_bytes: float) -> float:
        values = self.value_size * self.key_dim
        return values * state_width(self.state_dtype, element_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class LightningAttention(CachesNothing):
    """Linear attention with a fixed decay for each head (MiniMax-01, arXiv 2501.08313)."""

    num_heads: int
    head_dim: int

    @property
    def size(self) -> int:
        """Width of queries, of keys and of values."""
        return self.num_heads * self.head_dim

    def weights(self, hidden_size: int, _norm_vectors: int = 0) -> tuple[Weight, ...]:
        """Projections, gate of the output, norm of the output."""
        return (
            *matrix("qkv_proj", 3 * self.size, hidden_size),
            *matrix("output_gate", self.size, hidden_size),
            *matrix("out_proj", hidden_size, self.size),
            vector("attention_norm", self.size),
        )

    def state_bytes(self, element_bytes: float) -> float:
        """Bytes of the state of a sequence: key x value dimensions for each head."""
        return self.size * self.head_dim * element_bytes

    def operations(self, ctx: Context) -> list[Op]:
        """Projection and its activation, attention, norm, gate, output projection."""
        size, h = self.size, ctx.hidden_size
        gated = elementwise(ctx, "gate", MIXING, width=size, row_bytes=3 * size * ctx.wide)
        return [
            *linear(ctx, "qkv_proj", PROJECTIONS, n=3 * size, k=h),
            in_place(ctx, "qkv_activation", MIXING, width=3 * size),
            *recurrence(
                ctx,
                "linear_attention",
                heads=self.num_heads,
                flop=4.0 * size * self.head_dim,
                state_bytes=self.state_bytes(ctx.wide),
                row_values=4 * size,
                stands_for="lightning attention",
            ),
            normalise(ctx, "attention_norm", tensors=2, width=size, weights=size),
            *linear(ctx, "output_gate", PROJECTIONS, n=size, k=h),
            gated,
            *linear(ctx, "out_proj", PROJECTIONS, n=h, k=size),
        ]
