"""``AutoencoderKLHunyuanVideo``: causal in time, decoded in overlapping tiles of time as by default.

``hunyuan_pieces`` says how many tiles there are, so that memory is asked for one of them only. Text to
video runs the decoder alone.
"""

from dataclasses import dataclass, replace

import numpy as np

from energymodel.diffusion.calls import Call, Calls, Sizes, convolution, table
from energymodel.diffusion.resnets import VOLUME, norm_silu, resnet, spatial_attention, upsampled
from energymodel.diffusion.settings import doublings, words
from energymodel.diffusion.vae_image import encoder_table, kl_channels
from energymodel.fields import Fields
from energymodel.steps import Floats

# ``tile_sample_min_num_frames`` and ``tile_sample_stride_num_frames`` over the compression of 4.
TILE_FRAMES, TILE_STRIDE = 4, 3
# Levels, counted from the lowest but one, at which time is halved and doubled.
TIMES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """How the latent frames of each row are cut: tiles, frames of all of them, squares of these."""

    number: Floats
    frames: Floats
    squares: Floats


def hunyuan_pieces(x: Sizes) -> Floats:
    """Tiles of five latent frames, two of which overlap the next."""
    return _tiles(x.frames).number


def _tiles(frames: Floats) -> Tiles:
    length = TILE_FRAMES + 1.0
    whole = np.maximum(np.floor((frames - length) / TILE_STRIDE) + 1, 0)
    rest = np.maximum(frames - TILE_STRIDE * whole, 0)
    last = np.where(frames > TILE_FRAMES, np.maximum(rest - TILE_STRIDE, 0), 0)
    return Tiles(
        number=whole + (rest > 0) + (last > 0),
        frames=whole * length + rest + last,
        squares=whole * length**2 + rest**2 + last**2,
    )


def autoencoder_hunyuan_video(f: Fields, x: Sizes) -> Calls:
    """Residual blocks of 3-D convolutions, attention over a whole tile in the middle."""
    channels = kl_channels(f)
    words(f, "down_block_types", (), ("HunyuanVideoDownBlock3D",))
    words(f, "up_block_types", (), ("HunyuanVideoUpBlock3D",))
    f.integer("temporal_compression_ratio", 4, low=4, high=4)
    latent = f.integer("latent_channels", 16)
    tiles = _tiles(x.frames)
    tiled = replace(x, frames=tiles.frames)
    return (
        encoder_table(_encoder(f, tiled, tiles, channels)),
        table("quant_conv", 2 * latent * (2 * latent + 1)),
        convolution("post_quant_conv", tiled.positions, latent, latent, kernel=1),
        *_decoder(f, tiled, tiles, channels),
    )


def _middle(f: Fields, x: Sizes, tiles: Tiles, channels: int) -> Calls:
    pairs = x.batch * tiles.squares * (x.height * x.width) ** 2
    looks = f.flag("mid_block_add_attention", default=True)
    return (
        *resnet("mid.resnet", x, channels, channels, kernel=VOLUME),
        *(spatial_attention("mid.attn", x, channels, pairs=pairs) if looks else ()),
        *resnet("mid.resnet", x, channels, channels, kernel=VOLUME),
    )


def _ends(x: Sizes, channels: int, out: int) -> Calls:
    return (
        *norm_silu("conv_norm_out", x.positions, channels),
        convolution("conv_out", x.positions, out, channels, kernel=VOLUME),
    )


def _resizes(f: Fields, level: int, levels: int) -> tuple[bool, bool]:
    """(in space, in time): what changes behind a level, counted in the order of execution."""
    return (
        level < doublings(f, "spatial_compression_ratio", 8),
        levels - 1 - TIMES <= level < levels - 1,
    )


def _decoder(f: Fields, x: Sizes, tiles: Tiles, channels: tuple[int, ...]) -> Calls:
    layers, entering = f.integer("layers_per_block", 2, high=99), channels[-1]
    latent = f.integer("latent_channels", 16)
    calls: list[Call] = [
        convolution("conv_in", x.positions, entering, latent, kernel=VOLUME),
        *_middle(f, x, tiles, entering),
    ]
    for i, out in enumerate(reversed(channels)):
        for _ in range(layers + 1):
            calls += resnet(f"up.{i}.resnet", x, entering, out, kernel=VOLUME)
            entering = out
        wider, longer = _resizes(f, i, len(channels))
        if longer:  # the first frame of every tile stays single
            x = replace(x, frames=2 * x.frames - tiles.number)
        if wider:
            x = x.resized(2)
        if wider or longer:
            calls += upsampled(f"up.{i}.upsample", x, out, out, kernel=VOLUME)
    return (*calls, *_ends(x, entering, f.integer("out_channels", 3)))


def _encoder(f: Fields, x: Sizes, tiles: Tiles, channels: tuple[int, ...]) -> Calls:
    """Only its learnt values matter, whatever the sizes."""
    layers, entering = f.integer("layers_per_block", 2, high=99), channels[0]
    calls: list[Call] = [
        convolution("conv_in", x.positions, entering, f.integer("in_channels", 3), kernel=VOLUME)
    ]
    for i, out in enumerate(channels):
        for _ in range(layers):
            calls += resnet(f"down.{i}.resnet", x, entering, out, kernel=VOLUME)
            entering = out
        if any(_resizes(f, i, len(channels))):
            calls.append(convolution(f"down.{i}.downsample", x.positions, out, out, kernel=VOLUME))
    latent = f.integer("latent_channels", 16)
    return (*calls, *_middle(f, x, tiles, entering), *_ends(x, entering, 2 * latent))
