"""What a model is made of: layers of blocks, parameters, bytes.

``ModelSpec`` holds the facts of a Hugging Face ``config.json`` that matter for energy, with the
names used there. ``model_from_config`` reads one; the readers of the single families are in
``families``.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from energymodel.blocks import (
    Block,
    CrossAttention,
    DisentangledAttention,
    Mlp,
    Moe,
    SoftmaxAttention,
    leaves,
)
from energymodel.blocks.ends import End
from energymodel.dtypes import DTYPE_BYTES
from energymodel.errors import InputError
from energymodel.towers import Tower
from energymodel.weights import Weight, table, vector

__all__ = ["LayerSpec", "Mlp", "ModelSpec", "Moe", "Stack", "model_from_config"]

Norm = Literal["rms", "layer", "scale", "plain"]
NORM_VECTORS: Mapping[Norm, int] = {"rms": 1, "layer": 2, "scale": 1, "plain": 0}
"""Learnt vectors of one normalisation: a scale; a scale and a shift; a scale after the mean is
taken off (Cohere, ModernBERT); none (OLMo 1)."""

Layout = Literal["pre", "post", "post_sum", "sandwich", "parallel", "parallel_two"]
"""Where a layer normalises: before each block; each block's result (OLMo 2); the sum of the
residual and each block's result (BERT); before and after each block (Gemma 2, 3); once, before
blocks that run side by side (Phi-2); before each of such blocks (GPT-NeoX)."""

Kind = Literal["decoder", "encoder", "encoder-decoder"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """Blocks that run one after the other, each within a residual connection.

    ``formats`` are those of weights that the checkpoint stores narrower than 16 bits, by name.
    ``repeated``: the weights are those of an earlier layer (ALBERT). ``outside`` are blocks outside
    of those residual connections, with norms and sums of their own (Gemma 3n). ``other_params``:
    learnt vectors without an operation of their own, such as layer scales.
    """

    blocks: tuple[Block, ...]
    norm: Norm = "rms"
    layout: Layout = "pre"
    formats: tuple[tuple[str, str], ...] = ()
    repeated: bool = False
    outside: tuple[Block, ...] = ()
    other_params: int = 0

    @property
    def norm_vectors(self) -> int:
        """Learnt vectors of one normalisation."""
        return NORM_VECTORS[self.norm]

    @property
    def norms(self) -> int:
        """Normalisations of the hidden state."""
        if self.layout == "parallel":
            return 1
        return (2 if self.layout == "sandwich" else 1) * len(self.blocks)

    @property
    def leaves(self) -> tuple[Block, ...]:
        """Its blocks, and in the place of those that are made of others their parts."""
        return tuple(leaf for b in self.blocks for leaf in leaves(b))

    def find(self, kind: type[T]) -> T | None:
        """The first block of a kind, or None."""
        return next((b for b in self.leaves if isinstance(b, kind)), None)

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Every tensor of the layer."""
        every = (*self.blocks, *self.outside)
        blocks = (w for b in every for w in b.weights(hidden_size, self.norm_vectors))
        vectors = self.norms * self.norm_vectors * hidden_size + self.other_params
        return (*blocks, *([vector("norm", vectors)] if vectors else []))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Layers of one width, the normalisation behind them, and tensors outside layers.

    ``before`` and ``after`` are what runs outside the layers: after the look-up of the embedding
    (which an audio encoder does without: ``embeds`` is off) and after the final normalisation.
    ``final_norm`` is None where nothing normalises after the last layer.
    """

    hidden_size: int
    layers: tuple[LayerSpec, ...]
    final_norm: Norm | None = "rms"
    before: tuple[End, ...] = ()
    after: tuple[End, ...] = ()
    other: tuple[Weight, ...] = ()
    embeds: bool = True

    def layer_groups(self) -> tuple[tuple[LayerSpec, int], ...]:
        """Distinct layers, in order of first appearance, with how often each occurs."""
        # Most layers are one object: count objects first, compare what is left by value.
        objects = {id(layer): layer for layer in self.layers}
        groups: Counter[LayerSpec] = Counter()
        for key, count in Counter(map(id, self.layers)).items():
            groups[objects[key]] += count
        return tuple(groups.items())

    def weights(self) -> Iterator[tuple[Weight, int, Mapping[str, str]]]:
        """Every tensor, how often it occurs, and the formats of its layer."""
        for layer, count in self.layer_groups():
            if not layer.repeated:
                formats = dict(layer.formats)
                for w in layer.weights(self.hidden_size):
                    yield w, count, formats
        if self.final_norm is not None:
            yield vector("final_norm", NORM_VECTORS[self.final_norm] * self.hidden_size), 1, {}
        for end in (*self.before, *self.after):
            for w in end.weights(self.hidden_size):
                yield w, 1, {}
        for w in self.other:
            yield w, 1, {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A language model, spelt as in its ``config.json``.

    ``text`` are the layers that the tokens of a request pass; ``encoder`` those that its prompt
    passes first, in an encoder-decoder, whose decoder begins every answer with ``start_tokens``.
    ``encoder_tokens`` is given where the encoder sees so many positions however short the input is
    (Whisper: 30 s of sound, padded with silence). ``has_head``: logits over the vocabulary are computed.
    ``embedding_size`` is the width of the embedding table where it differs from the layers'.
    ``mtp`` are layers that predict further tokens (DeepSeek V3): stored by the checkpoint, run
    only where an engine speculates with them, and counted in no total. ``towers`` look at the images
    of a prompt and listen to its sound. ``quantization`` is the method that the checkpoint was made
    with, ``kv_cache_dtype`` what it asks the cache to be kept in; None where it is not quantised, or
    asks for nothing. ``assumed``: its ``model_type`` is not known, and it was read like another.
    """

    name: str
    model_type: str
    vocab_size: int
    tie_word_embeddings: bool
    text: Stack
    encoder: Stack | None = None
    start_tokens: int = 1
    encoder_tokens: int | None = None
    has_head: bool = True
    lm_head_bias: bool = False
    embedding_size: int | None = None
    final_logit_softcapping: float | None = None
    max_position_embeddings: int | None = None
    mtp: Stack | None = None
    towers: tuple[Tower, ...] = ()
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    assumed: bool = False

    @property
    def hidden_size(self) -> int:
        """Width of the text layers."""
        return self.text.hidden_size

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The text layers."""
        return self.text.layers

    @property
    def num_hidden_layers(self) -> int:
        """Number of text layers."""
        return len(self.layers)

    @property
    def kind(self) -> Kind:
        """Whether the model generates, reads, or reads with one stack and generates with another."""
        if self.encoder is not None:
            return "encoder-decoder"
        return "decoder" if self.has_head else "encoder"

    @property
    def reads_whole(self) -> bool:
        """Whether a prompt must be in one step, because its tokens see those behind them."""
        blocks = (block for layer, _ in self.layer_groups() for block in layer.blocks)
        return self.encoder is not None or any(
            isinstance(b, DisentangledAttention)
            or (isinstance(b, SoftmaxAttention) and not b.causal)
            for b in blocks
        )

    @property
    def regime(self) -> Literal["dense", "moe"]:
        """Which accuracy figures apply: whether any layer routes to experts."""
        return "moe" if any(layer.find(Moe) for layer in self.layers) else "dense"

    def layer_groups(self) -> tuple[tuple[LayerSpec, int], ...]:
        """Distinct text layers, in order of first appearance, with how often each occurs."""
        return self.text.layer_groups()

    @property
    def embedding_param_count(self) -> int:
        """Parameters of the token embedding table."""
        return self.vocab_size * (self.embedding_size or self.hidden_size)

    @property
    def param_count(self) -> int:
        """All parameters; tied embeddings and repeated layers count once."""
        return sum(count * w.params for w, count, _ in self._weights())

    @property
    def active_param_count(self) -> int:
        """Parameters that one token is multiplied with.

        The LM head is included, tied or not; the embedding table as such is not (a look-up
        multiplies nothing), nor are the experts that the router does not choose, nor towers. Cards that
        count the table too ("A3B") give a larger number by vocab_size x hidden_size.
        """
        head = self.embedding_param_count if self.has_head and self.tie_word_embeddings else 0
        return head + sum(count * w.active_params for w, count, _ in self._weights())

    def weight_bytes(self, *, dtype: str = "bfloat16", quantization: str | None = None) -> float:
        """Bytes of all weights as an engine keeps them in GPU memory.

        ``quantization="fp8"`` stores the projections and the experts in one byte (their scales,
        one for each matrix, are neglected); embeddings, LM head, norms, router and biases keep
        ``dtype``. What the checkpoint itself stores narrower keeps that form.
        """
        online = quantized(self, quantization)
        return sum(
            count * w.params * DTYPE_BYTES[formats.get(w.name) or _online(w, online) or dtype]
            for w, count, formats in self._weights()
        )

    def kv_bytes_per_token(self, *, dtype: str = "bfloat16") -> float:
        """Bytes that one token adds to the KV cache over all layers, before any window is full.

        Of an encoder-decoder: one generated token. What the prompt leaves for cross attention is
        ``cross_bytes_per_token``.
        """
        return self._cache(DTYPE_BYTES[dtype], cross=False)

    def cross_bytes_per_token(self, *, dtype: str = "bfloat16") -> float:
        """Bytes that one token of the prompt leaves in the caches of cross attention."""
        return self._cache(DTYPE_BYTES[dtype], cross=True)

    def state_bytes(self, *, dtype: str = "bfloat16") -> float:
        """Bytes that a sequence takes in recurrent and convolution states, however long it is."""
        wide = DTYPE_BYTES[dtype]
        groups = self.layer_groups()
        return sum(n * b.state_bytes(wide) for layer, n in groups for b in layer.blocks)

    def _cache(self, element_bytes: float, *, cross: bool) -> float:
        return sum(
            n * b.kv_bytes_per_token(element_bytes)
            for layer, n in self.layer_groups()
            for b in layer.blocks
            if isinstance(b, CrossAttention) == cross
        )

    def _weights(self) -> Iterator[tuple[Weight, int, Mapping[str, str]]]:
        yield table("embedding", self.embedding_param_count), 1, {}
        if self.has_head and not self.tie_word_embeddings:
            # Not a projection to quantise: engines keep the head in 16 bits.
            yield vector("lm_head", self.embedding_param_count), 1, {}
        if self.lm_head_bias:
            yield vector("lm_head.bias", self.vocab_size), 1, {}
        yield from self.text.weights()
        if self.encoder is not None:
            yield from self.encoder.weights()
        for tower in self.towers:
            yield from tower.weights()


ONLINE: Mapping[str, str] = {"fp8": "fp8", "bitsandbytes": "nf4"}
"""Formats that an engine gives a wide checkpoint while it loads it, by the name of the method."""


def quantized(model: ModelSpec, quantization: str | None) -> str | None:
    """Format that ``--quantization`` gives projections and experts; None leaves them as they are.

    Raises:
        InputError: it is not known, or the checkpoint is stored in another format already.
    """
    # vLLM names the kernels that run such a checkpoint by themselves, too.
    method = quantization and quantization.removesuffix("_marlin")
    if method is None or method == model.quantization:
        return None
    if model.quantization is None and method in ONLINE:
        return ONLINE[method]
    stored = model.quantization
    reason = f"the checkpoint is already {stored}" if stored else f"known: {', '.join(ONLINE)}"
    raise InputError(f"quantization '{quantization}' is not supported for this model ({reason})")


def cache_dtype(model: ModelSpec, asked: str, dtype: str) -> str:
    """Format of cached keys and values where ``--kv-cache-dtype`` is ``asked``."""
    return (model.kv_cache_dtype or dtype) if asked == "auto" else asked


def layer_formats(
    layer: LayerSpec, hidden_size: int, online: str | None
) -> tuple[tuple[str, str], ...]:
    """Formats of a layer's weights by name, those of ``quantized`` included."""
    if online is None:
        return layer.formats
    narrow = (w.name for w in layer.weights(hidden_size) if _online(w, online))
    return tuple((name, online) for name in narrow)


def _online(weight: Weight, online: str | None) -> str | None:
    """Format of a weight under an engine's own quantisation; None where it stays wide."""
    return None if weight.role == "plain" else online


def model_from_config(config: Mapping[str, object], name: str) -> tuple[ModelSpec, list[str]]:
    """Read a Hugging Face ``config.json``; returns the model and warnings, one sentence each."""
    from energymodel.families import read_family  # families needs the types above

    return read_family(config, name)
