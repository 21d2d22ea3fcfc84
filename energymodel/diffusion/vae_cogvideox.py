"""``AutoencoderKLCogVideoX``: causal in time, every norm of the decoder also looks at the latents.

It decodes two latent frames at a time; ``cogvideox_pieces`` says how often, so that memory is asked for
one piece only. Text to video runs the decoder alone.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from energymodel.diffusion.calls import Call, Calls, Sizes, convolution, norm, rowwise
from energymodel.diffusion.resnets import VOLUME, halved, norm_silu, resnet, upsampled
from energymodel.diffusion.settings import doublings, refuse, words
from energymodel.diffusion.vae_image import encoder_table, kl_channels
from energymodel.fields import Fields
from energymodel.steps import Floats


def cogvideox_pieces(x: Sizes) -> Floats:
    """Two latent frames are decoded at a time, the first time three where their number is odd."""
    return np.maximum(np.floor(x.frames / 2), 1.0)


def autoencoder_cogvideox(f: Fields, x: Sizes) -> Calls:
    """Residual blocks of 3-D convolutions; time is doubled at the lowest resolutions."""
    channels = kl_channels(f)
    words(f, "down_block_types", (), ("CogVideoXDownBlock3D",))
    words(f, "up_block_types", (), ("CogVideoXUpBlock3D",))
    for key in ("use_quant_conv", "use_post_quant_conv"):
        refuse(f, key, "no published CogVideoX has it")
    latent, layers = f.integer("latent_channels", 16), f.integer("layers_per_block", 3, high=99)
    times = doublings(f, "temporal_compression_ratio", 4)
    encoder = _cogvideox_encoder(f, x, channels, latent, layers)

    def spatial(name: str, at: Sizes, width: int) -> Calls:
        """``CogVideoXSpatialNorm3D``: scale and shift from the latents, by products."""
        rows = at.positions
        return (
            norm(name, rows, width, params=2 * width),
            convolution(f"{name}.conv_y", rows, width, latent, kernel=1),
            convolution(f"{name}.conv_b", rows, width, latent, kernel=1),
            rowwise(f"{name}.modulate", "norm", rows, width, tensors=6),
            rowwise(f"{name}.silu", "norm", rows, width, tensors=2),
        )

    def block(name: str, at: Sizes, entering: int, out: int) -> Calls:
        rows = at.positions
        shortcut: Calls = ()
        if entering != out:
            shortcut = (convolution(f"{name}.conv_shortcut", rows, out, entering, kernel=1),)
        return (
            *spatial(f"{name}.norm1", at, entering),
            convolution(f"{name}.conv1", rows, out, entering, kernel=VOLUME),
            *spatial(f"{name}.norm2", at, out),
            convolution(f"{name}.conv2", rows, out, out, kernel=VOLUME),
            *shortcut,
            rowwise(f"{name}.add", "norm", rows, out, tensors=3),
        )

    entering = channels[-1]
    calls: list[Call] = [convolution("conv_in", x.positions, entering, latent, kernel=VOLUME)]
    for _ in range(2):
        calls += block("mid.resnet", x, entering, entering)
    first, others = _cogvideox_frames(x)
    for i, out in enumerate(reversed(channels)):
        for _ in range(layers + 1):
            calls += block(f"up.{i}.resnet", x, entering, out)
            entering = out
        if i < len(channels) - 1:
            if i < times:
                first, others = _doubled(first), 2 * others
            x = replace(x.resized(2), frames=first + others)
            calls += upsampled(f"up.{i}.upsample", x, out, out)
    return (
        encoder_table(encoder),
        *calls,
        *spatial("norm_out", x, entering),
        convolution("conv_out", x.positions, f.integer("out_channels", 3), entering, kernel=VOLUME),
    )


def _cogvideox_frames(x: Sizes) -> tuple[Floats, Floats]:
    """(frames of the first piece, frames of all others)."""
    others = 2 * (cogvideox_pieces(x) - 1)
    return x.frames - others, others


def _doubled(frames: Floats) -> Floats:
    """Frames of the first piece after a doubling: the first of an odd number stays single."""
    return np.where(frames % 2 == 1, 2 * frames - 1, 2 * frames)


def _cogvideox_encoder(
    f: Fields, x: Sizes, channels: Sequence[int], latent: int, layers: int
) -> Calls:
    entering = channels[0]
    calls: list[Call] = [
        convolution("conv_in", x.positions, entering, f.integer("in_channels", 3), kernel=VOLUME)
    ]
    for i, out in enumerate(channels):
        for _ in range(layers):
            calls += resnet(f"down.{i}.resnet", x, entering, out, kernel=VOLUME)
            entering = out
        if i < len(channels) - 1:
            calls.append(halved(f"down.{i}.downsample", x, out, out))
    for _ in range(2):
        calls += resnet("mid.resnet", x, entering, entering, kernel=VOLUME)
    return (
        *calls,
        *norm_silu("norm_out", x.positions, entering),
        convolution("conv_out", x.positions, 2 * latent, entering, kernel=VOLUME),
    )
