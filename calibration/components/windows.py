"""components.jsonl: one window of one component, or of the whole, a line; append-only."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from calibration import jsonl
from energymodel import io

# Six digits are more than any sensor has.
DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What must be equal for windows to belong together."""

    model: str
    architecture: str
    batch: int
    prompt: int
    stack: str
    gpu: str
    board: str
    driver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentWindow:
    """One window. ``energy_j`` is gross over ``duration_s``, in which ``calls`` calls were made.

    One call is the component in all ``layers`` that hold it, once, and has ``flop``. ``mode`` is
    "eager", "graph", or "idle" for the idle GPU (component "idle"). Boundary: the GPU board.
    ``time_s`` is the time of day, seconds since 1970.
    """

    setting: Setting
    phase: str
    mode: str
    component: str
    trial: int
    energy_j: float
    duration_s: float
    calls: float
    call_s: float
    ticks: int
    sm_clock_hz: float
    temperature_c: float
    throttle_reasons: int
    memory_power_w: float | None = None
    layers: int = 0
    flop: int = 0
    part_of: str | None = None
    parts: tuple[str, ...] = ()
    time_s: float | None = None

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Which window of its setting it is."""
        return self.phase, self.mode, self.component, self.trial


def append(path: Path, window: ComponentWindow) -> None:
    """Write one line, floats to six digits.

    Raises:
        WorkError: the line cannot be written.
    """
    record = {k: v for k, v in asdict(window).items() if v is not None}
    for key, value in record.items():
        if isinstance(value, float) and key != "time_s":
            record[key] = float(f"{value:.{DIGITS}g}")
    jsonl.append(path, record)


def read(path: Path) -> Iterator[ComponentWindow]:
    """Windows of a file that ``jsonl.repair`` has seen, in order.

    Raises:
        InputError: a line is not such a window; the message names file and line.
    """
    for number, line in enumerate(io.read_text(path).splitlines(), start=1):
        where = f"{path} line {number}"
        yield io.convert(io.parse_json(line, where), ComponentWindow, where)
