"""One GPU's share of a model under tensor parallelism, as vLLM cuts it (Megatron, arXiv 1909.08053).

Heads and inner widths are divided; what cannot be divided is repeated on every GPU: norms, routers,
biases of outputs, KV heads of which there are fewer than GPUs. The vocabulary is padded first.
"""

from dataclasses import replace

from energymodel.blocks import Block, CrossAttention, LatentAttention, Mlp, Moe, SoftmaxAttention
from energymodel.errors import InputError
from energymodel.model import ModelSpec, Stack

# vLLM pads the vocabulary to a multiple of this before it divides it.
VOCABULARY_BLOCK = 64


def shard(model: ModelSpec, size: int) -> ModelSpec:
    """What each of ``size`` GPUs holds and computes of ``model``; collectives are not in it.

    Raises:
        InputError: ``size`` does not divide what has to be divided, or a kind of block that is not
            known to be divided.
    """
    if size == 1:
        return model
    padded = -(-model.vocab_size // VOCABULARY_BLOCK) * VOCABULARY_BLOCK
    return replace(
        model,
        vocab_size=_share(padded, size, "the padded vocabulary", model.name),
        text=_stack(model.text, size, model.name),
        encoder=_stack(model.encoder, size, model.name) if model.encoder else None,
    )


def _stack(stack: Stack, size: int, name: str) -> Stack:
    known: dict[int, tuple[Block, ...]] = {}
    layers = []
    for layer in stack.layers:
        if id(layer.blocks) not in known:
            known[id(layer.blocks)] = tuple(_block(b, size, name) for b in layer.blocks)
        layers.append(replace(layer, blocks=known[id(layer.blocks)]))
    return replace(stack, layers=tuple(layers))


def _block(block: Block, size: int, name: str) -> Block:
    if isinstance(block, SoftmaxAttention | CrossAttention):
        return replace(
            block,
            num_attention_heads=_share(block.num_attention_heads, size, "heads", name),
            num_key_value_heads=_key_values(block.num_key_value_heads, size, name),
        )
    if isinstance(block, LatentAttention):
        heads = _share(block.num_attention_heads, size, "heads", name)
        return replace(block, num_attention_heads=heads)
    if isinstance(block, Mlp):
        inner = _share(block.intermediate_size, size, "intermediate_size", name)
        return replace(block, intermediate_size=inner)
    if isinstance(block, Moe):
        inner = _share(block.moe_intermediate_size, size, "moe_intermediate_size", name)
        shared = block.shared_expert
        return replace(
            block,
            moe_intermediate_size=inner,
            shared_expert=None
            if shared is None
            else replace(
                shared,
                intermediate_size=_share(shared.intermediate_size, size, "shared expert", name),
            ),
        )
    raise InputError(
        f"tensor_parallel_size must be 1 for {name}: {type(block).__name__} is not known to be divided."
    )


def _key_values(heads: int, size: int, name: str) -> int:
    """KV heads of one GPU; those that are fewer than GPUs are repeated."""
    if heads < size and size % heads == 0:
        return 1
    return _share(heads, size, "KV heads", name)


def _share(whole: int, size: int, what: str, name: str) -> int:
    if whole % size:
        raise InputError(
            f"tensor_parallel_size is {size}; it must divide {what} of {name} ({whole:,})."
        )
    return whole // size
