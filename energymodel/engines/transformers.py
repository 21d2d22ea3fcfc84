"""Hugging Face transformers as an engine: static batches, eager launches, SDPA, a dynamic cache.

Facts of transformers 5.17. ``GenerationMixin.generate`` (``generation/utils.py``) computes the prompts
of a batch in one forward pass, whose last position gives the first token, then one pass for each
further token. After each pass the host reads whether all sequences have ended (``StopCheck``), so the
GPU idles until the host has prepared the next one; a pass itself lasts as long as the GPU's work or
the host's launches, whichever is longer. What is not generated is one forward pass: of a decoder with
the logits of the last token, of an encoder, or of the encoder of an encoder-decoder.

``eager.py`` says what is launched; the times of the host are measured and come from the profile's
``engines["transformers"]``. ``torch.compile`` and static caches are not predicted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from energymodel.blocks import CrossAttention, Mlp, Moe, SoftmaxAttention
from energymodel.deployment import Deployment
from energymodel.dtypes import DTYPE_BYTES
from energymodel.engines.batches import static_batches
from energymodel.engines.eager import ATTENTION, kernels, unfused
from energymodel.engines.engine import Engine, EngineTime
from energymodel.errors import InputError
from energymodel.hardware import GpuSpec
from energymodel.model import ModelSpec
from energymodel.op_kinds import Op
from energymodel.ops import lower
from energymodel.profile import Profile
from energymodel.serving import Schedule
from energymodel.steps import Floats, Ints, Steps
from energymodel.workload import Bin, Workload

# Flags that a transformers deployment heeds; the others are vLLM's.
HEEDED = frozenset({"engine", "dtype", "max_num_seqs", "power_limit_w", "hbm_byte_j"})
# Of the GPU's memory: its context and what torch's allocator cannot use.
USABLE = 0.95
PRODUCTS = ("gemm", "moe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launches:
    """What the host launches in each step, [n_steps]; the profile says how long each takes.

    ``products`` are matrix products, ``rows`` all other kernels but attention. ``layers`` are those
    that run at all, ``generated`` is 1 where the step gives a token, ``begun`` where ``generate`` begins.
    """

    products: Floats
    rows: Floats
    attention: Floats
    layers: Floats
    generated: Floats
    begun: Floats


def schedule(model: ModelSpec, deployment: Deployment, served: Workload, gpu: GpuSpec) -> Schedule:
    """The forward passes of requests that are all there at the start.

    Raises:
        InputError: transformers is not calibrated for it, or a batch does not fit the memory.
    """
    _check(model, deployment, served)
    for b in served.bins:
        _check_memory(model, deployment, b, gpu)
    return static_batches(served, deployment.max_num_seqs, samples_always=model.kind == "decoder")


def _check(model: ModelSpec, deployment: Deployment, served: Workload) -> None:
    if served.online:
        raise InputError(
            "bins must have count, not requests_per_s: transformers runs batches, it serves nobody."
        )
    default = Deployment()
    for flag in sorted(set(Deployment.__dataclass_fields__) - HEEDED):
        if getattr(deployment, flag) != getattr(default, flag):
            raise InputError(f"{flag} must be left out with --engine transformers.")
    if model.quantization is not None:
        raise InputError(
            f"model '{model.name}' must be stored in 16 bits for --engine transformers, "
            f"got {model.quantization}."
        )
    known = (SoftmaxAttention, CrossAttention, Mlp, Moe)
    stacks = [model.text, *([model.encoder] if model.encoder else [])]
    blocks = (
        leaf for stack in stacks for layer, _ in stack.layer_groups() for leaf in layer.leaves
    )
    for block in blocks:
        if not isinstance(block, known):
            raise InputError(
                f"model '{model.name}' must be of attention, feed-forward blocks and experts for "
                f"--engine transformers, got {type(block).__name__}."
            )
    if any(b.images or b.audio_s for b in served.bins):
        raise InputError("bins must not have images or audio_s with --engine transformers.")


def _check_memory(model: ModelSpec, deployment: Deployment, b: Bin, gpu: GpuSpec) -> None:
    """Weights, the cache with one layer of it twice while it is copied, and what a pass holds."""
    wide = DTYPE_BYTES["bfloat16"]
    weights = model.weight_bytes()
    seqs, tokens = min(deployment.max_num_seqs, b.count or 0), b.input_tokens + b.output_tokens
    cached = model.kv_bytes_per_token() * tokens + model.cross_bytes_per_token() * b.input_tokens
    held = seqs * cached * (1 + 1 / max(model.num_hidden_layers, 1))
    mlps = (layer.find(Mlp) for layer in model.layers)
    widest = max((m.up_size + m.intermediate_size for m in mlps if m is not None), default=0)
    # A norm widens the hidden state to float32, and some of its results with it.
    pass_bytes = seqs * b.input_tokens * (6 * model.hidden_size + widest) * wide
    if weights + held + pass_bytes > USABLE * gpu.hbm_bytes:
        raise InputError(
            f"model '{model.name}' with {seqs:,} requests of {tokens:,} tokens does not fit one "
            f"{gpu.full_name}: weights take {weights / 1e9:.1f} GB, their cache {held / 1e9:.1f} GB "
            f"and a pass {pass_bytes / 1e9:.1f} GB of {gpu.hbm_bytes / 1e9:.1f} GB; lower "
            f"max_num_seqs ({deployment.max_num_seqs})."
        )


def lower_eagerly(
    model: ModelSpec,
    deployment: Deployment,
    steps: Steps,
    prompt_tokens: Ints,
    bins: Sequence[Bin],
) -> tuple[Op, ...]:
    """Every kernel of a step; arguments as of ``ops.lower``."""
    fused = lower(model, deployment, steps, prompt_tokens, bins)
    return tuple(unfused(model, fused, steps.decoding))


def pass_launches(
    model: ModelSpec, deployment: Deployment, steps: Steps, workload: Workload
) -> Launches:
    """What the host launches in each step of a workload, as the model sees it."""
    prompts = np.array([b.input_tokens for b in workload.bins], dtype=np.int64)
    generates = np.array([b.output_tokens > 0 for b in workload.bins], dtype=np.int64)
    ops = lower_eagerly(model, deployment, steps, prompts, workload.bins)
    nothing = np.zeros(steps.size)

    def calls(chosen: Sequence[Op]) -> Floats:
        each = (np.where(op.hbm_bytes > 0, float(op.count * kernels(op)), 0.0) for op in chosen)
        return sum(each, nothing)

    products = [op for op in ops if op.kind in PRODUCTS]
    attention = [op for op in ops if op.kind in ATTENTION]
    rest = [op for op in ops if op.kind not in (*PRODUCTS, *ATTENTION)]
    decodes = steps.decoding > 0
    begun = steps.sum_chunks(generates[steps.chunks.bin]) > 0
    encoder = len(model.encoder.layers) if model.encoder else 0
    writes = decodes | begun if model.encoder else np.ones(steps.size, dtype=np.bool_)
    return Launches(
        products=calls(products),
        rows=calls(rest),
        attention=calls(attention),
        layers=np.where(decodes, 0.0, float(encoder)) + writes * float(len(model.layers)),
        generated=(decodes | begun).astype(np.float64),
        begun=begun.astype(np.float64),
    )


def engine_time(
    model: ModelSpec, deployment: Deployment, steps: Steps, profile: Profile, workload: Workload
) -> EngineTime:
    """Time that the host adds to each forward pass."""
    engine = {name: estimate.value for name, estimate in profile.engines["transformers"].items()}
    return host_time(pass_launches(model, deployment, steps, workload), engine)


def host_time(work: Launches, engine: Mapping[str, float]) -> EngineTime:
    """Seconds of launches, and of what the host does while the GPU waits for it.

    ``engine`` are the values of the profile: per product, other kernel, attention and layer; and before
    each pass, before one that generates, and before one that begins to.
    """
    launch_s = (
        engine["launch_product_s"] * work.products
        + engine["launch_row_s"] * work.rows
        + engine["launch_attention_s"] * work.attention
        + engine["launch_layer_s"] * work.layers
    )
    gap_s = engine["pass_s"] + engine["token_s"] * work.generated
    return EngineTime(
        outside_s=np.zeros_like(launch_s),
        launch_s=launch_s,
        submit_s=0.0,
        gap_s=gap_s + engine["generate_s"] * work.begun,
    )


ENGINE = Engine(
    schedule=schedule, lower=lower_eagerly, padded=lambda rows, _: rows, time=engine_time
)
