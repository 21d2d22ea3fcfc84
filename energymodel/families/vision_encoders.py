"""Vision encoders that several families share: CLIP, SigLIP, Pixtral, InternViT.

Each reader gives the parts up to the last layer whose result is used. Engines do not load the
layers behind it; checkpoints store them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from energymodel.blocks import Mlp
from energymodel.blocks.ends import EndNorm, Lookup
from energymodel.blocks.tower import Move, Piece
from energymodel.errors import InputError
from energymodel.families.text_sections import with_defaults
from energymodel.families.vision import (
    depth,
    layers,
    patch_embedding,
    sides,
    vision_attention,
)
from energymodel.fields import Fields
from energymodel.model import Norm, Stack
from energymodel.towers import Part
from energymodel.weights import Weight, vector

Used = Callable[[int], tuple[int, int]]
"""From the layers that there are to (the last one whose result is used, how many are used)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A vision encoder: square images of ``side`` pixels in patches of ``patch``, ``width`` wide.

    ``extra`` rows are class tokens. So many ``results`` of layers are features side by side;
    tensors behind the last of them are ``unused``. ``any_shape``: images need not be square.
    """

    side: int
    patch: int
    width: int
    parts: tuple[Part, ...]
    extra: int = 0
    results: int = 1
    any_shape: bool = False
    unused: tuple[Weight, ...] = ()

    @property
    def per_side(self) -> int:
        """Patches along a side."""
        return self.side // self.patch


def used_layers(f: Fields, number: int, default: int) -> tuple[int, int]:
    """(layers up to the last one whose result is used, how many results are used side by side).

    ``vision_feature_layer`` counts from the first layer (1), or backwards from the last one (-1).
    """
    value = f.config.get("vision_feature_layer")
    chosen = value if isinstance(value, list | tuple) else [default if value is None else value]
    known = {*range(1, number + 1), *range(-number, 0)}
    places = [i for i in chosen if isinstance(i, int) and not isinstance(i, bool) and i in known]
    if not 1 <= len(chosen) <= number or len(places) != len(chosen):
        raise InputError(
            f"{f.where}: field 'vision_feature_layer' must name layers, from 1 to {number} "
            f"or from {-number} to -1"
        )
    return max(i if i > 0 else number + 1 + i for i in places), len(places)


def behind(part: Part, number: int) -> tuple[Weight, ...]:
    """Tensors of the ``number`` layers behind the last one of a part."""
    assert isinstance(part.work, Stack)  # noqa: S101 (made by ``layers``)
    each = part.work.layers[0].weights(part.work.hidden_size)
    return tuple(replace(w, params=w.params * number) for w in each) if number else ()


def _clip(v: Fields, used: Used, _pooled: bool) -> Encoder:
    """A class token, and a normalisation before the layers; that behind them is for the class."""
    v = with_defaults(v, {"hidden_size": 768, "intermediate_size": 3072})
    width = v.integer("hidden_size")
    side, patch = sides(v, 224, 32)
    number = depth(v, 12)
    attention = vision_attention(v, width, v.integer("num_attention_heads", 12))
    mlp = Mlp(intermediate_size=v.integer("intermediate_size"), gated=False, bias=True)
    rows = (side // patch) ** 2 + 1
    before: tuple[Piece, ...] = (
        Move(name="class_token", values=2 * width, learnt=width),
        Lookup(name="positions", rows=rows, width=width),
        EndNorm(name="pre_norm", vectors=2, width=width),
    )
    last, results = used(number)
    run = layers(last, attention, mlp)
    return Encoder(
        side=side,
        patch=patch,
        width=width,
        extra=1,
        results=results,
        parts=(
            patch_embedding(v, width, patch, bias=False),
            Part(rows="positions", work=before),
            run,
        ),
        unused=(*behind(run, number - last), vector("post_norm", 2 * width)),
    )


def _siglip(v: Fields, used: Used, final: bool) -> Encoder:
    """Learnt positions; ``final``: the features are normalised. A head for pooling goes unused."""
    v = with_defaults(v, {"hidden_size": 768, "intermediate_size": 3072})
    width = v.integer("hidden_size")
    side, patch = sides(v, 224, 16)
    number = depth(v, 12)
    attention = vision_attention(v, width, v.integer("num_attention_heads", 12))
    mlp = Mlp(intermediate_size=v.integer("intermediate_size"), gated=False, bias=True)
    positions = Lookup(name="positions", rows=(side // patch) ** 2, width=width)
    last, results = used(number)
    run = layers(last, attention, mlp, final_norm="layer" if final else None)
    unused = [*behind(run, number - last)]
    if not final:
        unused.append(vector("post_norm", 2 * width))
    if v.flag("vision_use_head", v.text("model_type") == "siglip_vision_model"):
        pooling = attention.weights(width, 2), mlp.weights(width)
        unused += [w for part in pooling for w in part]
        unused.append(vector("probe_and_norm", 3 * width))
    return Encoder(
        side=side,
        patch=patch,
        width=width,
        results=results,
        parts=(
            patch_embedding(v, width, patch, bias=True),
            Part(rows="positions", work=(positions,)),
            run,
        ),
        unused=tuple(unused),
    )


def _pixtral(v: Fields, used: Used, _final: bool) -> Encoder:
    """Rotated positions, gated blocks and no biases."""
    v = with_defaults(v, {"hidden_size": 1024, "intermediate_size": 4096})
    width = v.integer("hidden_size")
    side, patch = sides(v, 1024, 16)
    number = depth(v, 24)
    attention = vision_attention(
        v, width, v.integer("num_attention_heads", 16), bias=False, rotary=True
    )
    last, results = used(number)
    mlp = Mlp(intermediate_size=v.integer("intermediate_size"))
    run = layers(last, attention, mlp, norm="rms")
    return Encoder(
        side=side,
        patch=patch,
        width=width,
        any_shape=True,
        results=results,
        parts=(
            patch_embedding(v, width, patch, bias=False),
            Part(rows="positions", work=(EndNorm(name="pre_norm", vectors=1, width=width),)),
            run,
        ),
        unused=behind(run, number - last),
    )


def _internvit(v: Fields, used: Used, _final: bool) -> Encoder:
    """A class token, and a learnt scale on the result of each block."""
    v = with_defaults(v, {"hidden_size": 1024, "intermediate_size": 4096})
    width = v.integer("hidden_size")
    side, patch = sides(v, 448, 14)
    number = depth(v, 24)
    attention = vision_attention(
        v,
        width,
        v.integer("num_attention_heads", 16),
        bias=v.flag("attention_bias", default=False),
        o_bias=True,
        qk_norm="hidden" if v.flag("use_qk_norm", default=False) else None,
    )
    mlp = Mlp(intermediate_size=v.integer("intermediate_size"), gated=False, bias=True)
    norm: Norm = "rms" if v.config.get("norm_type") == "rms_norm" else "layer"
    before: list[Piece] = [Move(name="class_token", values=2 * width, learnt=width)]
    if v.flag("use_absolute_position_embeddings", default=True):
        before.append(Lookup(name="positions", rows=(side // patch) ** 2 + 1, width=width))
    pooled = v.flag("use_mean_pooling", default=True)
    masked = v.flag("use_mask_token", default=False)
    # The norms of q and k have a scale only, whatever the layers have.
    shifts = 2 * width if attention.qk_norm and norm == "layer" else 0
    last, results = used(number)
    run = layers(
        last,
        attention,
        mlp,
        norm=norm,
        final_norm=None if pooled else "layer",
        other_params=2 * width - shifts,
    )
    return Encoder(
        side=side,
        patch=patch,
        width=width,
        extra=1,
        results=results,
        parts=(
            patch_embedding(v, width, patch, bias=True),
            Part(rows="positions", work=tuple(before)),
            run,
        ),
        unused=(
            *behind(run, number - last),
            *([vector("mask_token", width)] if masked else []),
        ),
    )


ENCODERS: Mapping[str, Callable[[Fields, Used, bool], Encoder]] = {
    "clip_vision_model": _clip,
    "siglip_vision_model": _siglip,
    "idefics3_vision": _siglip,
    "pixtral": _pixtral,
    "internvl_vision": _internvit,
}


def read_encoder(
    f: Fields, *, default: str, feature_layer: int | None = None, final_norm: bool = False
) -> Encoder:
    """The encoder of ``vision_config``.

    ``default`` is the type of a section that does not name its own, ``feature_layer`` the default
    of ``vision_feature_layer`` (None: the family has no choice). ``final_norm`` says whether the
    normalisation behind the layers is used.
    """
    section = f.section("vision_config") or Fields({}, f.where)
    v = with_defaults(section, {"model_type": default})
    reader = ENCODERS.get(v.text("model_type"))
    if reader is None:
        raise InputError(
            f"{v.where}: field 'model_type' is '{v.text('model_type')[:40]}'; "
            f"it must be one of {', '.join(sorted(ENCODERS))}"
        )

    def used(number: int) -> tuple[int, int]:
        return (number, 1) if feature_layer is None else used_layers(f, number, feature_layer)

    return reader(v, used, final_norm)
