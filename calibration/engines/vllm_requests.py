"""What is asked of vLLM in a measured run: prompts, how tokens are chosen, and a tokenizer.

Prompts are random tokens. With prefix caching the requests of a bin share the tokens that the
deployment says, and the first token behind them is a new one in every pass, so that nothing else
is found in the cache.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energymodel.prefix_cache import shared_tokens

if TYPE_CHECKING:
    from energymodel.deployment import Deployment
    from energymodel.workload import Workload

# As the ML.ENERGY benchmark v3 samples: temperature 0.8, repetition penalty 1.1.
TEMPERATURE, REPETITION_PENALTY = 0.8, 1.1
# What the generation_config.json of Qwen3 models holds.
TOP_K, TOP_P = 20, 0.95
# Tokens of lower number are left out of prompts: they are special ones in many vocabularies.
SPECIAL = 10


def sampling(deployment: "Deployment", output_tokens: int) -> dict[str, Any]:
    """Sampling parameters by the names of vLLM and of its HTTP interface.

    Every sequence goes to its full length: the output is noise, its length is the workload's.
    """
    chosen: dict[str, Any] = {"max_tokens": max(1, output_tokens), "ignore_eos": True}
    chosen["temperature"] = 0.0 if deployment.sampling == "greedy" else TEMPERATURE
    if deployment.sampling == "filtered":
        chosen |= {"top_k": TOP_K, "top_p": TOP_P}
    if deployment.penalties:
        chosen["repetition_penalty"] = REPETITION_PENALTY
    return chosen


def prompts(
    workload: "Workload", deployment: "Deployment", vocab_size: int, seed: int
) -> list[list[int]]:
    """Token ids of every request, bin by bin; requests of a bin share a prefix where cached."""
    import numpy as np

    shared, rng = np.random.default_rng(0), np.random.default_rng(seed)
    found = []
    for b in workload.bins:
        prefix = shared_tokens(b, deployment)
        low, high = SPECIAL, vocab_size - SPECIAL
        begin = shared.integers(low, high, size=prefix).tolist()
        for _ in range(b.count or 0):
            rest = rng.integers(low, high, size=b.input_tokens - prefix).tolist()
            found.append(begin + rest)
    return found


def own_tokens(workload: "Workload", deployment: "Deployment") -> list[int]:
    """Where the tokens begin that a request shares with no other, request by request."""
    places = []
    for b in workload.bins:
        place = min(shared_tokens(b, deployment), b.input_tokens - 1)
        places += [place] * (b.count or 0)
    return places


def marks(vocab_size: int) -> Iterator[int]:
    """Tokens, over and over, that tell passes apart."""
    return itertools.cycle(range(SPECIAL, vocab_size - SPECIAL))


def freshen(tokens: Sequence[list[int]], places: Sequence[int], mark: Iterator[int]) -> None:
    """Put a new token where each request's own begin: no block from there on is in the cache."""
    for prompt, place in zip(tokens, places, strict=True):
        prompt[place] = next(mark)


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A byte-level BPE tokenizer of ``vocab_size`` made-up words, as models have it.

    Detokenising one of its tokens is the same work as with a real vocabulary: a look-up, and bytes
    put together to characters.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"\u0120w{i}" for i in range(vocab_size - len(alphabet)))]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1_000_000}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts), encoding="utf-8")
