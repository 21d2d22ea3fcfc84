"""Models without attention, or whose attention sees a window: Mamba, RWKV, RecurrentGemma."""

from collections.abc import Mapping
from dataclasses import replace

from energymodel.blocks import Block, ChannelMix, GatedRecurrence, Mamba, Mlp, TimeMix
from energymodel.blocks.ends import EndNorm
from energymodel.errors import InputError
from energymodel.families.parts import Reader, depth, model_spec, read_attention
from energymodel.families.recurrent_parts import (
    expanded,
    read_mamba,
    read_mamba2,
)
from energymodel.fields import Fields
from energymodel.model import LayerSpec, ModelSpec


def _mamba_named(f: Fields) -> Fields:
    """Fields of the pure state-space families under the names that hybrids give them."""
    return f.named(
        mamba_n_heads="num_heads",
        mamba_d_head="head_dim",
        mamba_n_groups="n_groups",
        mamba_d_state="state_size",
        mamba_d_conv="conv_kernel",
        mamba_expand="expand",
        mamba_conv_bias="use_conv_bias",
        mamba_proj_bias="use_bias",
        mamba_dt_rank="time_step_rank",
    )


def _mamba(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    mixer = _sized(f, read_mamba(_mamba_named(f)))
    layers = (LayerSpec(blocks=(mixer,)),) * depth(f)
    return model_spec(f, name, layers, tied=True), []


def _falcon_mamba(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    mixer = _sized(f, replace(read_mamba(_mamba_named(f)), inner_norms="plain"))
    layers = (LayerSpec(blocks=(mixer,)),) * depth(f)
    return model_spec(f, name, layers, tied=True), []


def _sized(f: Fields, mixer: Mamba) -> Mamba:
    """With the width of the file where it gives one beside ``expand``: the class lets it win."""
    return replace(mixer, intermediate_size=f.integer("intermediate_size", mixer.intermediate_size))


def _mamba2(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    named = _mamba_named(f)
    mixer = read_mamba2(named, inner=expanded(named), head_dim=64, state=128, groups=8)
    layers = (LayerSpec(blocks=(mixer,)),) * depth(f)
    return model_spec(f, name, layers), []


def _rwkv(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    h = f.integer("hidden_size")
    mix = TimeMix(width=f.integer("attention_hidden_size", h), hidden_size=h)
    channel = ChannelMix(intermediate_size=f.integer("intermediate_size", 4 * h), hidden_size=h)
    layers = (LayerSpec(blocks=(mix, channel), norm="layer"),) * depth(f)
    spec = model_spec(f.named(max_position_embeddings="context_length"), name, layers)
    text = replace(spec.text, before=(EndNorm(name="pre_norm", vectors=2),))
    return replace(spec, text=text), []


def _recurrent_gemma(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    h = f.integer("hidden_size")
    bias = f.flag("attention_bias", default=False)
    attention = replace(
        read_attention(f, qkv_bias=bias, o_bias=True, rotary_factor=0.5),
        sliding_window=f.integer("attention_window_size", 2048),
    )
    width = f.integer("lru_width", h)
    recurrent = GatedRecurrence(
        width=width,
        heads=attention.num_attention_heads,
        conv_kernel=f.integer("conv1d_width", 4, high=1000),
    )
    if width % recurrent.heads:
        raise InputError(
            f"{f.where}: field 'num_attention_heads' is {recurrent.heads}; "
            f"it must divide 'lru_width' ({width})"
        )
    # The field counts gate and up projection together.
    mlp = Mlp(intermediate_size=max(f.integer("intermediate_size", 3 * h) // 2, 1), bias=True)
    listed = f.named(block_types="_block_types").sequence("block_types")
    pattern = listed or ("recurrent", "recurrent", "attention")
    if not all(kind in ("recurrent", "attention") for kind in pattern):
        raise InputError(
            f"{f.where}: field 'block_types' must hold 'recurrent' or 'attention' alone"
        )
    mixers: dict[str, Block] = {"recurrent": recurrent, "attention": attention}
    layers = tuple(
        LayerSpec(blocks=(mixers[str(pattern[i % len(pattern)])], mlp)) for i in range(depth(f))
    )
    spec = model_spec(f, name, layers, tied=True)
    softcap = f.number_or_null("logits_soft_cap", 30.0)
    return replace(spec, final_logit_softcapping=softcap), []


FAMILIES: Mapping[str, Reader] = {
    "mamba": _mamba,
    "mamba2": _mamba2,
    "falcon_mamba": _falcon_mamba,
    "rwkv": _rwkv,
    "recurrent_gemma": _recurrent_gemma,
}
