"""What vLLM adds to the operations of a step: padding, time outside the layers, launches, memory.

Facts of vLLM 0.24 with its default compilation: steps of up to ``largest_graph`` tokens replay
CUDA graphs captured at fixed sizes and are padded to the next one; larger steps are launched
kernel by kernel from Python. Steps that hold prompt chunks replay one graph a layer with attention
launched in between; pure decode steps replay a single graph, whose launch is not noticed. A step
takes the longer of the GPU's time and the host's, which works ahead of the GPU (asynchronous
scheduling). The times themselves are measured and come from the profile's ``engines["vllm"]``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from energymodel.blocks import (
    Block,
    ChannelMix,
    CrossAttention,
    LatentAttention,
    Mlp,
    Moe,
    Recurrent,
)
from energymodel.deployment import Deployment
from energymodel.dtypes import DTYPE_BYTES
from energymodel.engines.engine import Engine, EngineTime
from energymodel.errors import InputError
from energymodel.hardware import GpuSpec
from energymodel.media import total
from energymodel.model import ModelSpec, Stack, cache_dtype
from energymodel.ops import lower
from energymodel.profile import Profile
from energymodel.serving import Schedule, schedule_offline
from energymodel.steps import Floats, Steps
from energymodel.towers import Tower, layers_run
from energymodel.vllm_memory import CacheRoom, cache_layout, room_in
from energymodel.workload import Bin, Workload

# An image and a clip of common size: memory is set aside before any is seen.
USUAL = Bin(
    input_tokens=1, output_tokens=0, images=1, image_width=1024, image_height=1024, audio_s=30.0
)
# Memory outside torch's allocator (context, NCCL, cuBLAS workspaces), as vLLM reports it at start.
NON_TORCH_BYTES = 1.0e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Launches:
    """How often each piece of host work is done, per step [n_steps]; the profile times them."""

    graph_layers: Floats
    layers: Floats
    experts: Floats
    shared_experts: Floats
    tokens: Floats

    def seconds(self, engine: Mapping[str, float]) -> Floats:
        """Host seconds to launch each step."""
        return (
            engine["launch_graph_layer_s"] * self.graph_layers
            + engine["launch_layer_s"] * self.layers
            + engine["launch_experts_s"] * self.experts
            + engine["launch_shared_expert_s"] * self.shared_experts
            + engine["launch_token_s"] * self.tokens
        )


def schedule(model: ModelSpec, deployment: Deployment, served: Workload, gpu: GpuSpec) -> Schedule:
    """The steps in which vLLM's scheduler serves requests that are all there at the start.

    Raises:
        InputError: the model does not fit the GPU, or a request does not fit the cache.
    """
    room = cache_room(model, deployment, gpu)
    return schedule_offline(
        served,
        room.limits(deployment),
        room.tokens,
        groups=room.groups,
        state_blocks=room.state_blocks,
        whole_prompts=model.reads_whole,
    )


def largest_graph(deployment: Deployment) -> int:
    """Most tokens of a step that replays a CUDA graph (``max_cudagraph_capture_size``)."""
    return min(2 * deployment.max_num_seqs, 512)


def padded(tokens: Floats, deployment: Deployment) -> Floats:
    """Tokens rounded up to the captured sizes: 1, 2, 4, then by 8 to 256, then by 16."""
    small = np.where(tokens <= 2, tokens, np.where(tokens <= 4, 4.0, np.ceil(tokens / 8) * 8))
    captured = np.where(tokens <= 256, small, np.ceil(tokens / 16) * 16)
    return np.where(tokens <= largest_graph(deployment), captured, tokens)


def launches(
    model: ModelSpec, deployment: Deployment, steps: Steps, bins: Sequence[Bin] = ()
) -> Launches:
    """Host work of each step: none for pure decode steps within the captured sizes.

    An encoder in front of a decoder is launched kernel by kernel, and so are towers, in the steps
    that use them (``bins`` say what requests show).
    """
    decodes = steps.decoding
    prompt = steps.sum_chunks(steps.chunks.tokens)
    eager = _first_tokens(model, steps) + decodes > largest_graph(deployment)
    encoder = float(len(model.encoder.layers)) if model.encoder else 0.0
    layers = float(_token_mixers(model))
    moes = [moe for layer in model.layers if (moe := layer.find(Moe)) is not None]
    shared = sum(moe.shared_expert is not None for moe in moes)
    return Launches(
        graph_layers=np.where(~eager & (prompt > 0), layers, 0.0),
        layers=(
            np.where(eager, layers, 0.0)
            + np.where(prompt > 0, encoder, 0.0)
            + layers_run(model.towers, steps, bins)
        ),
        experts=np.where(eager, float(len(moes)), 0.0),
        shared_experts=np.where(eager, float(shared), 0.0),
        tokens=np.where(eager | (prompt > 0), prompt + decodes, 0.0),
    )


def _token_mixers(model: ModelSpec) -> int:
    """Blocks that mix the tokens of a sequence: one a layer in the models that were measured.

    Each is launched apart from the graphs between them. Nemotron-H has layers of a feed-forward
    block alone, Falcon-H1 two mixers a layer.
    """
    apart = (Mlp, Moe, ChannelMix, CrossAttention)
    return sum(
        count * sum(not isinstance(leaf, apart) for leaf in layer.leaves)
        for layer, count in model.layer_groups()
    )


def _first_tokens(model: ModelSpec, steps: Steps) -> Floats:
    """Tokens of prompts in the layers that generate: of an encoder-decoder, only its start."""
    if model.encoder is None:
        return steps.sum_chunks(steps.chunks.tokens)
    return model.start_tokens * steps.sum_chunks(steps.chunks.last)


def engine_time(
    model: ModelSpec, deployment: Deployment, steps: Steps, profile: Profile, workload: Workload
) -> EngineTime:
    """Time that the engine adds to each step and to the run."""
    engine = {name: estimate.value for name, estimate in profile.engines["vllm"].items()}
    decodes = steps.decoding
    seqs = steps.sum_chunks(np.ones_like(steps.chunks.tokens)) + decodes
    prompts = steps.sum_chunks(steps.chunks.tokens) > 0
    encoder = np.where(prompts, len(model.encoder.layers), 0.0) if model.encoder else 0.0
    layers = _token_mixers(model) + encoder + layers_run(model.towers, steps, workload.bins)
    return EngineTime(
        outside_s=engine["step_s"] + engine["layer_s"] * layers + engine["sequence_s"] * seqs,
        launch_s=launches(model, deployment, steps, workload.bins).seconds(engine),
        submit_s=submit_seconds(workload, engine),
        outside_w=engine["outside_w"],
    )


def submit_seconds(workload: Workload, engine: Mapping[str, float]) -> float:
    """Time to take in all requests of an offline run, before the first step."""
    requests = engine["submit_request_s"] * workload.requests
    return engine["submit_s"] + requests + engine["submit_token_s"] * workload.input_tokens


def cache_room(model: ModelSpec, deployment: Deployment, gpu: GpuSpec) -> CacheRoom:
    """What fits the caches: the memory share less weights, activations and the rest.

    Raises:
        InputError: the model does not fit the memory of the GPU.
    """
    dtype = "bfloat16" if deployment.dtype == "auto" else deployment.dtype
    weights = model.weight_bytes(dtype=dtype, quantization=deployment.quantization)
    usable = deployment.gpu_memory_utilization * gpu.hbm_bytes
    activations = _activation_bytes(model, deployment)
    kv_dtype = cache_dtype(model, deployment.kv_cache_dtype, dtype)
    kv_dtype = "fp8" if kv_dtype.startswith("fp8") else kv_dtype
    layout = cache_layout(model, deployment, kv_dtype=kv_dtype, dtype=dtype)
    room = room_in(layout, usable - weights - activations - NON_TORCH_BYTES)
    if room.empty:
        states = model.state_bytes(dtype=dtype)
        kept = f", the states of one sequence {states / 1e9:.2g} GB" if states else ""
        raise InputError(
            f"model '{model.name}' does not fit one {gpu.full_name}: weights take "
            f"{weights / 1e9:.1f} GB{kept} and the activations of a step {activations / 1e9:.1f} "
            f"GB of {usable / 1e9:.1f} GB usable; choose a smaller model, lower "
            f"max_num_batched_tokens and max_num_seqs, or raise gpu_memory_utilization "
            f"({deployment.gpu_memory_utilization:g})."
        )
    return room


def _activation_bytes(model: ModelSpec, deployment: Deployment) -> float:
    """Peak activations of the largest step: the widest block, the residual, float32 logits.

    Or of towers, if they take more; what they give waits for the step that needs it.
    """
    wide = DTYPE_BYTES["bfloat16"]
    stacks = [model.text, *([model.encoder] if model.encoder else [])]
    per_token = wide * max(_widest(stack) + 2 * stack.hidden_size for stack in stacks)
    logits = deployment.max_num_seqs * model.vocab_size * (wide + DTYPE_BYTES["float32"])
    budget = deployment.max_num_batched_tokens
    towers = wide * max((_tower_values(tower, budget) for tower in model.towers), default=0)
    waiting = budget * model.hidden_size * wide if model.towers else 0.0
    return max(budget * per_token + logits, towers) + waiting


def _tower_values(tower: Tower, budget: int) -> int:
    """Values that a tower holds at once for ``budget`` features of the usual inputs."""
    layout = tower.layout(USUAL)
    inputs = max(budget // total(layout.rows["features"]), 1)
    stacks = ((part.rows, part.work) for part in tower.parts if isinstance(part.work, Stack))
    return inputs * max(
        total(layout.rows[rows]) * (_widest(stack) + 2 * stack.hidden_size)
        for rows, stack in stacks
    )


def _widest(stack: Stack) -> int:
    """Values per token of the widest block."""
    blocks = (block for layer, _ in stack.layer_groups() for block in layer.leaves)
    return max(_block_width(block, stack.hidden_size) for block in blocks)


def _block_width(block: Block, hidden_size: int) -> int:
    """Values per token that a block holds at once."""
    if isinstance(block, Mlp):
        return block.up_size + block.intermediate_size
    if isinstance(block, LatentAttention):
        return 2 * block.q_size + block.expanded_size  # queries, and the keys and values expanded
    if isinstance(block, Recurrent):
        # What its projections give, and what the last of them reads.
        linear = (w for w in block.weights(hidden_size) if w.role == "linear")
        return sum(w.params for w in linear) // hidden_size
    if not isinstance(block, Moe):
        return 0  # attention is narrower than the feed-forward blocks of the same model
    inner = block.moe_intermediate_size
    return block.num_experts_per_tok * (2 * inner + max(inner, hidden_size))


ENGINE = Engine(schedule=schedule, lower=lower, padded=padded, time=engine_time)
