"""Engine steps as arrays: the seam between the scheduler and the operations.

A step is one iteration of the engine: some prefill chunks and some decoding sequences run
together through the whole model. Steps are kept as one struct of arrays, so that a thousand of
them are lowered, timed and powered by the same few numpy calls as one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """Prompt pieces: row i is ``count[i]`` equal pieces of ``tokens[i]`` new tokens in step ``step[i]``.

    ``context`` is how many tokens of the same prompt were computed in earlier steps. ``last`` is
    1 where the piece completes its prompt, so that its step samples the first output token.
    ``bin`` is the workload bin that the request came from. All arrays have shape [n_chunks].
    """

    step: Ints
    tokens: Ints
    context: Ints
    count: Ints
    last: Ints
    bin: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Decodes:
    """Decoding sequences: row i is ``count[i]`` sequences that each add one token in step ``step[i]``.

    ``context`` is the number of tokens already in the KV cache (the new one not included); it may
    be fractional where a row stands for several steps. All arrays have shape [n_decodes].
    ``queries``: tokens that each sequence computes in a step on average, and ``samples``, how many
    of them it samples from; more than one where drafts are verified (``speculative.py``).
    """

    step: Ints
    context: Floats
    count: Ints
    bin: Ints
    queries: float = 1.0
    samples: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """``weight[i]`` engine iterations like row i, in order of time; shape [n_steps]."""

    weight: Floats
    chunks: Chunks
    decodes: Decodes

    @property
    def size(self) -> int:
        """Number of rows."""
        return int(self.weight.size)

    @property
    def decoding(self) -> Floats:
        """Sequences that decode in each step; shape [n_steps]."""
        return self.sum_decodes(np.ones_like(self.decodes.context))

    @property
    def sequences(self) -> Floats:
        """Sequences in each step, of prompts and of decoding; shape [n_steps]."""
        return self.sum_chunks(np.ones_like(self.chunks.tokens)) + self.decoding

    @property
    def tokens(self) -> Floats:
        """Tokens that each step computes; shape [n_steps]."""
        return self.sum_chunks(self.chunks.tokens) + self.decodes.queries * self.decoding

    @property
    def sampled(self) -> Floats:
        """Tokens of each step that are sampled from; shape [n_steps]."""
        return self.sum_chunks(self.chunks.last) + self.decodes.samples * self.decoding

    def sum_chunks(self, value: Floats | Ints) -> Floats:
        """Sum of ``value`` (one per chunk row, times its count) over each step; shape [n_steps]."""
        each = np.asarray(value * self.chunks.count, dtype=np.float64)
        return np.bincount(self.chunks.step, each, minlength=self.size).astype(np.float64)

    def sum_decodes(self, value: Floats | Ints) -> Floats:
        """Sum of ``value`` (one per decode row, times its count) over each step; shape [n_steps]."""
        each = np.asarray(value * self.decodes.count, dtype=np.float64)
        return np.bincount(self.decodes.step, each, minlength=self.size).astype(np.float64)
