"""Blocks that share one normalisation and one residual connection; a layer that others repeat."""

from dataclasses import dataclass, replace

from energymodel.blocks.feed_forward import Mlp
from energymodel.blocks.mamba import Mamba, Mamba2
from energymodel.blocks.softmax import SoftmaxAttention
from energymodel.op_kinds import Context, Op, elementwise, linear, normalise
from energymodel.weights import Weight, matrix, vector


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedTransformer:
    """Attention and feed-forward block that several layers run with the same weights (Zamba).

    It reads the hidden state beside the embedding, ``input_size`` wide together, has normalisations
    of its own and no residual connection, and hands its result through a projection that each layer
    has for itself, as it has adapters of ``adapter_rank`` to the feed-forward block and to the
    attention. ``repeated``: an earlier layer counts the shared weights.
    """

    attention: SoftmaxAttention
    mlp: Mlp
    adapter_rank: int | None = None
    attention_adapters: bool = False
    repeated: bool = False

    @property
    def parts(self) -> tuple[SoftmaxAttention, Mlp]:
        """The blocks that it is made of."""
        return self.attention, self.mlp

    def weights(self, hidden_size: int, norm_vectors: int = 1) -> tuple[Weight, ...]:
        """Shared weights (no values where they are counted already), projection and adapters."""
        input_size = self.attention.input_size or hidden_size
        both = (
            *self.attention.weights(hidden_size, norm_vectors),
            *self.mlp.weights(hidden_size),
            vector("shared_norm", norm_vectors * (input_size + hidden_size)),
        )
        if self.repeated:
            both = tuple(replace(w, params=0) for w in both)
        adapters = (
            w
            for name, n, k in self._adapters(hidden_size)
            for w in (
                *matrix(f"{name}_adapter_a", self.adapter_rank or 0, k),
                *matrix(f"{name}_adapter_b", n, self.adapter_rank or 0),
            )
        )
        return (*both, *matrix("shared_out_proj", hidden_size, hidden_size), *adapters)

    def kv_bytes_per_token(self, element_bytes: float) -> float:
        """Bytes that one token adds to the cache: each layer has its own."""
        return self.attention.kv_bytes_per_token(element_bytes)

    def state_bytes(self, element_bytes: float) -> float:
        """Bytes that a sequence takes however long it is: none."""
        return self.attention.state_bytes(element_bytes)

    def operations(self, ctx: Context) -> list[Op]:
        """Inputs side by side, attention, feed-forward block, projection."""
        h = ctx.hidden_size
        width = self.attention.input_size or h
        beside = elementwise(
            ctx, "shared_input", "norm", width=width, row_bytes=2 * width * ctx.wide
        )
        return [
            beside,
            normalise(ctx, "shared_input_norm", tensors=2, width=width),
            *self.attention.operations(ctx),
            normalise(ctx, "shared_feedforward_norm", tensors=2),
            *self.mlp.operations(ctx),
            *(op for adapter in self._adapters(h) for op in self._adapted(ctx, *adapter)),
            *linear(ctx, "shared_out_proj", "attention_projections", n=h, k=h),
        ]

    def _adapters(self, hidden_size: int) -> list[tuple[str, int, int]]:
        """(name, outputs, inputs) of what adapters are added to."""
        a, mlp = self.attention, ("gate_up_proj", self.mlp.up_size, hidden_size)
        if self.adapter_rank is None:
            return []
        if not self.attention_adapters:
            return [mlp]
        size = a.input_size or hidden_size
        return [mlp, *((f"{name}_proj", size, size) for name in "qkv")]

    def _adapted(self, ctx: Context, name: str, n: int, k: int) -> list[Op]:
        """Two products of low rank, added to the output of the one that they adapt."""
        component = "mlp" if name == "gate_up_proj" else "attention_projections"
        rank, row_bytes = self.adapter_rank or 0, 3 * n * ctx.wide
        return [
            *linear(ctx, f"{name}_adapter_a", component, n=rank, k=k),
            *linear(ctx, f"{name}_adapter_b", component, n=n, k=rank),
            elementwise(ctx, f"{name}_adapter_add", component, width=n, row_bytes=row_bytes),
        ]


Part = SoftmaxAttention | SharedTransformer | Mamba | Mamba2


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Blocks whose results are added up within one residual connection (Falcon-H1, Zamba)."""

    parts: tuple[Part, ...]

    def weights(self, hidden_size: int, norm_vectors: int) -> tuple[Weight, ...]:
        """Those of all parts."""
        return tuple(w for part in self.parts for w in part.weights(hidden_size, norm_vectors))

    def kv_bytes_per_token(self, element_bytes: float) -> float:
        """Those of all parts."""
        return sum(part.kv_bytes_per_token(element_bytes) for part in self.parts)

    def state_bytes(self, element_bytes: float) -> float:
        """Those of all parts."""
        return sum(part.state_bytes(element_bytes) for part in self.parts)

    def operations(self, ctx: Context) -> list[Op]:
        """One part after the other, and their sum."""
        h, more = ctx.hidden_size, len(self.parts) - 1
        row_bytes = 3 * more * h * ctx.wide
        add = elementwise(ctx, "parts_add", "norm", width=h, row_bytes=row_bytes)
        return [*(op for part in self.parts for op in part.operations(ctx)), add]
