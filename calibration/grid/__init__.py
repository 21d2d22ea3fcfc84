"""The calibration grid: what is measured, in one place that a reader can see and change.

Every point is timed in short bursts at full clock. Points with ``duties`` are also measured over
energy windows. The timing law across shapes needs many points, which cost a tenth of a second
each; energy is a smooth function of FLOP, bytes and time, and needs few, of seconds each.

A ``Family`` is an operation with one dtype: the shapes of its energy windows are written down,
most informative first; its bursts are drawn from a product of axes (``order.farthest_first``). The files beside this
one declare them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from calibration.grid.attention import ATTENTION, LATENT
from calibration.grid.eager import EAGER
from calibration.grid.experts import MIXTURES
from calibration.grid.family import FULL, PART, Family, Point, Shape
from calibration.grid.products import PRODUCTS
from calibration.grid.recurrences import RECURRENCES
from calibration.grid.rows import BY_ROW

__all__ = [
    "FAMILIES",
    "FULL",
    "LAUNCHES",
    "PART",
    "Family",
    "Point",
    "Shape",
    "full",
    "quick",
    "wide",
]

FAMILIES = (*PRODUCTS, *ATTENTION, *LATENT, *MIXTURES, *BY_ROW, *RECURRENCES, *EAGER)
# Host time to launch a kernel, eagerly and in a CUDA graph.
LAUNCHES = tuple(Point(op="launch", shape={"graph": graph}) for graph in (0, 1))
# Bursts of each required family in the quick grid.
QUICK_BURSTS = 10


def full(library: str = "vllm") -> list[Point]:
    """What served models need, most informative points first: under ten minutes.

    Args:
        library: whose kernels, where both have one: vllm or torch.
    """
    return _of(library, [*LAUNCHES, *_in_step(_core())])


def wide(library: str = "vllm") -> list[Point]:
    """The full grid, then everything else: other number formats, rarer kernels, more shapes."""
    kept = _core()
    rest = [points[len(core) :] for points, core in zip(_all(), kept, strict=True)]
    return _of(library, [*LAUNCHES, *_in_step(kept), *_in_step(rest)])


def quick(library: str = "vllm") -> list[Point]:
    """What a prediction cannot do without, at a few shapes: about a minute."""
    chosen = [(f, f.quick) for f in FAMILIES if f.quick is not None]
    energy = [_briefly(p) for f, windows in chosen for p in f.energy_points()[:windows]]
    bursts = [p for f, _ in chosen for p in f.burst_points()[:QUICK_BURSTS]]
    return _of(library, [*LAUNCHES, *energy, *bursts])


def _briefly(point: Point) -> Point:
    return replace(point, duties=tuple(d for d in point.duties if d in (FULL, PART)))


def _all() -> list[list[Point]]:
    """Energy points and burst points of each family, in turn."""
    return [points for f in FAMILIES for points in (f.energy_points(), f.burst_points())]


def _core() -> list[list[Point]]:
    """The part of ``_all`` that is in the full grid."""
    sizes = [size for f in FAMILIES for size in _sizes(f)]
    return [points[:size] for points, size in zip(_all(), sizes, strict=True)]


def _sizes(f: Family) -> tuple[int, int]:
    """How many energy points and burst points of a family are in the full grid."""
    if f.wide:
        return 0, 0
    return len(f.energy) if f.windows is None else f.windows, f.bursts


def _in_step(lists: Sequence[Sequence[Point]]) -> Iterator[Point]:
    """All points such that every beginning holds about the same share of each list."""
    ranked = (
        (i / len(points), n, p) for n, points in enumerate(lists) for i, p in enumerate(points)
    )
    for _, _, point in sorted(ranked, key=lambda r: r[:2]):
        yield point


def _of(library: str, points: Sequence[Point]) -> list[Point]:
    """Each point once, the one with more windows where two are the same."""
    distinct: dict[str, Point] = {}
    for point in points:
        chosen = point if library == "vllm" else replace(point, library=library)
        known = distinct.get(chosen.key)
        if known is None:
            distinct[chosen.key] = chosen
        elif len(chosen.duties) > len(known.duties):
            distinct[chosen.key] = replace(known, duties=chosen.duties)
    return list(distinct.values())
