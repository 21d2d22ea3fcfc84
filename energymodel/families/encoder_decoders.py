"""Encoder-decoders: T5, BART and the translators like it, Whisper."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from energymodel.blocks import CrossAttention, Mlp, SoftmaxAttention
from energymodel.blocks.ends import Convolution, End, EndNorm, Lookup
from energymodel.errors import InputError
from energymodel.families.parts import Reader, read_attention
from energymodel.fields import MAX_LAYERS, Fields
from energymodel.model import NORM_VECTORS, LayerSpec, Layout, ModelSpec, Norm, Stack
from energymodel.weights import table


def _cross(a: SoftmaxAttention, source_size: int) -> CrossAttention:
    """Attention to an encoder with the heads and biases of the attention to oneself."""
    return CrossAttention(
        num_attention_heads=a.num_attention_heads,
        num_key_value_heads=a.num_key_value_heads,
        head_dim=a.head_dim,
        source_size=source_size,
        q_bias=a.qkv_bias,
        k_bias=a.qkv_bias and a.k_bias,
        v_bias=a.qkv_bias,
        o_bias=a.o_bias,
    )


# --- T5 -------------------------------------------------------------------------------------------


def _t5(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    """A bias by distance in the scores; only the first layer of each stack has the table for it."""
    return _t5_like(f, name, gated=False, tables_everywhere=False)


def _mt5(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    return _t5_like(f, name, gated=True, tables_everywhere=False)


def _umt5(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    return _t5_like(f, name, gated=True, tables_everywhere=True)


def _t5_like(
    f: Fields, name: str, *, gated: bool, tables_everywhere: bool
) -> tuple[ModelSpec, list[str]]:
    width, source = f.integer("d_model"), f.integer("d_model")
    named = f.named(num_attention_heads="num_heads", head_dim="d_kv", hidden_size="d_model")
    heads = read_attention(named, head_dim=64, grouped=False)
    attention = replace(heads, rotary_dim=0, score_bias=True)
    mlp = Mlp(intermediate_size=f.integer("d_ff"), gated=_is_gated(f, gated))
    reading, writing = _depth(f, "num_layers"), _depth(f, "num_decoder_layers", "num_layers")
    buckets = f.integer("relative_attention_num_buckets", 32) * attention.num_attention_heads
    encoder = LayerSpec(blocks=(replace(attention, causal=False), mlp))
    # What the encoder left is as far from every token as from every other: no bias.
    decoder = LayerSpec(blocks=(attention, _cross(attention, source), mlp))

    def stack(layer: LayerSpec, layers: int) -> Stack:
        tables = buckets * (layers if tables_everywhere else 1)
        other = (table("relative_attention_bias", tables),)
        return Stack(hidden_size=width, layers=(layer,) * layers, other=other)

    spec = ModelSpec(
        name=name,
        model_type=f.text("model_type"),
        vocab_size=f.integer("vocab_size"),
        tie_word_embeddings=f.flag("tie_word_embeddings", default=True),
        text=stack(decoder, writing),
        encoder=stack(encoder, reading),
    )
    return spec, []


def _is_gated(f: Fields, default: bool) -> bool:
    """``feed_forward_proj``: an activation, with "gated-" before it where it gates."""
    if not f.has("feed_forward_proj"):
        return default
    return f.text("feed_forward_proj").startswith("gated-")


def _depth(f: Fields, *keys: str) -> int:
    """Number of layers: the first of the fields that is there."""
    key = next((key for key in keys if f.has(key)), keys[-1])
    return f.integer(key, high=MAX_LAYERS)


# --- BART and its relatives -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bart:
    """How the relatives of BART differ.

    ``unused_positions``: rows of the table of positions before the first. ``positions`` is off
    where positions are computed instead. ``embedding_norm`` is over the sum of the embeddings,
    ``final_norm`` behind the last layer.
    """

    layout: Layout = "post_sum"
    positions: bool = True
    unused_positions: int = 2
    embedding_norm: bool = True
    final_norm: bool = False


def _bart_like(f: Fields, name: str, kind: _Bart) -> tuple[ModelSpec, list[str]]:
    width = f.integer("d_model")
    ends: list[End] = []
    positions = f.integer("max_position_embeddings", 1024, high=1_000_000_000)
    if kind.positions:
        ends.append(Lookup(name="position_embedding", rows=positions + kind.unused_positions))
    if kind.embedding_norm:
        ends.append(EndNorm(name="embedding_norm", vectors=NORM_VECTORS["layer"]))
    final: Norm | None = "layer" if kind.final_norm else None

    def stack(side: str) -> Stack:
        return Stack(
            hidden_size=width,
            layers=_bart_layers(f, side, kind.layout),
            final_norm=final,
            before=tuple(ends),
        )

    spec = ModelSpec(
        name=name,
        model_type=f.text("model_type"),
        vocab_size=f.integer("vocab_size"),
        tie_word_embeddings=f.flag("tie_word_embeddings", default=True),
        text=stack("decoder"),
        encoder=stack("encoder"),
        max_position_embeddings=positions,
    )
    return spec, []


def _bart_layers(
    f: Fields, side: str, layout: Layout, *, k_bias: bool = True
) -> tuple[LayerSpec, ...]:
    """Layers of the "encoder" or the "decoder", which attends to the encoder as well."""
    width = f.integer("d_model")
    named = f.named(num_attention_heads=f"{side}_attention_heads", hidden_size="d_model")
    attention = replace(
        read_attention(named, grouped=False, qkv_bias=True, o_bias=True),
        rotary_dim=0,
        k_bias=k_bias,
    )
    mlp = Mlp(intermediate_size=f.integer(f"{side}_ffn_dim"), gated=False, bias=True)
    reads = side == "encoder"
    blocks = (
        (replace(attention, causal=False), mlp)
        if reads
        else (attention, _cross(attention, width), mlp)
    )
    layer = LayerSpec(blocks=blocks, norm="layer", layout=layout)
    return (layer,) * _depth(f, f"{side}_layers")


def _bart(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    return _bart_like(f, name, _Bart())


def _mbart(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    return _bart_like(f, name, _Bart(layout="pre", final_norm=True))


def _pegasus(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    kind = _Bart(layout="pre", unused_positions=0, embedding_norm=False, final_norm=True)
    return _bart_like(f, name, kind)


def _m2m_100(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    kind = _Bart(layout="pre", positions=False, embedding_norm=False, final_norm=True)
    return _bart_like(f, name, kind)


def _marian(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    vocabularies = f.integer("vocab_size"), f.integer("decoder_vocab_size", f.integer("vocab_size"))
    if not f.flag("share_encoder_decoder_embeddings", default=True) or len(set(vocabularies)) > 1:
        raise InputError(
            f"{f.where}: field 'share_encoder_decoder_embeddings' is false; it must be true, with "
            "one vocabulary for both sides"
        )
    return _bart_like(f, name, _Bart(unused_positions=0, embedding_norm=False))


def _blenderbot_small(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    return _bart_like(f, name, _Bart(unused_positions=0))


# --- Whisper --------------------------------------------------------------------------------------

# Vocabularies that know more languages than English (openai/whisper, ``is_multilingual``).
MULTILINGUAL = 51_865


def _whisper(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    """Sound in windows of 30 s: spectra every 10 ms, halved by a convolution.

    An answer starts with a start token and one that asks for no times; between them are language
    and task where there is a choice.
    """
    width, heard = f.integer("d_model"), f.integer("max_source_positions", 1500)
    written, vocabulary = f.integer("max_target_positions", 448), f.integer("vocab_size")
    conv1 = Convolution(
        name="conv1",
        component="audio",
        channels_in=f.integer("num_mel_bins", 80),
        channels_out=width,
        kernel_size=3,
        outputs_per_token=2,
    )
    conv2 = replace(conv1, name="conv2", channels_in=width, outputs_per_token=1)
    encoder = Stack(
        hidden_size=width,
        layers=_bart_layers(f, "encoder", "pre", k_bias=False),
        final_norm="layer",
        before=(conv1, conv2, Lookup(name="position_embedding", rows=heard)),
        embeds=False,
    )
    decoder = Stack(
        hidden_size=width,
        layers=_bart_layers(f, "decoder", "pre", k_bias=False),
        final_norm="layer",
        before=(Lookup(name="position_embedding", rows=written),),
    )
    spec = ModelSpec(
        name=name,
        model_type=f.text("model_type"),
        vocab_size=vocabulary,
        tie_word_embeddings=f.flag("tie_word_embeddings", default=True),
        text=decoder,
        encoder=encoder,
        start_tokens=4 if vocabulary >= MULTILINGUAL else 2,
        encoder_tokens=heard,
        max_position_embeddings=written,
    )
    return spec, []


FAMILIES: Mapping[str, Reader] = {
    "t5": _t5,
    "mt5": _mt5,
    "umt5": _umt5,
    "bart": _bart,
    "plbart": _bart,
    "mbart": _mbart,
    "pegasus": _pegasus,
    "m2m_100": _m2m_100,
    "marian": _marian,
    "blenderbot": _pegasus,
    "blenderbot-small": _blenderbot_small,
    "whisper": _whisper,
}
