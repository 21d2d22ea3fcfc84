"""Parts that several denoising transformers are made of, spelt as in diffusers' eager modules."""

from energymodel.diffusion.calls import (
    PLAIN_NORM,
    ROTARY,
    Call,
    Calls,
    attention,
    linear,
    norm,
    rowwise,
)
from energymodel.steps import Floats

PROJECTIONS = "attention_projections"
EMBEDDING = "embedding"
MODULATION = "modulation"

TIME_CHANNELS = 256
"""Sines and cosines of the time step (``Timesteps``)."""


def two_layers(name: str, rows: Floats, k: int, n: int, out: int | None = None) -> Calls:
    """``TimestepEmbedding`` and ``PixArtAlphaTextProjection``: product, activation, product."""
    return (
        linear(f"{name}.linear_1", EMBEDDING, rows, n, k),
        rowwise(f"{name}.act", EMBEDDING, rows, n, tensors=2),
        linear(f"{name}.linear_2", EMBEDDING, rows, n if out is None else out, n),
    )


def feed_forward(
    name: str, rows: Floats, dim: int, inner: int, *, gated: bool = False, out: int | None = None
) -> Calls:
    """``FeedForward``: up, activation (GEGLU multiplies the gate apart), down."""
    up = 2 * inner if gated else inner
    return (
        linear(f"{name}.up", "mlp", rows, up, dim),
        rowwise(f"{name}.act", "mlp", rows, inner, tensors=2),
        *((rowwise(f"{name}.gate", "mlp", rows, inner, tensors=3),) if gated else ()),
        linear(f"{name}.down", "mlp", rows, dim if out is None else out, inner),
    )


def modulation(name: str, batch: Floats, n: int, k: int) -> Calls:
    """``n`` shifts, scales and gates of a sample from its time and text embedding."""
    return (
        rowwise(f"{name}.silu", MODULATION, batch, k, tensors=2),
        linear(f"{name}.linear", MODULATION, batch, n, k),
    )


def modulated_norm(
    name: str, rows: Floats, dim: int, *, params: int = 0, tensors: float = PLAIN_NORM
) -> Calls:
    """A normalisation, then times one plus scale, plus shift."""
    return (
        norm(name, rows, dim, params=params, tensors=tensors),
        rowwise(f"{name}.modulate", "norm", rows, dim, tensors=2, count=2),
    )


def gated_sum(name: str, rows: Floats, dim: int) -> Calls:
    """The residual plus a gated block."""
    return (
        rowwise(f"{name}.gate", "norm", rows, dim, tensors=2),
        residual(name, rows, dim),
    )


def residual(name: str, rows: Floats, dim: int) -> Call:
    """The residual plus a block."""
    return rowwise(f"{name}.residual", "norm", rows, dim, tensors=3)


def queries_keys_values(
    name: str,
    rows: Floats,
    dim: int,
    width: int,
    *,
    bias: bool = True,
    key_rows: Floats | None = None,
    key_dim: int | None = None,
) -> Calls:
    """Three products of their own; keys and values may come from other rows (cross attention)."""
    key_rows = rows if key_rows is None else key_rows
    key_dim = dim if key_dim is None else key_dim
    return (
        linear(f"{name}.to_q", PROJECTIONS, rows, width, dim, bias=bias),
        linear(f"{name}.to_kv", PROJECTIONS, key_rows, width, key_dim, bias=bias, count=2),
    )


def query_key_norms(
    name: str,
    rows: Floats,
    width: int,
    *,
    learnt: int,
    tensors: float,
    key_rows: Floats | None = None,
) -> Calls:
    """Normalisations of queries and keys with ``learnt`` values each."""
    key_rows = rows if key_rows is None else key_rows
    return (
        norm(f"{name}.norm_q", rows, width, params=learnt, tensors=tensors),
        norm(f"{name}.norm_k", key_rows, width, params=learnt, tensors=tensors),
    )


def rotary(name: str, rows: Floats, width: int, count: int = 2) -> Call:
    """Rotation of queries and keys by position, in float32."""
    return rowwise(f"{name}.rotary", "attention", rows, width, tensors=ROTARY, count=count)


def self_attention(
    name: str,
    batch: Floats,
    tokens: Floats,
    *,
    dim: int,
    heads: int,
    head_dim: int,
    bias: bool = True,
    norms: Calls = (),
    rotated: Call | None = None,
) -> Calls:
    """Projections, whatever is done to queries and keys, attention, output."""
    rows, width = batch * tokens, heads * head_dim
    return (
        *queries_keys_values(name, rows, dim, width, bias=bias),
        *norms,
        *((rotated,) if rotated is not None else ()),
        attention(name, batch, tokens, tokens, heads=heads, head_dim=head_dim),
        linear(f"{name}.to_out", PROJECTIONS, rows, dim, width),
    )


def cross_attention(
    name: str,
    batch: Floats,
    tokens: Floats,
    text: Floats,
    *,
    dim: int,
    text_dim: int,
    heads: int,
    head_dim: int,
    bias: bool = True,
    norms: Calls = (),
) -> Calls:
    """Positions look at the text tokens; keys and values are computed anew in every step."""
    rows, width = batch * tokens, heads * head_dim
    return (
        *queries_keys_values(
            name, rows, dim, width, bias=bias, key_rows=batch * text, key_dim=text_dim
        ),
        *norms,
        attention(name, batch, tokens, text, heads=heads, head_dim=head_dim),
        linear(f"{name}.to_out", PROJECTIONS, rows, dim, width),
    )
