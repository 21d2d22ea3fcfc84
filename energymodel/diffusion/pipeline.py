"""A pipeline as its files describe it: text encoders, denoiser, autoencoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np

from energymodel.diffusion.calls import Calls, Sizes, param_count
from energymodel.diffusion.networks import DECODERS, DENOISERS, Decoder, Network
from energymodel.diffusion.plans import PLANS, Plan
from energymodel.diffusion.settings import whole_numbers
from energymodel.diffusion.text import read_text_encoder
from energymodel.dtypes import DTYPE_BYTES
from energymodel.errors import InputError
from energymodel.fields import Fields
from energymodel.model import ModelSpec

T = TypeVar("T")

MAX_PATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A network and its configuration; ``copies`` are stored, of which one runs in any step."""

    fields: Fields
    network: Network
    copies: int = 1

    def calls(self, x: Sizes) -> Calls:
        """One pass."""
        return self.network(self.fields, x)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A text-to-image or text-to-video pipeline of diffusers.

    ``texts`` are its text encoders with their padded tokens. ``patch`` latents each way become one
    token, so height and width must be multiples of it.
    """

    name: str
    class_name: str
    plan: Plan
    texts: tuple[tuple[ModelSpec, int], ...]
    denoiser: Part
    autoencoder: Part
    decoder: Decoder
    patch: int

    @property
    def kind(self) -> Literal["image", "video"]:
        """What it makes."""
        return "image" if self.plan.frames is None else "video"

    @cached_property
    def space(self) -> int:
        """Pixels along an edge that one latent stands for."""
        return self.decoder.space(self.autoencoder.fields)

    @cached_property
    def time(self) -> int:
        """Frames that one latent stands for; the first frame has one of its own."""
        return self.decoder.time(self.autoencoder.fields)

    @cached_property
    def pixels(self) -> tuple[int, int]:
        """(height, width) where nothing else is asked for."""
        f, one = self.denoiser.fields, "sample_size"
        if f.has("sample_height") and f.has("sample_width"):
            height, width = f.integer("sample_height"), f.integer("sample_width")
        elif f.has(one) and not isinstance(f.config[one], list | tuple):
            height = width = f.integer(one)
        else:
            return self.plan.pixels
        return height * self.space, width * self.space

    @cached_property
    def frames(self) -> int | None:
        """Frames where nothing else is asked for; None for images."""
        if self.plan.frames is None:
            return None
        return self.denoiser.fields.integer("sample_frames", self.plan.frames)

    @cached_property
    def active_param_count(self) -> int:
        """Parameters of the denoiser that runs in a step."""
        return param_count(self.denoiser.calls(_nominal()))

    @cached_property
    def param_count(self) -> int:
        """All parameters that are loaded."""
        texts = sum(spec.param_count for spec, _ in self.texts)
        autoencoder = param_count(self.autoencoder.calls(_nominal()))
        return texts + self.denoiser.copies * self.active_param_count + autoencoder

    def weight_bytes(self, *, dtype: str = "bfloat16") -> float:
        """Bytes of all of them in GPU memory."""
        return self.param_count * DTYPE_BYTES[dtype]


def _nominal() -> Sizes:
    """One small sample: enough to count what does not depend on sizes."""
    one = np.ones(1)
    return Sizes(batch=one, frames=one, height=64 * one, width=64 * one, text=one)


def read_pipeline(config: Mapping[str, object], name: str) -> tuple[Pipeline, list[str]]:
    """Read ``model_index.json`` with the configuration of each part in the place of its class.

    Returns the pipeline and warnings, one sentence each.

    Raises:
        InputError: the pipeline or a part of it is of a class that is not known, or a field of one
            is missing or out of bounds.
    """
    f = Fields(config, name)
    plan = _known(f, PLANS)
    denoiser = _part(f, plan.denoiser)
    network = _known(denoiser, DENOISERS)
    if f.flag("expand_timesteps", default=False):
        denoiser = Fields({**denoiser.config, "expand_timesteps": True}, denoiser.where)
    vae = _part(f, "vae")
    decoder = _known(vae, DECODERS)
    texts, warnings = _texts(f, plan)
    pipeline = Pipeline(
        name=name,
        class_name=f.text("_class_name"),
        plan=plan,
        texts=texts,
        denoiser=Part(
            fields=denoiser,
            network=network,
            copies=1 if f.section(f"{plan.denoiser}_2") is None else 2,
        ),
        autoencoder=Part(fields=vae, network=decoder.network),
        decoder=decoder,
        patch=plan.pack if plan.pack > 1 else _patch(denoiser),
    )
    # Whatever is wrong in a part shows as soon as its calls are listed.
    if pipeline.space * pipeline.time * pipeline.param_count * pipeline.pixels[0] <= 0:
        raise InputError(f"{name}: a network without size cannot be predicted")
    if f.section("safety_checker") is not None:
        warnings.append(f"{name}: the safety checker is not counted.")
    return pipeline, warnings


def _known(f: Fields, known: Mapping[str, T]) -> T:
    """What stands under the class that the configuration names."""
    class_name = f.text("_class_name")
    found = known.get(class_name)
    if found is None:
        raise InputError(
            f"{f.where}: field '_class_name' is '{class_name:.60}', which is not supported; "
            f"supported are {', '.join(sorted(known))}"
        )
    return found


def _part(f: Fields, key: str) -> Fields:
    part = _wide(f.section(key))
    if part is None:
        raise InputError(
            f"{f.where}: field '{key}' is missing; it must hold that part's config.json"
        )
    return part


def _wide(part: Fields | None) -> Fields | None:
    """The same part, unless it is stored narrow."""
    if part is not None and part.has("quantization_config"):
        raise InputError(
            f"{part.where}: field 'quantization_config' is there, and a part of a pipeline that is "
            "quantised is not supported"
        )
    return part


def _texts(f: Fields, plan: Plan) -> tuple[tuple[tuple[ModelSpec, int], ...], list[str]]:
    texts, warnings = [], []
    for key, tokens in plan.texts.items():
        part = _wide(f.section(key))
        if part is None:
            warnings.append(f"{f.where}: the pipeline has no {key} and runs without it.")
        else:
            texts.append((read_text_encoder(part, f"{f.where}: in '{key}'"), tokens))
    return tuple(texts), warnings


def _patch(f: Fields) -> int:
    """Latents each way that become one token: the last entries of ``patch_size``, 1 without it."""
    if isinstance(f.config.get("patch_size"), list | tuple):
        sizes = whole_numbers(f, "patch_size", (), length=3, low=1, high=MAX_PATCH)
        return max(sizes[1:])
    return f.integer("patch_size", 1, high=MAX_PATCH)
