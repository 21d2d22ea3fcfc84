"""``UNet2DConditionModel``: Stable Diffusion 1.5, 2.1 and XL."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from energymodel.diffusion.calls import (
    Call,
    Calls,
    Sizes,
    convolution,
    linear,
    norm,
    repeated,
    rowwise,
)
from energymodel.diffusion.pieces import (
    PROJECTIONS,
    cross_attention,
    feed_forward,
    residual,
    self_attention,
    two_layers,
)
from energymodel.diffusion.resnets import halved, norm_silu, resnet, upsampled
from energymodel.diffusion.settings import MAX_BLOCKS, choice, refuse, whole_numbers, words
from energymodel.errors import InputError
from energymodel.fields import Fields

CROSS_DOWN, DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, UP = "CrossAttnUpBlock2D", "UpBlock2D"
MIDDLE = "UNetMidBlock2DCrossAttn"

# Variants of the class that no text-to-image pipeline above uses.
PLAIN_ONLY = (
    "class_embed_type", "encoder_hid_dim_type", "only_cross_attention", "dual_cross_attention",
    "num_class_embeds", "time_cond_proj_dim", "reverse_transformer_layers_per_block",
    "time_embedding_dim", "cross_attention_norm", "class_embeddings_concat",
)  # fmt: skip
USUAL = {
    "resnet_time_scale_shift": (None, "default"),
    "time_embedding_type": (None, "positional"),
    "attention_type": (None, "default"),
    "conv_in_kernel": (None, 3),
    "conv_out_kernel": (None, 3),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One resolution on the way down: its channels, blocks and transformers."""

    channels: int
    layers: int
    heads: int
    text_dim: int
    transformer_layers: int


def unet(f: Fields, x: Sizes) -> Calls:
    """Down through the resolutions, a middle, and up again with what was kept on the way."""
    levels, down, up = _levels(f)
    time = 4 * levels[0].channels
    linear_projection = f.flag("use_linear_projection", default=False)
    text = x.text
    calls: list[Call] = [
        *two_layers("time_embedding", x.batch, levels[0].channels, time),
        *_added(f, x, time),
        convolution("conv_in", x.positions, levels[0].channels, f.integer("in_channels", 4)),
    ]

    def block(name: str, at: Sizes, level: Level, entering: int, *, crossed: bool) -> Calls:
        made = resnet(f"{name}.resnet", at, entering, level.channels, time=time)
        if not crossed:
            return made
        return (*made, *_transformer(name, replace(at, text=text), level, linear_projection))

    # What is kept on the way down, channels of each tensor, is joined on the way up.
    kept, at, entering = [levels[0].channels], [x], levels[0].channels
    for i, (level, kind) in enumerate(zip(levels, down, strict=True)):
        for _ in range(level.layers):
            calls += block(f"down.{i}", at[-1], level, entering, crossed=kind == CROSS_DOWN)
            entering = level.channels
            kept.append(entering)
        if i < len(levels) - 1:
            at.append(at[-1].resized(0.5))
            calls.append(halved(f"down.{i}.downsample", at[-1], entering, entering))
            kept.append(entering)
    last = levels[-1]
    if choice(f, "mid_block_type", (MIDDLE,), MIDDLE):
        calls += block("mid", at[-1], last, last.channels, crossed=True)
        calls += block("mid", at[-1], last, last.channels, crossed=False)
    for i, (level, kind) in enumerate(zip(reversed(levels), up, strict=True)):
        here = at[-1 - i]
        for _ in range(level.layers + 1):
            joined = entering + kept.pop()
            calls.append(rowwise(f"up.{i}.cat", "convolution", here.positions, joined, tensors=2))
            calls += block(f"up.{i}", here, level, joined, crossed=kind == CROSS_UP)
            entering = level.channels
        if i < len(levels) - 1:
            calls += upsampled(f"up.{i}.upsample", at[-2 - i], entering, entering)
    return (
        *calls,
        *norm_silu("conv_norm_out", x.positions, entering),
        convolution("conv_out", x.positions, f.integer("out_channels", 4), entering),
    )


def _levels(f: Fields) -> tuple[list[Level], tuple[str, ...], tuple[str, ...]]:
    """(levels from the highest resolution down, kinds of block on the way down, and up)."""
    for key in PLAIN_ONLY:
        refuse(f, key, "a U-Net with it is not read")
    for key, allowed in USUAL.items():
        refuse(f, key, "a U-Net with it is not read", allowed)
    default = (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN)
    down = words(f, "down_block_types", default, (CROSS_DOWN, DOWN))
    up = words(f, "up_block_types", (UP, CROSS_UP, CROSS_UP, CROSS_UP), (CROSS_UP, UP))
    size = len(down)
    if len(up) != size:
        raise InputError(f"{f.where}: field 'up_block_types' must have {size} entries")
    channels = whole_numbers(f, "block_out_channels", (320, 640, 1280, 1280), length=size, low=1)
    layers = _each(f, "layers_per_block", 2, size, high=99)
    heads = _each(f, "attention_head_dim", 8, size)  # the number of heads, whatever its name says
    texts = _each(f, "cross_attention_dim", 1280, size, high=100_000)
    depths = _each(f, "transformer_layers_per_block", 1, size)
    if any(c % max(h, 1) for c, h in zip(channels, heads, strict=True)):
        raise InputError(
            f"{f.where}: field 'attention_head_dim' must hold divisors of 'block_out_channels'"
        )
    levels = [
        Level(channels=c, layers=n, heads=max(h, 1), text_dim=t, transformer_layers=d)
        for c, n, h, t, d in zip(channels, layers, heads, texts, depths, strict=True)
    ]
    return levels, down, up


def _each(f: Fields, key: str, default: int, size: int, *, high: int = MAX_BLOCKS) -> Sequence[int]:
    """One whole number for every level, or one for all of them."""
    if isinstance(f.config.get(key), list | tuple):
        return whole_numbers(f, key, (), length=size, high=high)
    return (f.integer(key, default, high=high),) * size


def _added(f: Fields, x: Sizes, time: int) -> Calls:
    """Stable Diffusion XL: pooled text and image size beside the time step."""
    if choice(f, "addition_embed_type", ("text_time",)) is None:
        return ()
    return two_layers(
        "add_embedding", x.batch, f.integer("projection_class_embeddings_input_dim"), time
    )


def _transformer(name: str, x: Sizes, level: Level, linear_projection: bool) -> Calls:
    """``Transformer2DModel``: self attention, cross attention and a GEGLU on each position."""
    dim, rows = level.channels, x.positions
    tokens, heads = x.height * x.width, level.heads
    head_dim = dim // heads

    def ends(end: str) -> Call:
        name_ = f"{name}.{end}"
        if linear_projection:
            return linear(name_, PROJECTIONS, rows, dim, dim)
        return convolution(name_, rows, dim, dim, kernel=1, component=PROJECTIONS)

    block = (
        norm(f"{name}.norm1", rows, dim, params=2 * dim),
        *self_attention(
            f"{name}.attn1", x.batch, tokens, dim=dim, heads=heads, head_dim=head_dim, bias=False
        ),
        residual(f"{name}.attn1", rows, dim),
        norm(f"{name}.norm2", rows, dim, params=2 * dim),
        *cross_attention(
            f"{name}.attn2",
            x.batch,
            tokens,
            x.text,
            dim=dim,
            text_dim=level.text_dim,
            heads=heads,
            head_dim=head_dim,
            bias=False,
        ),
        residual(f"{name}.attn2", rows, dim),
        norm(f"{name}.norm3", rows, dim, params=2 * dim),
        *feed_forward(f"{name}.ff", rows, dim, 4 * dim, gated=True),
        residual(f"{name}.ff", rows, dim),
    )
    return (
        norm(f"{name}.norm", rows, dim, params=2 * dim),
        ends("proj_in"),
        *repeated(block, level.transformer_layers),
        ends("proj_out"),
        rowwise(f"{name}.add", "norm", rows, dim, tensors=3),
    )
