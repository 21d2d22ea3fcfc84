"""The energy and power sensors of a GPU through NVML, each as a source that can be polled."""

from dataclasses import dataclass, field
from typing import Any

from calibration.clock import Clock
from calibration.doctor.facts import reason
from calibration.doctor.timing import SensorFacts, Series, Source

# Numbers of nvml.h, the same in every version.
FIELD_POWER_AVERAGE, FIELD_POWER_INSTANT = 185, 186
SCOPE_GPU, SCOPE_MEMORY = 0, 2
TOTAL_POWER_SAMPLES = 0
VALUE_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
MILLI, MICRO = 1e-3, 1e-6
# A full-size buffer of samples spans seconds; fewer than these say nothing of a period.
MIN_SAMPLES = 5

COUNTER = "energy_counter"
INSTANT = "power_instant"
USAGE = "power_usage"
AVERAGE = "power_average"
MEMORY = "memory_power"
SAMPLES = "power_samples"


class RefusedError(Exception):
    """NVML has no such value here; the message says why."""


def sources(nvml: Any, handle: Any) -> tuple[Source, ...]:
    """Everything with energy or power that can be read at a moment, supported or not."""

    def counter() -> float:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * MILLI

    def usage() -> float:
        return float(nvml.nvmlDeviceGetPowerUsage(handle)) * MILLI

    def of_field(number: int, scope: int) -> float:
        return _field_w(nvml, handle, number, scope)

    return (
        Source(name=COUNTER, unit="J", read=counter),
        Source(name=INSTANT, unit="W", read=lambda: of_field(FIELD_POWER_INSTANT, SCOPE_GPU)),
        Source(name=USAGE, unit="W", read=usage),
        Source(name=AVERAGE, unit="W", read=lambda: of_field(FIELD_POWER_AVERAGE, SCOPE_GPU)),
        Source(name=MEMORY, unit="W", read=lambda: of_field(FIELD_POWER_AVERAGE, SCOPE_MEMORY)),
    )


def split(found: tuple[Source, ...]) -> tuple[tuple[Source, ...], dict[str, SensorFacts]]:
    """(sources that answer, facts of those that do not), after one read of each."""
    working, missing = [], {}
    for source in found:
        try:
            value = source.read()
        except Exception as error:  # noqa: BLE001 - old drivers and bindings fail in many ways
            missing[source.name] = SensorFacts(supported=False, reason=reason(error))
            continue
        if source.unit == "W" and value <= 0:  # no part of a GPU that is on draws nothing
            missing[source.name] = SensorFacts(supported=False, reason="it reads 0 W")
        else:
            working.append(source)
    return tuple(working), missing


def _field_w(nvml: Any, handle: Any, number: int, scope: int) -> float:
    found = nvml.nvmlDeviceGetFieldValues(handle, [(number, scope)])[0]
    if found.nvmlReturn != 0:
        text = getattr(nvml, "nvmlErrorString", lambda code: f"NVML error {code}")(found.nvmlReturn)
        raise RefusedError(text.decode() if isinstance(text, bytes) else str(text))
    return float(found.value.uiVal) * MILLI


@dataclass(slots=True)
class SampleBuffer:
    """Power samples that the driver takes by itself; ``fetch`` collects those since the last one.

    ``run`` holds their moments on the driver's own clock.
    """

    nvml: Any
    handle: Any
    clock: Clock
    last_us: int = 0
    fetch_s: list[float] = field(default_factory=list)
    run: Series = field(default_factory=Series)
    refused: str | None = None

    def fetch(self) -> None:
        """Append new samples; a failure other than "none yet" is kept in ``refused``."""
        begun_s = self.clock.now()
        try:
            kind, samples = self.nvml.nvmlDeviceGetSamples(
                self.handle, TOTAL_POWER_SAMPLES, self.last_us
            )
            member = VALUE_MEMBERS[kind]
            found = [(int(s.timeStamp), float(getattr(s.sampleValue, member))) for s in samples]
        except Exception as error:  # noqa: BLE001 - old drivers and bindings fail in many ways
            if "not found" not in reason(error).lower():  # no new samples since the last fetch
                self.refused = reason(error)
            return
        self.fetch_s.append(self.clock.now() - begun_s)
        for time_us, power_mw in sorted(found):
            if time_us > self.last_us:
                self.last_us = time_us
                self.run.time_s.append(time_us * MICRO)
                self.run.value.append(power_mw * MILLI)

    def restart(self) -> None:
        """Forget what was sampled until now."""
        self.fetch()
        self.run = Series()
