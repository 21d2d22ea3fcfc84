"""GPU sensors behind one small protocol; NVML's is one of them."""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from calibration import processes


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

    def other_processes(self) -> tuple[int, ...]:
        """Ids of processes on the GPU that are not ours; empty also where they cannot be seen."""

    def faults(self) -> int:
        """Errors that the GPU has reported, counted from an arbitrary origin."""


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
        self._xid_events: Any = None
        self._xids = 0

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

    def other_processes(self) -> tuple[int, ...]:
        """Processes with a compute, graphics or MPS context that are not ours; see ``processes``."""
        nvml = self._nvml
        listed: set[int] = set()
        for kind in ("Compute", "Graphics", "MPSCompute"):
            # A list that this driver does not give says nothing; a lost GPU shows in the energy.
            with suppress(nvml.NVMLError, AttributeError):
                running = getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses")(self._handle)
                listed.update(p.pid for p in running)
        return processes.others(listed)

    def faults(self) -> int:
        """Uncorrected memory errors, and Xid errors since the first call; 0 where unreadable."""
        nvml = self._nvml
        memory_errors = 0
        with suppress(nvml.NVMLError):
            memory_errors = nvml.nvmlDeviceGetTotalEccErrors(
                self._handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            )
        return int(memory_errors) + self._count_xids()

    def _count_xids(self) -> int:
        """Xid errors that NVML has queued for us since it was asked to."""
        nvml = self._nvml
        if self._xid_events is None:
            self._xid_events = self._subscribe_to_xids()
        # Ends with NVML's time-out, at once, when the queue is empty.
        with suppress(nvml.NVMLError):
            while self._xid_events:
                nvml.nvmlEventSetWait_v2(self._xid_events, 0)
                self._xids += 1
        return self._xids

    def _subscribe_to_xids(self) -> Any:
        """NVML's queue of Xid events; False where the driver does not report them to us."""
        nvml = self._nvml
        try:
            events = nvml.nvmlEventSetCreate()
            nvml.nvmlDeviceRegisterEvents(self._handle, nvml.nvmlEventTypeXidCriticalError, events)
        except nvml.NVMLError:
            return False
        return events
