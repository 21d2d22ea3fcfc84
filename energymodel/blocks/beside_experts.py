"""A dense feed-forward block beside routed experts, each normalised for itself (Gemma 4)."""

from dataclasses import dataclass

from energymodel.blocks.feed_forward import Mlp, Moe
from energymodel.blocks.nothing import CachesNothing, KeepsNothing
from energymodel.op_kinds import Context, Op, elementwise, normalise
from energymodel.weights import Weight, vector


@dataclass(frozen=True, slots=True, kw_only=True)
class BesideExperts(CachesNothing, KeepsNothing):
    """``mlp`` reads what the layer normalised, ``experts`` the hidden state, normalised apart.

    The router reads the hidden state, normalised and scaled. Both results are normalised, then
    added up.
    """

    mlp: Mlp
    experts: Moe

    @property
    def parts(self) -> tuple[Mlp, Moe]:
        """The blocks that it is made of."""
        return self.mlp, self.experts

    def weights(self, hidden_size: int, norm_vectors: int) -> tuple[Weight, ...]:
        """Those of both, three norms, and the scale in front of the router."""
        return (
            *self.mlp.weights(hidden_size),
            *self.experts.weights(hidden_size),
            vector("beside_norms", 3 * norm_vectors * hidden_size + hidden_size),
        )

    def operations(self, ctx: Context) -> list[Op]:
        """Dense block, experts, their norms and sum."""
        h = ctx.hidden_size
        return [
            *self.mlp.operations(ctx),
            normalise(ctx, "post_mlp_norm", tensors=2),
            normalise(ctx, "router_norm", tensors=2, weights=h),
            normalise(ctx, "pre_experts_norm", tensors=2),
            *self.experts.operations(ctx),
            normalise(ctx, "post_experts_norm", tensors=2),
            elementwise(ctx, "beside_add", "moe", width=h, row_bytes=3 * h * ctx.wide),
        ]
