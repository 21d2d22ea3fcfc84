"""What vLLM adds to the operations of a step: padding, time outside the layers, launches, memory.

``vllm_graphs.py`` says which steps replay CUDA graphs, ``vllm_host.py`` what the host does. The
times themselves are measured and come from the profile's ``engines["vllm"]``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from energymodel import prefix_cache, speculative
from energymodel.blocks import (
    Block,
    LatentAttention,
    Mlp,
    Moe,
    Recurrent,
)
from energymodel.context_sums import ContextSums
from energymodel.deployment import Deployment
from energymodel.dtypes import DTYPE_BYTES
from energymodel.engines import vllm_speculative
from energymodel.engines.engine import Engine, EngineTime
from energymodel.engines.vllm_graphs import padded
from energymodel.engines.vllm_host import (
    HostWork,
    check_server,
    idle_seconds,
    launches,
    request_seconds,
    serving,
    token_mixers,
)
from energymodel.engines.vllm_sampling import sampler_seconds, sampling_operations
from energymodel.engines.vllm_workers import with_workers
from energymodel.errors import InputError
from energymodel.hardware import GpuSpec
from energymodel.media import total
from energymodel.model import ModelSpec, Stack, cache_dtype
from energymodel.ops import Op, lower
from energymodel.parallel import parallel_of
from energymodel.pipeline import micro_batches
from energymodel.profile import Profile
from energymodel.replicas import joined, split
from energymodel.scheduler import Scheduler
from energymodel.serving import Schedule, schedule_offline, scheduler_of
from energymodel.sharding import shard, stages
from energymodel.steps import Floats, Ints, Steps
from energymodel.towers import Tower, layers_run
from energymodel.vllm_memory import CacheRoom, cache_layout, room_in
from energymodel.workload import Bin, Workload

# An image and a clip of common size: memory is set aside before any is seen.
USUAL = Bin(
    input_tokens=1, output_tokens=0, images=1, image_width=1024, image_height=1024, audio_s=30.0
)
# Memory outside torch's allocator (context, NCCL, cuBLAS workspaces), as vLLM reports it at start.
NON_TORCH_BYTES = 1.0e9


def schedule(model: ModelSpec, deployment: Deployment, served: Workload, gpu: GpuSpec) -> Schedule:
    """The steps in which vLLM's scheduler serves requests that are all there at the start.

    Raises:
        InputError: the model does not fit the GPU, or a request does not fit the cache.
    """
    speculative.check(model, deployment, served)
    room = cache_room(model, deployment, gpu)
    flying = micro_batches(model, deployment, served.bins)
    lanes = split(served, flying * deployment.data_parallel_size)
    own_room = room.part(flying)
    seqs = max(deployment.max_num_seqs // flying, 1)
    own = replace(deployment, max_num_seqs=seqs) if flying > 1 else deployment
    known = {
        lane: _scheduled(model, own, lane, own_room) if lane.requests else None
        for lane in dict.fromkeys(lanes)
    }
    return joined([known[lane] for lane in lanes])


def _scheduled(
    model: ModelSpec, deployment: Deployment, served: Workload, room: CacheRoom
) -> Schedule:
    """The steps of requests that nothing else shares the engine with."""
    counted = speculative.in_steps(served, deployment)
    scheduled = schedule_offline(
        counted.workload,
        room.limits(speculative.scheduled(deployment)),
        int(room.tokens * counted.kept_share),
        async_scheduling=None if deployment.speculative_model is None else False,
        groups=room.groups,
        state_blocks=room.state_blocks,
        whole_prompts=model.reads_whole,
    )
    return counted.in_tokens(scheduled)


def lower_step(
    model: ModelSpec,
    deployment: Deployment,
    steps: Steps,
    prompt_tokens: Ints,
    bins: Sequence[Bin],
) -> tuple[Op, ...]:
    """Every call of a step: of the sampler (``vllm_sampling.py``), of drafts (``vllm_speculative.py``)."""
    made = lower(model, deployment, steps, prompt_tokens, bins)
    made = (*made, *sampling_operations(model, deployment, made))
    if deployment.speculative_model is None:
        return made
    drafts = vllm_speculative.drafting(deployment, steps)
    drafted = vllm_speculative.draft_operations(drafts, steps, prompt_tokens) if drafts else []
    return (*made, vllm_speculative.rejection(model, deployment, made, steps), *drafted)


def online(  # noqa: PLR0917 (the arguments of ``Engine.online``)
    model: ModelSpec,
    deployment: Deployment,
    served: Workload,
    gpu: GpuSpec,
    requests: Ints,
    contexts: ContextSums,
) -> Scheduler:
    """The scheduler of vLLM before any of the requests (the bin of each) has arrived.

    Raises:
        InputError: as ``schedule``; several copies, stages or draft models are not followed in time.
    """
    if deployment.data_parallel_size > 1:
        raise InputError(
            "data_parallel_size must be 1 where requests arrive in time: predict one copy at its "
            "share of the rate."
        )
    if deployment.pipeline_parallel_size > 1:
        raise InputError(
            "pipeline_parallel_size must be 1 where requests arrive in time: use "
            "tensor_parallel_size, or bins with count."
        )
    if deployment.speculative_model is not None:
        raise InputError("speculative_model must be left out where requests arrive in time.")
    room = cache_room(model, deployment, gpu)
    return scheduler_of(
        served,
        room.limits(deployment),
        room.tokens,
        groups=room.groups,
        state_blocks=room.state_blocks,
        whole_prompts=model.reads_whole,
        requests=requests,
        contexts=contexts,
    )


def engine_time(
    model: ModelSpec, deployment: Deployment, steps: Steps, profile: Profile, workload: Workload
) -> EngineTime:
    """Time that the engine adds to each step and to the run."""
    engine = {name: estimate.value for name, estimate in profile.engines["vllm"].items()}
    if deployment.server:
        check_server(engine, profile.name)
    work = launches(model, deployment, steps, workload.bins)
    sampler_s, idle_s = sampler_seconds(
        model, deployment, steps, engine, sm_count=profile.gpu.sm_count
    )
    alone = EngineTime(
        outside_s=_outside_seconds(model, steps, engine, workload.bins) + sampler_s,
        launch_s=_host_seconds(work, deployment, steps, engine),
        submit_s=idle_seconds(workload, deployment, engine),
        outside_w=engine["outside_w"],
        gap_s=idle_s,
        lead_s=np.where(np.arange(steps.size) == 0, work.lead_seconds(engine), 0.0),
    )
    if deployment.tensor_parallel_size * deployment.pipeline_parallel_size > 1:
        alone = with_workers(alone, work, steps, workload, profile.fabric)
    if deployment.speculative_model is None:
        return alone
    numbers = vllm_speculative.host_numbers(profile)
    # Nothing is scheduled ahead: what the host does but launch is in the gap between steps.
    launching = {name: s for name, s in engine.items() if name.startswith("launch_")}
    alone = replace(
        alone,
        launch_s=work.seconds(launching),
        lead_s=0.0,
        gap_s=vllm_speculative.gap_seconds(steps, numbers),
    )
    drafts = vllm_speculative.drafting(deployment, steps)
    if drafts is None:
        return alone
    of_drafts = {**launching, "launch_layer_s": numbers["launch_draft_layer_s"]}
    outside_s, launch_s = alone.outside_s, alone.launch_s
    for passes, steps_of in ((1, drafts.first), (drafts.passes, drafts.later)):
        host = launches(drafts.model, drafts.deployment, steps_of, graphs=False)
        outside_s = outside_s + passes * _outside_seconds(drafts.model, steps_of, engine)
        launch_s = launch_s + passes * host.seconds(of_drafts)
    return replace(alone, outside_s=outside_s, launch_s=launch_s)


def _host_seconds(
    work: HostWork, deployment: Deployment, steps: Steps, engine: Mapping[str, float]
) -> Floats:
    """Seconds of the host in each step: of the slower of the engine's process and the server's."""
    seconds = work.seconds(engine)
    if not deployment.server:
        return seconds
    return np.maximum(seconds, serving(steps).seconds(engine))


def _outside_seconds(
    model: ModelSpec, steps: Steps, engine: Mapping[str, float], bins: Sequence[Bin] = ()
) -> Floats:
    """GPU seconds outside the operations of each step."""
    prompts = steps.sum_chunks(steps.chunks.tokens) > 0
    encoder = np.where(prompts, len(model.encoder.layers), 0.0) if model.encoder else 0.0
    layers = token_mixers(model) + encoder + layers_run(model.towers, steps, bins)
    seconds: Floats = engine["step_s"] + engine["layer_s"] * layers
    return seconds + engine["sequence_s"] * steps.sequences


def cache_room(model: ModelSpec, deployment: Deployment, gpu: GpuSpec) -> CacheRoom:
    """What fits the caches: the memory share less weights, activations and the rest.

    Raises:
        InputError: the model does not fit the memory of the GPU.
    """
    prefix_cache.check(model, deployment)
    part = shard(model, parallel_of(deployment))
    parts = stages(part, deployment.pipeline_parallel_size)
    rooms = [_room(model, deployment, gpu, i, parts) for i in range(len(parts))]
    # All stages have as many blocks as the one with fewest.
    return min(rooms, key=lambda room: (room.tokens, room.sequences))


def _room(
    model: ModelSpec,
    deployment: Deployment,
    gpu: GpuSpec,
    index: int,
    parts: Sequence[ModelSpec],
) -> CacheRoom:
    """What fits a GPU of a stage; ``parts`` are what a GPU of each stage holds of ``model``."""
    stage = parts[index]
    dtype = "bfloat16" if deployment.dtype == "auto" else deployment.dtype
    weights = stage.weight_bytes(dtype=dtype, quantization=deployment.quantization)
    weights -= _absent_bytes(stage, index, len(parts), DTYPE_BYTES[dtype])
    draft = speculative.draft_model(deployment)
    if draft is not None:
        weights += draft.weight_bytes(dtype=dtype)
    usable = deployment.gpu_memory_utilization * gpu.hbm_bytes
    activations = _activation_bytes(stage, deployment, model.vocab_size)
    kv_dtype = cache_dtype(model, deployment.kv_cache_dtype, dtype)
    kv_dtype = "fp8" if kv_dtype.startswith("fp8") else kv_dtype
    layout = cache_layout(stage, deployment, kv_dtype=kv_dtype, dtype=dtype)
    if draft is not None:
        # Its layers are in the same groups of blocks; vLLM's pages fit both where they can.
        cached = layout.block_tokens * draft.kv_bytes_per_token(dtype=kv_dtype)
        layout = replace(layout, block_bytes=layout.block_bytes + cached)
    room = room_in(layout, usable - weights - activations - NON_TORCH_BYTES)
    if room.empty:
        states = stage.state_bytes(dtype=dtype)
        kept = f", the states of one sequence {states / 1e9:.2g} GB" if states else ""
        raise InputError(
            f"model '{model.name}' does not fit {_these(deployment)} {gpu.full_name}: weights take "
            f"{weights / 1e9:.1f} GB{kept} and the activations of a step {activations / 1e9:.1f} "
            f"GB of {usable / 1e9:.1f} GB usable{_each(deployment)}; choose a smaller model or more "
            f"GPUs (tensor_parallel_size), lower "
            f"max_num_batched_tokens and max_num_seqs, or raise gpu_memory_utilization "
            f"({deployment.gpu_memory_utilization:g})."
        )
    return room


def _these(deployment: Deployment) -> str:
    gpus = deployment.tensor_parallel_size * deployment.pipeline_parallel_size
    return "one" if gpus == 1 else f"{gpus:,} x"


def _each(deployment: Deployment) -> str:
    gpus = deployment.tensor_parallel_size * deployment.pipeline_parallel_size
    return "" if gpus == 1 else " on the fullest GPU"


def _absent_bytes(stage: ModelSpec, index: int, count: int, wide: float) -> float:
    """Tables that ``stage`` lists but does not hold: the embedding is on the first, the head last."""
    if count == 1:
        return 0.0
    table = stage.embedding_param_count * wide
    apart = stage.has_head and not stage.tie_word_embeddings
    needed = (index == 0) + (index == count - 1 and stage.has_head)
    return (1 + apart - needed) * table


def _activation_bytes(model: ModelSpec, deployment: Deployment, vocab_size: int) -> float:
    """Peak activations of the largest step: the widest block, the residual, float32 logits.

    ``vocab_size``: of the logits, which every GPU has whole.
    Or of towers, if they take more; what they give waits for the step that needs it.
    """
    wide = DTYPE_BYTES["bfloat16"]
    stacks = [model.text, *([model.encoder] if model.encoder else [])]
    per_token = wide * max(_widest(stack) + 2 * stack.hidden_size for stack in stacks)
    logits = deployment.max_num_seqs * vocab_size * (wide + DTYPE_BYTES["float32"])
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


ENGINE = Engine(
    schedule=schedule,
    lower=lower_step,
    padded=padded,
    time=engine_time,
    online=online,
    request_s=request_seconds,
    several_gpus=True,
)
