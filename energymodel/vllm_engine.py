"""What vLLM adds to the operations of a step: padding, time outside the layers, launches, memory.

Facts of vLLM 0.24 with its default compilation: steps of up to ``largest_graph`` tokens replay
CUDA graphs captured at fixed sizes and are padded to the next one; larger steps are launched
kernel by kernel from Python. Steps that hold prompt chunks replay one graph a layer with attention
launched in between; pure decode steps replay a single graph, whose launch is not noticed. A step
takes the longer of the GPU's time and the host's, which works ahead of the GPU (asynchronous
scheduling). The times themselves are measured and come from the profile's ``engine`` estimates.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from energymodel.blocks import Block, Mlp, Moe
from energymodel.deployment import Deployment
from energymodel.dtypes import DTYPE_BYTES
from energymodel.errors import InputError
from energymodel.hardware import GpuSpec
from energymodel.model import ModelSpec
from energymodel.profile import Profile
from energymodel.steps import Floats, Steps
from energymodel.workload import Workload

# Memory outside torch's allocator (context, NCCL, cuBLAS workspaces), as vLLM reports it at start.
NON_TORCH_BYTES = 1.0e9


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTime:
    """Per step, shape [n_steps]: GPU seconds outside the operations, and the host's launch seconds.

    ``submit_s`` passes once, before the first step, while requests are taken in and the GPU has
    nothing to do.
    """

    outside_s: Floats
    launch_s: Floats
    submit_s: float


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


def largest_graph(deployment: Deployment) -> int:
    """Most tokens of a step that replays a CUDA graph (``max_cudagraph_capture_size``)."""
    return min(2 * deployment.max_num_seqs, 512)


def padded(tokens: Floats, deployment: Deployment) -> Floats:
    """Tokens rounded up to the captured sizes: 1, 2, 4, then by 8 to 256, then by 16."""
    small = np.where(tokens <= 2, tokens, np.where(tokens <= 4, 4.0, np.ceil(tokens / 8) * 8))
    captured = np.where(tokens <= 256, small, np.ceil(tokens / 16) * 16)
    return np.where(tokens <= largest_graph(deployment), captured, tokens)


def launches(model: ModelSpec, deployment: Deployment, steps: Steps) -> Launches:
    """Host work of each step: none for pure decode steps within the captured sizes."""
    decodes = steps.decoding
    prompt = steps.sum_chunks(steps.chunks.tokens)
    eager = prompt + decodes > largest_graph(deployment)
    layers = float(model.num_hidden_layers)
    moes = [moe for layer in model.layers if (moe := layer.find(Moe)) is not None]
    shared = sum(moe.shared_expert is not None for moe in moes)
    return Launches(
        graph_layers=np.where(~eager & (prompt > 0), layers, 0.0),
        layers=np.where(eager, layers, 0.0),
        experts=np.where(eager, float(len(moes)), 0.0),
        shared_experts=np.where(eager, float(shared), 0.0),
        tokens=np.where(eager | (prompt > 0), prompt + decodes, 0.0),
    )


def engine_time(
    model: ModelSpec, deployment: Deployment, steps: Steps, profile: Profile, workload: Workload
) -> EngineTime:
    """Time that the engine adds to each step and to the run."""
    engine = {name: estimate.value for name, estimate in profile.engine.items()}
    decodes = steps.decoding
    seqs = steps.sum_chunks(np.ones_like(steps.chunks.tokens)) + decodes
    return EngineTime(
        outside_s=(
            engine["step_s"] + engine["layer_s"] * len(model.layers) + engine["sequence_s"] * seqs
        ),
        launch_s=launches(model, deployment, steps).seconds(engine),
        submit_s=submit_seconds(workload, engine),
    )


def submit_seconds(workload: Workload, engine: Mapping[str, float]) -> float:
    """Time to take in all requests of an offline run, before the first step."""
    requests = engine["submit_request_s"] * workload.requests
    return engine["submit_s"] + requests + engine["submit_token_s"] * workload.input_tokens


def kv_capacity_tokens(model: ModelSpec, deployment: Deployment, gpu: GpuSpec) -> int:
    """Tokens that fit the KV cache: the memory share less weights, activations and the rest.

    Layers with a sliding window are counted like the others, as vLLM allots them.

    Raises:
        InputError: the model does not fit the memory of the GPU.
    """
    dtype = "bfloat16" if deployment.dtype == "auto" else deployment.dtype
    weights = model.weight_bytes(dtype=dtype, quantization=deployment.quantization)
    usable = deployment.gpu_memory_utilization * gpu.hbm_bytes
    activations = _activation_bytes(model, deployment)
    left = usable - weights - activations - NON_TORCH_BYTES
    kv_dtype = dtype if deployment.kv_cache_dtype == "auto" else deployment.kv_cache_dtype
    per_token = model.kv_bytes_per_token(dtype="fp8" if kv_dtype.startswith("fp8") else kv_dtype)
    tokens = int(left / per_token)
    if tokens < deployment.block_size:
        raise InputError(
            f"model '{model.name}' does not fit one {gpu.full_name}: weights take "
            f"{weights / 1e9:.1f} GB and the activations of a step {activations / 1e9:.1f} GB of "
            f"{usable / 1e9:.1f} GB usable; choose a smaller model, lower max_num_batched_tokens "
            f"and max_num_seqs, or raise gpu_memory_utilization "
            f"({deployment.gpu_memory_utilization:g})."
        )
    return tokens


def _activation_bytes(model: ModelSpec, deployment: Deployment) -> float:
    """Peak activations of the largest step: the widest block, the residual, float32 logits."""
    wide = DTYPE_BYTES["bfloat16"]
    blocks = (block for layer, _ in model.layer_groups() for block in layer.blocks)
    block = max(_block_width(block, model.hidden_size) for block in blocks)
    per_token = wide * (block + 2 * model.hidden_size)
    logits = deployment.max_num_seqs * model.vocab_size * (wide + DTYPE_BYTES["float32"])
    return deployment.max_num_batched_tokens * per_token + logits


def _block_width(block: Block, hidden_size: int) -> int:
    """Values per token that a block holds at once."""
    if isinstance(block, Mlp):
        return block.up_size + block.intermediate_size
    if not isinstance(block, Moe):
        return 0  # attention is narrower than the feed-forward blocks of the same model
    inner = block.moe_intermediate_size
    return block.num_experts_per_tok * (2 * inner + max(inner, hidden_size))
