"""Residual convolution blocks and the attention between them, of U-Nets and autoencoders."""

from dataclasses import replace

import numpy as np

from energymodel.diffusion.calls import (
    PLAIN_NORM,
    Call,
    Calls,
    Sizes,
    attention,
    convolution,
    linear,
    norm,
    rowwise,
)
from energymodel.diffusion.pieces import MODULATION, PROJECTIONS
from energymodel.steps import Floats

VOLUME = 27
"""Positions of a 3 x 3 x 3 window."""


def resnet(
    name: str,
    x: Sizes,
    channels: int,
    out: int,
    *,
    kernel: int = 9,
    time: int | None = None,
    vectors: int = 2,
    tensors: float = PLAIN_NORM,
) -> Calls:
    """Norm, activation, convolution, twice; ``time`` is the width of a time embedding.

    ``vectors`` learnt values for each channel of a norm that moves ``tensors`` values for each.
    """
    rows = x.positions
    timed: Calls = ()
    if time is not None:
        timed = (
            rowwise(f"{name}.time_silu", MODULATION, x.batch, time, tensors=2),
            linear(f"{name}.time_emb_proj", MODULATION, x.batch, out, time),
            rowwise(f"{name}.add_time", MODULATION, rows, out, tensors=2),
        )
    shortcut: Calls = ()
    if channels != out:
        shortcut = (convolution(f"{name}.conv_shortcut", rows, out, channels, kernel=1),)
    return (
        *norm_silu(f"{name}.norm1", rows, channels, vectors=vectors, tensors=tensors),
        convolution(f"{name}.conv1", rows, out, channels, kernel=kernel),
        *timed,
        *norm_silu(f"{name}.norm2", rows, out, vectors=vectors, tensors=tensors),
        convolution(f"{name}.conv2", rows, out, out, kernel=kernel),
        *shortcut,
        rowwise(f"{name}.add", "norm", rows, out, tensors=3),
    )


def norm_silu(
    name: str, rows: Floats, channels: int, *, vectors: int = 2, tensors: float = PLAIN_NORM
) -> Calls:
    """A norm over groups of channels, and the activation behind it."""
    return (
        norm(name, rows, channels, params=vectors * channels, tensors=tensors),
        rowwise(f"{name}.silu", "norm", rows, channels, tensors=2),
    )


def upsampled(name: str, x: Sizes, channels: int, out: int, *, kernel: int = 9) -> Calls:
    """Nearest neighbours, then a convolution; ``x`` are the sizes after it."""
    rows = x.positions
    return (
        rowwise(f"{name}.interpolate", "convolution", rows, channels, tensors=1.25),
        convolution(f"{name}.conv", rows, out, channels, kernel=kernel),
    )


def halved(name: str, x: Sizes, channels: int, out: int, *, kernel: int = 9) -> Call:
    """A convolution at every second position each way; ``x`` are the sizes after it."""
    return convolution(f"{name}.conv", x.positions, out, channels, kernel=kernel, inputs=4)


def spatial_attention(
    name: str,
    x: Sizes,
    channels: int,
    *,
    pairs: Floats | None = None,
    vectors: int = 2,
    tensors: float = PLAIN_NORM,
) -> Calls:
    """One head as wide as the channels; every position of a sample sees every other.

    No calibrated kernel has so wide a head: torch computes it in pieces.
    """
    rows = x.positions
    positions = np.divide(rows, x.batch, out=np.zeros_like(rows), where=x.batch > 0)
    wide = attention(
        name,
        x.batch,
        positions,
        positions,
        heads=1,
        head_dim=channels,
        pairs=pairs,
        stands_for=f"attention with a head of {channels} values",
    )
    return (
        norm(f"{name}.norm", rows, channels, params=vectors * channels, tensors=tensors),
        linear(f"{name}.to_qkv", PROJECTIONS, rows, channels, channels, count=3),
        wide,
        linear(f"{name}.to_out", PROJECTIONS, rows, channels, channels),
        rowwise(f"{name}.residual", "norm", rows, channels, tensors=3),
    )


def each_frame(x: Sizes) -> Sizes:
    """Frames of a video as samples of their own."""
    return replace(x, batch=x.batch * x.frames, frames=np.ones_like(x.frames))
