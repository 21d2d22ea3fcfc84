"""Gemma 3n and 4: inputs of each layer's own, shared caches, global layers with wider heads."""

from collections.abc import Mapping
from dataclasses import replace

from energymodel.blocks import AltUp, BesideExperts, Block, Laurel, Mlp, PerLayerGate
from energymodel.blocks.ends import End, Projection
from energymodel.blocks.per_layer import PerLayerInputs
from energymodel.errors import InputError
from energymodel.families.parts import (
    Reader,
    Windows,
    depth,
    model_spec,
    own_window,
    paired_layers,
    read_attention,
    read_moe,
    windows_by_layer,
)
from energymodel.fields import Fields
from energymodel.model import ModelSpec


def _gemma3n(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    layers, copies = depth(f), f.integer("altup_num_inputs", 4, high=100)
    attention = read_attention(f, kv_heads=2, head_dim=256, own_bias=True, qk_norm="head")
    windows = windows_by_layer(f, own_window(f, 512), lambda i: (i + 1) % 5 != 0)
    first = _first_shared(f, 15)
    attentions = [
        replace(attention, v_norm=True, sliding_window=window, shares_kv=i >= first)
        for i, window in enumerate(windows)
    ]
    mlps = [
        Mlp(intermediate_size=inner, sparse=sparse)
        for inner, sparse in zip(_widths(f), _sparse(f), strict=True)
    ]
    width = f.integer("hidden_size_per_layer_input", 256)
    outside = (
        AltUp(inputs=copies),
        Laurel(rank=f.integer("laurel_rank", 64)),
        PerLayerGate(width=width, streams=copies - 1),
    )
    pairs = paired_layers(attentions, mlps, layout="sandwich")
    spec = model_spec(f, name, tuple(replace(layer, outside=outside) for layer in pairs), tied=True)
    h = spec.hidden_size
    into = Projection(name="altup_projection", component="altup", n=h, k=h)
    out = Projection(name="altup_unembed_projection", component="altup", n=h, k=h)
    before: tuple[End, ...] = (_inputs(f, layers, width), *((into,) * (copies - 1)))
    return replace(
        spec,
        text=replace(spec.text, before=before, after=(out,) * (copies - 1)),
        final_logit_softcapping=f.number_or_null("final_logit_softcapping", 30.0),
    ), []


def _widths(f: Fields) -> list[int]:
    """Inner width of each layer: one number, or one for each."""
    layers = depth(f)
    if not isinstance(f.value("intermediate_size"), list | tuple):
        return [f.integer("intermediate_size")] * layers
    widths = f.sequence("intermediate_size") or ()
    if len(widths) != layers:
        raise InputError(
            f"{f.where}: field 'intermediate_size' holds {len(widths)} numbers for {layers} layers"
        )
    return [Fields({"intermediate_size": w}, f.where).integer("intermediate_size") for w in widths]


def _sparse(f: Fields) -> list[bool]:
    """Layers of which ``activation_sparsity_pattern`` drops a share of the gate's values."""
    layers, pattern = depth(f), f.sequence("activation_sparsity_pattern")
    if pattern is None:
        return [i < 10 < layers for i in range(layers)]
    if len(pattern) != layers or not all(isinstance(share, int | float) for share in pattern):
        raise InputError(
            f"{f.where}: field 'activation_sparsity_pattern' must hold a number for each of "
            f"{layers} layers"
        )
    return [bool(share) for share in pattern]


def _gemma4(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    layers, given = depth(f), "hidden_size_per_layer_input" in f.config
    first = _first_shared(f, 0)
    attentions = _wide_globally(f, _last_global(f), first)
    inner = f.integer("intermediate_size")
    wide = 2 if f.flag("use_double_wide_mlp", default=False) else 1
    mlps: list[Block] = [
        Mlp(intermediate_size=inner * (wide if i >= first else 1)) for i in range(layers)
    ]
    if f.flag("enable_moe_block", default=False):
        routed = f.named(num_experts_per_tok="top_k_experts")
        experts = replace(read_moe(routed, f.integer("moe_intermediate_size")), router_vectors=1)
        mlps = [BesideExperts(mlp=m, experts=experts) for m in mlps if isinstance(m, Mlp)]
    pairs = paired_layers(attentions, mlps, layout="sandwich")
    cap = f.optional_number("final_logit_softcapping")
    # A null switches the inputs of single layers off.
    width = f.integer("hidden_size_per_layer_input", 0 if given else 256, low=0)
    if width:
        pairs = tuple(replace(layer, outside=(PerLayerGate(width=width),)) for layer in pairs)
    spec = replace(model_spec(f, name, pairs, tied=True), final_logit_softcapping=cap)
    if width:
        spec = replace(spec, text=replace(spec.text, before=(_inputs(f, layers, width),)))
    return spec, []


def _last_global(f: Fields) -> Windows:
    """Five layers of six slide, but the last layer never does."""
    windows = windows_by_layer(f, own_window(f, 512), lambda i: (i + 1) % 6 != 0)
    return [*windows[:-1], None]


def _wide_globally(f: Fields, windows: Windows, first_shared: int) -> list[Block]:
    """Global layers have heads of ``global_head_dim``, of which a quarter is rotated.

    Where ``attention_k_eq_v`` is set, their values are their keys, with a number of heads of their
    own.
    """
    local = read_attention(f, kv_heads=4, head_dim=256, own_bias=True, qk_norm="head")
    local = replace(local, v_norm=True)
    size = f.integer("global_head_dim", 512, high=100_000)
    same, groups = f.flag("attention_k_eq_v", default=False), local.num_key_value_heads
    if same:
        groups = f.integer("num_global_key_value_heads", groups, high=local.num_attention_heads)
    rotary, parameters = 0.25, f.section("rope_parameters")
    everywhere = parameters.section("full_attention") if parameters else None
    if everywhere is not None:
        rotary = everywhere.optional_number("partial_rotary_factor", high=1.0) or rotary
    wide = replace(
        local,
        head_dim=size,
        num_key_value_heads=groups,
        rotary_dim=int(size * rotary),
        k_is_v=same,
    )
    return [
        replace(local if window else wide, sliding_window=window, shares_kv=i >= first_shared)
        for i, window in enumerate(windows)
    ]


def _first_shared(f: Fields, default: int) -> int:
    """The first layer that reads what an earlier one cached."""
    layers = depth(f)
    return layers - f.integer("num_kv_shared_layers", default, low=0, high=layers - 1)


def _inputs(f: Fields, layers: int, width: int) -> PerLayerInputs:
    rows = f.integer("vocab_size_per_layer_input", 262_144)
    return PerLayerInputs(rows=rows, layers=layers, width=width)


FAMILIES: Mapping[str, Reader] = {
    "gemma3n_text": _gemma3n,
    "gemma4_text": _gemma4,
}
