"""How a model is served: the flags of an engine, spelt as in vLLM."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from energymodel.errors import InputError

ENGINES = ("vllm", "transformers")
# How the next token is chosen: the likeliest, drawn at random, or drawn from a part of the
# vocabulary (top-k, top-p).
Sampling = Literal["greedy", "random", "filtered"]
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)


# Joules per byte that a memory of a GPU may cost.
LEAST_BYTE_J, MOST_BYTE_J = 1e-12, 1e-9
# What looks n-grams up in place of a draft model.
NGRAM = "ngram"
# Bounds of numbers in a deployment; those of the command line are the same.
MOST_DRAFTED = 64
MOST_LINK_BYTES_PER_S = 1e15
_SIZES = (
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "gpus_per_node"),
    *("max_num_seqs", "max_num_batched_tokens", "block_size"),
)
_SHARES = ("prefix_cache_hit_rate", "acceptance_rate", "draft_rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One replica of an engine. Defaults are those of vLLM's offline ``LLM`` but for two.

    vLLM, on a large GPU, caches prefixes of decoders unless told not to (``enable_prefix_caching``
    of ``vllm/config/cache.py``); here they are cached where that is asked for, since nothing else
    says that prompts begin alike. And it makes text of the tokens (``detokenize`` of
    ``vllm/sampling_params.py``); here token ids come out.

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


def check_values(deployment: Deployment) -> None:
    """Refuse numbers that no deployment can have, and ways to sample that do not exist.

    Raises:
        InputError: names the field, its range and what it is.
    """
    for field in _SIZES:
        size = getattr(deployment, field)
        if not size >= 1:
            raise InputError(f"{field} must be at least 1, got {size:,}.")
    for field in _SHARES:
        value = getattr(deployment, field)
        if value is not None and not 0.0 <= value <= 1.0:
            raise InputError(f"{field} must be from 0 to 1, got {value:g}.")
    memory = deployment.gpu_memory_utilization
    if not 0.0 < memory <= 1.0:
        raise InputError(f"gpu_memory_utilization must be above 0 and at most 1, got {memory:g}.")
    drafted = deployment.num_speculative_tokens
    if not 0 <= drafted <= MOST_DRAFTED:
        raise InputError(
            f"num_speculative_tokens must be from 0 to {MOST_DRAFTED}, got {drafted:,}."
        )
    link = deployment.node_link_bytes_per_s
    if link is not None and not 0.0 < link <= MOST_LINK_BYTES_PER_S:
        raise InputError(
            "node_link_bytes_per_s must be bytes a second above 0 and at most "
            f"{MOST_LINK_BYTES_PER_S:g}, got {link:g}."
        )
    if deployment.sampling not in SAMPLINGS:
        raise InputError(
            f"sampling must be one of {', '.join(SAMPLINGS)}, got {deployment.sampling!r}."
        )


def changed_flags(deployment: Mapping[str, object]) -> list[str]:
    """Flags that are not the defaults, as on the command line; the engine is named apart."""
    defaults = asdict(Deployment())
    return [
        f"--{key.replace('_', '-')}" + ("" if value is True else f" {value}")
        for key, value in deployment.items()
        if key != "engine" and value is not None and defaults.get(key) != value
    ]
