"""How each pipeline class of diffusers works: its networks, how often it runs them, its defaults.

Facts of diffusers 0.42: defaults are those of ``__call__``; text lengths are the ``max_length`` that
prompts are padded to, so that the length of a prompt changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Guidance = Literal["batched", "sequential", "embedded"]
"""Classifier-free guidance: prompt and empty prompt in one batch of twice the size, one after the
other, or distilled into the network, which takes the scale as an input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One class of pipeline.

    ``texts`` are the padded tokens of each text encoder, ``instruction`` those that the pipeline
    puts before a prompt, ``joint`` the text tokens that the denoiser sees. ``pixels`` is the default
    (height, width) where the denoiser does not say it, ``frames`` the default of a video. ``pack``:
    the pipeline makes one token of so many latents each way, before the denoiser sees them.
    """

    denoiser: Literal["transformer", "unet"] = "transformer"
    steps: int
    guidance_scale: float
    guidance: Guidance = "batched"
    texts: Mapping[str, int]
    joint: int
    instruction: int = 0
    pixels: tuple[int, int] = (1024, 1024)
    frames: int | None = None
    pack: int = 1


CLIP = 77
# SANA shows its text encoder an instruction of 166 words before a prompt, at 4 tokens for 3 words;
# two of them are not repeated (``max_length_all``).
SANA_INSTRUCTION = 221 - 2
# ``crop_start`` of HunyuanVideo's prompt template, whose tokens the encoder reads too.
HUNYUAN_TEMPLATE = 95

PLANS: Mapping[str, Plan] = {
    "StableDiffusionPipeline": Plan(
        denoiser="unet",
        steps=50,
        guidance_scale=7.5,
        texts={"text_encoder": CLIP},
        joint=CLIP,
    ),
    "StableDiffusionXLPipeline": Plan(
        denoiser="unet",
        steps=50,
        guidance_scale=5.0,
        texts={"text_encoder": CLIP, "text_encoder_2": CLIP},
        joint=CLIP,
    ),
    "StableDiffusion3Pipeline": Plan(
        steps=28,
        guidance_scale=7.0,
        texts={"text_encoder": CLIP, "text_encoder_2": CLIP, "text_encoder_3": 256},
        joint=CLIP + 256,
    ),
    "FluxPipeline": Plan(
        steps=28,
        guidance_scale=3.5,
        guidance="embedded",
        texts={"text_encoder": CLIP, "text_encoder_2": 512},
        joint=512,
        pack=2,
    ),
    "PixArtAlphaPipeline": Plan(
        steps=20, guidance_scale=4.5, texts={"text_encoder": 120}, joint=120
    ),
    "PixArtSigmaPipeline": Plan(
        steps=20, guidance_scale=4.5, texts={"text_encoder": 300}, joint=300
    ),
    "SanaPipeline": Plan(
        steps=20,
        guidance_scale=4.5,
        texts={"text_encoder": 300},
        joint=300,
        instruction=SANA_INSTRUCTION,
    ),
    "HunyuanDiTPipeline": Plan(
        steps=50,
        guidance_scale=5.0,
        texts={"text_encoder": CLIP, "text_encoder_2": 256},
        joint=CLIP + 256,
    ),
    "CogVideoXPipeline": Plan(
        steps=50,
        guidance_scale=6.0,
        texts={"text_encoder": 226},
        joint=226,
        pixels=(480, 720),
        frames=49,
    ),
    "HunyuanVideoPipeline": Plan(
        steps=50,
        guidance_scale=6.0,
        guidance="embedded",
        texts={"text_encoder": 256 + HUNYUAN_TEMPLATE, "text_encoder_2": CLIP},
        joint=256,
        pixels=(720, 1280),
        frames=129,
    ),
    "WanPipeline": Plan(
        steps=50,
        guidance_scale=5.0,
        guidance="sequential",
        texts={"text_encoder": 512},
        joint=512,
        pixels=(480, 832),
        frames=81,
    ),
}
