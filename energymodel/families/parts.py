"""Pieces that the readers of several families share: heads, windows, experts, layers."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from energymodel.blocks import Block, Mlp, Moe, SoftmaxAttention
from energymodel.blocks.ends import EndNorm, Lookup, Projection
from energymodel.blocks.softmax import QkNorm
from energymodel.errors import InputError
from energymodel.fields import MAX_LAYERS, Fields
from energymodel.model import LayerSpec, Layout, ModelSpec, Norm, Stack

Reader = Callable[[Fields, str], tuple[ModelSpec, list[str]]]
"""From a configuration and a name to a model and warnings."""

Windows = Sequence[int | None]
"""Sliding window of each layer, None where a layer sees everything."""


def read_attention(
    f: Fields,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    own_bias: bool = False,
    qkv_bias: bool = False,
    o_bias: bool = False,
    qk_norm: QkNorm | None = None,
    rotary_factor: float = 1.0,
    grouped: bool = True,
) -> SoftmaxAttention:
    """Heads of every family; ``kv_heads`` and ``head_dim`` are the defaults of the family.

    Without a default of its own a family has as many KV heads as heads, and splits the hidden size
    evenly over the heads. One that is not ``grouped`` always has as many, whatever the file says.
    ``own_bias``: the file's ``attention_bias`` says of all four projections whether they have one.
    """
    if own_bias:
        qkv_bias = o_bias = f.flag("attention_bias", default=False)
    heads = f.integer("num_attention_heads", high=100_000)
    groups = heads
    if grouped:
        groups = f.integer("num_key_value_heads", kv_heads or heads, high=100_000)
    if heads % groups:
        raise InputError(
            f"{f.where}: field 'num_key_value_heads' is {groups}; "
            f"it must divide 'num_attention_heads' ({heads})"
        )
    size = f.integer("head_dim", head_dim or _even_head_dim(f, heads), high=100_000)
    return SoftmaxAttention(
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=size,
        rotary_dim=int(size * _rotary_factor(f, rotary_factor)),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        qk_norm=qk_norm,
    )


def _even_head_dim(f: Fields, heads: int) -> int:
    """Hidden size over heads; an error where that is not whole and nothing else is given."""
    hidden_size = f.integer("hidden_size")
    if hidden_size % heads and not f.has("head_dim"):
        raise InputError(
            f"{f.where}: field 'head_dim' is missing; it must be given "
            f"where 'num_attention_heads' ({heads}) does not divide 'hidden_size' ({hidden_size})"
        )
    return max(hidden_size // heads, 1)


def _rotary_factor(f: Fields, default: float) -> float:
    """Share of each head that is rotated: a field of its own, or one of the rotary parameters."""
    for place in (f, f.section("rope_parameters"), f.section("rope_scaling")):
        factor = place.optional_number("partial_rotary_factor", high=1.0) if place else None
        if factor is not None:
            return factor
    return default


def read_mlp(f: Fields, *, gated: bool = True, bias: bool = False) -> Mlp:
    """A block of ``intermediate_size``."""
    return Mlp(intermediate_size=f.integer("intermediate_size"), gated=gated, bias=bias)


def read_moe(f: Fields, intermediate_size: int, shared: int = 0) -> Moe:
    """Routed experts and, ``shared`` wide unless that is 0, one that every token visits.

    Both names that most families use for the number of experts are accepted.
    """
    key = "num_local_experts" if f.has("num_local_experts") else "num_experts"
    experts = f.integer(key, high=100_000)
    top_k = f.integer("num_experts_per_tok", high=100_000)
    if top_k > experts:
        raise InputError(
            f"{f.where}: field 'num_experts_per_tok' is {top_k}; it must not exceed '{key}' ({experts})"
        )
    return Moe(
        num_experts=experts,
        num_experts_per_tok=top_k,
        moe_intermediate_size=intermediate_size,
        shared_expert=Mlp(intermediate_size=shared) if shared else None,
    )


def feed_forwards(f: Fields, dense: int, mlp: Block, experts: Block) -> list[Block]:
    """Block of each layer: ``mlp_layer_types`` where given, else the first ``dense`` do not route."""
    layers, types = depth(f), f.sequence("mlp_layer_types")
    if types is None:
        return [mlp if i < dense else experts for i in range(layers)]
    known = {"dense": mlp, "sparse": experts}
    if len(types) != layers or not all(isinstance(t, str) and t in known for t in types):
        raise InputError(
            f"{f.where}: field 'mlp_layer_types' must hold {layers} entries "
            "('num_hidden_layers'), each 'dense' or 'sparse'"
        )
    return [known[str(t)] for t in types]


def depth(f: Fields) -> int:
    """Number of layers."""
    return f.integer("num_hidden_layers", high=MAX_LAYERS)


def listed_layers(f: Fields, key: str) -> frozenset[object] | None:
    """Numbers of layers, None where none are listed."""
    listed = f.sequence(key)
    if listed is None:
        return None
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in listed):
        raise InputError(f"{f.where}: field '{key}' must be a list of layer numbers")
    return frozenset(listed)


def own_window(f: Fields, default: int) -> int | None:
    """``sliding_window``: a null switches it off, only an absent field means the default."""
    return f.integer_or_null("sliding_window", default)


def switched_window(f: Fields) -> int | None:
    """``sliding_window`` of the Qwen families, which ``use_sliding_window`` turns on."""
    return own_window(f, 4096) if f.flag("use_sliding_window", default=False) else None


def windows_everywhere(f: Fields, window: int | None) -> Windows:
    """The same window, or none, in every layer."""
    return [window] * depth(f)


def windows_by_layer(f: Fields, window: int | None, slides: Callable[[int], bool]) -> Windows:
    """``layer_types`` where it is given, else the rule of the family."""
    layers = depth(f)
    types = f.sequence("layer_types")
    if types is None:
        return [window if slides(i) else None for i in range(layers)]
    known = {"sliding_attention": window, "full_attention": None}
    if len(types) != layers or not all(isinstance(t, str) and t in known for t in types):
        raise InputError(
            f"{f.where}: field 'layer_types' must hold {layers} entries ('num_hidden_layers'), "
            "each 'full_attention' or 'sliding_attention'"
        )
    return [known[str(t)] for t in types]


def qwen_windows(f: Fields) -> Windows:
    """Qwen 2 and 3: the layers from ``max_window_layers`` on slide, where switched on at all."""
    first = f.integer("max_window_layers", 28, low=0)
    return windows_by_layer(f, switched_window(f), lambda i: i >= first)


def position_layers(f: Fields) -> list[bool]:
    """Layers that rotate queries and keys by position (Llama 4, SmolLM 3).

    ``no_rope_layers`` holds a 1 for each that does, in spite of its name; without it every
    ``no_rope_layer_interval``-th layer does not.
    """
    flags, layers = f.sequence("no_rope_layers"), depth(f)
    if not flags:
        interval = f.integer("no_rope_layer_interval", 4)
        return [(i + 1) % interval != 0 for i in range(layers)]
    if len(flags) < layers or not all(flag in (0, 1) for flag in flags):
        raise InputError(
            f"{f.where}: field 'no_rope_layers' must hold a 0 or 1 for each of {layers} layers"
        )
    return [bool(flag) for flag in flags[:layers]]


def exaone_attentions(f: Fields) -> list[SoftmaxAttention]:
    """EXAONE 4: where some layers slide, those that see everything know no positions."""
    attention = read_attention(f, kv_heads=32, qk_norm="head")
    window = own_window(f, 4096)
    if window is None:
        return [attention] * depth(f)
    pattern = 1 if f.has("layer_types") else f.integer("sliding_window_pattern", 4)
    windows = windows_by_layer(f, window, lambda i: (i + 1) % pattern != 0)
    return locally_rotated(attention, windows)


def uniform_layers(
    attention: SoftmaxAttention,
    feed_forward: Block,
    windows: Windows,
    norm: Norm = "rms",
    layout: Layout = "pre",
) -> tuple[LayerSpec, ...]:
    """Layers that differ in nothing but their window."""
    attentions = windowed(attention, windows)
    return paired_layers(attentions, [feed_forward] * len(windows), norm, layout)


def windowed(attention: SoftmaxAttention, windows: Windows) -> list[SoftmaxAttention]:
    """The attention of each layer."""
    return [replace(attention, sliding_window=window) for window in windows]


def locally_rotated(attention: SoftmaxAttention, windows: Windows) -> list[SoftmaxAttention]:
    """The attention of each layer, where only the layers that slide know positions (Cohere 2)."""
    return [
        a if a.sliding_window else replace(a, rotary_dim=0) for a in windowed(attention, windows)
    ]


def paired_layers(
    attentions: Sequence[Block],
    feed_forwards: Sequence[Block],
    norm: Norm = "rms",
    layout: Layout = "pre",
) -> tuple[LayerSpec, ...]:
    """Layers of an attention and a feed-forward block each."""
    return tuple(
        LayerSpec(blocks=blocks, norm=norm, layout=layout)
        for blocks in zip(attentions, feed_forwards, strict=True)
    )


def sparse_layers(
    f: Fields, attention: SoftmaxAttention, experts: Moe, windows: Windows
) -> tuple[LayerSpec, ...]:
    """Qwen MoE: every ``decoder_sparse_step``-th layer routes, save those in ``mlp_only_layers``."""
    step = f.integer("decoder_sparse_step", 1)
    only = listed_layers(f, "mlp_only_layers") or ()
    sparse = [i not in only and (i + 1) % step == 0 for i in range(len(windows))]
    mlp = experts if all(sparse) else read_mlp(f)
    return paired_layers(windowed(attention, windows), [experts if s else mlp for s in sparse])


def dense_model(
    f: Fields,
    name: str,
    attention: SoftmaxAttention,
    mlp: Block,
    windows: Windows | None = None,
    *,
    norm: Norm = "rms",
    layout: Layout = "pre",
    tied: bool = False,
) -> ModelSpec:
    """A model whose layers all have the same dense block."""
    layers = uniform_layers(attention, mlp, windows or windows_everywhere(f, None), norm, layout)
    return model_spec(f, name, layers, tied=tied)


def model_spec(
    f: Fields, name: str, layers: tuple[LayerSpec, ...], *, tied: bool = False
) -> ModelSpec:
    """The model around its layers; ``tied`` is what the family assumes for its embeddings."""
    return ModelSpec(
        name=name,
        model_type=f.text("model_type"),
        vocab_size=f.integer("vocab_size"),
        tie_word_embeddings=f.flag("tie_word_embeddings", tied),
        text=Stack(
            hidden_size=f.integer("hidden_size"),
            layers=shared(layers),
            final_norm=layers[-1].norm,
        ),
        max_position_embeddings=f.optional_integer("max_position_embeddings", high=1_000_000_000),
    )


def with_next_tokens(f: Fields, spec: ModelSpec) -> ModelSpec:
    """The model with the layers that predict further tokens (arXiv 2412.19437, figure 3).

    Each joins the hidden state with the embedding of the next token, and checkpoints store its own
    copies of the embedding table and the head.
    """
    f = f.named(num_nextn_predict_layers="num_mtp_layers")
    count = f.integer("num_nextn_predict_layers", 0, low=0, high=100)
    if count == 0:
        return spec
    h, vocabulary = spec.hidden_size, spec.vocab_size
    before = (
        Lookup(name="embedding", rows=vocabulary),
        EndNorm(name="embedding_norm", vectors=1),
        EndNorm(name="hidden_norm", vectors=1),
        Projection(name="join_proj", component="mlp", n=h, k=2 * h),
    )
    after = Projection(name="lm_head", component="lm_head", n=vocabulary, k=h)
    layers = spec.layers[-1:] * count
    stack = Stack(
        hidden_size=h,
        layers=layers,
        final_norm=layers[0].norm,
        before=before * count,
        after=(after,) * count,
    )
    return replace(spec, mtp=stack)


def shared(layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
    """The same layers with equal ones made one object, which makes counting them cheap."""
    known: dict[LayerSpec, LayerSpec] = {}
    return tuple(known.setdefault(layer, layer) for layer in layers)
