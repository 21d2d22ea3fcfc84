"""How a model is served: the flags of an engine, spelt as in vLLM."""

from dataclasses import dataclass

ENGINES = ("vllm",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One replica of an engine. Defaults are those of vLLM's offline ``LLM`` on a large GPU.

    ``kv_cache_dtype="auto"`` keeps keys and values in ``dtype``. ``power_limit_w=None`` is the
    limit that the GPU was calibrated at.
    """

    engine: str = "vllm"
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    dtype: str = "bfloat16"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 16384
    gpu_memory_utilization: float = 0.9
    block_size: int = 16
    power_limit_w: float | None = None
