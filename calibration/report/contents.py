"""What a calibration report holds: plain data that JSON can carry, no arrays and no objects."""

from collections.abc import Mapping
from dataclasses import dataclass

from calibration.folds import LEAST_FAMILIES
from calibration.judgement.boards import BoardSpread
from calibration.judgement.diagnostics import Diagnostics
from calibration.judgement.judge import Judgement
from calibration.judgement.memory_power import MemoryPower
from calibration.judgement.simple_fits import Errors
from calibration.judgement.variation import Variation
from energymodel.profile import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of a plot: ``x`` and ``y`` of one name, in the units that the axes name."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A figure that the calibration set out to reach; ``met`` is None where it is not known.

    ``value`` and ``limit`` are fractions.
    """

    what: str
    component: str
    value: float | None
    limit: float

    @property
    def met(self) -> bool | None:
        """Whether the figure was reached."""
        return None if self.value is None else self.value <= self.limit

    @property
    def word(self) -> str:
        """One word for a table."""
        return {True: "met", False: "missed", None: "not known"}[self.met]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Observations that no fit used, and why."""

    what: str
    observations: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTime:
    """Time on the GPU: ``windows_s`` is inside energy windows, ``total_s`` all of it.

    ``total_s`` is None where the times of day are missing or too coarse; ``note`` says so.
    """

    windows_s: float
    total_s: float | None
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One name of the fit: what it was seen with, how well it predicts what it has not seen.

    ``energy`` is of sustained windows through the power limit, ``limited_time`` of their time,
    ``time`` of bursts at full clock; all of shape families that the fit had not seen. ``shared``
    names the kind whose energy coefficients are used for want of own windows.
    """

    name: str
    stacks: tuple[str, ...]
    shared: str | None
    shapes: int
    families: int
    bursts: int
    windows: int
    window_families: int
    energy: Errors | None
    limited_time: Errors | None
    time: Errors | None
    simple: Mapping[str, Errors | None]
    trees: Errors | None
    energy_variation: Variation
    time_variation: Variation
    energy_judge: Judgement
    time_judge: Judgement
    coefficients: Mapping[str, Estimate]
    clock_share: Estimate
    law: Mapping[str, Estimate]
    diagnostics: Diagnostics | None
    domain: Mapping[str, tuple[float, float]]

    @property
    def families_held_out(self) -> bool:
        """Whether whole shape families could be held out of energy, not only single windows."""
        return self.window_families >= LEAST_FAMILIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How good a calibration is. Errors, shares and deviations are fractions; the rest is SI.

    ``plots`` holds the points of each figure by its name; ``pooled`` the errors of every estimate
    over all components at once, ours under "ours".
    """

    gpu: str
    gpu_name: str
    kind: str
    observations: int
    bursts: int
    windows: int
    idle: int
    boards: tuple[str, ...]
    drivers: tuple[str, ...]
    stacks: Mapping[str, int]
    software: Mapping[str, str]
    temperature_c: tuple[float, float] | None
    gpu_time: GpuTime
    targets: tuple[Target, ...]
    components: tuple[Component, ...]
    pooled: Mapping[str, Errors | None]
    energy_variation: Variation
    time_variation: Variation
    board_spreads: tuple[BoardSpread, ...]
    memory: MemoryPower
    static_w: Estimate
    static_w_per_c: Estimate
    exponent: Estimate
    limit_share: Estimate
    left_out: tuple[LeftOut, ...]
    plots: Mapping[str, tuple[Series, ...]]

    @property
    def simulated(self) -> bool:
        """Whether the numbers come from a GPU that does not exist."""
        return self.kind == "simulated"
