"""Autoencoders of images: ``AutoencoderKL`` and ``AutoencoderDC`` (SANA).

Text to image runs the decoder alone; the encoder counts as learnt values that are loaded.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from energymodel.diffusion.calls import (
    OWN_NORM,
    Call,
    Calls,
    Sizes,
    convolution,
    depthwise,
    linear,
    norm,
    param_count,
    rowwise,
    table,
)
from energymodel.diffusion.crossed import gated_convolutions, relu_attention
from energymodel.diffusion.pieces import PROJECTIONS
from energymodel.diffusion.resnets import halved, norm_silu, resnet, spatial_attention, upsampled
from energymodel.diffusion.settings import MAX_LEVELS, choice, whole_numbers, words
from energymodel.errors import InputError
from energymodel.fields import Fields


def encoder_table(calls: Calls) -> Call:
    """The learnt values of an encoder that does not run."""
    return table("encoder", param_count(calls))


# --- AutoencoderKL --------------------------------------------------------------------------------


def autoencoder_kl(f: Fields, x: Sizes) -> Calls:
    """Stable Diffusion, FLUX, PixArt, HunyuanDiT: residual blocks at four resolutions."""
    channels = kl_channels(f)
    latent = f.integer("latent_channels", 4)
    words(f, "down_block_types", (), ("DownEncoderBlock2D",))
    words(f, "up_block_types", (), ("UpDecoderBlock2D",))
    post = f.flag("use_post_quant_conv", default=True)
    quant = f.flag("use_quant_conv", default=True)
    return (
        encoder_table(_kl_encoder(f, x, channels, latent)),
        *((table("quant_conv", 2 * latent * (2 * latent + 1)),) if quant else ()),
        *((convolution("post_quant_conv", x.positions, latent, latent, kernel=1),) if post else ()),
        *_kl_decoder(f, x, channels, latent),
    )


def kl_channels(f: Fields) -> tuple[int, ...]:
    """Channels of every resolution, from the highest."""
    return _levels(f, "block_out_channels", (64,))


def _levels(f: Fields, key: str, default: Sequence[int]) -> tuple[int, ...]:
    channels = whole_numbers(f, key, default, low=1)
    if not 1 <= len(channels) <= MAX_LEVELS:
        raise InputError(f"{f.where}: field '{key}' must have 1 to {MAX_LEVELS} entries")
    return channels


def _kl_middle(f: Fields, x: Sizes, channels: int) -> Calls:
    looks = f.flag("mid_block_add_attention", default=True)
    return (
        *resnet("mid.resnet", x, channels, channels),
        *(spatial_attention("mid.attn", x, channels) if looks else ()),
        *resnet("mid.resnet", x, channels, channels),
    )


def _kl_decoder(f: Fields, x: Sizes, channels: Sequence[int], latent: int) -> Calls:
    layers, entering = f.integer("layers_per_block", 1, high=MAX_LEVELS), channels[-1]
    calls: list[Call] = [convolution("conv_in", x.positions, entering, latent)]
    calls += _kl_middle(f, x, entering)
    for i, out in enumerate(reversed(channels)):
        for _ in range(layers + 1):
            calls += resnet(f"up.{i}.resnet", x, entering, out)
            entering = out
        if i < len(channels) - 1:
            x = x.resized(2)
            calls += upsampled(f"up.{i}.upsample", x, out, out)
    return (
        *calls,
        *norm_silu("conv_norm_out", x.positions, entering),
        convolution("conv_out", x.positions, f.integer("out_channels", 3), entering),
    )


def _kl_encoder(f: Fields, x: Sizes, channels: Sequence[int], latent: int) -> Calls:
    layers, entering = f.integer("layers_per_block", 1, high=MAX_LEVELS), channels[0]
    calls: list[Call] = [convolution("conv_in", x.positions, entering, f.integer("in_channels", 3))]
    for i, out in enumerate(channels):
        for _ in range(layers):
            calls += resnet(f"down.{i}.resnet", x, entering, out)
            entering = out
        if i < len(channels) - 1:
            calls.append(halved(f"down.{i}.downsample", x, out, out))
    return (
        *calls,
        *_kl_middle(f, x, entering),
        *norm_silu("conv_norm_out", x.positions, entering),
        convolution("conv_out", x.positions, 2 * latent, entering),
    )


# --- AutoencoderDC --------------------------------------------------------------------------------

RES, VIT = "ResBlock", "EfficientViTBlock"


def autoencoder_dc(f: Fields, x: Sizes) -> Calls:
    """Deep compression (32 x 32 pixels a latent): residual blocks above, linear attention below."""
    decoder = _dc_stages(f, "decoder", (3, 3, 3, 3, 3, 3))
    encoder = _dc_stages(f, "encoder", (2, 2, 2, 3, 3, 3))
    latent, head_dim = f.integer("latent_channels", 32), f.integer("attention_head_dim", 32)
    return (
        encoder_table(_dc_encoder(f, x, encoder, latent, head_dim)),
        *_dc_decoder(f, x, decoder, latent, head_dim),
    )


Stage = tuple[int, int, str, tuple[int, ...]]
"""Channels, blocks, kind of block, kernel sizes of the multi-scale queries, keys and values."""


def dc_channels(f: Fields, part: str = "encoder") -> tuple[int, ...]:
    """Channels of every resolution, from the highest."""
    key = f"{part}_block_out_channels"
    channels = _levels(f, key, (128, 256, 512, 512, 1024, 1024))
    if len(channels) < 2:
        raise InputError(f"{f.where}: field '{key}' must have 2 entries or more")
    return channels


def _dc_stages(f: Fields, part: str, layers: Sequence[int]) -> list[Stage]:
    choice(f, "decoder_norm_types", ("rms_norm",), "rms_norm")
    channels = dc_channels(f, part)
    size, key = len(channels), f"{part}_block_types"
    if isinstance(f.config.get(key), str):
        kinds = (choice(f, key, (RES, VIT)) or RES,) * size
    else:
        kinds = words(f, key, (RES,) * size, (RES, VIT))
    counts = whole_numbers(f, f"{part}_layers_per_block", layers, length=size, high=100)
    scales = _scales(f, f"{part}_qkv_multiscales", size)
    if len(kinds) != size or len(counts) != size:
        raise InputError(f"{f.where}: field '{key}' must have {size} entries")
    return list(zip(channels, counts, kinds, scales, strict=True))


def _scales(f: Fields, key: str, size: int) -> list[tuple[int, ...]]:
    lists = f.sequence(key)
    if lists is None:
        lists = ((), (), (), (5,), (5,), (5,))
    views = [Fields({key: entry}, f.where) for entry in lists]
    if len(views) != size:
        raise InputError(f"{f.where}: field '{key}' must have {size} entries")
    return [whole_numbers(view, key, (), high=99) for view in views]


def _dc_block(name: str, x: Sizes, stage: Stage, head_dim: int) -> Calls:
    channels, _, kind, scales = stage
    rows = x.positions
    if kind == RES:
        return (
            convolution(f"{name}.conv1", rows, channels, channels),
            rowwise(f"{name}.silu", "norm", rows, channels, tensors=2),
            convolution(f"{name}.conv2", rows, channels, channels, bias=False),
            norm(f"{name}.norm", rows, channels, params=2 * channels, tensors=OWN_NORM),
            rowwise(f"{name}.add", "norm", rows, channels, tensors=3),
        )
    heads = max(channels // head_dim, 1)
    inner, copies = heads * head_dim, 1 + len(scales)
    wider: list[Call] = []
    for size in scales:
        wider += [
            depthwise(f"{name}.scale", rows, 3 * inner, kernel=size**2, bias=False),
            convolution(
                f"{name}.scale_out",
                rows,
                3 * inner,
                3 * inner,
                kernel=1,
                groups=3 * heads,
                bias=False,
            ),
        ]
    return (
        linear(f"{name}.to_qkv", PROJECTIONS, rows, inner, channels, bias=False, count=3),
        rowwise(f"{name}.cat", "attention", rows, 3 * inner * copies, tensors=2),
        *wider,
        *_linear_or_quadratic(f"{name}.attn", x, heads * copies, head_dim),
        linear(f"{name}.to_out", PROJECTIONS, rows, channels, copies * inner, bias=False),
        norm(f"{name}.norm_out", rows, channels, params=2 * channels, tensors=OWN_NORM),
        rowwise(f"{name}.add", "norm", rows, channels, tensors=3),
        *gated_convolutions(f"{name}.ff", x, channels, 4 * channels, learnt_norm=True),
        rowwise(f"{name}.ff.add", "norm", rows, channels, tensors=3),
    )


def _linear_or_quadratic(name: str, x: Sizes, heads: int, head_dim: int) -> Calls:
    """Positions attend to each other directly where there are fewer of them than head_dim."""
    (call,) = relu_attention(name, x.positions, heads, head_dim)
    tokens = x.height * x.width
    direct = 4.0 * x.positions * tokens * heads * head_dim
    return (replace(call, flop=np.where(tokens > head_dim, call.flop, direct)),)


def _dc_decoder(f: Fields, x: Sizes, stages: list[Stage], latent: int, head_dim: int) -> Calls:
    shuffles = (
        choice(f, "upsample_block_type", ("pixel_shuffle", "interpolate"), "pixel_shuffle")
        == "pixel_shuffle"
    )
    out = f.integer("in_channels", 3)
    deepest = stages[-1][0]
    calls: list[Call] = [convolution("conv_in", x.positions, deepest, latent)]
    for i in reversed(range(len(stages))):
        channels, count, _, _ = stages[i]
        if i < len(stages) - 1 and count:
            calls += _dc_up(f"up.{i}", x, stages[i + 1][0], channels, shuffles=shuffles)
            x = x.resized(2)
        for _ in range(count):
            calls += _dc_block(f"up.{i}", x, stages[i], head_dim)
    # Without blocks at the highest resolution the output is made at half of it, and enlarged.
    has_top = stages[0][1] > 0
    width = stages[0][0] if has_top else stages[1][0]
    ends: Calls = (convolution("conv_out", x.positions, out, width),)
    if not has_top:
        ends = _dc_up("conv_out", x, width, out, shuffles=shuffles)
    return (
        *calls,
        norm("norm_out", x.positions, width, params=2 * width, tensors=OWN_NORM),
        rowwise("conv_act", "norm", x.positions, width, tensors=2),
        *ends,
    )


def _dc_up(name: str, x: Sizes, channels: int, out: int, *, shuffles: bool) -> Calls:
    """To twice the height and width of ``x``: four times the channels, or neighbours repeated."""
    larger = x.resized(2).positions
    added = rowwise(f"{name}.shortcut", "convolution", larger, out, tensors=5)
    if shuffles:
        return convolution(f"{name}.conv", x.positions, 4 * out, channels), added
    return (
        rowwise(f"{name}.interpolate", "convolution", larger, channels, tensors=1.25),
        convolution(f"{name}.conv", larger, out, channels),
        added,
    )


def _dc_encoder(f: Fields, x: Sizes, stages: list[Stage], latent: int, head_dim: int) -> Calls:
    """Only its learnt values matter, whatever the sizes."""
    shuffles = (
        choice(f, "downsample_block_type", ("pixel_unshuffle", "conv"), "pixel_unshuffle")
        == "pixel_unshuffle"
    )

    def down(name: str, channels: int, out: int) -> Call:
        return convolution(name, x.positions, out // 4 if shuffles else out, channels)

    channels, first = f.integer("in_channels", 3), stages[0][0]
    calls: list[Call] = []
    if stages[0][1] > 0:
        calls.append(convolution("conv_in", x.positions, first, channels))
    else:
        calls.append(down("conv_in", channels, stages[1][0]))
    for i, stage in enumerate(stages):
        for _ in range(stage[1]):
            calls += _dc_block(f"down.{i}", x, stage, head_dim)
        if i < len(stages) - 1 and stage[1]:
            calls.append(down(f"down.{i}.downsample", stage[0], stages[i + 1][0]))
    return (*calls, convolution("conv_out", x.positions, latent, stages[-1][0]))
