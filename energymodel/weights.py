"""Parameters of a model, tensor by tensor: what counts, what is multiplied, what is quantised."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Role = Literal["linear", "expert", "plain"]
"""``linear``: a projection that quantisation may narrow; ``expert``: likewise, of routed experts;
``plain``: norms, biases, tables, routers and convolutions, which stay in 16 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """``params`` values that one operation reads, called as that operation.

    ``active`` are those that one token is multiplied with (all unless given). ``parts`` are the
    names of the modules of a checkpoint that an engine fuses into this one.
    """

    name: str
    params: int
    role: Role = "linear"
    active: int | None = None
    parts: tuple[str, ...] = ()

    @property
    def active_params(self) -> int:
        """Parameters that one token is multiplied with."""
        return self.params if self.active is None else self.active


def matrix(
    name: str, n: int, k: int, *, bias: bool = False, parts: tuple[str, ...] = ()
) -> tuple[Weight, ...]:
    """A projection of ``k`` inputs to ``n`` outputs, and its bias."""
    weight = Weight(name=name, params=n * k, parts=parts or (name,))
    return (weight, vector(f"{name}.bias", n)) if bias else (weight,)


def vector(name: str, params: int) -> Weight:
    """Values that are added or scaled with, never quantised."""
    return Weight(name=name, params=params, role="plain")


def table(name: str, params: int) -> Weight:
    """Rows that are looked up: a look-up multiplies nothing."""
    return Weight(name=name, params=params, role="plain", active=0)


def total(weights: Iterable[Weight]) -> int:
    """All parameters."""
    return sum(w.params for w in weights)
