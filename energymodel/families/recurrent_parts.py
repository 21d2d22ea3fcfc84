"""Pieces that the readers of recurrent and hybrid families share: kinds of layers, state spaces."""

import math
from collections.abc import Callable, Mapping

from energymodel.blocks import Mamba, Mamba2
from energymodel.errors import InputError
from energymodel.families.parts import depth
from energymodel.fields import Fields

RECURRENT, FULL = "linear_attention", "full_attention"
LAYER_NAMES: Mapping[str, str] = {
    RECURRENT: RECURRENT,
    "mamba": RECURRENT,
    FULL: FULL,
    "attention": FULL,
}
"""Names of layer kinds: those of ``transformers`` 5, and older ones that published files use."""


def layer_kinds(
    f: Fields,
    key: str,
    rule: Callable[[int], bool],
    names: Mapping[str, str] = LAYER_NAMES,
    *,
    kinds: tuple[str, str] = (FULL, RECURRENT),
) -> list[str]:
    """The kind of each layer: listed under ``key``, else the first of ``kinds`` where ``rule`` holds."""
    layers, listed = depth(f), f.sequence(key)
    if listed is None:
        return [kinds[0] if rule(i) else kinds[1] for i in range(layers)]
    if len(listed) != layers or not all(isinstance(t, str) and t in names for t in listed):
        raise InputError(
            f"{f.where}: field '{key}' must hold {layers} entries ('num_hidden_layers'), "
            f"each one of: {', '.join(names)}"
        )
    return [names[str(t)] for t in listed]


def state_dtype(f: Fields, key: str, default: str | None = None) -> str | None:
    """Format in which vLLM keeps recurrent states, where the file names one."""
    if not f.has(key):
        return default
    found = f.text(key)
    known = ("float32", "bfloat16", "float16")
    if found not in known:
        raise InputError(f"{f.where}: field '{key}' is '{found}'; it must be one of {known}")
    return found


def read_mamba2(
    f: Fields,
    *,
    inner: int | None = None,
    heads: int = 128,
    head_dim: int | None = None,
    state: int = 256,
    groups: int = 1,
) -> Mamba2:
    """Mamba 2, fields named as Bamba does; numbers are the defaults of the family.

    ``inner`` is the width that heads must add up to where the file gives it elsewhere.
    """
    heads = f.integer("mamba_n_heads", heads, high=100_000)
    automatic = f.value("mamba_d_head") in (None, "auto") and head_dim is None
    even = max((inner or heads) // heads, 1)
    size = even if automatic else f.integer("mamba_d_head", head_dim, high=100_000)
    if inner is not None and heads * size != inner:
        key = f.names.get("mamba_n_heads", "mamba_n_heads")
        raise InputError(
            f"{f.where}: field '{key}' is {heads}; heads of {size} must add up to {inner}"
        )
    bias = f.flag("mamba_proj_bias", default=False)
    return Mamba2(
        num_heads=heads,
        head_dim=size,
        state_size=f.integer("mamba_d_state", state, high=100_000),
        n_groups=f.integer("mamba_n_groups", groups, high=100_000),
        conv_kernel=f.integer("mamba_d_conv", 4, high=1000),
        conv_bias=f.flag("mamba_conv_bias", default=True),
        in_bias=bias,
        out_bias=bias,
    )


def expanded(f: Fields) -> int:
    """Width inside a state-space layer: a multiple of the hidden size, 2 by default."""
    factor = f.optional_number("mamba_expand", high=1000.0)
    return int((2.0 if factor is None else factor) * f.integer("hidden_size"))


def read_mamba(f: Fields) -> Mamba:
    """Mamba, fields named as Jamba does."""
    return Mamba(
        intermediate_size=expanded(f),
        state_size=f.integer("mamba_d_state", 16, high=100_000),
        conv_kernel=f.integer("mamba_d_conv", 4, high=1000),
        time_step_rank=_time_step_rank(f),
        conv_bias=f.flag("mamba_conv_bias", default=True),
        bias=f.flag("mamba_proj_bias", default=False),
    )


def _time_step_rank(f: Fields) -> int:
    """Rank of the time steps; "auto" is a sixteenth of the hidden size, rounded up."""
    if f.value("mamba_dt_rank") in (None, "auto"):
        return math.ceil(f.integer("hidden_size") / 16)
    return f.integer("mamba_dt_rank", high=100_000)
