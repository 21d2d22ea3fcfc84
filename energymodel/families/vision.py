"""What readers of towers share: patches, layers, sizes.

A tower is made of ``towers.Part``s; see there.
"""

from collections.abc import Sequence
from dataclasses import replace

from energymodel.audio import AudioSizing
from energymodel.blocks import Mlp, SoftmaxAttention
from energymodel.blocks.ends import Projection
from energymodel.blocks.softmax import QkNorm
from energymodel.blocks.tower import Move
from energymodel.errors import InputError
from energymodel.fields import MAX_LAYERS, Fields
from energymodel.images import ImageSizing
from energymodel.model import LayerSpec, ModelSpec, Norm, Stack
from energymodel.towers import Part, Tower
from energymodel.weights import Weight


def with_tower(
    spec: ModelSpec,
    parts: Sequence[Part],
    *,
    images: ImageSizing | None = None,
    audio: AudioSizing | None = None,
    unused: tuple[Weight, ...] = (),
) -> ModelSpec:
    """The language model with a tower in front, whose features take their places in the prompt."""
    merge = Move(name="merge", values=2 * spec.hidden_size)
    tower = Tower(
        component="audio" if images is None else "vision",
        images=images,
        audio=audio,
        parts=(*parts, Part(rows="features", work=(merge,))),
        unused=unused,
    )
    return replace(spec, towers=(*spec.towers, tower))


def patch_embedding(v: Fields, width: int, patch: int, *, bias: bool, frames: int = 1) -> Part:
    """Pixels of a patch to one row: a convolution whose stride is its size, so a product."""
    channels = v.integer("num_channels" if v.has("num_channels") else "in_channels", 3, high=64)
    k = channels * frames * patch**2
    return Part(
        rows="patches",
        work=(Projection(name="patch_embedding", component="vision", n=width, k=k, bias=bias),),
    )


def square(v: Fields, key: str, default: int, high: int = 100_000) -> int:
    """The side of a square, given as a number or as two equal ones."""
    value = v.config.get(key)
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        return Fields({key: value[0]}, v.where).integer(key, high=high)
    return v.integer(key, default, high=high)


def sides(v: Fields, image: int, patch: int) -> tuple[int, int]:
    """Sides of an image and of a patch, which are ``image`` and ``patch`` unless given."""
    found = square(v, "image_size", image), square(v, "patch_size", patch)
    if found[1] > found[0]:
        raise InputError(
            f"{v.where}: field 'patch_size' is {found[1]}; it must not exceed "
            f"'image_size' ({found[0]})"
        )
    return found


def vision_attention(
    v: Fields,
    width: int,
    heads: int,
    *,
    bias: bool = True,
    o_bias: bool | None = None,
    rotary: bool = False,
    qk_norm: QkNorm | None = None,
) -> SoftmaxAttention:
    """Attention of every row to every other, with as many KV heads as heads."""
    if width % heads:
        raise InputError(
            f"{v.where}: the number of heads is {heads}; it must divide the width of {width}"
        )
    return SoftmaxAttention(
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        rotary_dim=width // heads if rotary else 0,
        causal=False,
        qkv_bias=bias,
        o_bias=bias if o_bias is None else o_bias,
        qk_norm=qk_norm,
    )


def layers(
    number: int,
    attention: SoftmaxAttention,
    mlp: Mlp,
    *,
    norm: Norm = "layer",
    final_norm: Norm | None = None,
    other_params: int = 0,
    rows: str = "positions",
) -> Part:
    """Layers that normalise before each block."""
    layer = LayerSpec(blocks=(attention, mlp), norm=norm, other_params=other_params)
    width = attention.q_size
    stack = Stack(hidden_size=width, layers=(layer,) * number, final_norm=final_norm, embeds=False)
    return Part(rows=rows, work=stack)


def depth(v: Fields, default: int, key: str = "num_hidden_layers") -> int:
    """Number of layers."""
    return v.integer(key, default, high=MAX_LAYERS)


def layer_numbers(f: Fields, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """A list of numbers of layers."""
    listed = f.sequence(key)
    if listed is None:
        return default
    numbers = [i for i in listed if isinstance(i, int) and not isinstance(i, bool)]
    if len(numbers) != len(listed):
        raise InputError(f"{f.where}: field '{key}' must be a list of layer numbers")
    return tuple(numbers)
