"""A GPU that does not exist: declared coefficients, a ticking energy counter, simulated time.

It stands in for NVML, CUDA and the clock, so that the whole measurement runs in milliseconds on
any machine and what it reports can be compared with what was declared. At relative clock x a call
takes ``fixed_s + clocked_s / x`` and spends ``core_j x^a + hbm_j`` above static power; the clock
is the highest at which mean power meets the limit.
"""

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from calibration.bench import Runnable
from calibration.clock import VirtualClock
from calibration.grid import Point
from calibration.sensors import Identity, Reading
from calibration.simulation.timeline import Thermal, Timeline
from calibration.verdict import POWER_CAP_REASON
from calibration.window import Work

# What observations name in place of the driver's version.
DRIVER = "simulated"
CHUNK_S = 4e-3
# The simulated power controller looks back over this many chunks.
CONTROLLER_CHUNKS = 8
LEAST_CLOCK, HOT_CLOCK = 0.2, 0.5
PREPARE_S = 0.2
# To launch a kernel: eagerly, in a CUDA graph.
LAUNCH_S = (4e-6, 1e-6)
# A read always takes some time, else a loop that polls would stop simulated time.
MIN_READ_S = 1e-4
# What another process adds: power above static, and time to every call.
OTHERS_POWER_W, OTHERS_SLOWDOWN = 90.0, 1.4


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedOp:
    """What one call costs at full clock; ``power_w`` is above static power.

    ``clock_bound`` is the share of ``time_s`` that goes with 1/clock; ``memory_share`` is the
    share of the energy that the memory spends, whatever the clock.
    """

    time_s: float
    power_w: float
    clock_bound: float = 1.0
    memory_share: float = 0.0

    def seconds(self, x: float) -> float:
        """Device time of one call at relative clock ``x``."""
        return self.time_s * (1.0 - self.clock_bound + self.clock_bound / x)

    def hbm_j(self) -> float:
        """Energy of one call in the memory."""
        return self.time_s * self.power_w * self.memory_share

    def core_j(self, x: float, exponent: float) -> float:
        """Energy of one call outside the memory, above static power, at relative clock ``x``."""
        return self.time_s * self.power_w * (1.0 - self.memory_share) * math.pow(x, exponent)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedGpu:
    """The declared facts. Without noise, jitter and heat unless asked for.

    Static power is ``static_power_w + static_w_per_c T``; idle for long, T is ``temperature_c``
    plus ``c_per_w`` times that power. ``thermal_reasons`` are NVML's bits; with any of them set
    the clock is halved. ``board_factor`` multiplies every energy of this board. Noises are
    standard deviations: ``run_noise`` of a preparation's time and energy (relative),
    ``time_noise`` of each chunk's time (relative), ``counter_noise_j`` of each update.
    """

    name: str = "Simulated GPU"
    board: str = "simulated"
    board_factor: float = 1.0
    static_power_w: float = 120.0
    static_w_per_c: float = 0.0
    temperature_c: float = 50.0
    c_per_w: float = 0.0
    settling_s: float = 15.0
    memory_idle_power_w: float = 40.0
    power_limit_w: float = 700.0
    limit_share: float = 1.0
    exponent: float = 2.0
    max_sm_clock_hz: float = 1.98e9
    thermal_reasons: int = 0
    tick_s: float = 0.1
    tick_jitter_s: float = 0.0
    quantum_j: float = 1e-3
    counter_noise_j: float = 0.0
    energy_read_s: float = 4e-3
    counter_works: bool = True
    run_noise: float = 0.0
    time_noise: float = 0.0
    seed: int = 0

    def thermal(self) -> Thermal:
        """Static power and heat of this board."""
        return Thermal(
            static_w=self.static_power_w * self.board_factor,
            static_w_per_c=self.static_w_per_c * self.board_factor,
            ambient_c=self.temperature_c,
            c_per_w=self.c_per_w,
            settling_s=self.settling_s,
        )

    def call_j(self, op: SimulatedOp, x: float) -> float:
        """Energy of one call above static power at relative clock ``x``."""
        return (op.core_j(x, self.exponent) + op.hbm_j()) * self.board_factor

    def clock(self, op: SimulatedOp, *, static_w: float, busy: float = 1.0) -> float:
        """The highest relative clock at which mean power meets the limit, for a share of time."""
        allowed_w = self.limit_share * self.power_limit_w - static_w
        core_j = busy * self.board_factor * op.core_j(1.0, self.exponent)
        hbm_j = busy * self.board_factor * op.hbm_j()
        if core_j + hbm_j <= allowed_w * op.time_s:
            return 1.0
        low, high = LEAST_CLOCK, 1.0
        while high - low > 1e-9:
            x = 0.5 * (low + high)
            if core_j * x**self.exponent + hbm_j > allowed_w * op.seconds(x):
                high = x
            else:
                low = x
        return low


class SimulatedSensor:
    """The sensor of a simulated GPU, and the device itself: it runs work on its clock."""

    def __init__(self, gpu: SimulatedGpu | None = None, clock: VirtualClock | None = None) -> None:
        self.gpu = gpu or SimulatedGpu()
        self.clock = clock or VirtualClock()
        self._thermal = self.gpu.thermal()
        self._line = Timeline(self._thermal, self.gpu.max_sm_clock_hz)
        self._recent: deque[tuple[float, float]] = deque(maxlen=CONTROLLER_CHUNKS)
        self._noise = random.Random(self.gpu.seed)  # noqa: S311 - noise, not a secret
        self._counted_j: dict[int, float] = {}

    def identity(self) -> Identity:
        """The declared facts."""
        return Identity(
            gpu_name=self.gpu.name,
            board=self.gpu.board,
            driver=DRIVER,
            power_limit_w=self.gpu.power_limit_w,
            max_sm_clock_hz=self.gpu.max_sm_clock_hz,
        )

    def energy_j(self) -> float:
        """Energy at the last tick; a read takes ``energy_read_s`` and sees its middle."""
        cost_s = max(self.gpu.energy_read_s, MIN_READ_S)
        self.clock.sleep(0.5 * cost_s)
        value_j = self.counter_j(self.clock.now())
        self.clock.sleep(0.5 * cost_s)
        return value_j

    def counter_j(self, time_s: float) -> float:
        """What the counter shows at a moment: the energy at its last update."""
        return self.counted_j(self.tick_at(time_s)) if self.gpu.counter_works else 0.0

    def tick_at(self, time_s: float) -> int:
        """Number of the last update until a moment."""
        tick = math.floor(time_s / self.gpu.tick_s)
        return tick if self.tick_s(tick) <= time_s else tick - 1

    def tick_s(self, tick: int) -> float:
        """The moment of an update: up to ``tick_jitter_s`` late."""
        late_s = self.gpu.tick_jitter_s * self._of_tick(tick).random()
        return tick * self.gpu.tick_s + late_s

    def counted_j(self, tick: int) -> float:
        """What the counter shows from an update to the next; every read of it shows the same."""
        if tick not in self._counted_j:
            noise_j = self.gpu.counter_noise_j * self._of_tick(tick).gauss()
            energy_j = self._line.energy_j(self.tick_s(tick)) + noise_j if tick > 0 else 0.0
            self._counted_j[tick] = round(energy_j / self.gpu.quantum_j) * self.gpu.quantum_j
        return self._counted_j[tick]

    def _of_tick(self, tick: int) -> random.Random:
        return random.Random(self.gpu.seed * 1_000_003 + tick)  # noqa: S311 - noise

    def reading(self, time_s: float) -> Reading:
        """Clock of the last chunk that began, and why it is below the maximum."""
        now = self.clock.now()
        clock_hz = self._line.clock_hz(now)
        reasons = self.thermal_reasons(now)
        if not reasons and clock_hz < self.gpu.max_sm_clock_hz:
            reasons = POWER_CAP_REASON
        return Reading(
            time_s=time_s,
            sm_clock_hz=clock_hz,
            temperature_c=self._line.temperature_c(now),
            throttle_reasons=reasons,
        )

    def memory_power_w(self) -> float:
        """Mean over the last second."""
        now = self.clock.now()
        used_j = self._line.memory_j(now) - self._line.memory_j(max(now - 1.0, 0.0))
        return self.gpu.memory_idle_power_w + used_j

    def other_processes(self) -> tuple[int, ...]:
        """None."""
        return ()

    def faults(self) -> int:
        """None."""
        return 0

    def thermal_reasons(self, _time_s: float) -> int:
        """NVML's bits of thermal slowdown at a moment."""
        return self.gpu.thermal_reasons

    def work(self, op: SimulatedOp, *, pause_s: float = 0.0) -> Work:
        """An operation in chunks of about 4 ms; ``pause_s`` follows each, on the host."""
        gpu, line = self.gpu, self._line
        calls = max(1, round(CHUNK_S / op.time_s))
        slower, hungrier = (self._factor(gpu.run_noise) for _ in range(2))

        def submit() -> Callable[[], float]:
            begun_s = max(self.clock.now(), line.done_s)
            static_w = self._thermal.power_w(line.temperature_c(begun_s))
            x = gpu.clock(op, static_w=static_w, busy=self._busy(begun_s))
            if self.thermal_reasons(begun_s):
                x = min(x, HOT_CLOCK)
            company = bool(self.other_processes())
            chunk_s = calls * op.seconds(x) * slower * self._factor(gpu.time_noise)
            chunk_s *= OTHERS_SLOWDOWN if company else 1.0
            share = calls * hungrier * gpu.board_factor / chunk_s
            hbm_w = share * op.hbm_j()
            line.add(
                begun_s,
                begun_s + chunk_s,
                work_w=share * op.core_j(x, gpu.exponent)
                + hbm_w
                + (OTHERS_POWER_W if company else 0.0),
                memory_w=hbm_w,
                clock_hz=x * gpu.max_sm_clock_hz,
            )
            self._recent.append((begun_s, begun_s + chunk_s))

            def wait() -> float:
                self.clock.sleep_until(begun_s + chunk_s + pause_s)
                return chunk_s

            return wait

        return Work(submit=submit, calls_per_chunk=calls)

    def _factor(self, noise: float) -> float:
        return math.exp(self._noise.gauss(0.0, noise)) if noise else 1.0

    def _busy(self, now_s: float) -> float:
        """Share of time busy from the start of the last few chunks until now."""
        if not self._recent or now_s <= self._recent[0][0]:
            return 0.0
        return sum(done - begun for begun, done in self._recent) / (now_s - self._recent[0][0])


class SimulatedBench:
    """Runs points of the grid at the costs that ``law`` declares."""

    def __init__(self, sensor: SimulatedSensor, law: Callable[[Point], SimulatedOp]) -> None:
        self._sensor, self._law = sensor, law
        self.clock = sensor.clock

    def prepare(self, point: Point) -> Runnable:
        """The point's declared cost as work, after a rest as long as a real set-up."""
        self.clock.sleep(PREPARE_S)
        work = self._sensor.work(self._law(point))
        return Runnable(work=work, pulse=work, stack="simulated")

    def launch_s(self, graph: int) -> tuple[float, float]:
        """Declared time to launch a kernel, without spread."""
        return (LAUNCH_S[graph], 0.0)

    def idle(self) -> Work:
        """No work and no power above static."""
        return self._sensor.work(SimulatedOp(time_s=CHUNK_S, power_w=0.0))

    def release(self) -> None:
        """Nothing is held."""
