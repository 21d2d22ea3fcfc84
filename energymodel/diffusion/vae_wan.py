"""``AutoencoderKLWan`` of Wan 2.1, and of Wan 2.2 5B (``is_residual``): causal in time.

It decodes one latent frame at a time, keeping what the convolutions over time need of the last ones.
Text to video runs the decoder alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from energymodel.diffusion.calls import Call, Calls, Sizes, convolution, rowwise, table
from energymodel.diffusion.resnets import (
    VOLUME,
    each_frame,
    halved,
    norm_silu,
    resnet,
    spatial_attention,
    upsampled,
)
from energymodel.diffusion.settings import MAX_LEVELS, refuse, whole_numbers
from energymodel.diffusion.vae_image import encoder_table
from energymodel.errors import InputError
from energymodel.fields import Fields
from energymodel.steps import Floats

# F.normalize in float32 and back, then scale, gamma and bias: 3 + 2 + 4 + 3 + 2 + 2 + 2.
WAN_NORM = 18.0


def wan_pieces(x: Sizes) -> Floats:
    """One latent frame is decoded at a time."""
    return x.frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What encoder and decoder share: latent channels, blocks of a level, where time is halved."""

    latent: int
    blocks: int
    in_time: tuple[bool, ...]
    residual: bool


def autoencoder_wan(f: Fields, x: Sizes) -> Calls:
    """Residual blocks of 3-D convolutions, attention within each frame in the middle."""
    refuse(f, "attn_scales", "an autoencoder with it is not read", (None, [], ()))
    mults = whole_numbers(f, "dim_mult", (1, 2, 4, 4), low=1, high=64)
    if not 1 <= len(mults) <= MAX_LEVELS:
        raise InputError(f"{f.where}: field 'dim_mult' must have 1 to {MAX_LEVELS} entries")
    shape = Shape(
        latent=f.integer("z_dim", 16),
        blocks=f.integer("num_res_blocks", 2, high=99),
        in_time=_flags(f, "temperal_downsample", (False, True, True), len(mults) - 1),
        residual=f.flag("is_residual", default=False),
    )
    base = f.integer("base_dim", 96)
    wide = f.integer("decoder_base_dim", base)
    latent = shape.latent
    return (
        encoder_table(_encoder(f, x, shape, [base * m for m in mults])),
        table("quant_conv", 2 * latent * (2 * latent + 1)),
        convolution("post_quant_conv", x.positions, latent, latent, kernel=1),
        *_decoder(f, x, shape, [wide * m for m in mults]),
    )


def _flags(f: Fields, key: str, default: Sequence[bool], size: int) -> tuple[bool, ...]:
    values = f.sequence(key)
    values = default if values is None else values
    if len(values) != size or not all(isinstance(v, bool) for v in values):
        raise InputError(f"{f.where}: field '{key}' must be a list of {size} true or false")
    return tuple(bool(v) for v in values)


def _resnet(name: str, x: Sizes, entering: int, out: int) -> Calls:
    return resnet(name, x, entering, out, kernel=VOLUME, vectors=1, tensors=WAN_NORM)


def _middle(x: Sizes, channels: int) -> Calls:
    return (
        *_resnet("mid.resnet", x, channels, channels),
        *spatial_attention("mid.attn", each_frame(x), channels, vectors=1, tensors=WAN_NORM),
        *_resnet("mid.resnet", x, channels, channels),
    )


def _ends(x: Sizes, entering: int, out: int) -> Calls:
    return (
        *norm_silu("norm_out", x.positions, entering, vectors=1, tensors=WAN_NORM),
        convolution("conv_out", x.positions, out, entering, kernel=VOLUME),
    )


def _decoder(f: Fields, x: Sizes, shape: Shape, channels: Sequence[int]) -> Calls:
    entering = channels[-1]
    calls: list[Call] = [
        convolution("conv_in", x.positions, entering, shape.latent, kernel=VOLUME),
        *_middle(x, entering),
    ]
    ups = [*reversed(shape.in_time), None]
    for i, (out, longer) in enumerate(zip(reversed(channels), ups, strict=True)):
        if i and not shape.residual:
            entering //= 2
        for _ in range(shape.blocks + 1):
            calls += _resnet(f"up.{i}.resnet", x, entering, out)
            entering = out
        if longer is None:
            continue
        if longer:  # the first frame stays single and skips the convolution over time
            later = replace(x, frames=x.frames - 1).positions
            calls.append(convolution(f"up.{i}.time_conv", later, 2 * out, out, kernel=3))
            x = replace(x, frames=2 * x.frames - 1)
        x = x.resized(2)
        calls += upsampled(f"up.{i}.upsample", x, out, out if shape.residual else out // 2)
        if shape.residual:
            calls.append(rowwise(f"up.{i}.shortcut", "convolution", x.positions, out, tensors=5))
    return (*calls, *_ends(x, entering, f.integer("out_channels", 3)))


def _encoder(f: Fields, x: Sizes, shape: Shape, channels: Sequence[int]) -> Calls:
    """Only its learnt values matter, whatever the sizes."""
    entering = f.integer("base_dim", 96)
    calls: list[Call] = [
        convolution("conv_in", x.positions, entering, f.integer("in_channels", 3), kernel=VOLUME)
    ]
    downs = [*shape.in_time, None]
    for i, (out, shorter) in enumerate(zip(channels, downs, strict=True)):
        for _ in range(shape.blocks):
            calls += _resnet(f"down.{i}.resnet", x, entering, out)
            entering = out
        if shorter is not None:
            calls.append(halved(f"down.{i}.downsample", x, out, out))
        if shorter:
            calls.append(convolution(f"down.{i}.time_conv", x.positions, out, out, kernel=3))
    return (*calls, *_middle(x, entering), *_ends(x, entering, 2 * shape.latent))
