"""State spaces beside attention: Nemotron-H, Jamba, Bamba, Granite 4, Falcon-H1, Zamba."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from energymodel.blocks import Block, Mamba, Mamba2, Mlp, Moe, SharedTransformer, Together
from energymodel.errors import InputError
from energymodel.families.parts import (
    Reader,
    depth,
    listed_layers,
    model_spec,
    paired_layers,
    read_attention,
    read_mlp,
    read_moe,
)
from energymodel.families.recurrent_parts import (
    FULL,
    LAYER_NAMES,
    RECURRENT,
    expanded,
    layer_kinds,
    read_mamba,
    read_mamba2,
    state_dtype,
)
from energymodel.fields import MAX_LAYERS, Fields
from energymodel.model import LayerSpec, ModelSpec

HYBRID = "hybrid"
PATTERN: Mapping[str, str] = {"M": RECURRENT, "*": FULL, "-": "mlp", "E": "moe"}
"""Letters of ``hybrid_override_pattern`` (Nemotron-H)."""


def _bamba(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=8, own_bias=True, rotary_factor=0.5)
    where = listed_layers(f, "attn_layer_indices") or ()
    mixers: dict[str, Block] = {FULL: attention, RECURRENT: read_mamba2(f, inner=expanded(f))}
    kinds = [FULL if i in where else RECURRENT for i in range(depth(f))]
    mlp = read_mlp(f, bias=f.flag("mlp_bias", default=False))
    return model_spec(f, name, paired_layers([mixers[k] for k in kinds], [mlp] * len(kinds))), []


def _granite(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, own_bias=True)
    if f.value("position_embedding_type") != "rope":
        attention = replace(attention, rotary_dim=0)
    mixers: dict[str, Block] = {FULL: attention, RECURRENT: read_mamba2(f, inner=expanded(f))}
    kinds = layer_kinds(f, "layer_types", lambda _: False)
    shared = Mlp(intermediate_size=f.integer("shared_intermediate_size", 1024))
    block: Block = shared
    if f.integer("num_local_experts", 8, low=0):
        block = replace(read_moe(f, f.integer("intermediate_size")), shared_expert=shared)
    return model_spec(f, name, paired_layers([mixers[k] for k in kinds], [block] * len(kinds))), []


def _falcon_h1(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_attention(f, kv_heads=8, own_bias=True)
    # A null width of the state-space part is that of the expansion; an absent one is the default.
    absent = expanded(f) if "mamba_d_ssm" in f.config else 1024
    inner = f.integer("mamba_d_ssm", absent)
    mixer = replace(
        read_mamba2(f, inner=inner),
        out_bias=f.flag("projectors_bias", default=False),
        gated_norm=f.flag("mamba_rms_norm", default=False),
        scaled=True,
    )
    mlp = read_mlp(f, bias=f.flag("mlp_bias", default=False))
    layer = LayerSpec(blocks=(Together(parts=(mixer, attention)), mlp))
    return model_spec(f, name, (layer,) * depth(f)), []


def _nemotron_h(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = f.named(
        head_dim="attention_head_dim",
        mamba_n_heads="mamba_num_heads",
        mamba_d_head="mamba_head_dim",
        mamba_d_state="ssm_state_size",
        mamba_n_groups="n_groups",
        mamba_d_conv="conv_kernel",
        mamba_conv_bias="use_conv_bias",
        num_local_experts="n_routed_experts",
    )
    kinds = _nemotron_kinds(f)
    bias = f.flag("use_bias", default=False)
    mixer = replace(
        read_mamba2(f, head_dim=64, state=128, groups=8),
        in_bias=bias,
        out_bias=bias,
        state_dtype=state_dtype(f, "mamba_ssm_cache_dtype", "float32"),
    )
    blocks: dict[str, Block] = {RECURRENT: mixer}
    if FULL in kinds:
        blocks[FULL] = replace(read_attention(f, kv_heads=8, head_dim=128), rotary_dim=0)
    mlp_bias = f.flag("mlp_bias", default=False)
    if "mlp" in kinds:
        blocks["mlp"] = read_mlp(f, gated=False, bias=mlp_bias)
    if "moe" in kinds:
        blocks["moe"] = _nemotron_experts(f, bias=mlp_bias)
    return model_spec(f, name, tuple(LayerSpec(blocks=(blocks[k],)) for k in kinds)), []


def _nemotron_kinds(f: Fields) -> Sequence[str]:
    """What the one block of each layer is."""
    names = {**LAYER_NAMES, "mlp": "mlp", "moe": "moe"}
    key = "layers_block_type" if f.has("layers_block_type") else "layer_types"
    listed = f.sequence(key)
    if listed is not None:
        kinds = [names.get(kind) if isinstance(kind, str) else None for kind in listed]
        wanted = f"a list of: {', '.join(names)}"
    else:
        key = "hybrid_override_pattern"
        kinds = [PATTERN.get(letter) for letter in f.text(key)[: MAX_LAYERS + 1]]
        wanted = f"up to {MAX_LAYERS} letters, each one of {''.join(PATTERN)}"
    if not kinds or len(kinds) > MAX_LAYERS or None in kinds:
        raise InputError(f"{f.where}: field '{key}' must hold {wanted}")
    return [kind for kind in kinds if kind is not None]


def _nemotron_experts(f: Fields, *, bias: bool) -> Moe:
    """Experts without a gate, all behind one projection to a narrower space where there is one."""
    shared = Mlp(
        intermediate_size=f.integer("moe_shared_expert_intermediate_size", 7688),
        gated=False,
        bias=bias,
    )
    experts = read_moe(f, f.integer("moe_intermediate_size", 7688))
    latent = f.optional_integer("moe_latent_size")
    return replace(experts, gated=False, shared_expert=shared, latent_size=latent)


def _jamba(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = replace(read_attention(f, kv_heads=8), rotary_dim=0)
    mixer = replace(read_mamba(f), inner_norms="learnt")
    every, first = f.integer("attn_layer_period", 8), f.integer("attn_layer_offset", 4, low=0)
    mixers = [attention if i % every == first else mixer for i in range(depth(f))]
    mlp, inner = read_mlp(f), f.integer("intermediate_size")
    every, first = f.integer("expert_layer_period", 2), f.integer("expert_layer_offset", 1, low=0)
    routed = f.integer("num_experts", 16) > 1
    blocks = [
        read_moe(f, inner) if routed and i % every == first else mlp for i in range(len(mixers))
    ]
    return model_spec(f, name, paired_layers(mixers, blocks)), []


def _zamba(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    width = f.integer("attention_hidden_size", 2 * f.integer("hidden_size"))
    attention = replace(
        read_attention(f.named(head_dim="attention_head_dim"), head_dim=_doubled(f)),
        rotary_dim=0,
        input_size=width,
    )
    pieces = f.integer("n_mamba_heads", 2, high=1000)
    mixer = replace(read_mamba(f), heads=pieces)
    if mixer.intermediate_size % pieces:
        raise InputError(
            f"{f.where}: field 'n_mamba_heads' is {pieces}; "
            f"it must divide 'mamba_expand' x 'hidden_size' ({mixer.intermediate_size})"
        )
    period, offset = f.integer("attn_layer_period", 6), f.integer("attn_layer_offset", 4, low=0)
    kinds = layer_kinds(
        f,
        "layers_block_type",
        lambda i: i == 2 or (i > 2 and (i - 3) % period == offset),
        {**LAYER_NAMES, HYBRID: HYBRID},
        kinds=(HYBRID, RECURRENT),
    )
    shared = SharedTransformer(attention=attention, mlp=read_mlp(f))
    layers = _sharing_layers(kinds, mixer, shared, blocks=1)
    return model_spec(f, name, layers, tied=True), []


def _zamba2(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    h = f.integer("hidden_size")
    size = _doubled(f)
    attention = replace(read_attention(f, head_dim=size), head_dim=size, input_size=2 * h)
    if not f.flag("use_mem_rope", default=False):
        attention = replace(attention, rotary_dim=0)
    bias = f.flag("add_bias_linear", default=False)
    named = f.named(mamba_n_heads="n_mamba_heads", mamba_n_groups="mamba_ngroups")
    inner = expanded(f)
    mixer = replace(
        read_mamba2(named, inner=inner, heads=8, state=64),
        conv_bias=True,
        in_bias=bias,
        out_bias=bias,
    )
    shared = SharedTransformer(
        attention=attention,
        mlp=Mlp(intermediate_size=f.integer("intermediate_size", 4 * h), bias=bias),
        adapter_rank=f.integer("adapter_rank", 128),
        attention_adapters=f.flag("use_shared_attention_adapter", default=False),
    )
    hybrid = (*range(6, 42, 6), 42, 47, 51)
    kinds = layer_kinds(
        f,
        "layers_block_type",
        lambda i: i in hybrid,
        {**LAYER_NAMES, HYBRID: HYBRID},
        kinds=(HYBRID, RECURRENT),
    )
    layers = _sharing_layers(kinds, mixer, shared, blocks=f.integer("num_mem_blocks", 1))
    return model_spec(f, name, layers, tied=True), []


def _doubled(f: Fields) -> int:
    """Head size of an attention over two hidden states side by side."""
    return 2 * f.integer("hidden_size") // f.integer("num_attention_heads", high=100_000) or 1


def _sharing_layers(
    kinds: Sequence[str], mixer: Mamba | Mamba2, shared: SharedTransformer, *, blocks: int
) -> tuple[LayerSpec, ...]:
    """Layers of a state space, some with one of ``blocks`` shared transformers beside it in turn."""
    layers, met = [], 0
    for kind in kinds:
        block: Block = mixer
        if kind == HYBRID:
            block = Together(parts=(replace(shared, repeated=met >= blocks), mixer))
            met += 1
        layers.append(LayerSpec(blocks=(block,)))
    return tuple(layers)


FAMILIES: Mapping[str, Reader] = {
    "bamba": _bamba,
    "granitemoehybrid": _granite,
    "falcon_h1": _falcon_h1,
    "nemotron_h": _nemotron_h,
    "jamba": _jamba,
    "zamba": _zamba,
    "zamba2": _zamba2,
}
