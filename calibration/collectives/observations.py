"""collectives.jsonl: one measured collective a line, what every GPU saw; append-only.

``message_bytes`` is what nccl-tests calls size: of an all-reduce the buffer of each GPU, of an
all-gather what each GPU ends with, of a reduce-scatter what it begins with, of an all-to-all what
it sends (its own share included), of a send the message.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from calibration import jsonl
from calibration.observations import DIGITS, LEAST_POWER_W, MOST_POWER_W
from energymodel import io
from energymodel.errors import InputError

FILE = "collectives.jsonl"
Op = Literal[
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv", "overlap", "product", "idle"
]  # fmt: skip
OPS: tuple[Op, ...] = (
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv", "overlap", "product", "idle"
)  # fmt: skip
Library = Literal["nccl", "vllm", "gloo"]
Mode = Literal["burst", "sustained", "wait", "idle"]
Dtype = Literal["bfloat16", "float32"]
Positive = Annotated[float, Meta(gt=0)]
Size = Annotated[int, Meta(ge=0, le=2**40)]
MOST_GPUS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RankWindow:
    """What one GPU's own energy counter and clock saw.

    ``call_s`` is device time of one call on this GPU, waiting for the others included.
    ``energy_j`` is gross over ``duration_s``, in which ``calls`` calls ran; boundary: the GPU
    board. ``net_j`` is what is left above ``idle_power_w``, the power of the last idle window of
    this board. Bursts have a board and ``call_s`` only.
    """

    board: str
    call_s: Positive
    duration_s: Positive | None = None
    energy_j: Positive | None = None
    idle_power_w: float | None = None
    net_j: float | None = None
    calls: Positive | None = None
    ticks: int | None = None
    lost_ticks: int | None = None
    sm_clock_hz: Annotated[float, Meta(ge=1e7, le=1e10)] | None = None
    temperature_c: float | None = None
    throttle_reasons: int | None = None
    memory_power_w: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveObservation:
    """One collective of ``gpus`` GPUs at one size, measured once on all of them.

    ``mode`` is "burst" (time only, at full clock), "sustained" (time and energy, back to back),
    "wait" (the GPU of rank 0 comes ``skew_us`` late to each call, the others wait for it inside
    the collective) or "idle" (communicators set up, no work). ``library`` is whose kernel ran:
    "nccl", "vllm" (its custom all-reduce) or "gloo" (CPU). ``op`` "product" is a matrix product
    ``m x k`` by ``k x n`` on each GPU, "overlap" the same beside an all-reduce of
    ``message_bytes``; one call is both. ``call_s`` is of the GPU that waited least. ``link`` names
    how the GPUs are connected, ``environment`` what was set for NCCL. ``time_s`` is the time of
    day, seconds since 1970.
    """

    op: Op
    library: Library
    gpus: Annotated[int, Meta(ge=1, le=MOST_GPUS)]
    message_bytes: Size
    dtype: Dtype = "bfloat16"
    mode: Mode
    trial: Annotated[int, Meta(ge=0)]
    skew_us: Size = 0
    m: Size = 0
    n: Size = 0
    k: Size = 0
    call_s: Positive
    call_spread_s: float | None = None
    ranks: Sequence[RankWindow]
    stack: str
    gpu: str
    driver: str
    power_limit_w: Positive
    link: str
    environment: Mapping[str, str]
    data: str = "normal"
    time_s: float | None = None

    @property
    def point(self) -> str:
        """Identity of what ran, whoever measured it."""
        how = (self.op, self.library, self.dtype)
        return point_key(how, self.gpus, self.message_bytes, self.skew_us)

    @property
    def boards(self) -> tuple[str, ...]:
        """The boards that took part, by rank."""
        return tuple(r.board for r in self.ranks)

    @property
    def energy_call_j(self) -> float | None:
        """Gross energy of one call, all GPUs together; None of a burst."""
        if any(r.energy_j is None for r in self.ranks):
            return None
        return sum((r.energy_j or 0.0) / (r.calls or 1.0) for r in self.ranks)


def point_key(how: tuple[str, str, str], gpus: int, message_bytes: int, skew_us: int) -> str:
    """Name of a point of the grid: operation, library and dtype, GPUs, size, and who is late."""
    late = f":late={skew_us}us" if skew_us else ""
    return f"{':'.join(how)}:gpus={gpus}:bytes={message_bytes}{late}"


def append(path: Path, observation: CollectiveObservation) -> None:
    """Write one line, floats to six digits."""
    record = _rounded({k: v for k, v in asdict(observation).items() if k != "time_s"})
    jsonl.append(path, record | {"time_s": observation.time_s})


def read(path: Path) -> Iterator[CollectiveObservation]:
    """Observations of a file, in order; a truncated last line is left out.

    Raises:
        InputError: a line is not such an observation; the message names file and line.
    """
    return jsonl.read(path, _observation)


def _observation(line: str, where: str) -> CollectiveObservation:
    o = io.convert(io.parse_json(line, where), CollectiveObservation, where)
    if len(o.ranks) != o.gpus:
        raise InputError(
            f"{where}: ranks must hold {o.gpus} entries, one a GPU, got {len(o.ranks)}."
        )
    for r in o.ranks:
        if r.energy_j is None:
            continue
        if r.duration_s is None or r.calls is None:
            raise InputError(f"{where}: duration_s or calls is missing beside energy_j of a rank.")
        power_w = r.energy_j / r.duration_s
        if not LEAST_POWER_W <= power_w <= MOST_POWER_W:
            raise InputError(
                f"{where}: energy_j over duration_s of a rank must be a board's power in watts, "
                f"got {power_w:,.4g} W: are they in joules and seconds?"
            )
    return o


def _rounded(value: Any) -> Any:
    """Floats to six digits, at any depth; fields that are None left out."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return value
