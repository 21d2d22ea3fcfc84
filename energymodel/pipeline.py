"""Pipeline parallel: how many batches are in flight, and what GPUs wait for each other.

The scheduler of vLLM keeps ``pipeline_parallel_size`` batches in flight (``max_concurrent_batches`` in
``vllm/config/vllm.py`` of 0.24), one in each stage. Where Model Runner V2 runs, a request decodes in
every ``pipeline_parallel_size``-th of them (``next_decode_eligible_step`` in
``v1/core/sched/async_scheduler.py``), so that requests stay in the batch that took their prompt in: as
many micro-batches are in flight as there were batches of prompts, at most one a stage. Under the V1
runner every batch holds all decoding requests, and the first stage waits for the tokens that the
last one samples (``_pp_receive_prev_sampled_token_ids_to_input_batch`` in
``v1/worker/gpu_model_runner.py``): one micro-batch.

With stages that take t_1 ... t_S and k micro-batches, a step of each takes max(sum t, k max t); in
that time the S GPUs of the pipeline work k sum t, and wait inside a receive for the rest.
"""

import math
from collections.abc import Sequence

import numpy as np

from energymodel.collectives import BUBBLE, COMPONENT
from energymodel.deployment import Deployment
from energymodel.model import ModelSpec
from energymodel.op_kinds import Op
from energymodel.sharding import stage_layers
from energymodel.steps import Floats
from energymodel.timing import OpTime
from energymodel.vllm_runner import by_new_runner
from energymodel.workload import Bin

HEAD_COMPONENTS = ("lm_head", "sampling")


def micro_batches(model: ModelSpec, deployment: Deployment, bins: Sequence[Bin]) -> int:
    """Batches of different requests in flight at a time, in each copy of the model.

    ``bins``: requests of all copies, which split them evenly; limits are those of one copy.
    """
    stages = deployment.pipeline_parallel_size
    if stages == 1 or not by_new_runner(model):
        return 1
    requests = sum(b.count or 0 for b in bins)
    tokens = sum(b.input_tokens * (b.count or 0) for b in bins)
    together = min(-(-requests // deployment.data_parallel_size), deployment.max_num_seqs)
    prompts = math.ceil(tokens * together / max(requests, 1) / deployment.max_num_batched_tokens)
    return max(1, min(stages, prompts, together))


def bubble(
    model: ModelSpec,
    deployment: Deployment,
    bins: Sequence[Bin],
    ops: Sequence[Op],
    times: Sequence[OpTime],
) -> tuple[Op, OpTime]:
    """What a step takes beyond its own way through the stages, because another one is in its way.

    ``shape["gpus_each"]``: GPUs of the pipeline for each micro-batch.
    """
    stages, k = deployment.pipeline_parallel_size, micro_batches(model, deployment, bins)
    seconds = [op.count * time.seconds for op, time in zip(ops, times, strict=True)]
    all_s: Floats = np.asarray(sum(seconds))
    nothing = np.zeros_like(all_s)

    def of(named: Sequence[bool]) -> Floats:
        return np.asarray(
            sum((s for s, is_one in zip(seconds, named, strict=True) if is_one), nothing)
        )

    head_s = of([op.component in HEAD_COMPONENTS or op.name == "logits_all_gather" for op in ops])
    first_s = of([op.name.startswith("embedding") for op in ops])
    layers_s = all_s - head_s - first_s
    counts = stage_layers(model.num_hidden_layers, stages)
    longest = nothing
    for i, count in enumerate(counts):
        own = layers_s * (count / model.num_hidden_layers)
        own = own + (first_s if i == 0 else 0.0) + (head_s if i == stages - 1 else 0.0)
        longest = np.maximum(longest, own)
    waits = np.maximum(k * longest - all_s, 0.0)
    op = Op(
        name=BUBBLE,
        kind=BUBBLE,
        component=COMPONENT,
        dtype=ops[0].dtype,
        stored=ops[0].stored,
        count=1,
        flop=nothing,
        hbm_bytes=nothing,
        weight_bytes=nothing,
        shape={"gpus_each": stages / k},
    )
    return op, OpTime(seconds=waits, clocked=nothing)
