"""What vLLM adds to the operations of a step: padding, time outside the layers, launches, memory.

Facts of vLLM 0.24 with its default compilation: steps of up to ``largest_graph`` tokens replay
CUDA graphs captured at fixed sizes and are padded to the next one; larger steps are launched
kernel by kernel from Python, and take the longer of the GPU's time and the host's. The host works
ahead of the GPU (asynchronous scheduling), so its time is hidden otherwise. The times themselves
are measured and come from the profile's ``engine`` estimates.
"""

from dataclasses import dataclass

import numpy as np

from energymodel.deployment import Deployment
from energymodel.errors import InputError
from energymodel.hardware import GpuSpec
from energymodel.model import DTYPE_BYTES, Mlp, ModelSpec
from energymodel.profile import Profile
from energymodel.steps import Floats, Steps

# Memory outside torch's allocator (context, NCCL, cuBLAS workspaces), as vLLM reports it at start.
NON_TORCH_BYTES = 1.0e9


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTime:
    """Per step, shape [n_steps]: GPU seconds outside the layers, and the host's launch seconds.

    ``launch_s`` is 0 for steps that replay a graph. ``submit_s`` passes once, before the first
    step, while requests are taken in and the GPU has nothing to do.
    """

    outside_s: Floats
    launch_s: Floats
    submit_s: float


def largest_graph(deployment: Deployment) -> int:
    """Most tokens of a step that replays a CUDA graph (``max_cudagraph_capture_size``)."""
    return min(2 * deployment.max_num_seqs, 512)


def padded(tokens: Floats, deployment: Deployment) -> Floats:
    """Tokens rounded up to the captured sizes: 1, 2, 4, then by 8 to 256, then by 16."""
    small = np.where(tokens <= 2, tokens, np.where(tokens <= 4, 4.0, np.ceil(tokens / 8) * 8))
    captured = np.where(tokens <= 256, small, np.ceil(tokens / 16) * 16)
    return np.where(tokens <= largest_graph(deployment), captured, tokens)


def engine_time(
    model: ModelSpec, deployment: Deployment, steps: Steps, profile: Profile, requests: float
) -> EngineTime:
    """Time that the engine adds to each step and to the run."""
    e = {name: estimate.value for name, estimate in profile.engine.items()}
    decodes = steps.sum_decodes(np.ones_like(steps.decodes.context))
    seqs = steps.sum_chunks(np.ones_like(steps.chunks.tokens)) + decodes
    tokens = steps.sum_chunks(steps.chunks.tokens) + decodes
    experts = sum(not isinstance(layer.feed_forward, Mlp) for layer in model.layers)
    launch_s = e["launch_layer_s"] * len(model.layers) + e["launch_experts_s"] * experts
    eager = tokens > largest_graph(deployment)
    return EngineTime(
        outside_s=e["step_s"] + e["sequence_s"] * seqs,
        launch_s=np.where(eager, e["launch_step_s"] + launch_s, 0.0),
        submit_s=e["submit_s"] + e["submit_request_s"] * requests,
    )


def kv_capacity_tokens(model: ModelSpec, deployment: Deployment, gpu: GpuSpec) -> int:
    """Tokens that fit the KV cache: the memory share less weights, activations and the rest.

    Layers with a sliding window are counted like the others, as vLLM allots them.

    Raises:
        InputError: the model does not fit the memory of the GPU.
    """
    dtype = "bfloat16" if deployment.dtype == "auto" else deployment.dtype
    weights = model.weight_bytes(dtype=dtype, quantization=deployment.quantization)
    usable = deployment.gpu_memory_utilization * gpu.hbm_bytes
    left = usable - weights - _activation_bytes(model, deployment) - NON_TORCH_BYTES
    kv_dtype = dtype if deployment.kv_cache_dtype == "auto" else deployment.kv_cache_dtype
    per_token = model.kv_bytes_per_token(dtype="fp8" if kv_dtype.startswith("fp8") else kv_dtype)
    tokens = int(left / per_token)
    if tokens < deployment.block_size:
        raise InputError(
            f"model '{model.name}' does not fit one {gpu.full_name}: its weights take "
            f"{weights / 1e9:.1f} GB of {usable / 1e9:.1f} GB usable "
            f"(gpu_memory_utilization {deployment.gpu_memory_utilization:g}); "
            "choose a smaller model or a narrower quantization."
        )
    return tokens


def _activation_bytes(model: ModelSpec, deployment: Deployment) -> float:
    """Peak activations of the largest step: the widest block, the residual, float32 logits."""
    wide = DTYPE_BYTES["bfloat16"]
    block = max(_block_width(layer.feed_forward, model.hidden_size) for layer in model.layers)
    per_token = wide * (block + 2 * model.hidden_size)
    logits = deployment.max_num_seqs * model.vocab_size * (wide + DTYPE_BYTES["float32"])
    return deployment.max_num_batched_tokens * per_token + logits


def _block_width(block: object, hidden_size: int) -> int:
    """Values per token that a feed-forward block holds at once."""
    if isinstance(block, Mlp):
        return block.up_size + block.intermediate_size
    inner: int = block.moe_intermediate_size  # type: ignore[attr-defined]
    chosen: int = block.num_experts_per_tok  # type: ignore[attr-defined]
    return chosen * (2 * inner + max(inner, hidden_size))
