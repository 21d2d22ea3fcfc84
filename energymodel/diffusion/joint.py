"""Transformers in which text and image attend to each other jointly: SD 3, FLUX, HunyuanVideo.

A *double* block keeps weights of its own for either stream and joins them in the attention; a
*single* block runs attention and feed-forward side by side over both.
"""

from dataclasses import dataclass

import numpy as np

from energymodel.diffusion.calls import (
    OWN_NORM,
    PLAIN_NORM,
    Call,
    Calls,
    Sizes,
    attention,
    convolution,
    linear,
    norm,
    repeated,
    rowwise,
)
from energymodel.diffusion.pieces import (
    EMBEDDING,
    PROJECTIONS,
    TIME_CHANNELS,
    feed_forward,
    gated_sum,
    modulated_norm,
    modulation,
    queries_keys_values,
    query_key_norms,
    residual,
    rotary,
    self_attention,
    two_layers,
)
from energymodel.diffusion.settings import (
    choice,
    depth,
    heads_and_width,
    out_channels,
    refuse,
    whole_numbers,
)
from energymodel.fields import Fields
from energymodel.steps import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """Two token streams of ``batch`` samples and the attention that joins them."""

    batch: Floats
    image: Floats
    text: Floats
    dim: int
    heads: int
    head_dim: int
    inner: int
    qk_norm: float | None
    """Values moved for each value by a norm of queries and keys; None without one."""
    rotated: str = ""
    """Which queries and keys are rotated: "image", "both" or none."""

    @property
    def tokens(self) -> Floats:
        """Tokens of a sample."""
        return self.image + self.text


def double_block(s: Streams, *, last: bool = False, dual: bool = False) -> Calls:
    """SD 3's ``JointTransformerBlock`` and its like.

    ``last``: the text stream is not needed any more. ``dual``: a second attention of the image
    alone (SD 3.5 medium).
    """
    image, text = s.batch * s.image, s.batch * s.text
    width = s.heads * s.head_dim
    text_parts = 2 if last else 6
    calls = [
        *modulation("norm1", s.batch, (9 if dual else 6) * s.dim, s.dim),
        *modulated_norm("norm1", image, s.dim),
        *modulation("norm1_context", s.batch, text_parts * s.dim, s.dim),
        *modulated_norm("norm1_context", text, s.dim),
        *queries_keys_values("attn", image, s.dim, width),
        *_norms("attn", s, image),
        *queries_keys_values("attn.add", text, s.dim, width),
        *_norms("attn.added", s, text),
        rowwise("attn.cat", "attention", s.batch * s.tokens, width, tensors=2, count=3),
        *_rotation(s),
        attention("attn", s.batch, s.tokens, s.tokens, heads=s.heads, head_dim=s.head_dim),
        linear("attn.to_out", PROJECTIONS, image, s.dim, width),
        *gated_sum("attn", image, s.dim),
    ]
    if dual:
        calls.append(rowwise("norm1.modulate", "norm", image, s.dim, tensors=2, count=2))
        calls += self_attention(
            "attn2",
            s.batch,
            s.image,
            dim=s.dim,
            heads=s.heads,
            head_dim=s.head_dim,
            norms=_norms("attn2", s, image),
        )
        calls += gated_sum("attn2", image, s.dim)
    calls += _feed_forward("ff", image, s)
    if not last:
        calls.append(linear("attn.to_add_out", PROJECTIONS, text, s.dim, width))
        calls += gated_sum("attn.context", text, s.dim)
        calls += _feed_forward("ff_context", text, s)
    return tuple(calls)


def single_block(s: Streams) -> Calls:
    """FLUX's ``FluxSingleTransformerBlock``: one output product for attention and feed-forward."""
    rows, width = s.batch * s.tokens, s.heads * s.head_dim
    return (
        rowwise("single.cat", "norm", rows, s.dim, tensors=2),
        *modulation("single.norm", s.batch, 3 * s.dim, s.dim),
        *modulated_norm("single.norm", rows, s.dim),
        linear("single.proj_mlp", "mlp", rows, s.inner, s.dim),
        rowwise("single.act", "mlp", rows, s.inner, tensors=2),
        *queries_keys_values("single.attn", rows, s.dim, width),
        *_norms("single.attn", s, rows),
        *_rotation(s),
        attention("single.attn", s.batch, s.tokens, s.tokens, heads=s.heads, head_dim=s.head_dim),
        rowwise("single.cat_mlp", "mlp", rows, width + s.inner, tensors=2),
        linear("single.proj_out", "mlp", rows, s.dim, width + s.inner),
        *gated_sum("single", rows, s.dim),
    )


def _norms(name: str, s: Streams, rows: Floats) -> Calls:
    if s.qk_norm is None:
        return ()
    width = s.heads * s.head_dim
    return query_key_norms(name, rows, width, learnt=s.head_dim, tensors=s.qk_norm)


def _rotation(s: Streams) -> Calls:
    rows = {"": None, "image": s.batch * s.image, "both": s.batch * s.tokens}[s.rotated]
    return () if rows is None else (rotary("attn", rows, s.heads * s.head_dim),)


def _feed_forward(name: str, rows: Floats, s: Streams) -> Calls:
    return (
        *modulated_norm(f"{name}.norm", rows, s.dim),
        *feed_forward(name, rows, s.dim, s.inner),
        *gated_sum(name, rows, s.dim),
    )


def _ends(x: Sizes, tokens: Floats, dim: int, out: int) -> Calls:
    """``AdaLayerNormContinuous`` and the product back to latents."""
    return (
        *modulation("norm_out", x.batch, 2 * dim, dim),
        *modulated_norm("norm_out", x.batch * tokens, dim),
        linear("proj_out", EMBEDDING, x.batch * tokens, out, dim),
    )


def _conditions(x: Sizes, f: Fields, dim: int, pooled: int, guidance: bool) -> Calls:
    """Time step, guidance where it is distilled, and the pooled text."""
    return (
        *two_layers("time_embedder", x.batch, TIME_CHANNELS, dim),
        *(two_layers("guidance_embedder", x.batch, TIME_CHANNELS, dim) if guidance else ()),
        *two_layers("text_embedder", x.batch, f.integer("pooled_projection_dim", pooled), dim),
    )


def sd3(f: Fields, x: Sizes) -> Calls:
    """``SD3Transformer2DModel``: Stable Diffusion 3 and 3.5."""
    heads, head_dim, dim = heads_and_width(f, heads=18, head_dim=64)
    patch, channels = f.integer("patch_size", 2, high=64), f.integer("in_channels", 16)
    layers, dual = depth(f, "num_layers", 18), whole_numbers(f, "dual_attention_layers", ())
    norm_name = choice(f, "qk_norm", ("rms_norm",))
    grid = np.floor(x.height / patch) * np.floor(x.width / patch)
    s = Streams(
        batch=x.batch,
        image=grid,
        text=x.text,
        dim=dim,
        heads=heads,
        head_dim=head_dim,
        inner=4 * dim,
        qk_norm=OWN_NORM if norm_name else None,
    )
    dual_layers = sum(0 <= i < layers - 1 for i in set(dual))
    return (
        convolution("pos_embed", x.batch * grid, dim, channels, kernel=patch**2, inputs=patch**2),
        rowwise("pos_embed.add", EMBEDDING, x.batch * grid, dim, tensors=3),
        *_conditions(x, f, dim, 2048, guidance=False),
        linear(
            "context_embedder",
            EMBEDDING,
            x.text_rows,
            f.integer("caption_projection_dim", 1152),
            f.integer("joint_attention_dim", 4096),
        ),
        *repeated(double_block(s), layers - 1 - dual_layers),
        *repeated(double_block(s, dual=True), dual_layers),
        *double_block(s, last=True, dual=layers - 1 in dual),
        *_ends(x, grid, dim, patch**2 * out_channels(f, 16, channels)),
    )


def flux(f: Fields, x: Sizes) -> Calls:
    """``FluxTransformer2DModel``: FLUX.1; the pipeline packs 2 x 2 latents into one token."""
    heads, head_dim, dim = heads_and_width(f, heads=24, head_dim=128)
    channels, patch = f.integer("in_channels", 64), f.integer("patch_size", 1, high=64)
    tokens = np.floor(x.height / 2) * np.floor(x.width / 2)
    s = Streams(
        batch=x.batch,
        image=tokens,
        text=x.text,
        dim=dim,
        heads=heads,
        head_dim=head_dim,
        inner=4 * dim,
        qk_norm=PLAIN_NORM,
        rotated="both",
    )
    out = patch**2 * f.integer("out_channels", channels)
    return (
        linear("x_embedder", EMBEDDING, x.batch * tokens, dim, channels),
        *_conditions(x, f, dim, 768, guidance=f.flag("guidance_embeds", default=False)),
        linear(
            "context_embedder", EMBEDDING, x.text_rows, dim, f.integer("joint_attention_dim", 4096)
        ),
        *repeated(double_block(s), depth(f, "num_layers", 19)),
        *repeated(single_block(s), depth(f, "num_single_layers", 38)),
        *_ends(x, tokens, dim, out),
    )


def hunyuan_video(f: Fields, x: Sizes) -> Calls:
    """``HunyuanVideoTransformer3DModel`` for text to video."""
    refuse(f, "image_condition_type", "only text to video is read")
    heads, head_dim, dim = heads_and_width(f, heads=24, head_dim=128)
    patch, patch_t = f.integer("patch_size", 2, high=64), f.integer("patch_size_t", 1, high=64)
    channels = f.integer("in_channels", 16)
    tokens = np.floor(x.frames / patch_t) * np.floor(x.height / patch) * np.floor(x.width / patch)
    ratio = f.optional_number("mlp_ratio", high=64) or 4.0
    s = Streams(
        batch=x.batch,
        image=tokens,
        text=x.text,
        dim=dim,
        heads=heads,
        head_dim=head_dim,
        inner=int(dim * ratio),
        qk_norm=OWN_NORM if choice(f, "qk_norm", ("rms_norm",), "rms_norm") else None,
        rotated="image",
    )
    volume = patch_t * patch**2
    out = volume * out_channels(f, 16, channels)
    return (
        convolution("x_embedder", x.batch * tokens, dim, channels, kernel=volume, inputs=volume),
        *_refiner(f, x, dim, heads, head_dim),
        *_conditions(x, f, dim, 768, guidance=f.flag("guidance_embeds", default=True)),
        *repeated(double_block(s), depth(f, "num_layers", 20)),
        *repeated(single_block(s), depth(f, "num_single_layers", 40)),
        *_ends(x, tokens, dim, out),
    )


def _refiner(f: Fields, x: Sizes, dim: int, heads: int, head_dim: int) -> Calls:
    """``HunyuanVideoTokenRefiner``: a small transformer over the text tokens."""
    channels, rows = f.integer("text_embed_dim", 4096), x.text_rows
    block: tuple[Call, ...] = (
        norm("refiner.norm1", rows, dim, params=2 * dim),
        *self_attention("refiner.attn", x.batch, x.text, dim=dim, heads=heads, head_dim=head_dim),
        *modulation("refiner.norm_out", x.batch, 2 * dim, dim),
        residual("refiner.attn", rows, dim),
        norm("refiner.norm2", rows, dim, params=2 * dim),
        *feed_forward("refiner.ff", rows, dim, 4 * dim),
        residual("refiner.ff", rows, dim),
    )
    return (
        *two_layers("refiner.time_embedder", x.batch, TIME_CHANNELS, dim),
        *two_layers("refiner.text_embedder", x.batch, channels, dim),
        linear("refiner.proj_in", EMBEDDING, rows, dim, channels),
        *repeated(block, depth(f, "num_refiner_layers", 2)),
    )
