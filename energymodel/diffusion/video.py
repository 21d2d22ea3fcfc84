"""Transformers over the tokens of a whole video: CogVideoX and Wan."""

import numpy as np

from energymodel.diffusion.calls import (
    FLOAT_NORM,
    PLAIN_NORM,
    Calls,
    Sizes,
    convolution,
    linear,
    norm,
    repeated,
    rowwise,
    table,
)
from energymodel.diffusion.pieces import (
    EMBEDDING,
    MODULATION,
    TIME_CHANNELS,
    cross_attention,
    feed_forward,
    gated_sum,
    modulated_norm,
    modulation,
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


def cogvideox(f: Fields, x: Sizes) -> Calls:
    """``CogVideoXTransformer3DModel``: text and video tokens in one stream, norms for each."""
    choice(f, "activation_fn", ("gelu-approximate",), "gelu-approximate")
    heads, head_dim, dim = heads_and_width(f, heads=30, head_dim=64)
    patch, patch_t = (
        f.integer("patch_size", 2, high=64),
        f.optional_integer("patch_size_t", high=64),
    )
    channels, time_dim = f.integer("in_channels", 16), f.integer("time_embed_dim", 512)
    tokens = np.floor(x.height / patch) * np.floor(x.width / patch)
    tokens = tokens * np.ceil(x.frames / (patch_t or 1))
    rows, joint = x.batch * tokens, x.batch * (tokens + x.text)
    volume, width = patch**2 * (patch_t or 1), heads * head_dim
    learnt = 2 * dim if f.flag("norm_elementwise_affine", default=True) else 0
    rotates = f.flag("use_rotary_positional_embeddings", default=False)
    norms = query_key_norms("attn1", joint, width, learnt=2 * head_dim, tensors=PLAIN_NORM)
    both = (
        *modulation("norm", x.batch, 6 * dim, time_dim),
        *modulated_norm("norm", joint, dim, params=learnt),
        rowwise("norm.cat", "norm", joint, dim, tensors=2),
    )
    block = (
        *both,
        *self_attention(
            "attn1",
            x.batch,
            tokens + x.text,
            dim=dim,
            heads=heads,
            head_dim=head_dim,
            bias=f.flag("attention_bias", default=True),
            norms=norms,
            rotated=rotary("attn1", rows, width) if rotates else None,
        ),
        *gated_sum("attn1", joint, dim),
        *both,
        *feed_forward("ff", joint, dim, 4 * dim),
        *gated_sum("ff", joint, dim),
    )
    ofs = f.optional_integer("ofs_embed_dim")
    bias = f.flag("patch_bias", default=True) or patch_t is not None
    return (
        convolution("patch_embed", rows, dim, channels, kernel=volume, inputs=volume, bias=bias),
        linear("text_proj", EMBEDDING, x.text_rows, dim, f.integer("text_embed_dim", 4096)),
        rowwise("patch_embed.cat", EMBEDDING, joint, dim, tensors=2 if rotates else 5),
        *two_layers("time_embedding", x.batch, dim, time_dim),
        *(two_layers("ofs_embedding", x.batch, ofs, ofs) if ofs else ()),
        *repeated(block, depth(f, "num_layers", 30)),
        norm("norm_final", rows, dim, params=learnt),
        *modulation("norm_out", x.batch, 2 * dim, time_dim),
        *modulated_norm("norm_out", rows, dim, params=learnt),
        linear("proj_out", EMBEDDING, rows, volume * out_channels(f, 16, channels), dim),
    )


def wan(f: Fields, x: Sizes) -> Calls:
    """``WanTransformer3DModel`` for text to video: Wan 2.1 and 2.2."""
    for key in ("image_dim", "added_kv_proj_dim"):
        refuse(f, key, "only text to video is read")
    choice(f, "qk_norm", ("rms_norm_across_heads",), "rms_norm_across_heads")
    heads, head_dim, dim = heads_and_width(f, heads=40, head_dim=128)
    channels = f.integer("in_channels", 16)
    patch_t, patch_h, patch_w = whole_numbers(f, "patch_size", (1, 2, 2), length=3, low=1, high=64)
    volume = patch_t * patch_h * patch_w
    tokens = np.floor(x.frames / patch_t) * np.floor(x.height / patch_h)
    tokens = tokens * np.floor(x.width / patch_w)
    rows = x.batch * tokens
    # Wan 2.2 5B has a time step for each token (``expand_timesteps``, a field of its pipeline).
    timed = rows if f.flag("expand_timesteps", default=False) else x.batch

    def norms(name: str, key_rows: Floats) -> Calls:
        return query_key_norms(name, rows, dim, learnt=dim, tensors=PLAIN_NORM, key_rows=key_rows)

    middle = norm("norm2", rows, dim, params=2 * dim, tensors=FLOAT_NORM)
    block = (
        table("scale_shift_table", 6 * dim),
        *modulated_norm("norm1", rows, dim, tensors=FLOAT_NORM),
        *self_attention(
            "attn1",
            x.batch,
            tokens,
            dim=dim,
            heads=heads,
            head_dim=head_dim,
            norms=norms("attn1", rows),
            rotated=rotary("attn1", rows, dim),
        ),
        *gated_sum("attn1", rows, dim),
        *((middle,) if f.flag("cross_attn_norm", default=True) else ()),
        *cross_attention(
            "attn2",
            x.batch,
            tokens,
            x.text,
            dim=dim,
            text_dim=dim,
            heads=heads,
            head_dim=head_dim,
            norms=norms("attn2", x.text_rows),
        ),
        residual("attn2", rows, dim),
        *modulated_norm("norm3", rows, dim, tensors=FLOAT_NORM),
        *feed_forward("ffn", rows, dim, f.integer("ffn_dim", 13824)),
        *gated_sum("ffn", rows, dim),
    )
    return (
        convolution("patch_embedding", rows, dim, channels, kernel=volume, inputs=volume),
        *two_layers("time_embedder", timed, f.integer("freq_dim", TIME_CHANNELS), dim),
        rowwise("time_proj.silu", MODULATION, timed, dim, tensors=2),
        linear("time_proj", MODULATION, timed, 6 * dim, dim),
        *two_layers("text_embedder", x.text_rows, f.integer("text_dim", 4096), dim),
        *repeated(block, depth(f, "num_layers", 40)),
        table("scale_shift_table", 2 * dim),
        *modulated_norm("norm_out", rows, dim, tensors=FLOAT_NORM),
        linear("proj_out", EMBEDDING, rows, volume * out_channels(f, 16, channels), dim),
    )
