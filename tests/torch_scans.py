"""Recurrences as the convention counts them, while torch counts the rest of a model.

transformers works off a scan or a delta rule by reference code whose products depend on how it cuts
a prompt. While ``counting`` is on, each of these functions runs unseen by torch's counter, and what
a token takes by the convention of ``energymodel.blocks.recurrence`` is recorded instead, from the
shapes that the function was given. Convolutions of each channel alone are no matrix products.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode, conv_flop
from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

from energymodel.model import ModelSpec

Shape = tuple[int, ...]
# Classes whose batched products are projections, of pieces that do not mix, not attention.
PROJECTING = ("Mixer", "MambaLayer", "Rglru")


@dataclass(slots=True)
class Seen:
    """FLOP of the recurrences that ran."""

    flop: float = 0.0


def _mamba2_chunks(x: "torch.Tensor", _dt: object, _a: object, b: "torch.Tensor") -> float:
    return 6.0 * x.numel() * b.shape[-1]


def _mamba_sequence(x: "torch.Tensor", _dt: object, a: "torch.Tensor", _b: object) -> float:
    return 6.0 * x.numel() * a.shape[-1]


def _state(state: "torch.Tensor", *_rest: object) -> float:
    return 6.0 * state.numel()


def _delta(_query: object, key: "torch.Tensor", value: "torch.Tensor", *_rest: object) -> float:
    return 6.0 * value.numel() * key.shape[-1]


FORMULAE: Mapping[str, Callable[..., float]] = {
    "mamba2_chunk_scan": _mamba2_chunks,
    "mamba2_selective_state_update": _state,
    "mamba_selective_scan": _mamba_sequence,
    "mamba_selective_state_update": _state,
    "torch_chunk_gated_delta_rule": _delta,
    "torch_recurrent_gated_delta_rule": _delta,
    "chunk_kimi_delta_attention": _delta,
    "recurrent_kimi_delta_attention": _delta,
}


@contextlib.contextmanager
def counting(model: "torch.nn.Module") -> Iterator[Seen]:
    """Recurrences of ``model`` hidden from torch's counter and recorded by the convention."""
    seen, module = Seen(), sys.modules[type(model).__module__]
    with contextlib.ExitStack() as stack:
        for name in FORMULAE.keys() & vars(module).keys():
            hidden = _hidden(getattr(module, name), FORMULAE[name], seen)
            stack.enter_context(mock.patch.object(module, name, hidden))
        yield seen


def _hidden(
    function: Callable[..., object], formula: Callable[..., float], seen: Seen
) -> Callable[..., object]:
    @functools.wraps(function)
    def run(*args: object, **kwargs: object) -> object:
        seen.flop += formula(*args[:4])
        with _disable_current_modes():
            return function(*args, **kwargs)

    return run


def counter() -> FlopCounterMode:
    """Torch's counter, which sees nothing in a convolution of each channel alone."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution: _convolution})


def _convolution(x: Shape, w: Shape, *args: Any, out_shape: Shape | None = None) -> int:
    if w[1] == 1 and w[0] > 1:
        return 0
    return int(conv_flop(x, w, *args, out_val=out_shape))


def projecting(model: "torch.nn.Module") -> frozenset[str]:
    """Names of the modules, as the counter gives them, whose batched products are projections.

    Torch makes a batched product of a linear layer, too, where its input is not contiguous.
    """
    root, found = type(model).__name__, []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        projects = isinstance(module, torch.nn.Linear) or type(module).__name__.endswith(PROJECTING)
        if projects and not inside:
            found.append(name)
    return frozenset(f"{root}.{name}" for name in found)


def own_cache(model: "torch.nn.Module") -> dict[str, object]:
    """The cache of a class that does not return one (RecurrentGemma)."""
    if type(model).__name__ != "RecurrentGemmaForCausalLM":
        return {}
    return {"past_key_values": DynamicCache(config=model.config)}


def states(
    cache: Sequence[object], model: "torch.nn.Module", spec: ModelSpec, seen: set[int]
) -> Iterator["torch.Tensor"]:
    """States of recurrent layers as an engine keeps them; their holders are added to ``seen``.

    The reference code keeps ``kernel`` tokens for a convolution, of which the oldest is not looked
    at again, and recurrent states in the format that its arithmetic happens to have.
    """
    formats = {getattr(block, "state_dtype", None) for la in spec.layers for block in la.leaves}
    dtype = getattr(torch, next((f for f in formats if f), "bfloat16"))
    for layer in (la for c in cache for la in getattr(c, "layers", ())):
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            seen |= {id(layer.conv_states), id(layer.recurrent_states)}
            yield from (t[..., 1:] for t in layer.conv_states.values() if t is not None)
            yield from (t.to(dtype) for t in layer.recurrent_states.values() if t is not None)
    for module in model.modules():  # RecurrentGemma keeps them in its modules
        for name in ("conv1d_state", "recurrent_states"):
            if vars(module).get(name) is not None:
                yield vars(module)[name]
