"""Selective state spaces: Mamba (arXiv 2312.00752) and Mamba 2 (arXiv 2405.21060)."""

from dataclasses import dataclass
from typing import Literal

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

HEAD_DIM = 64
"""Channels that a block of the kernels works on: those of a head of Mamba 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2(CachesNothing):
    """A state of ``num_heads`` x ``head_dim`` x ``state_size`` values, decayed by head.

    ``n_groups``: sets of input and output vectors (B, C) that heads share. ``gated_norm``: the
    output is normalised after its gate. ``scaled``: the input projection is multiplied by fixed
    factors (Falcon-H1). ``state_dtype``: format of the state where it is not that of activations.
    """

    num_heads: int
    head_dim: int
    state_size: int
    n_groups: int
    conv_kernel: int
    conv_bias: bool = True
    in_bias: bool = False
    out_bias: bool = False
    gated_norm: bool = True
    scaled: bool = False
    state_dtype: str | None = None

    @property
    def inner_size(self) -> int:
        """Width of what passes the scan, values per token."""
        return self.num_heads * self.head_dim

    @property
    def conv_size(self) -> int:
        """Channels of the convolution: the scan's input, B and C."""
        return self.inner_size + 2 * self.n_groups * self.state_size

    @property
    def in_size(self) -> int:
        """Width of the input projection: gate, channels of the convolution, time steps."""
        return self.inner_size + self.conv_size + self.num_heads

    def weights(self, hidden_size: int, _norm_vectors: int = 0) -> tuple[Weight, ...]:
        """Projections, convolution, decay, skip and time step of each head, gated norm."""
        taps = self.conv_kernel + (1 if self.conv_bias else 0)
        return (
            *matrix("in_proj", self.in_size, hidden_size, bias=self.in_bias),
            *matrix("out_proj", hidden_size, self.inner_size, bias=self.out_bias),
            vector("conv1d", taps * self.conv_size),
            vector("A_log", 3 * self.num_heads),
            *([vector("gated_norm", self.inner_size)] if self.gated_norm else []),
        )

    def state_bytes(self, element_bytes: float) -> float:
        """Bytes of the states of a sequence: of the convolution, and of the recurrence."""
        taps = (self.conv_kernel - 1) * self.conv_size
        return taps * element_bytes + self._recurrent_bytes(element_bytes)

    def operations(self, ctx: Context) -> list[Op]:
        """Input projection, convolution, scan, gated norm, output projection."""
        inner, wide = self.inner_size, ctx.wide
        ops = linear(
            ctx, "in_proj", PROJECTIONS, n=self.in_size, k=ctx.hidden_size, bias=self.in_bias
        )
        if self.scaled:
            ops.append(in_place(ctx, "in_proj_scale", MIXING, width=self.in_size))
        ops += convolution(ctx, width=self.conv_size, kernel=self.conv_kernel)
        ops += recurrence(
            ctx,
            "scan",
            heads=self.num_heads,
            flop=6.0 * inner * self.state_size,
            state_bytes=self._recurrent_bytes(wide),
            row_values=3 * inner + 2 * self.n_groups * self.state_size + self.num_heads,
        )
        if self.gated_norm:
            gate = normalise(ctx, "gated_norm", tensors=3, width=inner, weights=inner)
        else:
            gate = elementwise(ctx, "gate", MIXING, width=inner, row_bytes=3 * inner * wide)
        out = linear(ctx, "out_proj", PROJECTIONS, n=ctx.hidden_size, k=inner, bias=self.out_bias)
        return [*ops, gate, *out]

    def _recurrent_bytes(self, element_bytes: float) -> float:
        values = self.inner_size * self.state_size
        return values * state_width(self.state_dtype, element_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba(CachesNothing):
    """A state of ``intermediate_size`` x ``state_size`` values, each with a decay of its own.

    ``time_step_rank``: width between the two projections that give the time steps. ``heads``:
    pieces that channels are split into, whose projections do not mix (Zamba). ``inner_norms``:
    time steps, B and C are normalised, with learnt scales ("learnt", Jamba) or without ("plain",
    Falcon Mamba).
    """

    intermediate_size: int
    state_size: int
    conv_kernel: int
    time_step_rank: int
    heads: int = 1
    conv_bias: bool = True
    bias: bool = False
    inner_norms: Literal["learnt", "plain"] | None = None

    @property
    def selection_size(self) -> int:
        """Values that a token selects with: time steps of low rank, B and C, of each head."""
        return self.heads * (self.time_step_rank + 2 * self.state_size)

    def weights(self, hidden_size: int, _norm_vectors: int = 0) -> tuple[Weight, ...]:
        """Projections, convolution, decays and skips, norms of what selects."""
        inner, piece = self.intermediate_size, self.intermediate_size // self.heads
        taps = self.conv_kernel + (1 if self.conv_bias else 0)
        norms = self.selection_size if self.inner_norms == "learnt" else 0
        return (
            *matrix("in_proj", 2 * inner, hidden_size, bias=self.bias),
            *matrix("x_proj", self.selection_size, piece),
            *matrix("dt_proj", inner, self.time_step_rank, bias=True),
            *matrix("out_proj", hidden_size, inner, bias=self.bias),
            vector("conv1d", taps * inner),
            vector("A_log", inner * (self.state_size + 1)),
            *([vector("selection_norm", norms)] if norms else []),
        )

    def state_bytes(self, element_bytes: float) -> float:
        """Bytes of the states of a sequence: of the convolution, and of the recurrence."""
        return self.intermediate_size * (self.conv_kernel - 1 + self.state_size) * element_bytes

    def operations(self, ctx: Context) -> list[Op]:
        """Input projection, convolution, selection, scan with its gate, output projection."""
        inner, state = self.intermediate_size, self.state_size
        ops = linear(ctx, "in_proj", PROJECTIONS, n=2 * inner, k=ctx.hidden_size, bias=self.bias)
        ops += convolution(ctx, width=inner, kernel=self.conv_kernel)
        ops += linear(ctx, "x_proj", PROJECTIONS, n=self.selection_size, k=inner // self.heads)
        if self.inner_norms:
            weights = self.selection_size if self.inner_norms == "learnt" else 0
            width = self.selection_size
            norm = normalise(ctx, "selection_norm", tensors=2, width=width, weights=weights)
            ops.append(norm)
        ops += linear(ctx, "dt_proj", PROJECTIONS, n=inner, k=self.time_step_rank, bias=True)
        ops += recurrence(
            ctx,
            "scan",
            heads=inner / HEAD_DIM,
            flop=6.0 * inner * state,
            state_bytes=inner * state * ctx.wide,
            # In: channels, gate, time steps, B and C; out: channels.
            row_values=4 * inner + 2 * self.heads * state,
            stands_for="the selective scan of Mamba 1",
        )
        return ops + linear(
            ctx, "out_proj", PROJECTIONS, n=ctx.hidden_size, k=inner, bias=self.bias
        )
