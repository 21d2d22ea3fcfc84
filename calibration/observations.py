"""observations.jsonl: one measured operation a line, append-only, enough to refit without a GPU."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from calibration import jsonl
from calibration.window import Window
from energymodel import io
from energymodel.errors import InputError

# Six digits are more than any sensor has; times of day need all of theirs.
DIGITS = 6
# How an operation runs unless a line says otherwise: dtype, library, cache.
USUAL = ("bfloat16", "vllm", "cold")


Dtype = Literal["bfloat16", "float16", "float32", "tf32", "fp8", "fp8_block", "int8", "int4"]


Positive = Annotated[float, Meta(gt=0)]
Size = Annotated[int, Meta(ge=0, le=2**40)]
# Mean power that a GPU board can draw, with a context at least idle.
LEAST_POWER_W, MOST_POWER_W = 3.0, 5000.0
# What a window must have besides its energy.
OF_WINDOW = ("duration_s", "calls", "busy_s", "sm_clock_hz", "temperature_c")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One operation at one shape, measured once.

    ``mode`` is "burst" (time only, at full clock), "sustained" or "duty" (time and energy), "idle"
    (a context, clocks up, no work) or "host" (time to launch a kernel). ``call_s`` is device time of one call. ``energy_j`` is
    gross over ``duration_s``, in which ``calls`` calls kept the device busy for ``busy_s``;
    boundary: the GPU board. ``net_j`` is what is left above ``idle_power_w``, the static power of
    the last idle window. ``dtype`` is what weights or caches are stored in, ``library`` whose
    kernel ran (``stack`` names it), ``cache`` "cold" where operands rotate and miss the L2 cache.
    ``time_s`` is the time of day, seconds since 1970.
    """

    op: str
    shape: Mapping[str, Size]
    mode: str
    trial: int
    dtype: Dtype = "bfloat16"
    library: Literal["vllm", "torch"] = "vllm"
    cache: Literal["cold", "warm"] = "cold"
    call_s: Positive
    call_spread_s: float | None = None
    duty: Annotated[float, Meta(gt=0, le=1)] | None = None
    duration_s: Positive | None = None
    energy_j: Positive | None = None
    idle_power_w: float | None = None
    net_j: float | None = None
    calls: Positive | None = None
    busy_s: float | None = None
    ticks: int | None = None
    lost_ticks: int | None = None
    sm_clock_hz: Annotated[float, Meta(ge=1e7, le=1e10)] | None = None
    temperature_c: float | None = None
    throttle_reasons: int | None = None
    memory_power_w: float | None = None
    stack: str
    gpu: str
    board: str
    driver: str
    power_limit_w: Positive | None = None
    data: str = "normal"
    time_s: float | None = None

    @property
    def point(self) -> str:
        """Identity of the operation, its shape and how it ran, whoever measured it."""
        return point_key(self.op, self.shape, self.dtype, self.library, self.cache)


def point_key(op: str, shape: Mapping[str, int], dtype: str, library: str, cache: str) -> str:
    """Name of a point of the grid; defaults go without saying, as in older files."""
    extra = [x for x, usual in zip((dtype, library, cache), USUAL, strict=True) if x != usual]
    return ":".join([op, ",".join(f"{k}={v}" for k, v in sorted(shape.items())), *extra])


def window_fields(window: Window) -> dict[str, object]:
    """The fields of an observation that come from a window."""
    return {name: value for name, value in asdict(window).items() if value is not None}


def append(path: Path, observation: Observation) -> None:
    """Write one line, floats to six digits."""
    record = {k: v for k, v in asdict(observation).items() if v is not None}
    for key, value in record.items():
        if isinstance(value, float) and key != "time_s":
            record[key] = float(f"{value:.{DIGITS}g}")
    jsonl.append(path, record)


def read(path: Path) -> Iterator[Observation]:
    """Observations of a file, in order; a truncated last line is left out.

    Raises:
        InputError: a line is not an observation; the message names file and line.
    """
    return jsonl.read(path, _observation)


def _observation(line: str, where: str) -> Observation:
    o = io.convert(io.parse_json(line, where), Observation, where)
    if o.energy_j is not None:
        lacking = [name for name in OF_WINDOW if getattr(o, name) is None]
        if lacking:
            raise InputError(
                f"{where}: {lacking[0]} is missing; a window with energy_j must have it."
            )
        power_w = o.energy_j / (o.duration_s or 1.0)
        if not LEAST_POWER_W <= power_w <= MOST_POWER_W:
            raise InputError(
                f"{where}: energy_j over duration_s must be a board's power in watts, got "
                f"{power_w:,.4g} W: are they in joules and seconds?"
            )
    return o
