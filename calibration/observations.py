"""observations.jsonl: one measured operation a line, append-only, enough to refit without a GPU."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from calibration import jsonl
from calibration.window import Window
from energymodel import io
from energymodel.errors import InputError

# Six digits are more than any sensor has; times of day need all of theirs.
DIGITS = 6
# How an operation runs unless a line says otherwise: dtype, library, cache.
USUAL = ("bfloat16", "vllm", "cold")


Dtype = Literal["bfloat16", "float16", "float32", "tf32", "fp8", "fp8_block", "int8", "int4"]


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
    shape: Mapping[str, int]
    mode: str
    trial: int
    dtype: Dtype = "bfloat16"
    library: Literal["vllm", "torch"] = "vllm"
    cache: Literal["cold", "warm"] = "cold"
    call_s: float
    call_spread_s: float | None = None
    duty: float | None = None
    duration_s: float | None = None
    energy_j: float | None = None
    idle_power_w: float | None = None
    net_j: float | None = None
    calls: float | None = None
    busy_s: float | None = None
    ticks: int | None = None
    lost_ticks: int | None = None
    sm_clock_hz: float | None = None
    temperature_c: float | None = None
    throttle_reasons: int | None = None
    memory_power_w: float | None = None
    stack: str
    gpu: str
    board: str
    driver: str
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
    *lines, unfinished = io.read_text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        yield _observation(line, f"{path} line {number}")
    if unfinished:
        try:
            last = _observation(unfinished, f"{path} line {len(lines) + 1}")
        except InputError:
            return
        yield last


def _observation(line: str, where: str) -> Observation:
    return io.convert(io.parse_json(line, where), Observation, where)
