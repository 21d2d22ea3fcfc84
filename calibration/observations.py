"""observations.jsonl: one measured operation a line, append-only, enough to refit without a GPU."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from calibration.window import Window
from energymodel.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One operation at one shape, measured once.

    ``mode`` is "burst" (time only, at full clock), "sustained" or "duty" (time and energy), or
    "idle" (a context, clocks up, no work). ``call_s`` is device time of one call. ``energy_j`` is
    gross over ``duration_s``, in which ``calls`` calls kept the device busy for ``busy_s``;
    boundary: the GPU board.
    """

    op: str
    shape: Mapping[str, int]
    mode: str
    trial: int
    call_s: float
    call_spread_s: float | None = None
    duty: float | None = None
    duration_s: float | None = None
    energy_j: float | None = None
    calls: float | None = None
    busy_s: float | None = None
    ticks: int | None = None
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


def window_fields(window: Window) -> dict[str, object]:
    """The fields of an observation that come from a window."""
    return {name: value for name, value in asdict(window).items() if value is not None}


def append(path: Path, observation: Observation) -> None:
    """Write one line and flush it; a kill loses at most this line."""
    record = {k: v for k, v in asdict(observation).items() if v is not None}
    for key, value in record.items():
        if isinstance(value, float):
            record[key] = float(f"{value:.6g}")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")


def repair(path: Path) -> None:
    """Drop a truncated last line, which a killed sweep leaves behind."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])


def read(path: Path) -> Iterator[Observation]:
    """Observations of a file, in order.

    Raises:
        InputError: a line is not an observation; the message names file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as observations ({error})") from error
    for number, line in enumerate(lines, start=1):
        try:
            yield Observation(**json.loads(line))
        except (json.JSONDecodeError, TypeError) as error:
            raise InputError(f"{path}, line {number}: not an observation ({error})") from error
