"""What vision and audio towers do between their layers, beside what is in ``ends``."""

from dataclasses import dataclass

from energymodel.blocks.ends import End
from energymodel.op_kinds import Context, Op, elementwise
from energymodel.weights import Weight, vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A call bound by memory that reads and writes ``values`` values of each row, in all.

    Activations, pixel shuffles, pooling, class tokens. ``learnt`` values take part in it.
    """

    name: str
    values: int
    learnt: int = 0

    def weights(self, _hidden_size: int) -> tuple[Weight, ...]:
        """What is learnt of it."""
        return (vector(self.name, self.learnt),) if self.learnt else ()

    def operations(self, ctx: Context) -> list[Op]:
        """One call."""
        return [
            elementwise(
                ctx,
                self.name,
                "vision",
                width=self.values,
                row_bytes=self.values * ctx.wide,
                fixed=self.learnt * ctx.wide,
            )
        ]


Piece = End | Move
