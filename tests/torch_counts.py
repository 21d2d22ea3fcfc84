"""What torch and transformers say of a model: parameters, FLOP and cache bytes.

Two conventions differ from those of ``energymodel.ops`` and are undone here: torch counts attention
unmasked, all keys for every query, where the model counts the pairs that the mask lets through; and
torch sees the outer product that makes the rotary angles as a matrix product, which an engine looks
up.
"""

import copy
import functools
import itertools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from family_cases import Case
from step_builders import prefill, steps_of
from torch.utils.flop_counter import FlopCounterMode

from energymodel.blocks import Block, SoftmaxAttention
from energymodel.deployment import Deployment
from energymodel.model import ModelSpec, model_from_config
from energymodel.ops import Op, lower

Json = Mapping[str, object]
# Kinds of operations whose FLOP are those of a projection; others belong to the mixing of tokens.
LINEAR = ("gemm", "moe")


@dataclass(frozen=True, slots=True)
class Flop:
    """FLOP of projections (LM head on every row) and of attention (every query sees all keys)."""

    linear: float
    attention: float


def hf_config(config: Json) -> "transformers.PreTrainedConfig":
    """The configuration class filled as transformers would from the file, without quantisation."""
    fields = copy.deepcopy({k: v for k, v in config.items() if not k.startswith("_")})
    fields.pop("quantization_config", None)
    family = fields.pop("model_type")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoConfig.for_model(family, **fields)


def build(config: Json, device: str, auto: str = "AutoModelForCausalLM") -> "torch.nn.Module":
    """The model with random weights (none on the meta device), experts and attention eager."""
    made = hf_config(config)
    with torch.device(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, auto).from_config(
            made, attn_implementation="eager", experts_implementation="eager"
        )
    return model.eval()


def param_count(config: Json, auto: str = "AutoModelForCausalLM") -> int:
    """Parameters of the class on the meta device."""
    return sum(p.numel() for p in build(config, "meta", auto).parameters())


@functools.cache
def built(case: Case) -> "torch.nn.Module":
    """The tiny model on the CPU."""
    torch.manual_seed(0)
    return build(case.full, "cpu", case.auto)


def spec(config: Json) -> ModelSpec:
    """Our reading of a configuration."""
    return model_from_config(config, "test")[0]


def ids(tokens: int) -> "torch.Tensor":
    """A prompt of small token numbers."""
    return (torch.arange(tokens)[None] % 50) + 3


def torch_prefill(case: Case, tokens: int) -> Flop:
    """A forward pass over a prompt, as torch counts it."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        built(case)(ids(tokens), use_cache=False)
    return _split(counter)


def torch_decode(case: Case, context: int) -> Flop:
    """One more token after a prompt of ``context``, as torch counts it."""
    model = built(case)
    with torch.no_grad():
        cache = model(ids(context), use_cache=True).past_key_values
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.tensor([[5]]), past_key_values=cache, use_cache=True)
    return _split(counter)


def _split(counter: FlopCounterMode) -> Flop:
    """Batched products are attention, all others projections; rotary angles are neither."""
    modules = counter.get_flop_counts()
    everything = modules["Global"]
    rotary = sum(sum(v.values()) for k, v in modules.items() if k.endswith("rotary_emb"))
    batched = sum(
        n for op, n in everything.items() if any(s in str(op) for s in ("bmm", "scaled_dot"))
    )
    return Flop(sum(everything.values()) - batched, batched - rotary)


def our_prefill(model: ModelSpec, tokens: int) -> Flop:
    """The same pass, lowered; every query of the attention sees all keys, as torch counts."""
    ops = lower(model, Deployment(), prefill(tokens), np.array([tokens]))
    blocks = itertools.chain.from_iterable(layer.blocks for layer in model.layers)
    unmasked = sum(pair_flop(block) * tokens**2 for block in blocks)
    return Flop(_linear(ops, head_rows=tokens), unmasked)


def pair_flop(block: Block) -> float:
    """FLOP of all heads of an attention for one query and one key; 0 of other blocks."""
    if isinstance(block, SoftmaxAttention):
        return 4.0 * block.q_size
    return 0.0


def our_decode(model: ModelSpec, context: int) -> Flop:
    """One token after ``context``: what a window left in the cache is what torch counts, too."""
    steps = steps_of(([], [(context, 1)]))
    ops = lower(model, Deployment(), steps, np.array([context]))
    attention = sum(o.count * o.flop.item() for o in ops if o.kind.endswith("_attention"))
    return Flop(_linear(ops, head_rows=1), attention)


def _linear(ops: tuple[Op, ...], *, head_rows: int) -> float:
    flop = sum(op.count * op.flop.item() for op in ops if op.kind in LINEAR)
    head = [op for op in ops if op.name == "lm_head"]
    return flop + sum((head_rows - 1) * op.flop.item() for op in head)


def cache_bytes(case: Case, tokens: int) -> int:
    """Bytes of every tensor that the real cache holds after ``tokens``, in bfloat16."""
    model = copy.deepcopy(built(case)).to(torch.bfloat16)
    with torch.no_grad():
        cache = model(ids(tokens), use_cache=True).past_key_values
    return sum(t.nbytes for t in _tensors(cache, set()))


def _tensors(holder: object, seen: set[int]) -> Iterator["torch.Tensor"]:
    """Every tensor inside a cache object, each once."""
    if id(holder) in seen:
        return
    seen.add(id(holder))
    if isinstance(holder, torch.Tensor):
        if holder.is_floating_point():  # not the counters that some layers keep
            yield holder
    elif isinstance(holder, Mapping):
        for value in holder.values():
            yield from _tensors(value, seen)
    elif isinstance(holder, list | tuple):
        for value in holder:
            yield from _tensors(value, seen)
    elif type(holder).__module__.startswith("transformers") and hasattr(holder, "__dict__"):
        for value in vars(holder).values():
            yield from _tensors(value, seen)
