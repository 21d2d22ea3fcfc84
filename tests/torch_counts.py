"""What torch and transformers say of a model: parameters, FLOP and cache bytes.

Some conventions differ from those of ``energymodel.ops`` and are undone here: torch counts attention
unmasked, all keys for every query, where the model counts the pairs that the mask lets through; and
torch sees the outer product that makes the rotary angles as a matrix product, which an engine looks
up. Recurrences are counted as ``torch_scans`` says; their caches hold one token more than the
kernels of an engine look back to, and states in the format that the reference code happens to use.
"""

import copy
import functools
import itertools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch_scans
import transformers
from family_cases import Case
from step_builders import prefill, steps_of
from torch.utils.flop_counter import FlopCounterMode

from energymodel.blocks import (
    Block,
    CrossAttention,
    DisentangledAttention,
    LatentAttention,
    LightningAttention,
    SoftmaxAttention,
    SparseLatentAttention,
)
from energymodel.deployment import Deployment
from energymodel.model import ModelSpec, Stack, model_from_config
from energymodel.ops import Op, lower

Json = Mapping[str, object]
# Kinds of operations whose FLOP are those of a projection; others belong to the mixing of tokens.
LINEAR = ("gemm", "moe")
SCANS = ("scan_", "linear_attention_")
# What classes call their cache.
CACHES = ("past_key_values", "cache_params", "state")


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


def auto_class(model: ModelSpec) -> str:
    """The class of transformers that builds a model of this kind, as it is served."""
    if model.encoder_tokens is not None:
        return "AutoModelForSpeechSeq2Seq"
    if model.towers:
        return "AutoModelForMultimodalLM"
    return {
        "encoder": "AutoModel",
        "encoder-decoder": "AutoModelForSeq2SeqLM",
        "decoder": "AutoModelForCausalLM",
    }[model.kind]


def param_count(config: Json, auto: str = "AutoModelForCausalLM") -> int:
    """Parameters of the class on the meta device."""
    return sum(p.numel() for p in build(config, "meta", auto).parameters())


@functools.cache
def built(case: Case) -> "torch.nn.Module":
    """The tiny model on the CPU; the counter fails where a table that needs a gradient is input."""
    torch.manual_seed(0)
    return build(case.full, "cpu", case.auto).requires_grad_(False)


def spec(config: Json) -> ModelSpec:
    """Our reading of a configuration."""
    return model_from_config(config, "test")[0]


def ids(tokens: int) -> "torch.Tensor":
    """A prompt of small token numbers."""
    return (torch.arange(tokens)[None] % 50) + 3


def half(value: "torch.Tensor") -> "torch.Tensor":
    """Sound in bfloat16; token numbers as they are."""
    return value.bfloat16() if value.is_floating_point() else value


def inputs(case: Case, tokens: int) -> dict[str, "torch.Tensor"]:
    """A prompt; for an encoder-decoder also the start of the answer, for Whisper sound."""
    model = spec(case.full)
    if model.encoder is None:
        return {"input_ids": ids(tokens)}
    start = {"decoder_input_ids": ids(model.start_tokens)}
    if model.encoder_tokens is None:
        return {"input_ids": ids(tokens), **start}
    bins = built(case).config.num_mel_bins
    return {"input_features": torch.zeros(1, bins, 2 * model.encoder_tokens), **start}


def torch_prefill(case: Case, tokens: int) -> Flop:
    """A forward pass over a prompt, as torch counts it."""
    model, counter = built(case), torch_scans.counter()
    with torch_scans.counting(model) as scans, counter, torch.no_grad():
        model(**inputs(case, tokens), use_cache=False)
    return _split(counter, model, scans.flop)


def torch_decode(case: Case, context: int) -> Flop:
    """One more token after a prompt of ``context``, as torch counts it."""
    model = built(case)
    own = torch_scans.own_cache(model)
    with torch.no_grad():
        before = {**own, **model(**inputs(case, context), **own, use_cache=True)}
        more = {"input_ids": torch.tensor([[5]])}
        if "encoder_last_hidden_state" in before:
            read = (before["encoder_last_hidden_state"],)
            more = {"decoder_input_ids": torch.tensor([[5]]), "encoder_outputs": read}
        name, cache = _cache(before)
        counter = torch_scans.counter()
        with torch_scans.counting(model) as scans, counter:
            model(**more, **{name: cache}, use_cache=True)
    return _split(counter, model, scans.flop)


def _cache(output: Mapping[str, object]) -> tuple[str, object]:
    """What the class calls its cache, and the cache."""
    return next((name, output[name]) for name in CACHES if name in output)


def _split(counter: FlopCounterMode, model: "torch.nn.Module", scans: float) -> Flop:
    """Batched products are attention, all others projections; rotary angles are neither.

    ``scans``: FLOP of recurrences, which mix tokens as attention does.
    """
    modules = counter.get_flop_counts()
    everything = modules["Global"]
    rotary = sum(sum(v.values()) for k, v in modules.items() if k.endswith("rotary_emb"))
    batched = _batched(everything)
    batched -= sum(_batched(modules[name]) for name in torch_scans.projecting(model) & set(modules))
    batched -= _predictions(modules, model)
    multiplied, chosen = _every_expert(modules, model)
    batched -= multiplied
    linear = sum(everything.values()) - batched - multiplied + chosen
    return Flop(linear, batched - rotary + scans)


def _predictions(modules: Mapping[str, Mapping[object, int]], model: "torch.nn.Module") -> int:
    """FLOP of batched products in a layer but not in its attention (alternating updates)."""
    names = [
        f"{type(model).__name__}.{name}"
        for name, module in model.named_modules()
        if type(module).__name__ == "Gemma3nTextDecoderLayer"
    ]
    return sum(_batched(modules[n]) - _batched(modules[f"{n}.self_attn"]) for n in names)


def _every_expert(
    modules: Mapping[str, Mapping[object, int]], model: "torch.nn.Module"
) -> tuple[int, int]:
    """FLOP of experts that transformers multiplies with every token, and of those chosen (Llama 4)."""
    multiplied = chosen = 0
    for name, module in model.named_modules():
        if type(module).__name__ == "Llama4TextExperts":
            flop = _batched(modules[f"{type(model).__name__}.{name}"])
            router = model.get_submodule(name.rpartition(".")[0]).router
            multiplied += flop
            chosen += flop * router.top_k // router.num_experts
    return multiplied, chosen


def _batched(counts: Mapping[object, int]) -> int:
    names = ("bmm", "scaled_dot")
    return sum(n for op, n in counts.items() if any(name in str(op) for name in names))


def our_prefill(model: ModelSpec, tokens: int) -> Flop:
    """The same pass, lowered; every query of the attention sees all keys, as torch counts."""
    prompt = model.encoder_tokens or tokens
    ops = lower(model, Deployment(), prefill(prompt), np.array([prompt]))
    queries = model.start_tokens if model.encoder else tokens
    # Without an image nothing attends to one.
    unmasked = _unmasked(model.text, queries, prompt if model.encoder else 0)
    unmasked += _unmasked(model.encoder, prompt, prompt) if model.encoder else 0.0
    mixing = unmasked + _position_scores(ops) + _scans(ops)
    return Flop(_linear(ops, head_rows=queries), mixing)


def _unmasked(stack: Stack, queries: int, sources: int) -> float:
    """FLOP of attention, of ``queries`` to one another and to ``sources`` of another stack."""
    blocks = itertools.chain.from_iterable(layer.leaves for layer in stack.layers)
    return sum(
        pair_flop(b) * queries * (sources if isinstance(b, CrossAttention) else queries)
        for b in blocks
    )


def pair_flop(block: Block) -> float:
    """FLOP of all heads of an attention for one query and one key; 0 of other blocks."""
    if isinstance(block, CrossAttention | DisentangledAttention):
        return 4.0 * block.softmax.q_size
    if isinstance(block, SoftmaxAttention):
        return 4.0 * block.q_size
    if isinstance(block, LatentAttention):
        return 2.0 * (block.q_size + block.o_size)
    if isinstance(block, SparseLatentAttention):
        indexer = block.index_pair_flop if block.indexes else 0.0
        return pair_flop(block.latent) + indexer
    if isinstance(block, LightningAttention):
        # A prompt shorter than one block of the reference code is multiplied with itself.
        return 4.0 * block.size
    return 0.0


def _scans(ops: tuple[Op, ...]) -> float:
    """FLOP of recurrences."""
    return sum(op.count * op.flop.item() for op in ops if op.kind.startswith(SCANS))


def _position_scores(ops: tuple[Op, ...]) -> float:
    """FLOP of the batched products of tokens and distances (DeBERTa)."""
    return sum(op.count * op.flop.item() for op in ops if op.name.endswith("_scores"))


def our_decode(model: ModelSpec, context: int) -> Flop:
    """One token after ``context``: what a window left in the cache is what torch counts, too."""
    context = model.encoder_tokens or context
    steps = steps_of(([], [(context, 1)]))
    ops = lower(_in_windows(model), Deployment(), steps, np.array([context]))
    attention = sum(o.count * o.flop.item() for o in ops if o.kind.endswith("_attention"))
    expansion, latent = _expanded(model, context)
    return Flop(_linear(ops, head_rows=1) + expansion, attention + _scans(ops) + latent)


def _in_windows(model: ModelSpec) -> ModelSpec:
    """Pieces of the context as windows: transformers keeps the newest keys of whichever piece."""
    layers = tuple(
        replace(layer, blocks=tuple(map(_in_window, layer.blocks))) for layer in model.layers
    )
    return replace(model, text=replace(model.text, layers=layers))


def _in_window(block: Block) -> Block:
    if not isinstance(block, SoftmaxAttention) or block.chunk_size is None:
        return block
    return replace(block, chunk_size=None, sliding_window=block.chunk_size)


def _expanded(model: ModelSpec, context: int) -> tuple[float, float]:
    """What latent attention costs in transformers: (more projection, attention), FLOP.

    It expands all latents in the cache, and looks at all of them, where an engine works on the
    latents themselves, or on some. To expand that of the new token costs what the engine's products
    for that token do.
    """
    blocks = itertools.chain.from_iterable(layer.leaves for layer in model.layers)
    latent = [b for b in blocks if isinstance(b, LatentAttention | SparseLatentAttention)]
    attentions = [b.latent if isinstance(b, SparseLatentAttention) else b for b in latent]
    more = sum(2.0 * a.kv_lora_rank * a.expanded_size * context for a in attentions)
    return more, sum(pair_flop(block) * (context + 1) for block in latent)


def _linear(ops: tuple[Op, ...], *, head_rows: int) -> float:
    flop = sum(op.count * op.flop.item() for op in ops if op.kind in LINEAR)
    flop -= _position_scores(ops)
    head = [op for op in ops if op.name == "lm_head"]
    return flop + sum((head_rows - 1) * op.flop.item() for op in head)


def our_cache_bytes(model: ModelSpec, tokens: int) -> float:
    """Bytes after a prompt of ``tokens``: those of the decoder's start, and of what it reads."""
    if model.encoder is None:
        each = model.kv_bytes_per_token() + _widened_index_keys(model)
        return tokens * each + model.state_bytes()
    read = (model.encoder_tokens or tokens) * model.cross_bytes_per_token()
    return model.start_tokens * model.kv_bytes_per_token() + read


def _widened_index_keys(model: ModelSpec) -> float:
    """What keys of an indexer take more in 16 bits than in the 8 bits in which engines keep them."""
    blocks = itertools.chain.from_iterable(layer.leaves for layer in model.layers)
    sparse = [b for b in blocks if isinstance(b, SparseLatentAttention) and b.indexes]
    return sum(2.0 * b.index_head_dim - b.index_key_bytes() for b in sparse)


def cache_bytes(case: Case, tokens: int) -> int:
    """Bytes of every tensor that the real cache holds after ``tokens``, in bfloat16."""
    with warnings.catch_warnings():
        # Rotary angles of Llama 4's vision tower are complex numbers; images are not shown here.
        warnings.simplefilter("ignore")
        model = copy.deepcopy(built(case)).to(torch.bfloat16)
    with torch.no_grad():
        given = {name: half(value) for name, value in inputs(case, tokens).items()}
        own = torch_scans.own_cache(model)
        output = {**own, **model(**given, **own, use_cache=True)}
    cache = [output[name] for name in CACHES if name in output]
    seen: set[int] = set()
    states = [*torch_scans.states(cache, model, spec(case.full), seen), *_tensors(cache, seen)]
    return sum(t.nbytes for t in states)


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
