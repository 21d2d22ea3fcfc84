"""Tiny networks of diffusers, odd settings among them, and what each is called with.

A case is built on torch's meta device, where shapes are followed and nothing is computed, so FLOP can
be counted of networks of any size. To check a new network, add a case.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from energymodel.diffusion.calls import Calls, Sizes
from energymodel.diffusion.networks import DECODERS, DENOISERS
from energymodel.fields import Fields

BATCH, CHANNELS, HEIGHT, WIDTH, TEXT, TEXT_WIDTH = 2, 4, 16, 12, 7, 20


def sizes(*, batch: int = BATCH, frames: int = 1, height: int = HEIGHT, width: int = WIDTH,
          text: int = TEXT) -> Sizes:  # fmt: skip
    values = (np.array([float(v)]) for v in (batch, frames, height, width, text))
    return Sizes(**dict(zip(("batch", "frames", "height", "width", "text"), values, strict=True)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """``arguments`` makes the inputs of ``forward``; None decodes latents."""

    class_name: str
    config: Mapping[str, Any]
    label: str = ""
    frames: int = 1
    height: int = HEIGHT
    width: int = WIDTH
    text: int = TEXT
    ours: Mapping[str, Any] = field(default_factory=dict)
    arguments: Callable[..., dict[str, Any]] | None = None

    @property
    def name(self) -> str:
        return f"{self.class_name}-{self.label}" if self.label else self.class_name

    def calls(self) -> Calls:
        network = DENOISERS.get(self.class_name) or DECODERS[self.class_name].network
        fields = Fields({**self.config, **self.ours}, self.name)
        return network(
            fields,
            sizes(frames=self.frames, height=self.height, width=self.width, text=self.text),
        )


def image_latents(zeros: Callable[..., Any], channels: int = CHANNELS) -> Any:
    return zeros(BATCH, channels, HEIGHT, WIDTH)


def _text(zeros: Callable[..., Any]) -> dict[str, Any]:
    return {"encoder_hidden_states": zeros(BATCH, TEXT, TEXT_WIDTH), "timestep": zeros(BATCH)}


def _unet(height: int = HEIGHT, width: int = WIDTH) -> Callable[..., dict[str, Any]]:
    return lambda zeros: {
        **_text(zeros),
        "sample": zeros(BATCH, CHANNELS, height, width),
        "added_cond_kwargs": {"text_embeds": zeros(BATCH, 6), "time_ids": zeros(BATCH, 6)},
    }


def _sd3(zeros: Callable[..., Any]) -> dict[str, Any]:
    pooled = zeros(BATCH, 24)
    return {**_text(zeros), "hidden_states": image_latents(zeros), "pooled_projections": pooled}


def _flux(zeros: Callable[..., Any]) -> dict[str, Any]:
    tokens = HEIGHT * WIDTH // 4
    return {
        **_text(zeros),
        "hidden_states": zeros(BATCH, tokens, 16),
        "pooled_projections": zeros(BATCH, 24),
        "guidance": zeros(BATCH),
        "img_ids": zeros(tokens, 3),
        "txt_ids": zeros(TEXT, 3),
    }


def _pixart(zeros: Callable[..., Any]) -> dict[str, Any]:
    size = {"resolution": zeros(BATCH, 2), "aspect_ratio": zeros(BATCH, 1)}
    return {**_text(zeros), "hidden_states": image_latents(zeros), "added_cond_kwargs": size}


def _sana(guided: bool) -> Callable[..., dict[str, Any]]:
    return lambda zeros: {
        **_text(zeros),
        "hidden_states": image_latents(zeros, 6),
        "guidance": zeros(BATCH) if guided else None,
    }


def _hunyuan_dit(zeros: Callable[..., Any]) -> dict[str, Any]:
    tokens = HEIGHT * WIDTH // 4
    return {
        **_text(zeros),
        "hidden_states": image_latents(zeros),
        "text_embedding_mask": zeros(BATCH, TEXT),
        "encoder_hidden_states_t5": zeros(BATCH, 5, 16),
        "text_embedding_mask_t5": zeros(BATCH, 5),
        "image_meta_size": zeros(BATCH, 6),
        "style": zeros(BATCH).long(),
        "image_rotary_emb": (zeros(tokens, 8), zeros(tokens, 8)),
    }


def _cogvideox(tokens: int | None) -> Callable[..., dict[str, Any]]:
    return lambda zeros: {
        **_text(zeros),
        "hidden_states": zeros(BATCH, 4, CHANNELS, HEIGHT, WIDTH),
        "ofs": zeros(BATCH),
        "image_rotary_emb": None if tokens is None else (zeros(tokens, 8), zeros(tokens, 8)),
    }


def _hunyuan_video(zeros: Callable[..., Any]) -> dict[str, Any]:
    return {
        **_text(zeros),
        "hidden_states": zeros(BATCH, CHANNELS, 3, HEIGHT, WIDTH),
        "encoder_attention_mask": zeros(BATCH, TEXT),
        "pooled_projections": zeros(BATCH, 24),
        "guidance": zeros(BATCH),
    }


def _wan(timesteps: tuple[int, ...] = (BATCH,)) -> Callable[..., dict[str, Any]]:
    return lambda zeros: {
        **_text(zeros),
        "hidden_states": zeros(BATCH, CHANNELS, 3, HEIGHT, WIDTH),
        "timestep": zeros(*timesteps),
    }


HEADS = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 3}
LATENTS = {"in_channels": CHANNELS, "out_channels": CHANNELS}
DOWN, CROSS_DOWN, UP, CROSS_UP = (
    "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
)  # fmt: skip
UNET = {
    "block_out_channels": (32, 64, 64),
    "cross_attention_dim": TEXT_WIDTH,
    "norm_num_groups": 16,
    "attention_head_dim": 4,
    "down_block_types": (CROSS_DOWN, CROSS_DOWN, DOWN),
    "up_block_types": (UP, CROSS_UP, CROSS_UP),
}
XL = {
    **UNET,
    "attention_head_dim": (2, 4, 8),
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2, 3),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 30,
    "down_block_types": (DOWN, CROSS_DOWN, CROSS_DOWN),
    "up_block_types": (CROSS_UP, CROSS_UP, UP),
    "layers_per_block": 1,
}
SD3 = {
    **HEADS, **LATENTS, "joint_attention_dim": TEXT_WIDTH, "caption_projection_dim": 32,
    "pooled_projection_dim": 24, "sample_size": 16, "pos_embed_max_size": 16,
}  # fmt: skip
FLUX = {
    **HEADS, "num_single_layers": 2, "joint_attention_dim": TEXT_WIDTH, "in_channels": 16,
    "pooled_projection_dim": 24, "axes_dims_rope": (2, 4, 2),
}  # fmt: skip
PIXART = {
    "num_layers": 3, "num_attention_heads": 3, "attention_head_dim": 8, "cross_attention_dim": 24,
    "caption_channels": TEXT_WIDTH, "in_channels": CHANNELS, "sample_size": 16,
}  # fmt: skip
SANA = {
    **HEADS, "num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "sample_size": 16,
    "cross_attention_dim": 32, "caption_channels": TEXT_WIDTH, "in_channels": 6, "out_channels": 6,
}  # fmt: skip
HUNYUAN_DIT = {
    **HEADS, "num_layers": 6, "hidden_size": 32, "in_channels": CHANNELS, "patch_size": 2,
    "cross_attention_dim": TEXT_WIDTH, "cross_attention_dim_t5": 16, "pooled_projection_dim": 10,
    "text_len": TEXT, "text_len_t5": 5, "mlp_ratio": 4.3637, "sample_size": 16,
}  # fmt: skip
COGVIDEOX = {
    **HEADS, **LATENTS, "time_embed_dim": 10, "text_embed_dim": TEXT_WIDTH, "sample_width": WIDTH,
    "sample_height": HEIGHT, "sample_frames": 9, "max_text_seq_length": TEXT,
}  # fmt: skip
HUNYUAN_VIDEO = {
    **HEADS, **LATENTS, "num_single_layers": 2, "num_refiner_layers": 1, "mlp_ratio": 3.0,
    "text_embed_dim": TEXT_WIDTH, "pooled_projection_dim": 24, "rope_axes_dim": (2, 4, 2),
}  # fmt: skip
WAN = {**HEADS, **LATENTS, "text_dim": TEXT_WIDTH, "freq_dim": 16, "ffn_dim": 50}


def _denoiser(class_name: str, config: Mapping[str, Any], label: str = "", **more: Any) -> Case:
    return Case(class_name=class_name, config=config, label=label, **more)


DENOISER_CASES = (
    _denoiser("UNet2DConditionModel", UNET, arguments=_unet()),
    _denoiser("UNet2DConditionModel", XL, "xl", arguments=_unet()),
    _denoiser(
        "UNet2DConditionModel", UNET, "odd-sizes", height=18, width=14, arguments=_unet(18, 14)
    ),
    _denoiser("SD3Transformer2DModel", SD3, arguments=_sd3),
    _denoiser(
        "SD3Transformer2DModel",
        {**SD3, "dual_attention_layers": (0, 2), "qk_norm": "rms_norm"},
        "3.5",
        arguments=_sd3,
    ),
    _denoiser("FluxTransformer2DModel", {**FLUX, "guidance_embeds": True}, arguments=_flux),
    _denoiser("PixArtTransformer2DModel", PIXART, arguments=_pixart),
    _denoiser(
        "PixArtTransformer2DModel",
        {
            **PIXART,
            "sample_size": 128,
            "norm_elementwise_affine": True,
            "out_channels": None,
            "attention_bias": False,
        },
        "image-size",
        arguments=_pixart,
    ),
    _denoiser("SanaTransformer2DModel", SANA, arguments=_sana(guided=False)),
    _denoiser(
        "SanaTransformer2DModel",
        {
            **SANA,
            "qk_norm": "rms_norm_across_heads",
            "guidance_embeds": True,
            "attention_bias": True,
            "norm_elementwise_affine": True,
            "interpolation_scale": 1.0,
        },
        "1.5",
        arguments=_sana(guided=True),
    ),
    _denoiser("HunyuanDiT2DModel", HUNYUAN_DIT, text=TEXT + 5, arguments=_hunyuan_dit),
    _denoiser(
        "HunyuanDiT2DModel",
        {
            **HUNYUAN_DIT,
            "num_layers": 8,
            "learn_sigma": False,
            "use_style_cond_and_image_meta_size": False,
        },
        "1.2",
        text=TEXT + 5,
        arguments=_hunyuan_dit,
    ),
    _denoiser("CogVideoXTransformer3DModel", COGVIDEOX, frames=4, arguments=_cogvideox(None)),
    _denoiser(
        "CogVideoXTransformer3DModel",
        {
            **COGVIDEOX,
            "patch_size_t": 2,
            "use_rotary_positional_embeddings": True,
            "ofs_embed_dim": 10,
            "patch_bias": False,
            "attention_bias": False,
        },
        "1.5",
        frames=4,
        arguments=_cogvideox(2 * HEIGHT * WIDTH // 4),
    ),
    _denoiser("HunyuanVideoTransformer3DModel", HUNYUAN_VIDEO, frames=3, arguments=_hunyuan_video),
    _denoiser("WanTransformer3DModel", WAN, frames=3, arguments=_wan()),
    _denoiser(
        "WanTransformer3DModel",
        {**WAN, "cross_attn_norm": False},
        "time-of-each-token",
        frames=3,
        ours={"expand_timesteps": True},
        arguments=_wan((BATCH, 3 * HEIGHT * WIDTH // 4)),
    ),
)

LEVELS = {"block_out_channels": (32, 64, 64), "latent_channels": CHANNELS, "norm_num_groups": 16}
KL = {
    **LEVELS,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
}
DC = {
    "latent_channels": CHANNELS,
    "attention_head_dim": 8,
    "encoder_block_out_channels": (16, 32, 32),
    "decoder_block_out_channels": (16, 32, 32),
    "encoder_layers_per_block": (1, 2, 1),
    "decoder_layers_per_block": (2, 1, 2),
    "encoder_qkv_multiscales": ((), (), (5,)),
    "decoder_qkv_multiscales": ((), (5,), (3, 5)),
    "encoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
    "decoder_block_types": ("ResBlock", "EfficientViTBlock", "EfficientViTBlock"),
}
VIDEO = {**LEVELS, "block_out_channels": (32, 64, 64, 64), "layers_per_block": 1}
WAN_VAE = {"base_dim": 16, "z_dim": CHANNELS, "num_res_blocks": 1}

DECODER_CASES = (
    Case(class_name="AutoencoderKL", config=KL),
    Case(
        class_name="AutoencoderKL",
        config={
            **KL, "layers_per_block": 2, "use_quant_conv": False, "use_post_quant_conv": False,
            "mid_block_add_attention": False,
        },
        label="bare",
    ),
    Case(class_name="AutoencoderDC", config=DC),
    Case(class_name="AutoencoderDC", config=DC, label="few-positions", height=2, width=3),
    Case(
        class_name="AutoencoderDC",
        config={**DC, "upsample_block_type": "interpolate", "downsample_block_type": "conv"},
        label="interpolated",
    ),
    Case(
        class_name="AutoencoderDC",
        config={
            **DC, "encoder_layers_per_block": (0, 2, 1), "decoder_layers_per_block": (0, 1, 2)
        },
        label="no-top",
    ),
    *(
        Case(class_name="AutoencoderKLCogVideoX", config=VIDEO, label=f"{n}-frames", frames=n)
        for n in (1, 2, 4, 5, 13)
    ),
    *(
        Case(
            class_name="AutoencoderKLHunyuanVideo",
            config=VIDEO,
            label=f"{n}-frames",
            frames=n,
            height=4,
            width=6,
        )
        for n in (1, 4, 5, 6, 7, 8, 9, 33)
    ),
    Case(class_name="AutoencoderKLWan", config=WAN_VAE, label="1-frame"),
    Case(class_name="AutoencoderKLWan", config=WAN_VAE, label="4-frames", frames=4),
    Case(
        class_name="AutoencoderKLWan",
        config={
            **WAN_VAE, "is_residual": True, "decoder_base_dim": 32, "in_channels": 12,
            "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16,
        },
        label="residual",
        frames=4,
    ),
)  # fmt: skip

CASES = (*DENOISER_CASES, *DECODER_CASES)
