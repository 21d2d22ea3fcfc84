"""What points of the grid run on: a CUDA GPU (``replay``) or a simulated one (``simulated``)."""

from dataclasses import dataclass
from typing import Protocol

from calibration.clock import Clock
from calibration.grid import Point
from calibration.window import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Runnable:
    """A point, ready to run, and the name of the code that it exercises.

    ``pulse`` is the same in shorter chunks, for windows with pauses: an energy window begins and
    ends somewhere in a chunk and its pause.
    """

    work: Work
    pulse: Work
    stack: str


class Bench(Protocol):
    """Prepares points; its work, its sensor and its clock share one time."""

    @property
    def clock(self) -> Clock:
        """The time that the work runs on."""

    def prepare(self, point: Point) -> Runnable:
        """Make a point ready to run; fails where its kernel or the memory for it is missing."""

    def launch_s(self, graph: int) -> tuple[float, float]:
        """Seconds to launch a tiny kernel, eagerly (0) or in a CUDA graph (1), and their spread."""

    def idle(self) -> Work:
        """Next to no work: keeps a context and the clocks up, to measure static power."""

    def release(self) -> None:
        """Free what the last point held."""
