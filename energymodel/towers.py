"""Towers: what looks at the images and listens to the sound of a prompt before its layers run.

A tower is a row of parts, each of which works on rows of one kind (patches, positions, features;
see ``media.Layout``). vLLM runs an image or a clip whole, in the step that computes the first of
its tokens; images are taken to come first in a prompt, then sound, then text.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from energymodel.audio import AudioSizing
from energymodel.images import ImageSizing
from energymodel.media import Layout, Runs, total
from energymodel.steps import Chunks, Decodes, Floats, Ints, Steps
from energymodel.weights import Weight
from energymodel.workload import Bin

if TYPE_CHECKING:
    from energymodel.blocks.tower import Piece
    from energymodel.model import Stack

TOWERS = ("vision", "audio")
"""Components of predictions that are towers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Pieces, or layers, that work on the rows called ``rows``."""

    rows: str
    work: "tuple[Piece, ...] | Stack"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """``parts`` in the order of execution. ``unused`` tensors are stored, and nothing reads them.

    Engines keep towers in 16 bits, however narrow the checkpoint stores the language model.
    """

    component: Literal["vision", "audio"]
    images: ImageSizing | None = None
    audio: AudioSizing | None = None
    parts: tuple[Part, ...]
    unused: tuple[Weight, ...] = ()

    def inputs(self, b: Bin) -> int:
        """Images of a request, or its clip."""
        return b.images if self.images is not None else int(b.audio_s > 0)

    def layout(self, b: Bin) -> Layout:
        """What one image or clip of a request becomes."""
        if self.images is not None:
            # Bins are checked for both where they are read.
            return _image(self.images, b.image_width or 1, b.image_height or 1)
        assert self.audio is not None  # noqa: S101 (a tower has one of the two)
        return _sound(self.audio, b.audio_s)

    def tokens(self, b: Bin) -> int:
        """Tokens that this tower adds to a prompt."""
        return self.inputs(b) * self.layout(b).tokens if self.inputs(b) else 0

    @property
    def num_hidden_layers(self) -> int:
        """Layers of all parts."""
        return sum(len(p.work.layers) for p in self.parts if not isinstance(p.work, tuple))

    def weights(self) -> Iterator[tuple[Weight, int, Mapping[str, str]]]:
        """Every tensor and how often it occurs; none is multiplied with a token of the prompt."""
        for part in self.parts:
            if isinstance(part.work, tuple):
                found = [(w, 1) for piece in part.work for w in piece.weights(0)]
            else:
                found = [(w, count) for w, count, _ in part.work.weights()]
            for w, count in found:
                yield replace(w, role="plain", active=0), count, {}
        for w in self.unused:
            yield replace(w, role="plain", active=0), 1, {}


@lru_cache(maxsize=4096)
def _image(sizing: ImageSizing, width: int, height: int) -> Layout:
    return sizing.layout(width, height)


@lru_cache(maxsize=4096)
def _sound(sizing: AudioSizing, seconds: float) -> Layout:
    return sizing.layout(seconds)


@dataclass(frozen=True)
class Load:
    """Rows of one kind that pass a tower: ``steps`` whose chunks are its sequences.

    ``source`` is the chunk of the prompt that each comes from, ``share`` how many of it one request
    of that chunk has; both of shape [n_sequences]. ``prompt`` are the model's own steps.
    """

    steps: Steps
    source: Ints
    share: Floats
    prompt: Steps

    def asked(self, each: Floats) -> tuple[Floats, Floats]:
        """What a request of each chunk of the prompt asks, where a sequence asks ``each``."""
        size = self.prompt.chunks.tokens.size
        chunk = np.bincount(self.source, each * self.share, minlength=size).astype(np.float64)
        return chunk, np.zeros_like(self.prompt.decodes.context)

    @cached_property
    def asked_rows(self) -> tuple[Floats, Floats]:
        """The same where a sequence asks its rows."""
        return self.asked(self.steps.chunks.tokens.astype(np.float64))


def loads(
    towers: Sequence[Tower], steps: Steps, bins: Sequence[Bin]
) -> Iterator[tuple[Tower, Mapping[str, Load]]]:
    """What each tower that is used at all works on, by the name of the rows."""
    before = np.zeros(len(bins), dtype=np.int64)
    for tower in towers:
        inputs = np.array([tower.inputs(b) for b in bins], dtype=np.int64)
        if not inputs.any():
            continue
        layouts = [tower.layout(b) if n else None for b, n in zip(bins, inputs, strict=True)]
        tokens = np.array([x.tokens if x else 1 for x in layouts], dtype=np.int64)
        begun = _begun(steps.chunks, inputs, tokens, before)
        names = {part.rows for part in tower.parts}
        runs = {name: [x.rows[name] if x else () for x in layouts] for name in names}
        yield tower, {name: _load(steps, begun, of_bin) for name, of_bin in runs.items()}
        before = before + inputs * tokens


def layers_run(towers: Sequence[Tower], steps: Steps, bins: Sequence[Bin]) -> Floats:
    """Layers of towers that run at all in each step; shape [n_steps]."""
    run = np.zeros(steps.size)
    for tower, load_of in loads(towers, steps, bins):
        sequences = next(iter(load_of.values())).steps
        busy = sequences.sum_chunks(np.ones_like(sequences.chunks.tokens)) > 0
        run += np.where(busy, float(tower.num_hidden_layers), 0.0)
    return run


def features(towers: Sequence[Tower], bins: Sequence[Bin], steps: Steps) -> Ints:
    """What cross attention to the images of a request reads, for each bin; shape [n_bins].

    Nothing is shown where ``bins`` are not given.
    """
    numbers = (steps.chunks.bin, steps.decodes.bin)
    size = 1 + max((int(n.max()) for n in numbers if n.size), default=0)
    seeing = [tower for tower in towers if tower.images is not None]
    found = np.zeros(max(size, len(bins)), dtype=np.int64)
    for i, b in enumerate(bins if seeing else ()):
        if b.images:
            found[i] = b.images * sum(total(t.layout(b).rows["features"]) for t in seeing)
    return found


def _begun(chunks: Chunks, inputs: Ints, tokens: Ints, before: Ints) -> Ints:
    """Images whose first token is in each chunk, of one request; shape [n_chunks]."""
    bins = chunks.bin

    def until(position: Ints) -> Ints:
        seen = -(-(position - before[bins]) // tokens[bins])
        return np.asarray(np.clip(seen, 0, inputs[bins]), dtype=np.int64)

    return until(chunks.context + chunks.tokens) - until(chunks.context)


def _load(steps: Steps, begun: Ints, runs: Sequence[Runs]) -> Load:
    """Sequences of the images that each chunk begins, ``runs`` being those of an image of a bin."""
    chunks = steps.chunks
    kinds = np.array([len(r) for r in runs], dtype=np.int64)
    flat = np.array([pair for r in runs for pair in r], dtype=np.int64).reshape(-1, 2)
    first = np.cumsum(kinds) - kinds
    used = np.flatnonzero(begun)
    repeats = kinds[chunks.bin[used]]
    source = np.repeat(used, repeats)
    place = np.arange(source.size) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    number, rows = flat[first[chunks.bin[source]] + place].T
    share = begun[source] * number
    nothing = np.zeros(0, dtype=np.int64)
    sequences = Chunks(
        step=chunks.step[source],
        tokens=rows,
        context=np.zeros_like(rows),
        count=chunks.count[source] * share,
        last=np.zeros_like(rows),
        bin=chunks.bin[source],
    )
    decodes = Decodes(step=nothing, context=nothing.astype(float), count=nothing, bin=nothing)
    inside = replace(steps, chunks=sequences, decodes=decodes)
    return Load(steps=inside, source=source, share=share.astype(np.float64), prompt=steps)
