"""The classes of denoisers and autoencoders that are read, by the names that diffusers gives them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from energymodel.diffusion import (
    crossed,
    joint,
    unet,
    vae_cogvideox,
    vae_hunyuan,
    vae_image,
    vae_wan,
    video,
)
from energymodel.diffusion.calls import Calls, Sizes
from energymodel.fields import Fields
from energymodel.steps import Floats

Network = Callable[[Fields, Sizes], Calls]
"""From a configuration and what passes through to the calls of one pass."""

DENOISERS: Mapping[str, Network] = {
    "UNet2DConditionModel": unet.unet,
    "SD3Transformer2DModel": joint.sd3,
    "FluxTransformer2DModel": joint.flux,
    "PixArtTransformer2DModel": crossed.pixart,
    # As PixArt's files say; diffusers builds the class above from them.
    "Transformer2DModel": crossed.pixart,
    "SanaTransformer2DModel": crossed.sana,
    "HunyuanDiT2DModel": crossed.hunyuan_dit,
    "CogVideoXTransformer3DModel": video.cogvideox,
    "HunyuanVideoTransformer3DModel": joint.hunyuan_video,
    "WanTransformer3DModel": video.wan,
}


def _at_once(x: Sizes) -> Floats:
    return np.ones_like(x.frames)


def _no_time(_: Fields) -> int:
    return 1


def _kl_space(f: Fields) -> int:
    return int(2 ** (len(vae_image.kl_channels(f)) - 1))


def _field(key: str, default: int) -> Callable[[Fields], int]:
    return lambda f: f.integer(key, default, high=64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A class of autoencoder.

    ``space`` pixels along an edge and ``time`` frames make one latent. ``pieces``: how many pieces of
    a sample are decoded one after the other.
    """

    network: Network
    space: Callable[[Fields], int]
    time: Callable[[Fields], int] = _no_time
    pieces: Callable[[Sizes], Floats] = _at_once


DECODERS: Mapping[str, Decoder] = {
    "AutoencoderKL": Decoder(network=vae_image.autoencoder_kl, space=_kl_space),
    "AutoencoderDC": Decoder(
        network=vae_image.autoencoder_dc,
        space=lambda f: int(2 ** (len(vae_image.dc_channels(f)) - 1)),
    ),
    "AutoencoderKLCogVideoX": Decoder(
        network=vae_cogvideox.autoencoder_cogvideox,
        space=_kl_space,
        time=_field("temporal_compression_ratio", 4),
        pieces=vae_cogvideox.cogvideox_pieces,
    ),
    "AutoencoderKLHunyuanVideo": Decoder(
        network=vae_hunyuan.autoencoder_hunyuan_video,
        space=_field("spatial_compression_ratio", 8),
        time=_field("temporal_compression_ratio", 4),
        pieces=vae_hunyuan.hunyuan_pieces,
    ),
    "AutoencoderKLWan": Decoder(
        network=vae_wan.autoencoder_wan,
        space=_field("scale_factor_spatial", 8),
        time=_field("scale_factor_temporal", 4),
        pieces=vae_wan.wan_pieces,
    ),
}
