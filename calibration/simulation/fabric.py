"""Several GPUs that do not exist, joined by links with declared costs.

A collective of message size s moves w(s) bytes over the links of each GPU (``wire_share``); it takes
``latency_s + w / bytes_per_s`` and spends ``byte_j`` for each of those bytes and ``busy_w`` while it
lasts, on each GPU above static power. A GPU that waits for a late one spends ``busy_w`` as well, the
late one ``late_w``.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from calibration.clock import VirtualClock
from calibration.collectives import rank
from calibration.collectives.grid import Point
from calibration.collectives.sweep import Facts, Seen
from calibration.sensors import Identity, Reading
from calibration.simulation.gpu import DRIVER, SimulatedGpu, SimulatedOp, SimulatedSensor
from energymodel.collectives import wire_share


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """Declared costs. ``latency_s`` by operation or library, in seconds for two GPUs.

    With more GPUs a ring has more steps, so latency grows with ``gpus / 2``. A matrix product takes
    ``flop_per_s``; beside an all-reduce both take ``overlap`` times the longer of the two.
    """

    latency_s: Mapping[str, float] = field(
        default_factory=lambda: {
            "all_reduce": 12e-6, "all_gather": 9e-6, "reduce_scatter": 9e-6, "all_to_all": 11e-6,
            "send_recv": 8e-6, "vllm": 4e-6,
        }
    )  # fmt: skip
    bytes_per_s: Mapping[str, float] = field(default_factory=lambda: {"nccl": 360e9, "vllm": 240e9})
    byte_j: float = 6e-11
    busy_w: float = 95.0
    late_w: float = 8.0
    flop_per_s: float = 6e14
    flop_j: float = 6e-13
    overlap: float = 1.1

    def op(self, point: Point, gpus: int, number: int) -> SimulatedOp:
        """What one call costs on the GPU of rank ``number``."""
        if point.op == "idle":
            return SimulatedOp(time_s=4e-3, power_w=0.0)
        product_s = 2.0 * point.m * point.n * point.k / self.flop_per_s
        product_j = 2.0 * point.m * point.n * point.k * self.flop_j
        if point.op == "product":
            return SimulatedOp(time_s=product_s, power_w=product_j / product_s)
        wire = wire_share(_collective(point), gpus) * point.message_bytes
        library = "vllm" if point.library == "vllm" else "nccl"
        start = self.latency_s["vllm" if library == "vllm" else _collective(point)]
        call_s = start * 0.5 * gpus + wire / self.bytes_per_s[library]
        energy_j = self.byte_j * wire + self.busy_w * call_s
        if point.op == "overlap":
            both_s = self.overlap * max(product_s, call_s)
            return SimulatedOp(time_s=both_s, power_w=(product_j + energy_j) / both_s)
        skew_s = point.skew_us * 1e-6
        energy_j += skew_s * (self.late_w if number == 0 else self.busy_w)
        seconds = call_s + skew_s
        return SimulatedOp(time_s=seconds, power_w=energy_j / seconds, clock_bound=0.0)


def _collective(point: Point) -> str:
    return "all_reduce" if point.op == "overlap" else point.op


class SimulatedHost:
    """GPUs of one host on simulated time: each with its own sensor, heat and clock."""

    def __init__(self, gpu: SimulatedGpu, gpus: int, fabric: Fabric | None = None) -> None:

        self._fabric = fabric or Fabric()
        self._sensors = [
            SimulatedSensor(
                replace(gpu, board=f"{gpu.board}-{i}", seed=gpu.seed + i), VirtualClock()
            )
            for i in range(gpus)
        ]

    def facts(self) -> Facts:
        """As declared."""
        first = self._sensors[0].identity()
        return Facts(
            gpus=len(self._sensors),
            boards=tuple(s.identity().board for s in self._sensors),
            gpu=first.gpu_name,
            driver=DRIVER,
            power_limit_w=first.power_limit_w,
            link="simulated",
            environment={},
        )

    def now_s(self) -> float:
        """Simulated time of the GPU that is furthest."""
        return max(s.clock.now() for s in self._sensors)

    def measure(self, point: Point, *, burst: bool) -> Seen:
        """One burst or window on each GPU in turn, all with as many chunks."""
        ranks, spreads_s = [], []
        for number, sensor in enumerate(self._sensors):
            op = self._fabric.op(point, len(self._sensors), number)
            work, board = sensor.work(op), sensor.identity().board
            if burst:
                seen, spread_s = rank.burst(sensor, work, sensor.clock, board)
                spreads_s.append(spread_s)
            else:
                # At its lowest clock a chunk takes up to twice as long: fewer would do then.
                chunks = rank.Pace().chunks(op.time_s * work.calls_per_chunk)
                seen = rank.window(
                    sensor, work, sensor.clock, board, pace=rank.Pace(), chunks=chunks
                )
            ranks.append(seen)
        return Seen(ranks=tuple(ranks), stack="simulated", spread_s=max(spreads_s, default=None))


class SteadySensor:
    """A sensor that counts a constant power on the host's own time, for processes without a GPU."""

    TICK_S = 0.02

    def __init__(self, *, power_w: float, board: str) -> None:
        self._power_w, self._board = power_w, board

    def identity(self) -> Identity:
        """A board of its own name."""
        return Identity(
            gpu_name="CPU process",
            board=self._board,
            driver=DRIVER,
            power_limit_w=10.0 * self._power_w,
            max_sm_clock_hz=1e9,
        )

    def energy_j(self) -> float:
        """Joules at the last tick, since an arbitrary origin."""
        time.sleep(1e-3)
        ticks = math.floor(time.perf_counter() / self.TICK_S)
        return self._power_w * ticks * self.TICK_S

    def reading(self, time_s: float) -> Reading:
        """Nothing ever changes."""
        return Reading(time_s=time_s, sm_clock_hz=1e9, temperature_c=40.0, throttle_reasons=0)

    def memory_power_w(self) -> float | None:
        """There is no such sensor."""
        return None

    def other_processes(self) -> tuple[int, ...]:
        """None."""
        return ()

    def faults(self) -> int:
        """None."""
        return 0
