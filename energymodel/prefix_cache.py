"""What prefix caching spares: tokens of a prompt whose keys and values an earlier request left.

vLLM 0.24 (``vllm/v1/core/kv_cache_manager.py``, ``KVCacheManager.get_computed_blocks``): whole
blocks are found, and never the last token of a prompt, whose logits are wanted. What is found is
context of the rest, and lies in blocks that all its users share.
"""

from collections.abc import Sequence

from energymodel.deployment import Deployment
from energymodel.errors import InputError
from energymodel.model import ModelSpec
from energymodel.sequence_blocks import SequenceBlocks
from energymodel.workload import Bin


def check(model: ModelSpec, deployment: Deployment) -> None:
    """Refuse what vLLM does not cache, and a rate of hits where nothing is cached.

    States of recurrent layers are no blocks of tokens, and what sees the tokens behind it changes
    with them (``vllm/config/vllm.py``: off by default for both).

    Raises:
        InputError: the flags contradict each other or the model.
    """
    if not deployment.enable_prefix_caching:
        if deployment.prefix_cache_hit_rate:
            raise InputError("prefix_cache_hit_rate needs enable_prefix_caching.")
        return
    if model.reads_whole or model.state_bytes() or model.towers:
        raise InputError(
            f"enable_prefix_caching must be off for {model.name}: only prompts of text in models "
            "whose layers attend to the tokens before them are cached."
        )


def ignored(deployment: Deployment) -> list[str]:
    """A warning for requests with prefixes that the deployment computes all the same."""
    if deployment.enable_prefix_caching and deployment.engine == "vllm":
        return []
    why = "engine vllm" if deployment.engine != "vllm" else ""
    wanted = " and ".join(filter(None, (why, "--enable-prefix-caching")))
    return [f"prefix_tokens are not used: every prompt is computed whole without {wanted}."]


def shared_tokens(b: Bin, deployment: Deployment) -> int:
    """Tokens at the start of a prompt of the bin that an earlier request had, too.

    What the bin says, or else ``prefix_cache_hit_rate`` of the prompt; 0 without prefix caching.
    """
    if not deployment.enable_prefix_caching:
        return 0
    wanted = b.prefix_tokens or int(deployment.prefix_cache_hit_rate * b.input_tokens)
    return min(wanted, b.input_tokens)


def cached_tokens(b: Bin, deployment: Deployment) -> int:
    """Those of ``shared_tokens`` that are found in the cache: whole blocks, not the last token."""
    size = deployment.block_size
    return min(shared_tokens(b, deployment), b.input_tokens - 1) // size * size


class SharedPrefixes:
    """Blocks that running requests of a bin share, counted as the block pool counts references.

    The scheduler counts the blocks of each request as if they were its own; what ``join`` and
    ``leave`` return puts that right. Only layers that keep all tokens share: of a window only its
    last blocks are left.
    """

    def __init__(self, bins: Sequence[Bin], deployment: Deployment, blocks: SequenceBlocks) -> None:
        self.cached = [cached_tokens(b, deployment) for b in bins]
        sizes = [(g.count, g.ratio * blocks.size) for g in blocks.groups if g.window is None]
        self._blocks = [sum(n * (tokens // size) for n, size in sizes) for tokens in self.cached]
        self._users = [0] * len(self.cached)

    def needed(self, index: int, blocks: int) -> int:
        """Free blocks that one more request of a bin takes, where it holds ``blocks``."""
        return blocks - (self._blocks[index] if self._users[index] else 0)

    def fitting(self, index: int, blocks: int, free: int) -> int:
        """How many more requests of a bin find room, where each holds ``blocks``."""
        shared = self._blocks[index]
        first = 0 if self._users[index] else shared
        return max(free - first, 0) // (blocks - shared)

    def join(self, index: int, count: int) -> int:
        """So many requests of a bin begin to run: blocks that they do not take, as they share."""
        self._users[index] += count
        shared = self._blocks[index]
        return count * shared - (shared if self._users[index] == count else 0)

    def leave(self, index: int, count: int) -> int:
        """So many requests of a bin cease to run: blocks that they do not give back."""
        self._users[index] -= count
        shared = self._blocks[index]
        return count * shared - (0 if self._users[index] else shared)
