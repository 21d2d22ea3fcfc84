"""What the GPUs of this machine and their sensors are worth for measuring energy.

Nothing is changed on a GPU: settings are read, sensors polled, and, unless it is ``quick``, a
matrix product runs for a few seconds.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calibration.clock import REAL_CLOCK, Clock
from calibration.doctor.facts import GpuFacts, gather, reason
from calibration.doctor.finding import NOTE, PROBLEM, Finding, finding, verdict
from calibration.doctor.findings import fit, of_gpu, of_host, unknown_gpu
from calibration.doctor.host import HostFacts, gather_host
from calibration.doctor.load import Works, torch_works
from calibration.doctor.memory import memory_byte_j, of_memory
from calibration.doctor.phases import CONTEXT, LOAD, NO_CONTEXT, Bedside, PhaseFacts
from calibration.doctor.sensor_findings import of_sensors
from calibration.doctor.timing import SensorFacts
from calibration.gpu import open_nvml
from energymodel import hardware
from energymodel.errors import InputError, WorkError

SCHEMA_VERSION = 1
IDLE_S, QUICK_IDLE_S = 4.0, 3.0
CONTEXT_S, CONTEXT_SETTLE_S = 2.5, 1.0
# The slowest reading is a mean over a second, which has to forget what was before.
LOAD_S, LOAD_SETTLE_S = 4.0, 1.6


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReport:
    """One GPU: facts, how its sensors behaved, its power in each state, and the verdict.

    ``verdict`` is "trustworthy", "with care" or "not usable". ``memory_byte_j``: what a byte costs
    in the memory of this board; None where that could not be measured.
    """

    verdict: str
    facts: GpuFacts
    sensors: dict[str, SensorFacts]
    phases: tuple[PhaseFacts, ...]
    memory_byte_j: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All GPUs, their host, and what follows; ``Finding.gpu`` is the index of a GPU."""

    host: HostFacts
    gpus: tuple[GpuReport, ...]
    findings: tuple[Finding, ...]
    schema_version: int = SCHEMA_VERSION


def examine_this_machine(
    index: int | None = None, *, quick: bool = False, say: Callable[[str], None]
) -> Report:
    """Examine the GPUs of this machine, or the one that NVML counts as ``index``.

    Raises:
        WorkError: there is no GPU, driver or NVML.
        InputError: there is no GPU of that index.
    """
    return examine(open_nvml(), index, works=None if quick else torch_works, say=say)


def examine(
    nvml: Any,
    index: int | None = None,
    *,
    works: Callable[[str], Works] | None,
    clock: Clock = REAL_CLOCK,
    root: Path = Path("/"),
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Examine GPUs through ``nvml``.

    Args:
        nvml: the module ``pynvml``, or a stand-in.
        index: which GPU; all of them without it.
        works: what to run on the GPU of a UUID; None examines it at rest only.
        clock: the time that sensors and works run on.
        root: where the file system of the host begins.
        say: is told what goes on, a line at a time.

    Raises:
        InputError: there is no GPU of that index.
    """
    count = int(nvml.nvmlDeviceGetCount())
    if index is not None and not 0 <= index < count:
        raise InputError(
            f"--gpu-index must be below {count}, the GPUs of this machine; got {index}."
        )
    host = gather_host(nvml, count, root)
    indices = range(count) if index is None else (index,)
    # All are looked at before any context is made: it would show on the others as well.
    patients, lost = _admit(nvml, indices, clock)
    for patient in patients:
        patient.rest(QUICK_IDLE_S if works is None else IDLE_S, say)
    if works is not None:
        for patient in patients:
            patient.exercise(works, say)
    reports = [patient.report() for patient in patients]
    findings = [f for _, found in reports for f in found]
    return Report(
        host=host,
        gpus=tuple(report for report, _ in reports),
        findings=(*of_host(host), *lost, *findings),
    )


def _admit(
    nvml: Any, indices: Iterable[int], clock: Clock
) -> tuple[list["_Patient"], list[Finding]]:
    """Those GPUs that answer at all, and a problem for each of the others."""
    patients, lost = [], []
    for index in indices:
        try:
            patients.append(_Patient(nvml, index, clock))
        except Exception as error:  # noqa: BLE001 - the other GPUs can still be examined
            text = f"GPU {index} does not answer: {reason(error)}"
            lost.append(finding(PROBLEM, text, "nothing can be measured on it", "reset the GPU"))
    return patients, lost


class _Patient:
    """One GPU from the first look to the report."""

    def __init__(self, nvml: Any, index: int, clock: Clock) -> None:
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByIndex(index)
        self.facts = gather(nvml, self._handle, index)
        self._bedside = Bedside(nvml, self._handle, clock)
        self._notes: list[Finding] = []
        self._memory_byte_j: float | None = None

    def rest(self, duration_s: float, say: Callable[[str], None]) -> None:
        """Poll it while nothing of ours runs there."""
        say(f"GPU {self.facts.index}, {self.facts.name}: at rest, {duration_s:.0f} s")
        self._bedside.rest(NO_CONTEXT, duration_s)

    def exercise(self, works: Callable[[str], Works], say: Callable[[str], None]) -> None:
        """Poll it with a context and under load, unless that would disturb others or fails."""
        try:
            self._refuse_disturbing()
            say(f"GPU {self.facts.index}: setting up CUDA")
            found = works(str(self._nvml.nvmlDeviceGetUUID(self._handle)))
            say(f"GPU {self.facts.index}: with a context, {CONTEXT_SETTLE_S + CONTEXT_S:.0f} s")
            self._bedside.work(
                CONTEXT, found.context, settle_s=CONTEXT_SETTLE_S, duration_s=CONTEXT_S
            )
            say(f"GPU {self.facts.index}: under load, {LOAD_SETTLE_S + LOAD_S:.0f} s")
            self._bedside.work(LOAD, found.load, settle_s=LOAD_SETTLE_S, duration_s=LOAD_S)
            if found.stream_of is not None:
                say(f"GPU {self.facts.index}: streaming through its memory")
                self._memory_byte_j = memory_byte_j(self._bedside, found.stream_of)
        except Exception as error:  # noqa: BLE001 - the rest of the report stands without it
            self._notes.append(
                finding(
                    NOTE,
                    f"not examined under load: {reason(error).rstrip('.')}",
                    "idle power with a context and agreement under load are unknown",
                )
            )

    def _refuse_disturbing(self) -> None:
        if self.facts.mig:
            raise WorkError("MIG is on")
        if self.facts.other_pids:
            raise WorkError("other processes use it")

    def report(self) -> tuple[GpuReport, list[Finding]]:
        """The report on this GPU, and its findings."""
        sensors, phases = self._bedside.sensors(), tuple(self._bedside.phases)
        found: Sequence[Finding] = [
            *fit(self.facts),
            *of_gpu(self.facts),
            *of_sensors(self.facts, sensors, phases),
            *of_memory(self.facts, self._memory_byte_j),
            *self._notes,
            *unknown_gpu(self.facts, hardware.available()),
        ]
        mine = [replace(f, gpu=self.facts.index) for f in found]
        report = GpuReport(
            verdict=verdict(mine),
            facts=self.facts,
            sensors=sensors,
            phases=phases,
            memory_byte_j=self._memory_byte_j,
        )
        return report, mine
