"""One GPU's share of a model: tensor parallel as vLLM cuts it, experts spread, stages of layers.

Heads and inner widths are divided (Megatron, arXiv 1909.08053); what cannot be divided is repeated on
every GPU: norms, routers, biases of outputs, projections to a latent, KV heads (and groups of Mamba 2)
of which there are fewer than GPUs. The vocabulary is padded first. Experts are cut along their inner
width by all GPUs that share them, those of data-parallel copies included, or spread whole
(``FusedMoEParallelConfig.make`` in ``fused_moe/config.py`` of vLLM 0.24). Towers are taken to run
whole on every GPU.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from energymodel.blocks import (
    BesideExperts,
    Block,
    CrossAttention,
    GatedDelta,
    LatentAttention,
    LightningAttention,
    Mamba,
    Mamba2,
    Mlp,
    Moe,
    ShortConvolution,
    SoftmaxAttention,
    SparseLatentAttention,
    Together,
)
from energymodel.errors import InputError
from energymodel.model import ModelSpec, Stack
from energymodel.parallel import Parallel, check_link

# vLLM pads the vocabulary to a multiple of this before it divides it.
VOCABULARY_BLOCK = 64

CUT: Mapping[type, Mapping[str, str]] = {
    SoftmaxAttention: {"num_attention_heads": "heads"},
    CrossAttention: {"num_attention_heads": "heads"},
    LatentAttention: {"num_attention_heads": "heads"},
    Mlp: {"intermediate_size": "intermediate_size"},
    Mamba: {"intermediate_size": "intermediate_size"},
    Mamba2: {"num_heads": "heads"},
    GatedDelta: {"num_key_heads": "key heads", "num_value_heads": "value heads"},
    LightningAttention: {"num_heads": "heads"},
    ShortConvolution: {"width": "the width of convolutions"},
}
"""What of a block is divided, and what that is called."""

REPEATED: Mapping[type, Mapping[str, str]] = {
    SoftmaxAttention: {"num_key_value_heads": "KV heads"},
    CrossAttention: {"num_key_value_heads": "KV heads"},
    Mamba2: {"n_groups": "groups of B and C"},
}
"""What is divided, or repeated where there is less of it than GPUs (``mamba_mixer2.py`` of vLLM)."""

B = TypeVar("B", bound=Block)


def shard(model: ModelSpec, groups: Parallel) -> ModelSpec:
    """What one GPU of each stage holds and computes of ``model``; collectives are not in it.

    Raises:
        InputError: the number of GPUs does not divide what has to be divided, a kind of block that
            is not known to be divided, or copies on several nodes share experts without a link.
    """
    if groups.expert_gpus == 1:
        return model
    padded = -(-model.vocab_size // VOCABULARY_BLOCK) * VOCABULARY_BLOCK
    return replace(
        model,
        vocab_size=model.vocab_size
        if groups.tensor == 1
        else _share(padded, groups.tensor, "the padded vocabulary", model.name),
        text=_stack(model.text, groups, model.name),
        encoder=_stack(model.encoder, groups, model.name) if model.encoder else None,
    )


def _stack(stack: Stack, groups: Parallel, name: str) -> Stack:
    known: dict[int, tuple[Block, ...]] = {}
    layers = []
    for layer in stack.layers:
        if id(layer.blocks) not in known:
            known[id(layer.blocks)] = tuple(_block(b, groups, name) for b in layer.blocks)
        layers.append(replace(layer, blocks=known[id(layer.blocks)]))
    return replace(stack, layers=tuple(layers))


def _block(block: Block, groups: Parallel, name: str) -> Block:
    if isinstance(block, Moe):
        return _experts(block, groups, name)
    if isinstance(block, BesideExperts):
        return replace(
            block,
            mlp=_divided(block.mlp, groups.tensor, name),
            experts=_experts(block.experts, groups, name),
        )
    if groups.tensor == 1:
        return block
    if isinstance(block, Together):
        return replace(block, parts=tuple(_divided(p, groups.tensor, name) for p in block.parts))
    return _divided(block, groups.tensor, name)


def _divided(block: B, size: int, name: str) -> B:
    """A block of which each GPU has its heads, or its part of the inner width."""
    if isinstance(block, SparseLatentAttention):
        return replace(block, latent=_divided(block.latent, size, name))
    if type(block) not in CUT:
        raise InputError(
            f"tensor_parallel_size must be 1 for {name}: {type(block).__name__} is not known to be "
            "divided."
        )
    cut = {
        field: _share(getattr(block, field), size, what, name)
        for field, what in CUT[type(block)].items()
    }
    repeated = {
        field: _repeated(getattr(block, field), size, what, name)
        for field, what in REPEATED.get(type(block), {}).items()
    }
    changes: dict[str, Any] = cut | repeated
    return replace(block, **changes)


def _experts(block: Moe, groups: Parallel, name: str) -> Moe:
    """Routed experts of one GPU; the shared one is cut like any feed-forward block."""
    shared = block.shared_expert
    if shared is not None:
        block = replace(block, shared_expert=_divided(shared, groups.tensor, name))
    if groups.experts and groups.expert_gpus > block.num_experts:
        raise InputError(
            f"enable_expert_parallel spreads experts over {groups.expert_gpus} GPUs, but {name} "
            f"has {block.num_experts}."
        )
    check_link(groups, groups.gpus)
    if groups.experts:
        return replace(block, gpus=groups.expert_gpus)
    inner = _share(block.moe_intermediate_size, groups.expert_gpus, "moe_intermediate_size", name)
    return replace(block, moe_intermediate_size=inner)


def _repeated(heads: int, size: int, what: str, name: str) -> int:
    """Heads of one GPU of what is repeated where there are fewer than GPUs."""
    if heads < size and size % heads == 0:
        return 1
    return _share(heads, size, what, name)


def _share(whole: int, size: int, what: str, name: str) -> int:
    if whole % size:
        raise InputError(
            f"tensor_parallel_size is {size}; it must divide {what} of {name} ({whole:,})."
        )
    return whole // size


# --- stages ---------------------------------------------------------------------------------------


def stage_layers(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each stage of a pipeline: equal parts, what is left over before the last stage.

    ``get_pp_indices`` in ``vllm/distributed/utils.py`` of 0.24.
    """
    counts = [layers // stages] * stages
    for i in range(2, layers % stages + 2):
        counts[-i] += 1
    return tuple(counts)


def stages(model: ModelSpec, count: int) -> tuple[ModelSpec, ...]:
    """The model with the layers of each stage alone, its ends left as they are.

    Raises:
        InputError: there are fewer layers than stages, or the model is not one stack of layers.
    """
    if count == 1:
        return (model,)
    if model.encoder is not None or model.towers:
        raise InputError(
            f"pipeline_parallel_size must be 1 for {model.name}: only models of one stack of layers "
            "are divided into stages."
        )
    if count > model.num_hidden_layers:
        raise InputError(
            f"pipeline_parallel_size is {count}; {model.name} has {model.num_hidden_layers} layers."
        )
    found, first = [], 0
    for size in stage_layers(model.num_hidden_layers, count):
        layers = model.layers[first : first + size]
        found.append(replace(model, text=replace(model.text, layers=layers)))
        first += size
    return tuple(found)
