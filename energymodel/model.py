"""What a model is made of: layers, parameters, bytes.

``ModelSpec`` holds the facts of a Hugging Face ``config.json`` that matter for energy, with the
names used there. ``model_from_config`` reads one; the readers of the single families are in
``families.py``.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from energymodel.attention import SoftmaxAttention
from energymodel.errors import InputError

DTYPE_BYTES: Mapping[str, float] = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "fp8": 1.0,
    # OCP Microscaling MXFP4: blocks of 32 four-bit values share one eight-bit scale, 4.25 bits each.
    "mxfp4": 4.25 / 8,
}

Norm = Literal["rms", "layer", "plain"]
NORM_VECTORS: Mapping[Norm, int] = {"rms": 1, "layer": 2, "plain": 0}
"""Learnt vectors of one normalisation: a scale; a scale and a shift; none (OLMo 1)."""

Layout = Literal["pre", "post", "sandwich", "parallel"]
NORMS_PER_LAYER: Mapping[Layout, int] = {"pre": 2, "post": 2, "sandwich": 4, "parallel": 1}
"""Where a layer normalises: before each block; after it (OLMo 2); both (Gemma 2, 3); once, before
an attention and an MLP that run side by side (Phi-2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """Dense feed-forward block; ``gated`` has a gate beside the up projection (SwiGLU, GeGLU)."""

    intermediate_size: int
    gated: bool = True
    bias: bool = False

    @property
    def up_size(self) -> int:
        """Width of the (fused gate and) up projection."""
        return (2 if self.gated else 1) * self.intermediate_size

    def param_count(self, hidden_size: int) -> int:
        """Parameters of the two or three projections."""
        weights = hidden_size * (self.up_size + self.intermediate_size)
        return weights + (self.up_size + hidden_size if self.bias else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moe:
    """Routed gated experts and, in some families, one shared expert that every token visits.

    ``expert_dtype`` is set where the checkpoint itself stores the experts quantised (gpt-oss).
    """

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert: Mlp | None = None
    shared_expert_gate: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    expert_dtype: str | None = None

    def expert_param_count(self, hidden_size: int) -> int:
        """Parameters of one routed expert."""
        expert = Mlp(intermediate_size=self.moe_intermediate_size, bias=self.expert_bias)
        return expert.param_count(hidden_size)

    def router_param_count(self, hidden_size: int) -> int:
        """Parameters of the router and of the gate of the shared expert."""
        router = self.num_experts * (hidden_size + (1 if self.router_bias else 0))
        return router + (hidden_size if self.shared_expert_gate else 0)

    def shared_param_count(self, hidden_size: int) -> int:
        """Parameters of the shared expert, 0 where there is none."""
        return self.shared_expert.param_count(hidden_size) if self.shared_expert else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One decoder layer."""

    attention: SoftmaxAttention
    feed_forward: Mlp | Moe
    norm: Norm = "rms"
    layout: Layout = "pre"

    def attention_param_count(self, hidden_size: int) -> int:
        """Parameters of the projections of the attention block."""
        a = self.attention
        weights = hidden_size * (a.qkv_size + a.q_size)
        return weights + (a.qkv_size if a.qkv_bias else 0) + (hidden_size if a.o_bias else 0)

    def vector_param_count(self, hidden_size: int) -> int:
        """Parameters that are vectors: normalisations, those of q and k, and sinks."""
        a = self.attention
        qk_widths = {None: 0, "head": 2 * a.head_dim, "hidden": a.q_size + a.kv_size}
        width = NORMS_PER_LAYER[self.layout] * hidden_size + qk_widths[a.qk_norm]
        return NORM_VECTORS[self.norm] * width + (a.num_attention_heads if a.sinks else 0)

    def linear_param_count(self, hidden_size: int) -> int:
        """Parameters of the projections outside routed experts: what ``fp8`` quantises."""
        count = self.attention_param_count(hidden_size)
        if isinstance(self.feed_forward, Mlp):
            return count + self.feed_forward.param_count(hidden_size)
        return count + self.feed_forward.shared_param_count(hidden_size)

    def router_param_count(self, hidden_size: int) -> int:
        """Parameters of the router, 0 in a dense layer."""
        moe = self.feed_forward
        return moe.router_param_count(hidden_size) if isinstance(moe, Moe) else 0

    def expert_param_count(self, hidden_size: int, *, active: bool = False) -> int:
        """Parameters of all routed experts, or of those that one token visits."""
        moe = self.feed_forward
        if not isinstance(moe, Moe):
            return 0
        experts = moe.num_experts_per_tok if active else moe.num_experts
        return experts * moe.expert_param_count(hidden_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only language model, spelt as in its ``config.json``."""

    name: str
    model_type: str
    hidden_size: int
    vocab_size: int
    tie_word_embeddings: bool
    layers: tuple[LayerSpec, ...]
    lm_head_bias: bool = False
    final_logit_softcapping: float | None = None
    max_position_embeddings: int | None = None

    @property
    def num_hidden_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def regime(self) -> Literal["dense", "moe"]:
        """Which accuracy figures apply: whether any layer routes to experts."""
        return (
            "moe" if any(isinstance(layer.feed_forward, Moe) for layer in self.layers) else "dense"
        )

    def layer_groups(self) -> tuple[tuple[LayerSpec, int], ...]:
        """Distinct layers, in order of first appearance, with how often each occurs."""
        # Most layers are one object: count objects first, compare what is left by value.
        objects = {id(layer): layer for layer in self.layers}
        groups: Counter[LayerSpec] = Counter()
        for key, count in Counter(map(id, self.layers)).items():
            groups[objects[key]] += count
        return tuple(groups.items())

    @property
    def embedding_param_count(self) -> int:
        """Parameters of the token embedding table."""
        return self.vocab_size * self.hidden_size

    @property
    def param_count(self) -> int:
        """All parameters of the text decoder; tied embeddings count once."""
        head = 0 if self.tie_word_embeddings else self.embedding_param_count
        head += self.vocab_size if self.lm_head_bias else 0
        return self.embedding_param_count + head + self._layer_params(active=False)

    @property
    def active_param_count(self) -> int:
        """Parameters that one token is multiplied with.

        The LM head is included, tied or not; the embedding table as such is not (a look-up
        multiplies nothing), nor are the experts that the router does not choose. Model cards that
        count the table too ("A3B") give a larger number by vocab_size x hidden_size.
        """
        head = self.embedding_param_count + (self.vocab_size if self.lm_head_bias else 0)
        return head + self._layer_params(active=True)

    def weight_bytes(self, *, dtype: str = "bfloat16", quantization: str | None = None) -> float:
        """Bytes of all weights as an engine keeps them in GPU memory.

        ``quantization="fp8"`` stores the projections and the experts in one byte (their scales,
        one for each matrix, are neglected); embeddings, LM head, norms, router and biases keep
        ``dtype``. Experts that the checkpoint stores quantised keep that form.
        """
        wide = DTYPE_BYTES[dtype]
        saved = 0.0
        for layer, count in self.layer_groups():
            linear, expert = linear_dtypes(layer, dtype=dtype, quantization=quantization)
            matrices = layer.linear_param_count(self.hidden_size) - self._bias_params(layer)
            saved += count * matrices * (wide - DTYPE_BYTES[linear])
            saved += count * self._expert_matrix_params(layer) * (wide - DTYPE_BYTES[expert])
        return self.param_count * wide - saved

    def kv_bytes_per_token(self, *, dtype: str = "bfloat16") -> float:
        """Bytes that one token adds to the KV cache over all layers, before any window is full."""
        groups = self.layer_groups()
        return sum(n * g.attention.kv_bytes_per_token(DTYPE_BYTES[dtype]) for g, n in groups)

    def _layer_params(self, *, active: bool) -> int:
        """Parameters of all layers and of the final norm."""
        h = self.hidden_size
        total = NORM_VECTORS[self.layers[0].norm] * h
        for layer, count in self.layer_groups():
            dense = layer.linear_param_count(h) + layer.router_param_count(h)
            experts = layer.expert_param_count(h, active=active)
            total += count * (dense + experts + layer.vector_param_count(h))
        return total

    def _bias_params(self, layer: LayerSpec) -> int:
        """Biases among ``linear_param_count``."""
        a, block = layer.attention, layer.feed_forward
        count = (a.qkv_size if a.qkv_bias else 0) + (self.hidden_size if a.o_bias else 0)
        mlp = block if isinstance(block, Mlp) else block.shared_expert
        return count + (mlp.up_size + self.hidden_size if mlp is not None and mlp.bias else 0)

    def _expert_matrix_params(self, layer: LayerSpec) -> int:
        """Parameters of the matrices of all routed experts, without their biases."""
        moe = layer.feed_forward
        if not isinstance(moe, Moe):
            return 0
        return moe.num_experts * 3 * self.hidden_size * moe.moe_intermediate_size


def linear_dtypes(layer: LayerSpec, *, dtype: str, quantization: str | None) -> tuple[str, str]:
    """Storage dtype of (projections, routed experts) of a layer under a ``quantization``."""
    stored = layer.feed_forward.expert_dtype if isinstance(layer.feed_forward, Moe) else None
    if quantization in (None, stored):
        return dtype, stored or dtype
    if quantization == "fp8" and stored is None:
        return "fp8", "fp8"
    reason = f"the checkpoint is already {stored}" if stored else "known: fp8"
    raise InputError(f"quantization '{quantization}' is not supported for this model ({reason})")


def model_from_config(config: Mapping[str, object], name: str) -> tuple[ModelSpec, list[str]]:
    """Read a Hugging Face ``config.json``; returns the model and warnings, one sentence each."""
    from energymodel.families import read_family  # families needs the types above

    return read_family(config, name)
