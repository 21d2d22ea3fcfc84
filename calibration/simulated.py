"""A GPU that does not exist: declared coefficients, a ticking energy counter, simulated time.

It stands in for NVML, CUDA and the clock, so that the whole measurement runs in milliseconds on
any machine and what it reports can be compared with what was declared.
"""

import heapq
import itertools
import math
import threading
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from calibration.bench import Runnable
from calibration.grid import Point
from calibration.sensors import Identity, Reading
from calibration.window import Work

POWER_CAP_REASON = 0x4
CHUNK_S = 4e-3
# The simulated power controller averages over this many chunks.
CONTROLLER_CHUNKS = 8
PREPARE_S = 0.2
# A read always takes some time, else a loop that polls would stop simulated time.
MIN_READ_S = 1e-4


class VirtualClock:
    """Time that passes only in sleeps. Of the threads that share it exactly one runs at a time."""

    def __init__(self) -> None:
        self._now = 0.0
        self._turn = threading.Condition()
        self._order = itertools.count()
        self._waiting: list[tuple[float, int]] = []
        self._running = (0.0, -1)

    def now(self) -> float:
        """Seconds since the clock was made."""
        return self._now

    def sleep(self, duration_s: float) -> None:
        """Let the others run until ``duration_s`` have passed."""
        self.sleep_until(self._now + duration_s)

    def sleep_until(self, time_s: float) -> None:
        """Let the others run until ``time_s``."""
        with self._turn:
            ticket = self._queue(time_s)
            self._pass_on()
            self._turn.wait_for(lambda: self._running == ticket)

    def spawn(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run in a thread that starts at the caller's next sleep."""
        ticket = self._queue(self._now)

        def body() -> None:
            with self._turn:
                self._turn.wait_for(lambda: self._running == ticket)
            try:
                run()
            finally:
                with self._turn:
                    ended.set()
                    self._pass_on()

        def join() -> None:
            while not ended.is_set():
                self.sleep(1e-3)
            thread.join()

        ended = threading.Event()
        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        return join

    def _queue(self, time_s: float) -> tuple[float, int]:
        ticket = (max(time_s, self._now), next(self._order))
        heapq.heappush(self._waiting, ticket)
        return ticket

    def _pass_on(self) -> None:
        self._running = heapq.heappop(self._waiting)
        self._now = self._running[0]
        self._turn.notify_all()


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedOp:
    """What one call costs at full clock; ``power_w`` is above static power.

    ``clock_bound`` is the share of ``time_s`` that goes with 1/clock; ``memory_share`` is the
    share of ``power_w`` that the memory draws.
    """

    time_s: float
    power_w: float
    clock_bound: float = 1.0
    memory_share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedGpu:
    """The declared facts. Energy of a call goes with clock squared, as voltage does with clock.

    ``thermal_reasons`` are NVML's bits; with any of them set the clock is halved.
    """

    name: str = "Simulated GPU"
    static_power_w: float = 120.0
    memory_idle_power_w: float = 40.0
    power_limit_w: float = 700.0
    max_sm_clock_hz: float = 1.98e9
    temperature_c: float = 50.0
    thermal_reasons: int = 0
    tick_s: float = 0.1
    energy_read_s: float = 4e-3
    counter_works: bool = True

    def call_s(self, op: SimulatedOp, clock_hz: float) -> float:
        """Device time of one call at a clock."""
        slower = self.max_sm_clock_hz / clock_hz
        return op.time_s * (op.clock_bound * slower + 1 - op.clock_bound)

    def call_j(self, op: SimulatedOp, clock_hz: float) -> float:
        """Energy of one call above static power at a clock."""
        return op.time_s * op.power_w * (clock_hz / self.max_sm_clock_hz) ** 2

    def clock_hz(self, op: SimulatedOp, busy: float) -> float:
        """The highest clock at which mean power meets the limit, for a share of busy time."""
        high = self.max_sm_clock_hz * (0.5 if self.thermal_reasons else 1.0)
        low = 0.1 * high
        if self._power_w(op, high, busy) <= self.power_limit_w:
            return high
        for _ in range(50):
            middle = 0.5 * (low + high)
            if self._power_w(op, middle, busy) > self.power_limit_w:
                high = middle
            else:
                low = middle
        return low

    def _power_w(self, op: SimulatedOp, clock_hz: float, busy: float) -> float:
        return self.static_power_w + busy * self.call_j(op, clock_hz) / self.call_s(op, clock_hz)


@dataclass(slots=True)
class _History:
    """Chunks that ran, in order; ``energy_j[i]`` and ``memory_j[i]`` are sums before chunk i."""

    begun_s: list[float] = field(default_factory=list)
    done_s: list[float] = field(default_factory=list)
    clock_hz: list[float] = field(default_factory=list)
    energy_j: list[float] = field(default_factory=lambda: [0.0])
    memory_j: list[float] = field(default_factory=lambda: [0.0])

    def add(
        self, begun_s: float, done_s: float, *, clock_hz: float, energy_j: float, memory_j: float
    ) -> None:
        """Append a chunk; it begins when the one before is done, or later."""
        self.begun_s.append(begun_s)
        self.done_s.append(done_s)
        self.clock_hz.append(clock_hz)
        self.energy_j.append(self.energy_j[-1] + energy_j)
        self.memory_j.append(self.memory_j[-1] + memory_j)

    def until(self, time_s: float, sums: list[float]) -> float:
        """Energy of a column of sums until a moment, each chunk's spread evenly over it."""
        i = bisect_right(self.begun_s, time_s) - 1
        if i < 0:
            return 0.0
        share = (time_s - self.begun_s[i]) / (self.done_s[i] - self.begun_s[i])
        return sums[i] + min(share, 1.0) * (sums[i + 1] - sums[i])

    def busy(self, now_s: float) -> float:
        """Share of time busy from the start of the last few chunks until now."""
        begun = self.begun_s[-CONTROLLER_CHUNKS:]
        done = self.done_s[-CONTROLLER_CHUNKS:]
        end = max(now_s, done[-1]) if done else now_s
        if not begun or end <= begun[0]:
            return 0.0
        return sum(d - b for b, d in zip(begun, done, strict=True)) / (end - begun[0])


class SimulatedSensor:
    """The sensor of a simulated GPU, and the device itself: it runs work on its clock."""

    def __init__(self, gpu: SimulatedGpu | None = None, clock: VirtualClock | None = None) -> None:
        self.gpu = gpu or SimulatedGpu()
        self.clock = clock or VirtualClock()
        self._history = _History()

    def identity(self) -> Identity:
        """The declared facts."""
        return Identity(
            gpu_name=self.gpu.name,
            board="simulated",
            driver="simulated",
            power_limit_w=self.gpu.power_limit_w,
            max_sm_clock_hz=self.gpu.max_sm_clock_hz,
        )

    def energy_j(self) -> float:
        """Energy at the last tick; a read takes ``energy_read_s`` and sees its middle."""
        cost_s = max(self.gpu.energy_read_s, MIN_READ_S)
        self.clock.sleep(0.5 * cost_s)
        tick_s = math.floor(self.clock.now() / self.gpu.tick_s) * self.gpu.tick_s
        self.clock.sleep(0.5 * cost_s)
        if not self.gpu.counter_works:
            return 0.0
        dynamic_j = self._history.until(tick_s, self._history.energy_j)
        return round(self.gpu.static_power_w * tick_s + dynamic_j, 3)

    def reading(self, time_s: float) -> Reading:
        """Clock of the last chunk that began, and why it is below the maximum."""
        i = bisect_right(self._history.begun_s, self.clock.now()) - 1
        clock_hz = self._history.clock_hz[i] if i >= 0 else self.gpu.max_sm_clock_hz
        reasons = self.gpu.thermal_reasons
        if not reasons and clock_hz < self.gpu.max_sm_clock_hz:
            reasons = POWER_CAP_REASON
        return Reading(
            time_s=time_s,
            sm_clock_hz=clock_hz,
            temperature_c=self.gpu.temperature_c,
            throttle_reasons=reasons,
        )

    def memory_power_w(self) -> float:
        """Mean over the last second."""
        now = self.clock.now()
        sums = self._history.memory_j
        used_j = self._history.until(now, sums) - self._history.until(now - 1.0, sums)
        return self.gpu.memory_idle_power_w + used_j

    def work(self, op: SimulatedOp, *, pause_s: float = 0.0) -> Work:
        """An operation in chunks of about 4 ms; ``pause_s`` follows each, on the host."""
        calls = max(1, round(CHUNK_S / op.time_s))

        def submit() -> Callable[[], float]:
            begun_s = max([self.clock.now(), *self._history.done_s[-1:]])
            clock_hz = self.gpu.clock_hz(op, self._history.busy(begun_s))
            chunk_s = calls * self.gpu.call_s(op, clock_hz)
            energy_j = calls * self.gpu.call_j(op, clock_hz)
            self._history.add(
                begun_s,
                begun_s + chunk_s,
                clock_hz=clock_hz,
                energy_j=energy_j,
                memory_j=energy_j * op.memory_share,
            )

            def wait() -> float:
                self.clock.sleep_until(begun_s + chunk_s + pause_s)
                return chunk_s

            return wait

        return Work(submit=submit, calls_per_chunk=calls)


class SimulatedBench:
    """Runs points of the grid at the costs that ``law`` declares."""

    def __init__(self, sensor: SimulatedSensor, law: Callable[[Point], SimulatedOp]) -> None:
        self._sensor, self._law = sensor, law
        self.clock = sensor.clock

    def prepare(self, point: Point) -> Runnable:
        """The point's declared cost as work, after a rest as long as a real set-up."""
        self.clock.sleep(PREPARE_S)
        return Runnable(work=self._sensor.work(self._law(point)), stack="simulated")

    def idle(self) -> Work:
        """No work and no power above static."""
        return self._sensor.work(SimulatedOp(time_s=CHUNK_S, power_w=0.0))

    def release(self) -> None:
        """Nothing is held."""
