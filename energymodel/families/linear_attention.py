"""Linear attention or short convolutions beside softmax attention: Qwen3-Next, MiniMax, LFM2."""

from collections.abc import Mapping
from dataclasses import replace

from energymodel.blocks import (
    Block,
    GatedDelta,
    LightningAttention,
    Mlp,
    Moe,
    ShortConvolution,
    SoftmaxAttention,
)
from energymodel.errors import InputError
from energymodel.families.latent import read_latent
from energymodel.families.parts import (
    Reader,
    depth,
    feed_forwards,
    listed_layers,
    model_spec,
    paired_layers,
    read_attention,
    read_mlp,
    read_moe,
    sparse_layers,
)
from energymodel.families.recurrent_parts import (
    FULL,
    RECURRENT,
    layer_kinds,
    state_dtype,
)
from energymodel.fields import Fields
from energymodel.model import LayerSpec, ModelSpec

CONVOLUTION = "conv"


def _qwen3_next(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    layers = sparse_layers(f, _qwen_attention(f, kv_heads=2), _qwen_experts(f), [None] * depth(f))
    return model_spec(f, name, _mixed(f, layers)), []


def _qwen3_5(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    layer = LayerSpec(blocks=(_qwen_attention(f, kv_heads=4), read_mlp(f)))
    return model_spec(f, name, _mixed(f, (layer,) * depth(f))), []


def _qwen3_5_moe(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    layer = LayerSpec(blocks=(_qwen_attention(f, kv_heads=2), _qwen_experts(f)))
    return model_spec(f, name, _mixed(f, (layer,) * depth(f))), []


def _qwen_attention(f: Fields, *, kv_heads: int) -> SoftmaxAttention:
    """Softmax attention with a gate for its output, and a quarter of each head rotated."""
    bias = f.flag("attention_bias", default=False)
    attention = read_attention(
        f,
        kv_heads=kv_heads,
        head_dim=256,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm="head",
        rotary_factor=0.25,
    )
    return replace(attention, gated=True)


def _qwen_experts(f: Fields) -> Moe:
    shared = Mlp(intermediate_size=f.integer("shared_expert_intermediate_size", 512))
    experts = read_moe(f, f.integer("moe_intermediate_size", 512))
    return replace(experts, shared_expert=shared, shared_expert_gate=True)


def _mixed(f: Fields, layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
    """The layers with a delta rule in the place of attention in most of them."""
    delta = _delta(f, 16, 32, 128, 128)
    delta = replace(delta, state_dtype=state_dtype(f, "mamba_ssm_dtype"))
    every = f.integer("full_attention_interval", 4)
    kinds = layer_kinds(f, "layer_types", lambda i: (i + 1) % every == 0)
    return tuple(
        layer if kind == FULL else replace(layer, blocks=(delta, *layer.blocks[1:]))
        for layer, kind in zip(layers, kinds, strict=True)
    )


def _delta(f: Fields, key_heads: int, value_heads: int, key_dim: int, value_dim: int) -> GatedDelta:
    """The gated delta rule; numbers are the defaults of the family."""
    keys = f.integer("linear_num_key_heads", key_heads, high=100_000)
    values = f.integer("linear_num_value_heads", value_heads, high=100_000)
    if values % keys:
        raise InputError(
            f"{f.where}: field 'linear_num_key_heads' is {keys}; "
            f"it must divide 'linear_num_value_heads' ({values})"
        )
    return GatedDelta(
        num_key_heads=keys,
        num_value_heads=values,
        key_dim=f.integer("linear_key_head_dim", key_dim, high=100_000),
        value_dim=f.integer("linear_value_head_dim", value_dim, high=100_000),
        conv_kernel=f.integer("linear_conv_kernel_dim", 4, high=1000),
    )


def _kimi_linear(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = f.named(
        num_experts_per_tok="num_experts_per_token",
        n_shared_experts="num_shared_experts",
        max_position_embeddings="model_max_length",
    )
    # Published files keep what belongs to linear attention in a section; the class in itself.
    linear = f.section("linear_attn_config") or Fields({}, f.where)
    heads = linear.integer("num_heads", f.integer("linear_num_heads", 32), high=100_000)
    size = linear.integer("head_dim", f.integer("linear_head_dim", 128), high=100_000)
    kernel = f.integer("linear_conv_kernel_dim", 4, high=1000)
    delta = GatedDelta(
        num_key_heads=heads,
        num_value_heads=heads,
        key_dim=size,
        value_dim=size,
        conv_kernel=linear.integer("short_conv_kernel_size", kernel, high=1000),
        channel_decay=True,
        state_dtype="float32",
    )
    attention = read_latent(f, q_rank=None)
    listed = listed_layers(linear, "full_attn_layers")
    kinds = layer_kinds(
        f, "layer_types", lambda i: i + 1 in listed if listed else i > 0 and i % 4 == 0
    )
    mixers: list[Block] = [attention if kind == FULL else delta for kind in kinds]
    inner = f.integer("moe_intermediate_size", 1024)
    experts = read_moe(f, inner, inner * f.integer("n_shared_experts", 1, low=0, high=10_000))
    mlps = feed_forwards(f, f.integer("first_k_dense_replace", 1, low=0), read_mlp(f), experts)
    return model_spec(f, name, paired_layers(mixers, mlps)), []


def _olmo_hybrid(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, own_bias=True, qk_norm="hidden")
    if not f.has("rope_parameters"):
        attention = replace(attention, rotary_dim=0)
    heads, mlp = attention.num_attention_heads, read_mlp(f)
    keys = f.integer("linear_num_key_heads", heads, high=100_000)
    key_dim = max(int(0.75 * f.integer("hidden_size") / keys), 1)
    key_dim = f.integer("linear_key_head_dim", key_dim, high=100_000)
    delta = _delta(f, heads, heads, key_dim, 2 * key_dim)
    last = depth(f) - 1
    # Every fourth layer attends; where there are fewer, the last one does.
    kinds = layer_kinds(f, "layer_types", lambda i: i % 4 == 3 or (i == last and last < 3))
    kind_of = {
        FULL: LayerSpec(blocks=(attention, mlp), layout="post"),
        RECURRENT: LayerSpec(blocks=(delta, mlp)),
    }
    return model_spec(f, name, tuple(kind_of[kind] for kind in kinds)), []


def _minimax(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = replace(
        read_attention(f, kv_heads=8), sliding_window=f.optional_integer("sliding_window")
    )
    lightning = LightningAttention(
        num_heads=attention.num_attention_heads, head_dim=attention.head_dim
    )
    kinds = layer_kinds(f, "layer_types", lambda i: i % 2 == 0)
    mixers: list[Block] = [attention if kind == FULL else lightning for kind in kinds]
    experts = read_moe(f, f.integer("intermediate_size"))
    return model_spec(f, name, paired_layers(mixers, [experts] * len(kinds))), []


def _lfm2(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = f.named(intermediate_size="block_ff_dim", tie_word_embeddings="tie_embedding")
    inner = f.integer("intermediate_size", 12_288)
    if f.flag("block_auto_adjust_ff_dim", default=True):
        factor = f.optional_number("block_ffn_dim_multiplier", high=1000.0)
        unit = f.integer("block_multiple_of", 256)
        inner = int((1.0 if factor is None else factor) * int(2 * inner / 3))
        inner = unit * -(-inner // unit)
    blocks: list[Block] = [Mlp(intermediate_size=inner)] * depth(f)
    return model_spec(f, name, paired_layers(_lfm2_mixers(f), blocks), tied=True), []


def _lfm2_moe(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = f.named(tie_word_embeddings="tie_embedding")
    dense, mlp = f.integer("num_dense_layers", 2, low=0), read_mlp(f)
    experts = read_moe(f, f.integer("moe_intermediate_size", 1792))
    blocks = [mlp if i < dense else experts for i in range(depth(f))]
    return model_spec(f, name, paired_layers(_lfm2_mixers(f), blocks), tied=True), []


def _lfm2_mixers(f: Fields) -> list[Block]:
    """Attention or a short convolution in each layer."""
    attention = read_attention(f, kv_heads=8, qk_norm="head")
    convolution = ShortConvolution(
        width=f.integer("hidden_size"),
        kernel=f.integer("conv_L_cache", 3, high=1000),
        bias=f.flag("conv_bias", default=False),
    )
    listed = listed_layers(f, "full_attn_idxs")
    kinds = layer_kinds(
        f,
        "layer_types",
        lambda i: listed is None or i in listed,
        {CONVOLUTION: CONVOLUTION, FULL: FULL},
        kinds=(FULL, CONVOLUTION),
    )
    return [attention if kind == FULL else convolution for kind in kinds]


FAMILIES: Mapping[str, Reader] = {
    "qwen3_next": _qwen3_next,
    "qwen3_5_text": _qwen3_5,
    "qwen3_5_moe_text": _qwen3_5_moe,
    "kimi_linear": _kimi_linear,
    "olmo_hybrid": _olmo_hybrid,
    "minimax": _minimax,
    "lfm2": _lfm2,
    "lfm2_moe": _lfm2_moe,
}
