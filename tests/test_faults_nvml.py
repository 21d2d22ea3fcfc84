"""What NVML says of other processes and of faults, and what that means in a container."""
# ruff: noqa: N802, N815 - the names are those of NVML

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from calibration import processes
from calibration.sensors import NvmlSensor


class NVMLError(Exception):
    pass


class Nvml(SimpleNamespace):
    """A stand-in for the module ``pynvml``."""

    NVMLError = NVMLError
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0
    nvmlEventTypeXidCriticalError = 8

    def __init__(self) -> None:
        super().__init__(compute=(), graphics=(), memory_errors=0, xids=0, registered=0)

    def nvmlInit(self) -> None:
        """Nothing to do."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, _: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid) for pid in self.compute]

    def nvmlDeviceGetGraphicsRunningProcesses(self, _: int) -> list[SimpleNamespace]:
        if self.graphics is None:
            raise NVMLError("Not Supported")
        return [SimpleNamespace(pid=pid) for pid in self.graphics]

    def nvmlDeviceGetTotalEccErrors(self, *_: int) -> int:
        if self.memory_errors is None:
            raise NVMLError("Not Supported")
        return int(self.memory_errors)

    def nvmlEventSetCreate(self) -> str:
        if self.xids is None:
            raise NVMLError("Insufficient Permissions")
        return "queue"

    def nvmlDeviceRegisterEvents(self, _: int, kinds: int, queue: str) -> None:
        assert (kinds, queue) == (8, "queue")
        self.registered += 1

    def nvmlEventSetWait_v2(self, queue: str, timeout_ms: int) -> None:
        assert (queue, timeout_ms) == ("queue", 0)
        if not self.xids:
            raise NVMLError("Timeout")
        self.xids -= 1


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    fake = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def hold_context(monkeypatch: pytest.MonkeyPatch, holds: bool) -> None:
    cuda = SimpleNamespace(is_initialized=lambda: holds)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))


# Processes ---------------------------------------------------------------------------------------


def test_ours_and_what_we_started_are_not_others(nvml: Nvml) -> None:
    waits = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", waits], stdin=subprocess.PIPE) as child:  # noqa: S603
        nvml.compute = (os.getpid(), child.pid)
        assert NvmlSensor().other_processes() == ()
        nvml.compute = (os.getpid(), child.pid, 1, 2**22 + 7)
        nvml.graphics = (os.getppid(),)
        others = sorted({1, 2**22 + 7, os.getppid()})
        assert NvmlSensor().other_processes() == tuple(others)


def test_lists_that_a_driver_does_not_give_say_nothing(nvml: Nvml) -> None:
    nvml.graphics = None
    nvml.compute = (2**22 + 7,)
    assert NvmlSensor().other_processes() == (2**22 + 7,)


@pytest.mark.parametrize(
    ("listed", "holds", "others"),
    [
        ((), True, ()),
        ((), False, ()),
        # Under a number of the host's that we do not know, the only entry is us.
        ((2**22 + 7,), True, ()),
        ((2**22 + 7,), False, (2**22 + 7,)),
        # One of two is us, but which?
        ((2**22 + 7, 2**22 + 9), True, (2**22 + 7, 2**22 + 9)),
    ],
)
def test_process_ids_of_another_namespace(
    monkeypatch: pytest.MonkeyPatch, listed: tuple[int, ...], holds: bool, others: tuple[int, ...]
) -> None:
    hold_context(monkeypatch, holds)
    assert processes.others(listed) == others


def test_without_torch_there_is_no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert not processes.holds_context()


def test_our_own_number_in_the_list_makes_the_others_strangers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold_context(monkeypatch, True)
    assert processes.others((os.getpid(),)) == ()
    assert processes.others((os.getpid(), 2**22 + 7)) == (2**22 + 7,)


# Faults ------------------------------------------------------------------------------------------


def test_memory_errors_and_xids_are_counted(nvml: Nvml) -> None:
    sensor = NvmlSensor()
    assert sensor.faults() == 0
    nvml.xids = 2
    assert sensor.faults() == 2
    assert sensor.faults() == 2
    nvml.memory_errors = 3
    assert sensor.faults() == 5
    assert nvml.registered == 1


@pytest.mark.parametrize("missing", [{"xids": None}, {"memory_errors": None}])
def test_what_cannot_be_read_counts_nothing(nvml: Nvml, missing: dict[str, Any]) -> None:
    for name, value in missing.items():
        setattr(nvml, name, value)
    assert NvmlSensor().faults() == 0
