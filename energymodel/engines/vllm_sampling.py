"""What vLLM does to the logits of a sampled row beyond taking the likeliest token.

Kernels of vLLM 0.24, in the bytes that each moves for a logit (float32: 4). The older model runner
calls torch, kernel by kernel (``Sampler.forward`` in ``vllm/v1/sample/sampler.py``,
``apply_penalties`` in ``vllm/model_executor/layers/utils.py``, whose counts of tokens are 64-bit
integers for every entry of the vocabulary, made anew in each step); the newer one has fused kernels
of its own (``vllm/v1/worker/gpu/sample``). Both find the top-k and top-p with one Triton kernel
(``vllm/v1/sample/ops/topk_topp_triton.py``) or, below 8 rows, by sorting, which takes about as long;
with FlashInfer installed vLLM takes its sampler instead, which was not measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from energymodel.deployment import Deployment
from energymodel.engines.vllm_host import new_runner
from energymodel.model import ModelSpec
from energymodel.op_kinds import Op
from energymodel.steps import Floats, Steps

# Logits that a block of an element-by-element kernel takes.
BLOCK_LOGITS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel over all logits; ``row_by_row``: one block of threads takes a whole row."""

    name: str
    logit_bytes: float
    row_by_row: bool = False


OLD_RANDOM = (
    Kernel(name="temperature", logit_bytes=4 + 4),
    Kernel(name="softmax", logit_bytes=4 + 4, row_by_row=True),
    Kernel(name="noise", logit_bytes=4),
    Kernel(name="draw", logit_bytes=4 + 4 + 4),
)
OLD_PENALTIES = (
    # Zeros, and which counts are above zero: for the prompt, and for what was generated.
    Kernel(name="count_prompt", logit_bytes=8 + 8 + 1),
    Kernel(name="count_output", logit_bytes=8 + 8 + 1),
    Kernel(name="repetition_penalty", logit_bytes=4 + 4 + 1 + 1),
    # A penalty times the counts, and its subtraction from the logits.
    Kernel(name="frequency_penalty", logit_bytes=8 + 4 + 4 + 4 + 4),
    Kernel(name="presence_penalty", logit_bytes=1 + 4 + 4 + 4 + 4),
)
NEW_RANDOM = (Kernel(name="temperature", logit_bytes=4 + 4),)
# Logits, counts of generated tokens in 32 bits, one bit for each token of the prompt.
NEW_PENALTIES = (Kernel(name="penalties", logit_bytes=4 + 4 + 4 + 1 / 8),)


def kernels(model: ModelSpec, deployment: Deployment) -> tuple[Kernel, ...]:
    """Kernels of a sampled row beside those of greedy sampling."""
    random, penalties = (
        (NEW_RANDOM, NEW_PENALTIES)
        if new_runner(model, deployment)
        else (OLD_RANDOM, OLD_PENALTIES)
    )
    drawn = () if deployment.sampling == "greedy" else random
    return (*(penalties if deployment.penalties else ()), *drawn)


def sampler_seconds(
    model: ModelSpec,
    deployment: Deployment,
    steps: Steps,
    engine: Mapping[str, float],
    *,
    sm_count: int,
) -> tuple[Floats, Floats]:
    """Seconds of the sampler in each step that are in none of its calls: (GPU at work, GPU idle).

    The older runner launches its kernels one by one, with gaps between them. The search for the
    top-k and top-p takes one of the ``sm_count`` multiprocessors a row, over and over all of its
    logits, while the others do nothing.
    """
    rows = steps.sampled
    gaps = 0 if new_runner(model, deployment) else len(kernels(model, deployment))
    gap_s = np.where(rows > 0, engine.get("sampler_kernel_s", 0.0) * gaps, 0.0)
    if deployment.sampling != "filtered":
        return gap_s, np.zeros(steps.size)
    waves = np.where(rows > 0, np.maximum(rows / sm_count, 1.0), 0.0)
    seconds = engine.get("filter_logit_s", 0.0) * model.vocab_size * waves
    busy = np.minimum(rows / sm_count, 1.0)
    return gap_s + busy * seconds, (1.0 - busy) * seconds


def sampling_operations(model: ModelSpec, deployment: Deployment, made: Sequence[Op]) -> list[Op]:
    """Calls beside greedy sampling, for the rows that ``made``, the operations of a step, samples."""
    greedy = next((op for op in made if op.name == "sampling"), None)
    if greedy is None:
        return []
    rows, width = np.asarray(greedy.shape["rows"]), float(greedy.shape["width"])
    return [_call(kernel, greedy, rows, width) for kernel in kernels(model, deployment)]


def _call(kernel: Kernel, greedy: Op, rows: Floats, width: float) -> Op:
    moved = rows * (width * kernel.logit_bytes)
    shape: Mapping[str, Floats | float] = (
        {"rows": rows, "width": width, "bytes": moved}
        if kernel.row_by_row
        else {"rows": rows * (width / BLOCK_LOGITS), "width": float(BLOCK_LOGITS), "bytes": moved}
    )
    return replace(greedy, name=kernel.name, kind="elementwise", hbm_bytes=moved, shape=shape)
