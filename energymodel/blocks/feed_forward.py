"""Feed-forward blocks: one for every token, or experts that a router chooses."""

from dataclasses import dataclass, replace

import numpy as np

from energymodel.blocks.nothing import CachesNothing, KeepsNothing
from energymodel.collectives import dispatched
from energymodel.dtypes import DTYPE_BYTES, arithmetic, input_bytes
from energymodel.op_kinds import Context, Op, elementwise, linear, quantise
from energymodel.spread import busiest
from energymodel.weights import Weight, matrix, vector

EXPERTS = "experts"
"""Name of the weights of routed experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp(CachesNothing, KeepsNothing):
    """Dense feed-forward block; ``gated`` has a gate beside the up projection (SwiGLU, GeGLU).

    ``down_bias``: the down projection has a bias even where the others have none (GTE).
    ``sparse``: of the gate only what lies above a quantile of each row is kept (Gemma 3n).
    """

    intermediate_size: int
    gated: bool = True
    bias: bool = False
    down_bias: bool = False
    sparse: bool = False

    @property
    def up_size(self) -> int:
        """Width of the (fused gate and) up projection."""
        return (2 if self.gated else 1) * self.intermediate_size

    def weights(
        self, hidden_size: int, _norm_vectors: int = 0, prefix: str = ""
    ) -> tuple[Weight, ...]:
        """The two or three projections; it has no normalisation of its own."""
        (up, parts), down = self._up(prefix), f"{prefix}down_proj"
        return (
            *matrix(up, self.up_size, hidden_size, bias=self.bias, parts=parts),
            *matrix(down, hidden_size, self.intermediate_size, bias=self.bias or self.down_bias),
        )

    def operations(self, ctx: Context, component: str = "mlp", prefix: str = "") -> list[Op]:
        """Up, activation, down."""
        inner, up = self.intermediate_size, self._up(prefix)[0]
        row_bytes = (self.up_size + inner) * ctx.wide
        h, down = ctx.hidden_size, f"{prefix}down_proj"
        # Mean and deviation of the gate, then the cut.
        cut_bytes = 3 * inner * ctx.wide
        cut = elementwise(ctx, f"{prefix}cut", component, width=inner, row_bytes=cut_bytes)
        return [
            *linear(ctx, up, component, n=self.up_size, k=h, bias=self.bias),
            *([cut] if self.sparse else []),
            elementwise(
                ctx,
                f"{prefix}activation",
                component,
                width=inner,
                row_bytes=row_bytes,
                kind="silu_and_mul" if self.gated else "gelu",
            ),
            *linear(ctx, down, component, n=h, k=inner, bias=self.bias or self.down_bias),
        ]

    def _up(self, prefix: str) -> tuple[str, tuple[str, ...]]:
        """Name of the up projection, and of the modules of a checkpoint in it."""
        if self.gated:
            return f"{prefix}gate_up_proj", (f"{prefix}gate_proj", f"{prefix}up_proj")
        return f"{prefix}up_proj", (f"{prefix}up_proj",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moe(CachesNothing, KeepsNothing):
    """Routed experts and, in some families, one shared expert that every token visits.

    ``router_vectors`` are learnt values for each expert beside the router (biases of its scores).
    ``latent_size``: routed experts work on vectors of that width, between two projections that all
    of them share (Nemotron 3). ``gpus``: experts are whole and spread over so many GPUs, of which
    one is described; ``num_experts`` are those of all.
    """

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    gated: bool = True
    shared_expert: Mlp | None = None
    shared_expert_gate: bool = False
    router_bias: bool = False
    router_vectors: int = 0
    expert_bias: bool = False
    latent_size: int | None = None
    gpus: int = 1

    @property
    def most_experts(self) -> int:
        """Experts on the GPU that has most (``determine_expert_map`` of vLLM)."""
        return -(-self.num_experts // self.gpus)

    @property
    def expert(self) -> Mlp:
        """One routed expert."""
        return Mlp(
            intermediate_size=self.moe_intermediate_size, gated=self.gated, bias=self.expert_bias
        )

    def weights(self, hidden_size: int, _norm_vectors: int = 0) -> tuple[Weight, ...]:
        """Router, routed experts and their biases, shared expert and its gate."""
        e, inner = self.num_experts, self.moe_intermediate_size
        width = self.latent_size or hidden_size
        each = (self.expert.up_size + inner) * width
        biases = self.expert.up_size + width if self.expert_bias else 0
        vectors = e * ((1 if self.router_bias else 0) + self.router_vectors)
        shared: tuple[Weight, ...] = ()
        if self.shared_expert is not None:
            shared = self.shared_expert.weights(hidden_size, prefix="shared_")
        if self.shared_expert_gate:
            shared = (*shared, vector("shared_expert_gate", hidden_size))
        if self.latent_size is not None:
            into = matrix("fc1_latent_proj", self.latent_size, hidden_size)
            out = matrix("fc2_latent_proj", hidden_size, self.latent_size)
            shared = (*shared, *into, *out)
        return (
            vector("router", e * hidden_size),
            *([vector("router.bias", vectors)] if vectors else []),
            *shared,
            self._active(EXPERTS, each),
            *([self._active("experts.bias", biases)] if biases else []),
        )

    def _active(self, name: str, each: int) -> Weight:
        return Weight(
            name=name,
            params=self.most_experts * each,
            active=self.num_experts_per_tok * each // self.gpus,
            role="expert" if name == EXPERTS else "plain",
            parts=("gate_proj", "up_proj", "down_proj"),
        )

    def operations(self, ctx: Context) -> list[Op]:
        """Shared expert, router, choice, routed experts."""
        h, top_k = ctx.hidden_size, self.num_experts_per_tok
        e, latent = self.num_experts, self.latent_size
        router = linear(ctx, "router", "moe", n=e, k=h, bias=self.router_bias)
        # Reads the router logits, writes a float32 weight and an int32 expert for each choice.
        row_bytes = e * ctx.wide + top_k * 8
        top = elementwise(ctx, "topk", "moe", width=e, row_bytes=row_bytes, kind="moe_routing")
        ops = [*self._shared(ctx), *router, top]
        before, behind = dispatched(ctx, top_k)
        if latent is not None:
            ops += linear(ctx, "fc1_latent_proj", "moe", n=latent, k=h)
            out = linear(ctx, "fc2_latent_proj", "moe", n=h, k=latent)
            inside = self._experts(replace(ctx, hidden_size=latent))
            return [*ops, *before, *inside, *behind, *out]
        return [*ops, *before, *self._experts(ctx), *behind]

    def _experts(self, ctx: Context) -> list[Op]:
        """Routed experts, after the quantisation of what enters their products.

        They see the tokens of all copies of the model that share them.
        """
        inner, top_k = self.moe_intermediate_size, self.num_experts_per_tok
        ops: list[Op] = []
        ctx = replace(ctx, tokens=ctx.tokens * ctx.parallel.data)
        narrow = input_bytes(ctx.stored(EXPERTS), ctx.wide)
        if narrow != ctx.wide:
            h = ctx.hidden_size
            ops.append(quantise(ctx, "experts_quant_input", "moe", width=h, narrow=narrow))
            inside = quantise(ctx, "experts_quant_inner", "moe", width=top_k * inner, narrow=narrow)
            ops.append(inside)
        return [*ops, self._fused(ctx)]

    def _shared(self, ctx: Context) -> list[Op]:
        """The expert that every token visits; its sum with the routed ones reads two, writes one."""
        if self.shared_expert is None:
            return []
        h = ctx.hidden_size
        ops = self.shared_expert.operations(ctx, "moe", "shared_")
        if self.shared_expert_gate:
            ops += linear(ctx, "shared_expert_gate", "moe", n=1, k=h)
        return [*ops, elementwise(ctx, "shared_add", "moe", width=h, row_bytes=3 * h * ctx.wide)]

    def _fused(self, ctx: Context) -> Op:
        """Routed experts: up product, activation, down product, weighted sum over the choices.

        Under uniform routing n tokens touch E(1-(1-k/E)^n) of E experts, each of whose weights are
        read once. The kernels in it pass intermediates through memory: k copies of 2I written and
        read, of I written and read, of H written and read, beside the input and the output of H.

        Of experts spread over GPUs each holds its part and does its part of the choices on average;
        all wait for the one with most, whose share is the ``imbalance`` (``spread.py``).
        """
        h, inner, stored = ctx.hidden_size, self.moe_intermediate_size, ctx.stored(EXPERTS)
        n, gpus = ctx.tokens, self.gpus
        top_k, experts = self.num_experts_per_tok / gpus, self.num_experts / gpus
        touched = experts * (1.0 - (1.0 - top_k / experts) ** n)
        most = busiest(n, experts=self.num_experts, top_k=self.num_experts_per_tok, gpus=gpus)
        narrow = input_bytes(stored, ctx.wide)
        up = self.expert.up_size
        matrices = h * (up + inner)
        weights = matrices * DTYPE_BYTES[stored]
        weights += (up + h) * ctx.wide if self.expert_bias else 0.0
        inner_bytes = (2 * up + inner) * ctx.wide + inner * narrow
        row_bytes = h * (narrow + ctx.wide) + top_k * (inner_bytes + 2 * h * ctx.wide)
        return Op(
            name=EXPERTS,
            kind="moe",
            component="moe",
            dtype=arithmetic(stored, ctx.dtype),
            stored=stored,
            count=ctx.count,
            flop=2.0 * matrices * top_k * n,
            hbm_bytes=touched * weights + n * row_bytes,
            weight_bytes=touched * weights,
            shape={
                "tokens": n,
                "hidden_size": float(h),
                "intermediate_size": float(inner),
                "up_size": float(up),
                "num_experts": float(experts),
                "top_k": float(top_k),
                "experts_touched": np.minimum(touched * most.experts, experts),
                "imbalance": most.choices,
                "weight_element_bytes": DTYPE_BYTES[stored],
            },
            captured=ctx.captured,
        )
