"""How a model is served: the flags of an engine, spelt as in vLLM."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

ENGINES = ("vllm",)


# Joules per byte that a memory of a GPU may cost.
LEAST_BYTE_J, MOST_BYTE_J = 1e-12, 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One replica of an engine. Defaults are those of vLLM's offline ``LLM`` on a large GPU.

    ``kv_cache_dtype="auto"`` keeps keys and values in what the checkpoint asks for, else in
    ``dtype``. ``power_limit_w=None`` is the
    limit that the GPU was calibrated at. ``hbm_byte_j``: joules that a byte costs in the memory of
    this board, where it is known not to be the usual (``energymodel doctor`` measures it).
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
    hbm_byte_j: float | None = None


def changed_flags(deployment: Mapping[str, object]) -> list[str]:
    """Flags that are not the defaults, as on the command line; the engine is named apart."""
    defaults = asdict(Deployment())
    return [
        f"--{key.replace('_', '-')} {value}"
        for key, value in deployment.items()
        if key != "engine" and value is not None and defaults.get(key) != value
    ]
