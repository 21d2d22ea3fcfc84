"""Calls of layers that carry a state from token to token: convolutions, scans, delta rules.

An engine runs prompt chunks and decoding sequences through kernels of their own, so each of these
is two calls. Shapes, FLOP and bytes are those that ``calibration.tables`` gives its observations of
the same kernels: a state is read once and written once in a call.
"""

from dataclasses import replace
from typing import Literal

import numpy as np

from energymodel.dtypes import DTYPE_BYTES
from energymodel.op_kinds import Context, Op, elementwise
from energymodel.steps import Floats

Law = Literal["scan", "linear_attention"]

MIXING, PROJECTIONS = "recurrence", "recurrence_projections"
"""Components: what runs along the tokens, and the products before and after it."""

CHUNK_TOKENS = {"scan": 256, "linear_attention": 64}
"""Tokens of a prompt that a kernel works off together (Mamba 2 arXiv 2405.21060, gated delta rule
arXiv 2412.06464); chunks of one sequence follow one another."""


def convolution(ctx: Context, *, width: int, kernel: int) -> list[Op]:
    """Causal convolution of each of ``width`` channels over the last ``kernel`` tokens.

    It moves each row in and out, and the kernel - 1 tokens of state of each sequence.
    """
    return channelwise(
        ctx,
        "conv1d",
        kind="causal_conv1d",
        width=width,
        row_values=2 * width,
        state_bytes=(kernel - 1) * width * ctx.wide,
    )


def channelwise(
    ctx: Context,
    name: str,
    *,
    width: int,
    row_values: int,
    state_bytes: float,
    kind: str = "elementwise",
    stands_for: str = "",
) -> list[Op]:
    """Prompt chunks, then decoding sequences, through a state of ``width`` separate channels.

    Channels do not mix, so it is no matrix product and has 0 FLOP. ``row_values`` enter and leave
    for a token; ``state_bytes`` are of one sequence.
    """
    chunk_tokens, prompts = _prompt(ctx)
    decoding = ctx.steps.decoding
    phases = {"prefill": (chunk_tokens, prompts), "decode": (decoding, decoding)}
    calls = []
    for phase, (rows, seqs) in phases.items():
        op = elementwise(
            ctx,
            f"{name}_{phase}",
            MIXING,
            width=width,
            row_bytes=row_values * ctx.wide,
            rows=rows,
            kind=kind,
            asked=_asked(ctx, phase),
        )
        moved = op.hbm_bytes + seqs * (2 * state_bytes)
        shape = {**op.shape, "bytes": moved}
        calls.append(replace(op, hbm_bytes=moved, shape=shape, stands_for=stands_for))
    return calls


def recurrence(
    ctx: Context,
    law: Law,
    *,
    heads: float,
    flop: float,
    state_bytes: float,
    row_values: float,
    stands_for: str = "",
) -> list[Op]:
    """Prompt chunks, then decoding sequences, through a recurrent state.

    ``heads``: pieces of one sequence that run independently of each other. ``flop`` and
    ``row_values`` are of one token: products with the state, and activations in and out.
    ``state_bytes`` are of one sequence.
    """
    steps, chunks = ctx.steps, ctx.steps.chunks
    pieces = chunks.tokens / CHUNK_TOKENS[law]
    serial = np.zeros(steps.size)
    np.maximum.at(serial, chunks.step, np.where(chunks.count > 0, pieces, 0.0))
    chunk_tokens, prompts = _prompt(ctx)
    decoding = steps.decoding
    phases = {
        "prefill": (chunk_tokens, prompts, steps.sum_chunks(np.maximum(pieces, 1.0)), serial),
        "decode": (decoding, decoding, decoding, np.zeros(steps.size)),
    }
    calls = []
    for phase, (rows, seqs, pieces_of_work, in_turn) in phases.items():
        state, moved = seqs * (2 * state_bytes), rows * (row_values * ctx.wide)
        call = Op(
            name=f"{law}_{phase}",
            kind=f"{law}_{phase}",
            component=MIXING,
            dtype=ctx.dtype,
            stored=ctx.dtype,
            count=ctx.count,
            flop=rows * flop,
            hbm_bytes=moved + state,
            weight_bytes=state,
            shape={
                "flop": rows * flop,
                "bytes": moved + state,
                "blocks": pieces_of_work * heads,
                "steps": in_turn,
            },
            stands_for=stands_for,
            asked=_asked(ctx, phase),
        )
        calls.append(call)
    return calls


def state_width(state_dtype: str | None, element_bytes: float) -> float:
    """Bytes of one value of a recurrent state: of its own format, or of the activations."""
    return element_bytes if state_dtype is None else DTYPE_BYTES[state_dtype]


def _prompt(ctx: Context) -> tuple[Floats, Floats]:
    """(tokens of prompt chunks, prompt chunks) of each step."""
    chunks = ctx.steps.chunks
    return ctx.steps.sum_chunks(chunks.tokens), ctx.steps.sum_chunks(np.ones_like(chunks.tokens))


def _asked(ctx: Context, phase: str) -> tuple[Floats, Floats]:
    """What each chunk and each decoding sequence asks of the call of one phase: its tokens."""
    tokens, ones = ctx.steps.chunks.tokens, np.ones_like(ctx.steps.decodes.context)
    if phase == "prefill":
        return tokens.astype(np.float64), np.zeros_like(ones)
    return np.zeros(tokens.shape), ones
