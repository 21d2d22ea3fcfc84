"""GPU sensors behind one small protocol, and the thread that watches the energy counter.

NVML's energy counter advances in ticks of about 100 ms and a read costs milliseconds, so the
watcher sleeps through most of each period and reads closely only around the expected tick.
"""

import hashlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from calibration.clock import REAL_CLOCK, Clock
from energymodel.errors import WorkError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What was measured: the board by a hash of its UUID, never by the UUID."""

    gpu_name: str
    board: str
    driver: str
    power_limit_w: float
    max_sm_clock_hz: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Cheap instantaneous readings (microseconds a read)."""

    time_s: float
    sm_clock_hz: float
    temperature_c: float
    throttle_reasons: int


class Sensor(Protocol):
    """A GPU that can be asked for its energy since start, its clock and its temperature."""

    def identity(self) -> Identity:
        """Name, board hash, driver and limits."""

    def energy_j(self) -> float:
        """Energy counter, joules since an arbitrary origin; boundary: the GPU board."""

    def reading(self, time_s: float) -> Reading:
        """Clock, temperature and throttle reasons now."""

    def memory_power_w(self) -> float | None:
        """Mean power of the HBM alone over about one second, or None where unsupported."""


class NvmlSensor:
    """An NVIDIA GPU through NVML, by its UUID or by its index on this machine."""

    def __init__(self, index: int = 0, *, uuid: str | None = None) -> None:
        import pynvml

        self._nvml: Any = pynvml
        pynvml.nvmlInit()
        if uuid is None:
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        else:
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)

    def identity(self) -> Identity:
        """Name, board hash, driver and limits; the UUID itself goes nowhere."""
        nvml, handle = self._nvml, self._handle
        uuid = str(nvml.nvmlDeviceGetUUID(handle))
        max_mhz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)
        return Identity(
            gpu_name=str(nvml.nvmlDeviceGetName(handle)),
            board=hashlib.sha256(uuid.encode()).hexdigest()[:12],
            driver=str(nvml.nvmlSystemGetDriverVersion()),
            power_limit_w=nvml.nvmlDeviceGetEnforcedPowerLimit(handle) * 1e-3,
            max_sm_clock_hz=max_mhz * 1e6,
        )

    def energy_j(self) -> float:
        """Energy counter since the driver was loaded, joules (NVML: mJ); 3 to 6 ms a read."""
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) * 1e-3

    def reading(self, time_s: float) -> Reading:
        """Clock (NVML: MHz), temperature and throttle reasons now."""
        nvml, handle = self._nvml, self._handle
        return Reading(
            time_s=time_s,
            sm_clock_hz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6,
            temperature_c=nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            throttle_reasons=nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        )

    def memory_power_w(self) -> float | None:
        """Mean power of the HBM over one second (NVML: mW), None where there is no such sensor."""
        nvml = self._nvml
        scope_memory = 2  # NVML_POWER_SCOPE_MEMORY
        try:
            value = nvml.nvmlDeviceGetFieldValues(
                self._handle, [(nvml.NVML_FI_DEV_POWER_AVERAGE, scope_memory)]
            )[0]
        except nvml.NVMLError:
            return None
        return value.value.uiVal * 1e-3 if value.nvmlReturn == 0 else None


@dataclass(slots=True)
class Trace:
    """What the watcher saw: ticks of the energy counter and readings in between.

    ``tick_s[i]`` is the host time at which the counter was first seen at ``tick_j[i]``.
    """

    tick_s: list[float] = field(default_factory=list)
    tick_j: list[float] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)

    def energy_between(self, start_s: float, end_s: float) -> float:
        """Energy from ``start_s`` to ``end_s`` by linear interpolation between ticks, joules.

        Raises:
            ValueError: the interval is not inside the ticks that were seen.
        """
        if not self.tick_s or start_s < self.tick_s[0] or end_s > self.tick_s[-1]:
            raise ValueError("the interval reaches outside the ticks of the energy counter")
        lo, hi = np.interp([start_s, end_s], self.tick_s, self.tick_j)
        return float(hi - lo)

    def ticks_between(self, start_s: float, end_s: float) -> tuple[float, float, int]:
        """First and last tick inside [start_s, end_s], and the number of periods between them."""
        inside = [t for t in self.tick_s if start_s <= t <= end_s]
        if len(inside) < 2:
            return start_s, end_s, 0
        return inside[0], inside[-1], len(inside) - 1

    def clock_hz(self, start_s: float, end_s: float) -> float:
        """Mean SM clock over the readings in the interval; NaN where there is none."""
        values = [r.sm_clock_hz for r in self.readings if start_s <= r.time_s <= end_s]
        return float(np.mean(values)) if values else float("nan")

    def temperature_c(self, start_s: float, end_s: float) -> float:
        """Mean GPU temperature over the readings in the interval; NaN where there is none."""
        values = [r.temperature_c for r in self.readings if start_s <= r.time_s <= end_s]
        return float(np.mean(values)) if values else float("nan")

    def throttle_reasons(self, start_s: float, end_s: float) -> int:
        """Union of NVML's clock event reasons over the readings in the interval."""
        union = 0
        for r in self.readings:
            if start_s <= r.time_s <= end_s:
                union |= r.throttle_reasons
        return union


class Watcher:
    """Follows a sensor from a thread; ``with Watcher(sensor) as trace`` fills ``trace`` meanwhile."""

    # Sleep this long after a tick before reading closely again; the period is about 100 ms.
    QUIET_S = 0.080
    READING_EVERY_S = 0.010

    def __init__(self, sensor: Sensor, clock: Clock = REAL_CLOCK) -> None:
        self._sensor, self._clock = sensor, clock
        self._stop = threading.Event()
        self._join: Callable[[], None] = lambda: None
        self._error: Exception | None = None
        self.trace = Trace()

    def __enter__(self) -> Trace:
        self._join = self._clock.spawn(self._run)
        return self.trace

    def __exit__(self, kind: object, *_: object) -> None:
        self._stop.set()
        self._join()
        if self._error is not None and kind is None:
            raise WorkError(f"The GPU's sensors stopped answering: {self._error}.") from self._error

    def wait_for_tick(self, after_s: float, timeout_s: float = 2.0) -> None:
        """Block until a tick later than ``after_s`` was seen, or the time-out."""
        deadline = self._clock.now() + timeout_s
        while self._clock.now() < deadline:
            if self.trace.tick_s and self.trace.tick_s[-1] > after_s:
                return
            self._clock.sleep(0.005)

    def _run(self) -> None:
        try:
            self._follow()
        except Exception as error:  # noqa: BLE001 - raised again where the watcher is used
            self._error = error

    def _follow(self) -> None:
        last = self._sensor.energy_j()
        before = self._clock.now()
        while not self._stop.is_set():
            energy = self._sensor.energy_j()
            now = self._clock.now()
            if energy != last:
                # The counter advanced at some moment between the two reads.
                self.trace.tick_s.append(0.5 * (before + now))
                self.trace.tick_j.append(energy)
                last = energy
                self._rest()
                before = self._clock.now()
            else:
                before = now

    def _rest(self) -> None:
        until = self._clock.now() + self.QUIET_S
        while self._clock.now() < until and not self._stop.is_set():
            self.trace.readings.append(self._sensor.reading(self._clock.now()))
            self._clock.sleep(self.READING_EVERY_S)
