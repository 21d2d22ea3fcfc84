"""What a workload asks of a pipeline: sizes, steps and guidance of every bin, defaults filled in."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from energymodel.diffusion.calls import Sizes
from energymodel.diffusion.pipeline import Pipeline
from energymodel.errors import InputError
from energymodel.steps import Floats, Ints
from energymodel.workload import Bin, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """One entry for each bin; shape [n_bins].

    ``latents`` is one sample as denoiser and autoencoder see it. ``guided``: classifier-free
    guidance is on, so that the empty prompt is encoded and denoised, too.
    """

    count: Ints
    latents: Sizes
    steps: Floats
    guided: Ints


def read_requests(pipeline: Pipeline, workload: Workload) -> Requests:
    """Fill in what the bins leave open.

    Raises:
        InputError: a bin asks for what a pipeline does not do, or for a size that it cannot make.
    """
    rows = [_row(pipeline, i, b) for i, b in enumerate(workload.bins)]
    count, frames, height, width, steps, guided = (
        np.array(column, dtype=np.int64) for column in zip(*rows, strict=True)
    )
    one = np.ones(len(rows))
    latents = Sizes(
        batch=one,
        frames=(frames - 1) // pipeline.time + one,
        height=height / pipeline.space,
        width=width / pipeline.space,
        text=pipeline.plan.joint * one,
    )
    return Requests(count=count, latents=latents, steps=steps.astype(float), guided=guided)


def _row(pipeline: Pipeline, i: int, b: Bin) -> tuple[int, int, int, int, int, bool]:
    what = f"'{pipeline.name}' makes {pipeline.kind}s"
    if b.count is None:
        raise InputError(f"bins[{i}]: count is missing; images and videos are predicted offline.")
    for key, value in (
        ("output_tokens", b.output_tokens), ("images", b.images), ("audio_s", b.audio_s)
    ):  # fmt: skip
        if value:
            raise InputError(f"bins[{i}]: {key} is {value:g}, but {what}; it must be 0.")
    multiple = pipeline.space * pipeline.patch
    height = _multiple(i, "image_height", b.image_height or pipeline.pixels[0], multiple)
    width = _multiple(i, "image_width", b.image_width or pipeline.pixels[1], multiple)
    frames = b.num_frames or pipeline.frames or 1
    if pipeline.frames is None and frames > 1:
        raise InputError(f"bins[{i}]: num_frames is {frames:,}, but {what}; it must be 1.")
    if (frames - 1) % pipeline.time:
        raise InputError(
            f"bins[{i}]: num_frames is {frames:,}; it must be 1 more than a multiple of "
            f"{pipeline.time}."
        )
    plan = pipeline.plan
    scale = plan.guidance_scale if b.guidance_scale is None else b.guidance_scale
    guided = plan.guidance != "embedded" and scale > 1
    return b.count, frames, height, width, b.num_inference_steps or plan.steps, guided


def _multiple(i: int, key: str, value: int, multiple: int) -> int:
    if value % multiple:
        raise InputError(f"bins[{i}]: {key} is {value:,}; it must be a multiple of {multiple}.")
    return value


def prompt_warnings(pipeline: Pipeline, bins: Sequence[Bin]) -> list[str]:
    """Prompts are padded or cut to a fixed length."""
    longest = max(b.input_tokens for b in bins)
    room = max((tokens for _, tokens in pipeline.texts), default=0)
    if longest <= room or not room:
        return []
    return [f"prompts of {longest:,} tokens are cut to the {room:,} that the pipeline reads."]
