"""Which steps of vLLM replay CUDA graphs, and to how many tokens they are padded.

Facts of vLLM 0.24. Sizes are captured as ``_set_cudagraph_sizes`` in ``vllm/config/vllm.py`` lists
them, rounded up to multiples of the tokens of a decoding sequence where drafts are verified
(``adjust_cudagraph_sizes_for_spec_decode`` in ``vllm/config/compilation.py``). A step is padded to
the next captured size; beyond the largest it runs without graphs
(``vllm/v1/cudagraph_dispatcher.py`` and ``vllm/v1/worker/gpu/cudagraph_utils.py``). A step of
decoding sequences alone replays one graph, captured for sizes of no more tokens than
``max_num_seqs`` sequences have; other steps replay one graph for each piece between attentions.
With ``enforce_eager`` nothing is compiled or captured.
"""

from functools import lru_cache

import numpy as np

from energymodel.deployment import Deployment
from energymodel.steps import Floats

# ``max_cudagraph_capture_size`` is this many times ``max_num_seqs``, but not above MOST_TOKENS.
SEQS_TIMES, MOST_TOKENS = 2, 512


def padded(tokens: Floats, deployment: Deployment) -> Floats:
    """Tokens that a step really computes in its layers."""
    sizes = capture_sizes(deployment)
    if not sizes.size:
        return tokens
    following = sizes[np.minimum(np.searchsorted(sizes, tokens), sizes.size - 1)]
    return np.where(tokens > 0, np.maximum(following, tokens), tokens)


def largest(deployment: Deployment) -> float:
    """Most tokens of a step that replays graphs; 0 where there are none."""
    sizes = capture_sizes(deployment)
    return float(sizes[-1]) if sizes.size else 0.0


def largest_whole(deployment: Deployment) -> float:
    """Most tokens of a step of decoding sequences that replays one graph."""
    sizes = capture_sizes(deployment)
    queries = 1 + deployment.num_speculative_tokens
    whole = sizes[(sizes >= queries) & (sizes <= queries * deployment.max_num_seqs)]
    return float(whole[-1]) if whole.size else 0.0


def capture_sizes(deployment: Deployment) -> Floats:
    """Tokens of the steps that graphs are captured for, ascending; shape [n_sizes]."""
    if deployment.enforce_eager:
        return np.zeros(0)
    return _sizes(
        deployment.max_num_seqs,
        deployment.max_num_batched_tokens,
        1 + deployment.num_speculative_tokens,
    )


@lru_cache(maxsize=64)
def _sizes(max_num_seqs: int, max_num_batched_tokens: int, queries: int) -> Floats:
    most = min(SEQS_TIMES * max_num_seqs * queries, MOST_TOKENS, max_num_batched_tokens)
    sizes = {n for n in (1, 2, 4, *range(8, 256, 8), *range(256, most + 1, 16)) if n <= most}
    if max_num_batched_tokens <= most:
        sizes.add(max_num_batched_tokens)
    most = max(sizes)
    rounded = {-(-n // queries) * queries for n in sizes}
    fitting = sorted(n for n in rounded if n <= most) or [queries]
    found = np.array(fitting, dtype=np.float64)
    found.flags.writeable = False
    return found
