"""A board with declared sensors on simulated time, behind a stand-in for the module ``pynvml``."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from calibration.clock import VirtualClock
from calibration.doctor.load import Stream, Works
from calibration.window import Work

IDLE_W, CONTEXT_W, LOAD_W, MEMORY_W = 77.0, 120.0, 690.0, 38.0


class NVMLError(Exception):
    pass


@dataclass
class Board:
    """Facts in NVML's units; a name in ``broken`` is an NVML function that fails with its text."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    name: str = "NVIDIA H200"
    uuid: str = "GPU-aaaa"
    period_s: float = 0.1
    read_s: float = 4e-3
    sample_s: float = 0.02
    mean_over_s: float = 1.0
    counter_gain: float = 1.0
    limit_mw: int = 700_000
    sm_mhz: int = 1980
    reasons: int = 0
    memory_w: float = MEMORY_W
    mig: int = 0
    pids: tuple[int, ...] = ()
    used_bytes: float = 1e9
    utilization: int = 0
    ecc: tuple[int, int] = (0, 0)
    remapped: tuple[int, ...] = (0, 0, 0, 0)
    persistence: int = 1
    stops_s: float = math.inf
    broken: dict[str, str] = field(default_factory=dict)
    steps: list[tuple[float, float]] = field(default_factory=lambda: [(-10.0, IDLE_W)])

    def set_power(self, power_w: float) -> None:
        if self.steps[-1][1] != power_w:
            self.steps.append((self.clock.now(), power_w))

    def energy_j(self, time_s: float) -> float:
        """Integral of power since 10 s before the clock began."""
        ends = [start for start, _ in self.steps[1:]] + [math.inf]
        parts = zip(self.steps, ends, strict=True)
        return sum(p * (min(end, time_s) - t) for (t, p), end in parts if t < time_s)

    def mean_w(self, end_s: float, over_s: float) -> float:
        # A ripple, so that no two updates are the same: real boards are never still.
        ripple_w = 0.1 * (round(end_s / over_s * 10) * 7919 % 11 - 5)
        return (self.energy_j(end_s) - self.energy_j(end_s - over_s)) / over_s + ripple_w

    def tick_s(self) -> float:
        return math.floor(self.clock.now() / self.period_s + 1e-9) * self.period_s


def _energy(board: Board) -> int:
    board.clock.sleep(board.read_s / 2)
    if board.clock.now() > board.stops_s:
        raise NVMLError("GPU is lost")
    value = board.counter_gain * board.energy_j(board.tick_s())
    board.clock.sleep(board.read_s / 2)
    return round(value * 1e3)


def _fields(board: Board, wanted: list[tuple[int, int]]) -> list[SimpleNamespace]:
    [(number, scope)] = wanted
    watts = {
        (186, 0): board.mean_w(board.tick_s(), board.period_s),
        (185, 0): board.mean_w(board.tick_s(), board.mean_over_s),
        (185, 2): board.memory_w,
    }[number, scope]
    code = 3 if f"field {number} {scope}" in board.broken else 0
    return [SimpleNamespace(nvmlReturn=code, value=SimpleNamespace(uiVal=round(watts * 1e3)))]


def _samples(board: Board, _: int, last_us: int) -> tuple[int, list[SimpleNamespace]]:
    count = math.floor(board.clock.now() / board.sample_s + 1e-9)
    moments = [i * board.sample_s for i in range(max(0, count - 119), count + 1)]
    found = [
        SimpleNamespace(
            timeStamp=10**9 + round(t * 1e6),
            sampleValue=SimpleNamespace(uiVal=round(board.mean_w(t, board.sample_s) * 1e3)),
        )
        for t in moments
        if 10**9 + round(t * 1e6) > last_us
    ]
    if not found:
        raise NVMLError("Not Found")
    return 1, found


def fake_nvml(boards: list[Board]) -> Any:
    """A stand-in for the module; a handle is the board itself."""
    on_board: dict[str, Callable[..., Any]] = {
        "nvmlDeviceGetName": lambda b: b.name,
        "nvmlDeviceGetUUID": lambda b: b.uuid,
        "nvmlDeviceGetEnforcedPowerLimit": lambda b: b.limit_mw,
        "nvmlDeviceGetPowerManagementDefaultLimit": lambda _: 700_000,
        "nvmlDeviceGetPowerManagementLimitConstraints": lambda _: [200_000, 700_000],
        "nvmlDeviceGetClockInfo": lambda b, kind: {1: b.sm_mhz, 2: 3201}[kind],
        "nvmlDeviceGetMaxClockInfo": lambda _, kind: {1: 1980, 2: 3201}[kind],
        "nvmlDeviceGetApplicationsClock": lambda *_: 1980,
        "nvmlDeviceGetDefaultApplicationsClock": lambda *_: 1980,
        "nvmlDeviceGetTemperature": lambda *_: 33,
        "nvmlDeviceGetTemperatureThreshold": lambda *_: 89,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda b: b.reasons,
        "nvmlDeviceGetUtilizationRates": lambda b: SimpleNamespace(gpu=b.utilization),
        "nvmlDeviceGetMemoryInfo": lambda b: SimpleNamespace(total=150e9, used=b.used_bytes),
        "nvmlDeviceGetPersistenceMode": lambda b: b.persistence,
        "nvmlDeviceGetMigMode": lambda b: [b.mig, b.mig],
        "nvmlDeviceGetVirtualizationMode": lambda _: 0,
        "nvmlDeviceGetComputeRunningProcesses": lambda b: [SimpleNamespace(pid=p) for p in b.pids],
        "nvmlDeviceGetGraphicsRunningProcesses": lambda _: [],
        "nvmlDeviceGetEccMode": lambda _: [1, 1],
        "nvmlDeviceGetTotalEccErrors": lambda b, kind, _: b.ecc[kind],
        "nvmlDeviceGetRetiredPages": lambda *_: [],
        "nvmlDeviceGetRetiredPagesPendingStatus": lambda _: 0,
        "nvmlDeviceGetRemappedRows": lambda b: b.remapped,
        "nvmlDeviceGetTotalEnergyConsumption": _energy,
        "nvmlDeviceGetPowerUsage": lambda b: round(b.mean_w(b.tick_s(), b.mean_over_s) * 1e3),
        "nvmlDeviceGetFieldValues": _fields,
        "nvmlDeviceGetSamples": _samples,
    }

    def breakable(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def function(board: Board, *args: Any) -> Any:
            if name in board.broken:
                raise NVMLError(board.broken[name])
            return call(board, *args)

        return function

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlErrorString=lambda code: f"error {code}",
        nvmlDeviceGetCount=lambda: len(boards),
        nvmlDeviceGetHandleByIndex=lambda index: boards[index],
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlSystemGetCudaDriverVersion=lambda: 13000,
        nvmlSystemGetNVMLVersion=lambda: "13.580.1",
        **{name: breakable(name, call) for name, call in on_board.items()},
    )


def works_on(boards: list[Board], load_w: float = LOAD_W) -> Callable[[str], Works]:
    """What ``torch_works`` gives on a real GPU: a context for good, and load while it runs."""

    def work(board: Board, power_w: float) -> Work:
        def submit() -> Callable[[], float]:
            board.set_power(power_w)

            def wait() -> float:
                board.clock.sleep(4e-3)
                return 4e-3

            return wait

        return Work(submit=submit, calls_per_chunk=1)

    def works(uuid: str) -> Works:
        [board] = [b for b in boards if b.uuid == uuid]
        return Works(context=work(board, CONTEXT_W), load=work(board, load_w))

    return works


def streaming_on(board: Board, byte_j: float) -> Callable[[str], Works]:
    """As ``works_on``, with a copy of 4e12 bytes a second in a memory of ``byte_j``."""
    chunk_s, bytes_per_s, chunks = 4e-3, 4e12, [0]

    def stream_of(share: float) -> Stream:
        def submit() -> Callable[[], float]:
            board.memory_w = MEMORY_W + byte_j * bytes_per_s * share

            def wait() -> float:
                board.clock.sleep(chunk_s / share)
                chunks[0] += 1
                return chunk_s

            return wait

        return Stream(
            work=Work(submit=submit, calls_per_chunk=1),
            moved_bytes=lambda: chunks[0] * chunk_s * bytes_per_s,
        )

    def works(uuid: str) -> Works:
        return replace(works_on([board])(uuid), stream_of=stream_of)

    return works
