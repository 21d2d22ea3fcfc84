"""How a model is served: the flags of an engine, spelt as in vLLM."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

ENGINES = ("vllm", "transformers")
# How the next token is chosen: the likeliest, drawn at random, or drawn from a part of the
# vocabulary (top-k, top-p).
SAMPLINGS = ("greedy", "random", "filtered")


# Joules per byte that a memory of a GPU may cost.
LEAST_BYTE_J, MOST_BYTE_J = 1e-12, 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One replica of an engine. Defaults are those of vLLM's offline ``LLM`` on a large GPU.

    ``kv_cache_dtype="auto"`` keeps keys and values in what the checkpoint asks for, else in
    ``dtype``. ``power_limit_w=None`` is the
    limit that the GPU was calibrated at. ``hbm_byte_j``: joules that a byte costs in the memory of
    this board, where it is known not to be the usual (``energymodel doctor`` measures it).

    A replica has ``tensor_parallel_size`` x ``pipeline_parallel_size`` x ``data_parallel_size``
    GPUs (``parallel.py``). ``enable_expert_parallel``: experts are whole, spread over GPUs.
    ``gpus_per_node`` are joined by the links that were calibrated; beyond them
    ``node_link_bytes_per_s`` is what one GPU sends to another node, taken as declared.

    ``prefix_cache_hit_rate``: share of the prompt tokens of a request that an earlier one had, too,
    so that ``enable_prefix_caching`` finds them computed. ``sampling`` is one of ``SAMPLINGS``;
    ``penalties``: for repetition, presence or frequency. ``detokenize``: text comes out, not token
    ids. ``server``: requests come over HTTP and tokens go out as a stream (``vllm serve``), not
    through ``LLM`` in one process; a server always detokenizes.
    ``speculative_model``, a model or "ngram", drafts ``num_speculative_tokens`` for each step;
    ``acceptance_rate`` is the probability that one of them is accepted where those before it were,
    ``draft_rate`` the share of a sequence's steps for which n-grams find a draft.
    """

    engine: str = "vllm"
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    enable_expert_parallel: bool = False
    gpus_per_node: int = 8
    node_link_bytes_per_s: float | None = None
    dtype: str = "bfloat16"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 16384
    gpu_memory_utilization: float = 0.9
    block_size: int = 16
    power_limit_w: float | None = None
    hbm_byte_j: float | None = None
    enforce_eager: bool = False
    enable_prefix_caching: bool = False
    prefix_cache_hit_rate: float = 0.0
    sampling: str = "greedy"
    penalties: bool = False
    detokenize: bool = False
    server: bool = False
    speculative_model: str | None = None
    num_speculative_tokens: int = 0
    acceptance_rate: float | None = None
    draft_rate: float = 1.0


def changed_flags(deployment: Mapping[str, object]) -> list[str]:
    """Flags that are not the defaults, as on the command line; the engine is named apart."""
    defaults = asdict(Deployment())
    return [
        f"--{key.replace('_', '-')}" + ("" if value is True else f" {value}")
        for key, value in deployment.items()
        if key != "engine" and value is not None and defaults.get(key) != value
    ]
