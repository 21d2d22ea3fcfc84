"""What NVML says of one GPU, each fact optional: a refusal is kept with its reason, never raised."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from calibration.gpu import gpu_key
from calibration.processes import others

# Numbers of nvml.h, the same in every version.
CLOCK_SM, CLOCK_MEMORY = 1, 2
TEMPERATURE_GPU = 0
TEMPERATURE_SLOWDOWN = 1
ERRORS_CORRECTED, ERRORS_UNCORRECTED = 0, 1
VOLATILE_COUNTER = 0
RETIRED_SINGLE_BIT, RETIRED_DOUBLE_BIT = 0, 1

THROTTLE_REASONS: Mapping[int, str] = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clocks",
}
VIRTUALIZATION = ("none", "passthrough", "vgpu", "vgpu host", "vsga host")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """One GPU as its driver describes it; None is what could not be read.

    ``refused`` gives the reason for every NVML call that failed. ``board`` is a hash of the UUID.
    """

    index: int
    name: str
    gpu: str
    board: str | None = None
    power_limit_w: float | None = None
    default_power_limit_w: float | None = None
    min_power_limit_w: float | None = None
    max_power_limit_w: float | None = None
    sm_clock_hz: float | None = None
    max_sm_clock_hz: float | None = None
    application_sm_clock_hz: float | None = None
    default_application_sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    max_memory_clock_hz: float | None = None
    temperature_c: float | None = None
    slowdown_temperature_c: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    utilization: float | None = None
    memory_bytes: float | None = None
    memory_used_bytes: float | None = None
    persistence: bool | None = None
    mig: bool | None = None
    virtualization: str | None = None
    other_pids: tuple[int, ...] | None = None
    graphics_pids: tuple[int, ...] | None = None
    ecc: bool | None = None
    uncorrected_errors: int | None = None
    corrected_errors: int | None = None
    retired_pages: int | None = None
    retirement_pending: bool | None = None
    remapped_rows: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    refused: Mapping[str, str] = field(default_factory=dict)


class Asker:
    """Calls NVML functions of one device by name; a failure becomes None and a reason."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self.refused: dict[str, str] = {}

    def ask(self, function: str, *args: Any) -> Any:
        """What ``function(handle, *args)`` returns, None where it fails."""
        try:
            return getattr(self._nvml, function)(self._handle, *args)
        except Exception as error:  # noqa: BLE001 - old drivers and bindings fail in many ways
            self.refused[function] = reason(error)
            return None

    def scaled(self, factor: float, function: str, *args: Any) -> float | None:
        """A number of NVML in SI."""
        value = self.ask(function, *args)
        return None if value is None else float(value) * factor

    def flag(self, function: str, *args: Any) -> bool | None:
        """An on/off state of NVML."""
        value = self.ask(function, *args)
        return None if value is None else bool(value)

    def several(self, count: int, function: str, *args: Any) -> tuple[Any, ...]:
        """The values of a function that returns several, Nones where it fails."""
        values = self.ask(function, *args)
        return (None,) * count if values is None else tuple(values)[:count]

    def member(self, name: str, function: str, *args: Any) -> float | None:
        """One field of a struct."""
        value = getattr(self.ask(function, *args), name, None)
        return None if value is None else float(value)


def reason(error: Exception) -> str:
    """Why something failed, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def gather(nvml: Any, handle: Any, index: int) -> GpuFacts:
    """Everything that NVML tells of a GPU without running anything on it."""
    asker = Asker(nvml, handle)
    name = _text(asker.ask("nvmlDeviceGetName")) or "unknown GPU"
    low, high = asker.several(2, "nvmlDeviceGetPowerManagementLimitConstraints")
    facts = {
        "board": board(asker.ask("nvmlDeviceGetUUID")),
        "power_limit_w": asker.scaled(1e-3, "nvmlDeviceGetEnforcedPowerLimit"),
        "default_power_limit_w": asker.scaled(1e-3, "nvmlDeviceGetPowerManagementDefaultLimit"),
        "min_power_limit_w": None if low is None else low * 1e-3,
        "max_power_limit_w": None if high is None else high * 1e-3,
        **_clocks(asker),
        **_health(asker),
        "utilization": asker.member("gpu", "nvmlDeviceGetUtilizationRates"),
        "memory_bytes": asker.member("total", "nvmlDeviceGetMemoryInfo"),
        "memory_used_bytes": asker.member("used", "nvmlDeviceGetMemoryInfo"),
        "persistence": asker.flag("nvmlDeviceGetPersistenceMode"),
        "mig": _mig(asker),
        "virtualization": _virtualization(asker.ask("nvmlDeviceGetVirtualizationMode")),
        "other_pids": _others(asker.ask("nvmlDeviceGetComputeRunningProcesses")),
        "graphics_pids": _others(asker.ask("nvmlDeviceGetGraphicsRunningProcesses")),
    }
    if facts["utilization"] is not None:
        facts["utilization"] *= 0.01
    return GpuFacts(index=index, name=name, gpu=gpu_key(name), refused=asker.refused, **facts)


def board(uuid: Any) -> str | None:
    """Twelve hexadecimal digits that stand for a board; its UUID goes nowhere."""
    return None if uuid is None else hashlib.sha256(_text(uuid).encode()).hexdigest()[:12]


def throttle_names(bits: int) -> tuple[str, ...]:
    """NVML's clock event reasons in words; bits without a name in hexadecimal."""
    named = [word for bit, word in THROTTLE_REASONS.items() if bits & bit]
    rest = bits & ~sum(THROTTLE_REASONS)
    return (*named, hex(rest)) if rest else tuple(named)


def throttle_bits(asker: Asker) -> int | None:
    """Clock event reasons now, also under the name that older drivers have for them."""
    bits = asker.ask("nvmlDeviceGetCurrentClocksEventReasons")
    if bits is None:
        bits = asker.ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    return None if bits is None else int(bits)


def _clocks(asker: Asker) -> dict[str, Any]:
    bits = throttle_bits(asker)
    return {
        "sm_clock_hz": asker.scaled(1e6, "nvmlDeviceGetClockInfo", CLOCK_SM),
        "max_sm_clock_hz": asker.scaled(1e6, "nvmlDeviceGetMaxClockInfo", CLOCK_SM),
        "memory_clock_hz": asker.scaled(1e6, "nvmlDeviceGetClockInfo", CLOCK_MEMORY),
        "max_memory_clock_hz": asker.scaled(1e6, "nvmlDeviceGetMaxClockInfo", CLOCK_MEMORY),
        "application_sm_clock_hz": asker.scaled(1e6, "nvmlDeviceGetApplicationsClock", CLOCK_SM),
        "default_application_sm_clock_hz": asker.scaled(
            1e6, "nvmlDeviceGetDefaultApplicationsClock", CLOCK_SM
        ),
        "temperature_c": asker.scaled(1.0, "nvmlDeviceGetTemperature", TEMPERATURE_GPU),
        "slowdown_temperature_c": asker.scaled(
            1.0, "nvmlDeviceGetTemperatureThreshold", TEMPERATURE_SLOWDOWN
        ),
        "throttle_reasons": None if bits is None else throttle_names(bits),
    }


def _health(asker: Asker) -> dict[str, Any]:
    errors = "nvmlDeviceGetTotalEccErrors"
    ecc, _ = asker.several(2, "nvmlDeviceGetEccMode")
    uncorrected = asker.ask(errors, ERRORS_UNCORRECTED, VOLATILE_COUNTER)
    corrected = asker.ask(errors, ERRORS_CORRECTED, VOLATILE_COUNTER)
    causes = (RETIRED_SINGLE_BIT, RETIRED_DOUBLE_BIT)
    pages = [asker.ask("nvmlDeviceGetRetiredPages", cause) for cause in causes]
    known = [p for p in pages if p is not None]
    by_corrected, by_uncorrected, pending, failed = asker.several(4, "nvmlDeviceGetRemappedRows")
    return {
        "ecc": None if ecc is None else bool(ecc),
        "uncorrected_errors": None if uncorrected is None else int(uncorrected),
        "corrected_errors": None if corrected is None else int(corrected),
        "retired_pages": sum(len(p) for p in known) if known else None,
        "retirement_pending": asker.flag("nvmlDeviceGetRetiredPagesPendingStatus"),
        "remapped_rows": None if by_corrected is None else int(by_corrected + by_uncorrected),
        "remap_pending": None if pending is None else bool(pending),
        "remap_failed": None if failed is None else bool(failed),
    }


def _mig(asker: Asker) -> bool | None:
    current, _ = asker.several(2, "nvmlDeviceGetMigMode")
    return None if current is None else bool(current)


def _virtualization(mode: Any) -> str | None:
    if mode is None:
        return None
    number = int(mode)
    return VIRTUALIZATION[number] if 0 <= number < len(VIRTUALIZATION) else str(number)


def _others(processes: Iterable[Any] | None) -> tuple[int, ...] | None:
    if processes is None:
        return None
    return others(int(p.pid) for p in processes)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)
