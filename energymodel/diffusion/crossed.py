"""Transformers over image tokens that look at the text by cross attention: PixArt, SANA, HunyuanDiT."""

from dataclasses import replace

import numpy as np

from energymodel.diffusion.calls import (
    FLOAT_NORM,
    OWN_NORM,
    Call,
    Calls,
    Sizes,
    attention,
    convolution,
    depthwise,
    linear,
    norm,
    repeated,
    rowwise,
    table,
)
from energymodel.diffusion.pieces import (
    EMBEDDING,
    PROJECTIONS,
    TIME_CHANNELS,
    cross_attention,
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
from energymodel.diffusion.settings import choice, depth, heads_and_width, out_channels, refuse
from energymodel.fields import Fields
from energymodel.steps import Floats


def _patches(x: Sizes, patch: int, channels: int, dim: int) -> tuple[Calls, Floats]:
    """(``PatchEmbed``, tokens of a sample)."""
    tokens = np.floor(x.height / patch) * np.floor(x.width / patch)
    rows = x.batch * tokens
    return (
        convolution("pos_embed", rows, dim, channels, kernel=patch**2, inputs=patch**2),
        rowwise("pos_embed.add", EMBEDDING, rows, dim, tensors=3),
    ), tokens


def pixart(f: Fields, x: Sizes) -> Calls:
    """``PixArtTransformer2DModel``: PixArt-alpha and -Sigma."""
    refuse(f, "norm_type", "only 'ada_norm_single' is read", (None, "ada_norm_single"))
    choice(f, "activation_fn", ("gelu-approximate",), "gelu-approximate")
    heads, head_dim, dim = heads_and_width(f, heads=16, head_dim=72)
    patch, channels = f.integer("patch_size", 2, high=64), f.integer("in_channels", 4)
    out = out_channels(f, 8, channels)
    learnt = 2 * dim if f.flag("norm_elementwise_affine", default=False) else 0
    sized = f.flag("use_additional_conditions", f.integer("sample_size", 128) == 128)
    bias = f.flag("attention_bias", default=True)
    embed, tokens = _patches(x, patch, channels, dim)
    rows = x.batch * tokens
    block = (
        table("scale_shift_table", 6 * dim),
        *modulated_norm("norm1", rows, dim, params=learnt),
        *self_attention(
            "attn1", x.batch, tokens, dim=dim, heads=heads, head_dim=head_dim, bias=bias
        ),
        *gated_sum("attn1", rows, dim),
        *cross_attention(
            "attn2",
            x.batch,
            tokens,
            x.text,
            dim=dim,
            text_dim=f.integer("cross_attention_dim", 1152),
            heads=heads,
            head_dim=head_dim,
            bias=bias,
        ),
        residual("attn2", rows, dim),
        *modulated_norm("norm2", rows, dim, params=learnt),
        *feed_forward("ff", rows, dim, 4 * dim),
        *gated_sum("ff", rows, dim),
    )
    caption = f.optional_integer("caption_channels")
    return (
        *embed,
        *two_layers("time_embedder", x.batch, TIME_CHANNELS, dim),
        *(_image_size(x, dim) if sized else ()),
        *modulation("adaln_single", x.batch, 6 * dim, dim),
        *(two_layers("caption_projection", x.text_rows, caption, dim) if caption else ()),
        *repeated(block, depth(f, "num_layers", 28)),
        table("scale_shift_table", 2 * dim),
        *modulated_norm("norm_out", rows, dim),
        linear("proj_out", EMBEDDING, rows, patch**2 * out, dim),
    )


def _image_size(x: Sizes, dim: int) -> Calls:
    """Height and width, and their ratio, each a third of the embedding of a sample."""
    return (
        *two_layers("resolution_embedder", 2 * x.batch, TIME_CHANNELS, dim // 3),
        *two_layers("aspect_ratio_embedder", x.batch, TIME_CHANNELS, dim // 3),
    )


# --- SANA -----------------------------------------------------------------------------------------


def sana(f: Fields, x: Sizes) -> Calls:
    """``SanaTransformer2DModel``: linear attention, and convolutions in the feed-forward."""
    heads, head_dim, dim = heads_and_width(f, heads=70, head_dim=32)
    patch, channels = f.integer("patch_size", 1, high=64), f.integer("in_channels", 32)
    embed, tokens = _patches(x, patch, channels, dim)
    rows = x.batch * tokens
    grid = replace(x, height=np.floor(x.height / patch), width=np.floor(x.width / patch))
    block = (
        table("scale_shift_table", 6 * dim),
        *modulated_norm("norm1", rows, dim),
        *_linear_attention(f, rows, dim, heads, head_dim),
        *gated_sum("attn1", rows, dim),
        *_sana_cross(f, x, tokens, dim),
        *modulated_norm(
            "norm2", rows, dim, params=2 * dim if f.flag("norm_elementwise_affine", False) else 0
        ),
        *gated_convolutions(
            "ff", grid, dim, int((f.optional_number("mlp_ratio", high=64) or 2.5) * dim)
        ),
        *gated_sum("ff", rows, dim),
    )
    guidance = f.flag("guidance_embeds", default=False)
    return (
        *embed,
        *two_layers("time_embedder", x.batch, TIME_CHANNELS, dim),
        *(two_layers("guidance_embedder", x.batch, TIME_CHANNELS, dim) if guidance else ()),
        *modulation("time_embed", x.batch, 6 * dim, dim),
        *two_layers("caption_projection", x.text_rows, f.integer("caption_channels", 2304), dim),
        norm("caption_norm", x.text_rows, dim, params=dim, tensors=OWN_NORM),
        *repeated(block, depth(f, "num_layers", 20)),
        table("scale_shift_table", 2 * dim),
        *modulated_norm("norm_out", rows, dim),
        linear("proj_out", EMBEDDING, rows, patch**2 * out_channels(f, 32, channels), dim),
    )


def _linear_attention(f: Fields, rows: Floats, dim: int, heads: int, head_dim: int) -> Calls:
    normed = _across_heads(f)
    bias = f.flag("attention_bias", default=False)
    norms = query_key_norms("attn1", rows, dim, learnt=dim, tensors=OWN_NORM) if normed else ()
    return (
        *queries_keys_values("attn1", rows, dim, dim, bias=bias),
        *norms,
        *relu_attention("attn1", rows, heads, head_dim),
        linear("attn1.to_out", PROJECTIONS, rows, dim, dim),
    )


def _sana_cross(f: Fields, x: Sizes, tokens: Floats, dim: int) -> Calls:
    text_dim = f.integer_or_null("cross_attention_dim", 2240)
    if text_dim is None:
        return ()
    heads = f.integer("num_cross_attention_heads", 20, high=1024)
    head_dim = f.integer("cross_attention_head_dim", 112, high=4096)
    rows, width = x.batch * tokens, heads * head_dim
    norms = (
        query_key_norms("attn2", rows, width, learnt=width, tensors=OWN_NORM, key_rows=x.text_rows)
        if _across_heads(f)
        else ()
    )
    return (
        *cross_attention(
            "attn2",
            x.batch,
            tokens,
            x.text,
            dim=dim,
            text_dim=text_dim,
            heads=heads,
            head_dim=head_dim,
            norms=norms,
        ),
        residual("attn2", rows, dim),
    )


def _across_heads(f: Fields) -> bool:
    return choice(f, "qk_norm", ("rms_norm_across_heads",)) is not None


def relu_attention(name: str, rows: Floats, heads: int, head_dim: int) -> Calls:
    """ReLU linear attention: values x keys over all positions, then x queries, in float32.

    Both products work on head_dim + 1 values (the last sums the keys) by head_dim for each position
    and head, so that they read and write more than they compute: ReLU 4, casts to float32 9, the
    padded value 4, the products 4 and 4, the division 4 and the cast back 3 times a position's
    values.
    """
    width = heads * head_dim
    call = rowwise(name, "attention", rows, width, tensors=32, count=1)
    flop = 4.0 * rows * heads * head_dim * (head_dim + 1)
    return (replace(call, flop=flop, stands_for="linear attention"),)


def gated_convolutions(
    name: str, x: Sizes, dim: int, hidden: int, *, learnt_norm: bool = False
) -> Calls:
    """``GLUMBConv``: to 2 x ``hidden`` channels, each convolved by itself, gated, and back."""
    rows = x.positions
    normed = (norm(f"{name}.norm", rows, dim, params=2 * dim, tensors=OWN_NORM),)
    return (
        convolution(f"{name}.conv_inverted", rows, 2 * hidden, dim, kernel=1, component="mlp"),
        rowwise(f"{name}.silu", "mlp", rows, 2 * hidden, tensors=2),
        depthwise(f"{name}.conv_depth", rows, 2 * hidden),
        rowwise(f"{name}.gate", "mlp", rows, hidden, tensors=5),
        convolution(f"{name}.conv_point", rows, dim, hidden, kernel=1, bias=False, component="mlp"),
        *(normed if learnt_norm else ()),
    )


# --- HunyuanDiT -----------------------------------------------------------------------------------


def hunyuan_dit(f: Fields, x: Sizes) -> Calls:
    """``HunyuanDiT2DModel``: a second half with skips from the first; CLIP and T5 tokens."""
    choice(f, "activation_fn", ("gelu-approximate",), "gelu-approximate")
    heads, head_dim, dim = heads_and_width(f, heads=16, head_dim=88)
    patch, channels = f.integer("patch_size", high=64), f.integer("in_channels")
    out = channels * (2 if f.flag("learn_sigma", default=True) else 1)
    text_dim = f.integer("cross_attention_dim", 1024)
    t5_dim, t5_rows = f.integer("cross_attention_dim_t5", 2048), x.batch * t5_tokens(f)
    embed, tokens = _patches(x, patch, channels, f.integer("hidden_size", 1152))
    rows, layers = x.batch * tokens, depth(f, "num_layers", 28)
    inner = int(dim * (f.optional_number("mlp_ratio", high=64) or 4.0))
    width = heads * head_dim

    def norms(name: str, key_rows: Floats) -> Calls:
        return query_key_norms(
            name, rows, width, learnt=2 * head_dim, tensors=2.0, key_rows=key_rows
        )

    block = (
        *modulation("norm1", x.batch, dim, dim),
        norm("norm1", rows, dim, params=2 * dim, tensors=FLOAT_NORM),
        residual("norm1.shift", rows, dim),
        *self_attention(
            "attn1",
            x.batch,
            tokens,
            dim=dim,
            heads=heads,
            head_dim=head_dim,
            norms=norms("attn1", rows),
            rotated=rotary("attn1", rows, width),
        ),
        residual("attn1", rows, dim),
        norm("norm2", rows, dim, params=2 * dim, tensors=FLOAT_NORM),
        *cross_attention(
            "attn2",
            x.batch,
            tokens,
            x.text,
            dim=dim,
            text_dim=text_dim,
            heads=heads,
            head_dim=head_dim,
            norms=(*norms("attn2", x.text_rows), rotary("attn2", rows, width, count=1)),
        ),
        residual("attn2", rows, dim),
        norm("norm3", rows, dim, params=2 * dim, tensors=FLOAT_NORM),
        *feed_forward("ff", rows, dim, inner),
        residual("ff", rows, dim),
    )
    skip = (
        rowwise("skip.cat", "norm", rows, 2 * dim, tensors=2),
        norm("skip_norm", rows, 2 * dim, params=4 * dim, tensors=FLOAT_NORM),
        linear("skip_linear", "mlp", rows, dim, 2 * dim),
    )
    return (
        *embed,
        *two_layers("text_embedder", t5_rows, t5_dim, 4 * t5_dim, text_dim),
        table("text_embedding_padding", (f.integer("text_len", 77) + t5_tokens(f)) * text_dim),
        *_conditions(f, x, t5_dim, f.integer("hidden_size", 1152)),
        *repeated(block, layers),
        *repeated(skip, layers - 1 - layers // 2),
        *modulation("norm_out", x.batch, 2 * dim, dim),
        *modulated_norm("norm_out", rows, dim),
        linear("proj_out", EMBEDDING, rows, patch**2 * out, dim),
    )


def t5_tokens(f: Fields) -> int:
    """Tokens of the second text encoder."""
    return f.integer("text_len_t5", 256, high=100_000)


def _conditions(f: Fields, x: Sizes, t5_dim: int, dim: int) -> Calls:
    """Time step, pooled T5 tokens, and in older versions image size and style."""
    pooled, tokens, heads = f.integer("pooled_projection_dim", 1024), t5_tokens(f) + 1, 8
    styled = f.flag("use_style_cond_and_image_meta_size", default=True)
    extra = pooled + (6 * TIME_CHANNELS + dim if styled else 0)
    pooler: tuple[Call, ...] = (
        table("pooler.positional_embedding", tokens * t5_dim),
        linear("pooler.q_proj", EMBEDDING, x.batch, t5_dim, t5_dim),
        linear("pooler.kv_proj", EMBEDDING, x.batch * tokens, t5_dim, t5_dim, count=2),
        attention(
            "pooler",
            x.batch,
            np.ones_like(x.batch),
            np.full_like(x.batch, tokens),
            heads=heads,
            head_dim=t5_dim // heads,
        ),
        linear("pooler.c_proj", EMBEDDING, x.batch, pooled, t5_dim),
    )
    return (
        *two_layers("time_embedder", x.batch, TIME_CHANNELS, dim),
        *pooler,
        *((table("style_embedder", dim),) if styled else ()),
        *two_layers("extra_embedder", x.batch, extra, 4 * dim, dim),
    )
