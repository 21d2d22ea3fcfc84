"""Encoders: BERT and its relatives, which read whole texts and give embeddings.

Each is read as the class without a head (``AutoModel``), as an engine serves it for embeddings.
"""

from collections.abc import Mapping
from dataclasses import replace

from energymodel.blocks import Block, DisentangledAttention, SoftmaxAttention
from energymodel.blocks.ends import End, EndNorm, Lookup, Projection
from energymodel.errors import InputError
from energymodel.families.parts import (
    Reader,
    depth,
    paired_layers,
    read_attention,
    read_mlp,
    shared,
    windowed,
    windows_by_layer,
)
from energymodel.fields import MAX_LAYERS, Fields
from energymodel.model import NORM_VECTORS, LayerSpec, Layout, ModelSpec, Norm, Stack
from energymodel.weights import Weight, table


def read_both_ways(f: Fields, *, rotary: bool = False, bias: bool = True) -> SoftmaxAttention:
    """Attention of an encoder: every token sees every other."""
    if f.flag("is_decoder", default=False):
        raise InputError(f"{f.where}: field 'is_decoder' is true; it must be false in an encoder")
    attention = read_attention(f, grouped=False, qkv_bias=bias, o_bias=bias)
    return replace(attention, causal=False, rotary_dim=attention.rotary_dim if rotary else 0)


def _layers(
    f: Fields, attention: Block, mlp: Block, layout: Layout = "post_sum"
) -> tuple[LayerSpec, ...]:
    count = depth(f)
    return paired_layers([attention] * count, [mlp] * count, "layer", layout)


def _embeddings(
    f: Fields,
    *,
    positions: bool = True,
    types: int | None = 2,
    width: int | None = None,
    norm: bool = True,
) -> tuple[End, ...]:
    """Learnt positions and token types (``types`` by default, None: there are none), and a norm."""
    ends: list[End] = []
    if positions:
        rows = f.integer("max_position_embeddings", 512)
        ends.append(Lookup(name="position_embedding", rows=rows, width=width))
    rows = 0 if types is None else f.integer("type_vocab_size", types, low=0)
    if rows:
        ends.append(Lookup(name="token_type_embedding", rows=rows, width=width))
    if norm:
        ends.append(EndNorm(name="embedding_norm", vectors=NORM_VECTORS["layer"], width=width))
    return tuple(ends)


def _pooler(f: Fields) -> tuple[End, ...]:
    """A dense layer on the first token of each text."""
    width = f.integer("hidden_size")
    return (
        Projection(
            name="pooler", component="pooler", n=width, k=width, bias=True, rows="sequences"
        ),
    )


def _encoder(
    f: Fields,
    name: str,
    layers: tuple[LayerSpec, ...],
    before: tuple[End, ...],
    *,
    after: tuple[End, ...] = (),
    final_norm: Norm | None = None,
    other: tuple[Weight, ...] = (),
    padding: int = 0,
    embedding_size: int | None = None,
) -> tuple[ModelSpec, list[str]]:
    """The model around its layers; ``padding`` rows of its table of positions are never used."""
    positions = f.integer("max_position_embeddings", 512, low=1 + padding, high=1_000_000_000)
    spec = ModelSpec(
        name=name,
        model_type=f.text("model_type"),
        vocab_size=f.integer("vocab_size"),
        tie_word_embeddings=True,
        text=Stack(
            hidden_size=f.integer("hidden_size"),
            layers=shared(layers),
            final_norm=final_norm,
            before=before,
            after=after,
            other=other,
        ),
        has_head=False,
        embedding_size=embedding_size,
        max_position_embeddings=positions - padding,
    )
    return spec, _without_head(f, name)


def _without_head(f: Fields, name: str) -> list[str]:
    """What the checkpoint can do beside embeddings is said not to be counted."""
    classes = f.sequence("architectures") or ()
    heads = [c for c in classes[:1] if isinstance(c, str) and not c.endswith("Model")]
    return [f"{name}: counted as an embedding model, without the head of {c[:60]}" for c in heads]


# --- BERT and RoBERTa -----------------------------------------------------------------------------


def _bert(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    layers = _layers(f, read_both_ways(f), read_mlp(f, gated=False, bias=True))
    return _encoder(f, name, layers, _embeddings(f), after=_pooler(f))


def _roberta(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    # Jina's embedding models call themselves XLM-R, but rotate queries and keys instead.
    rotary = f.value("position_embedding_type") in ("rotary", "rope")
    if rotary:
        return _jina(f, name)
    layers = _layers(f, read_both_ways(f), read_mlp(f, gated=False, bias=True))
    return _encoder(f, name, layers, _embeddings(f), after=_pooler(f), padding=2)


def _pre_norm_bert(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    layers = _layers(f, read_both_ways(f), read_mlp(f, gated=False, bias=True), "pre")
    norm = f.text("model_type") == "roberta-prelayernorm"
    before, padding = _embeddings(f, norm=norm), 0 if f.text("model_type") == "megatron-bert" else 2
    return _encoder(f, name, layers, before, after=_pooler(f), final_norm="layer", padding=padding)


def _ernie(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    spec, warnings = _bert(f, name)
    if not f.flag("use_task_id", default=False):
        return spec, warnings
    tasks = Lookup(name="task_type_embedding", rows=f.integer("task_type_vocab_size", 3))
    return replace(spec, text=replace(spec.text, before=(tasks, *spec.text.before))), warnings


def _distilbert(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = f.named(
        hidden_size="dim",
        num_attention_heads="n_heads",
        num_hidden_layers="n_layers",
        intermediate_size="hidden_dim",
    )
    layers = _layers(f, read_both_ways(f), read_mlp(f, gated=False, bias=True))
    return _encoder(f, name, layers, _embeddings(f, types=None))


def _albert(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    """Groups of layers that are run again and again; a narrow table of embeddings."""
    width, narrow = f.integer("hidden_size"), f.integer("embedding_size", 128)
    groups, runs = f.integer("num_hidden_groups", 1), depth(f)
    inner = f.integer("inner_group_num", 1, high=MAX_LAYERS // runs)
    if groups > runs:
        raise InputError(
            f"{f.where}: field 'num_hidden_groups' is {groups}; "
            f"it must not exceed 'num_hidden_layers' ({runs})"
        )
    blocks: tuple[Block, ...] = (read_both_ways(f), read_mlp(f, gated=False, bias=True))
    first = LayerSpec(blocks=blocks, norm="layer", layout="post_sum")
    layers = (first,) * (groups * inner) + (replace(first, repeated=True),) * (
        (runs - groups) * inner
    )
    widen = Projection(
        name="embedding_projection", component="embedding", n=width, k=narrow, bias=True
    )
    before = (*_embeddings(f, width=narrow), widen)
    return _encoder(f, name, layers, before, after=_pooler(f), embedding_size=narrow)


def _electra(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    width, narrow = f.integer("hidden_size"), f.integer("embedding_size", 128)
    before = _embeddings(f, width=narrow)
    if narrow != width:
        widen = Projection(
            name="embedding_projection", component="embedding", n=width, k=narrow, bias=True
        )
        before = (*before, widen)
    layers = _layers(f, read_both_ways(f), read_mlp(f, gated=False, bias=True))
    return _encoder(f, name, layers, before, embedding_size=narrow)


# --- relative positions ---------------------------------------------------------------------------


def _mpnet(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = replace(read_both_ways(f), score_bias=True)
    buckets = f.integer("relative_attention_num_buckets", 32)
    distances = table("relative_attention_bias", buckets * attention.num_attention_heads)
    layers = _layers(f, attention, read_mlp(f, gated=False, bias=True))
    before = _embeddings(f, types=None)
    return _encoder(f, name, layers, before, after=_pooler(f), other=(distances,), padding=2)


def _deberta_v2(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    if f.integer("conv_kernel_size", 0, low=0):
        raise InputError(
            f"{f.where}: field 'conv_kernel_size' is {f.value('conv_kernel_size')}; only DeBERTa "
            "without the convolution behind its first layer is supported"
        )
    width, attention = f.integer("hidden_size"), read_both_ways(f)
    terms = _position_terms(f)
    relative = f.flag("relative_attention", default=False)
    # Either field may be -1, which stands for "not given".
    longest = f.integer("max_relative_positions", -1, low=-1)
    longest = longest if longest > 0 else f.integer("max_position_embeddings", 512)
    buckets = f.integer("position_buckets", -1, low=-1)
    span = buckets if buckets > 0 else longest
    block = DisentangledAttention(
        softmax=attention,
        distances=2 * span if relative else 0,
        content_to_position="c2p" in terms,
        position_to_content="p2c" in terms,
        share_att_key=f.flag("share_att_key", default=False),
    )
    narrow = f.integer("embedding_size", width)
    positions = f.flag("position_biased_input", default=True)
    before = _embeddings(f, positions=positions, types=0, width=narrow, norm=False)
    if narrow != width:
        widen = Projection(name="embedding_projection", component="embedding", n=width, k=narrow)
        before = (*before, widen)
    before = (*before, EndNorm(name="embedding_norm", vectors=NORM_VECTORS["layer"]))
    tables = 2 * span * width if relative else 0
    norms = f.config.get("norm_rel_ebd")
    normed = isinstance(norms, str) and "layer_norm" in [
        n.strip() for n in norms.lower().split("|")
    ]
    other = table("relative_embedding", tables + (2 * width if normed else 0))
    layers = _layers(f, block, read_mlp(f, gated=False, bias=True))
    return _encoder(f, name, layers, before, other=(other,), embedding_size=narrow)


def _position_terms(f: Fields) -> list[str]:
    """``pos_att_type``: a list, or names with bars between them."""
    found = f.config.get("pos_att_type")
    if isinstance(found, str):
        return [term.strip() for term in found.lower().split("|")]
    return [str(term) for term in f.sequence("pos_att_type") or ()]


# --- rotary positions -----------------------------------------------------------------------------


def _jina(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    layers = _layers(f, read_both_ways(f, rotary=True), read_mlp(f, gated=False, bias=True))
    before = _embeddings(f, positions=False, types=1)
    spec, warnings = _encoder(f, name, layers, before, after=_pooler(f))
    if f.has("lora_adaptations"):
        warnings = [*warnings, f"{name}: the adapters for its tasks are not counted"]
    return spec, warnings


def _nomic_bert(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = f.named(
        hidden_size="n_embd",
        num_attention_heads="n_head",
        num_hidden_layers="n_layer",
        intermediate_size="n_inner",
        max_position_embeddings="n_positions",
    )
    if f.integer("moe_every_n_layers", 0, low=0):
        raise InputError(
            f"{f.where}: field 'moe_every_n_layers' is {f.value('moe_every_n_layers')}; "
            "only Nomic BERT without experts is supported"
        )
    attention = read_both_ways(f, rotary=True, bias=f.flag("qkv_proj_bias", default=False))
    bias = f.flag("mlp_fc1_bias", default=False)
    layers = _layers(f, attention, read_mlp(f, bias=bias))
    return _encoder(f, name, layers, _embeddings(f, positions=False))


def _gte(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_both_ways(f, rotary=True)
    mlp = replace(read_mlp(f), down_bias=True)
    before = _embeddings(f, positions=False, types=1)
    return _encoder(f, name, _layers(f, attention, mlp), before)


def _eurobert(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = replace(read_attention(f, own_bias=True), causal=False)
    mlp = read_mlp(f, bias=f.flag("mlp_bias", default=False))
    layers = paired_layers([attention] * depth(f), [mlp] * depth(f))
    return _encoder(f, name, layers, (), final_norm="rms")


def _modernbert(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    """Local layers between global ones. The norm of the first layer is that of the embedding."""
    norm: Norm = "layer" if f.flag("norm_bias", default=False) else "scale"
    attention = read_both_ways(f, rotary=True, bias=f.flag("attention_bias", default=False))
    mlp = read_mlp(f, bias=f.flag("mlp_bias", default=False))
    every = f.integer("global_attn_every_n_layers", 3)
    windows = windows_by_layer(f, f.integer("local_attention", 128), lambda i: i % every != 0)
    layers = paired_layers(windowed(attention, windows), [mlp] * len(windows), norm)
    return _encoder(f, name, layers, (), final_norm=norm)


FAMILIES: Mapping[str, Reader] = {
    "bert": _bert,
    "ernie": _ernie,
    "roberta": _roberta,
    "camembert": _roberta,
    "xlm-roberta": _roberta,
    "megatron-bert": _pre_norm_bert,
    "roberta-prelayernorm": _pre_norm_bert,
    "xlm-roberta-xl": _pre_norm_bert,
    "distilbert": _distilbert,
    "albert": _albert,
    "electra": _electra,
    "mpnet": _mpnet,
    "deberta-v2": _deberta_v2,
    "jina_embeddings_v3": _jina,
    "nomic_bert": _nomic_bert,
    "gte": _gte,
    "new": _gte,
    "eurobert": _eurobert,
    "modernbert": _modernbert,
}
