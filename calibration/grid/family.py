"""Points of the grid, and the families of shapes that they are drawn from."""

from dataclasses import dataclass

from calibration.observations import point_key
from calibration.order import farthest_first

Shape = dict[str, int]
FULL, PART = 1.0, 0.2
# The clock that the power limit sets, seen at these shares of busy time.
POWER_LAW = (1.0, 0.75, 0.5, 0.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One operation at one shape. ``duties`` are the shares of busy time of its energy windows.

    ``dtype`` is what weights or caches are stored in, ``library`` whose kernel runs, ``cache``
    "cold" (operands rotate and miss the L2 cache) or "warm" (one copy of each).
    """

    op: str
    shape: Shape
    dtype: str = "bfloat16"
    library: str = "vllm"
    cache: str = "cold"
    duties: tuple[float, ...] = ()

    @property
    def key(self) -> str:
        """Identity of the point in observation files."""
        return point_key(self.op, self.shape, self.dtype, self.library, self.cache)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Points of one operation and dtype.

    Of ``energy``, the full grid has the first ``windows`` shapes (all unless given) and the quick
    grid the first ``quick`` (None: it does without the family). Of ``timed``, ``bursts`` are
    taken, or ``more`` in the wide grid. A ``wide`` family is in the wide grid alone.
    """

    op: str
    dtype: str = "bfloat16"
    library: str = "vllm"
    energy: tuple[tuple[Shape, tuple[float, ...]], ...] = ()
    timed: tuple[Shape, ...] = ()
    bursts: int = 0
    more: int = 0
    windows: int | None = None
    quick: int | None = None
    wide: bool = False

    def energy_points(self) -> list[Point]:
        """Points with energy windows, most informative first."""
        return [self._point(shape, duties) for shape, duties in self.energy]

    def burst_points(self) -> list[Point]:
        """Points that are only timed, most informative first."""
        most = max(self.bursts, self.more)
        return [self._point(shape, ()) for shape in farthest_first(self.timed, most)]

    def _point(self, shape: Shape, duties: tuple[float, ...]) -> Point:
        return Point(op=self.op, shape=shape, dtype=self.dtype, library=self.library, duties=duties)
