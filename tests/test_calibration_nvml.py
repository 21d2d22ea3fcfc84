import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from calibration import gpu
from calibration.gpu import datasheet, find_gpu, gpu_key, matches
from calibration.sensors import NvmlSensor
from energymodel import hardware
from energymodel.errors import InputError, WorkError


class NVMLError(Exception):
    pass


@dataclass
class Board:
    """What NVML says, in its units; None is what it does not support."""

    name: str = "NVIDIA H200"
    uuid: str = "GPU-aaaa"
    energy_mj: int | None = 1_234_567
    memory_mw: int | None = 190_500
    mig: int | None = 0
    pids: tuple[int, ...] = (os.getpid(),)
    ecc_errors: int | None = 0


def supported(value: int | None) -> int:
    if value is None:
        raise NVMLError("Not Supported")
    return value


def fake_nvml(boards: list[Board]) -> SimpleNamespace:
    """A stand-in for the module ``pynvml``; a handle is the board itself."""

    def by_index(index: int) -> Board:
        if index >= len(boards):
            raise NVMLError("Invalid Argument")
        return boards[index]

    def by_uuid(uuid: str) -> Board:
        found = [b for b in boards if b.uuid == uuid]
        if not found:
            raise NVMLError("Not Found")
        return found[0]

    def field_values(board: Board, fields: list[tuple[int, int]]) -> list[SimpleNamespace]:
        assert fields == [(185, 2)]
        known = board.memory_mw is not None
        value = SimpleNamespace(uiVal=board.memory_mw)
        return [SimpleNamespace(nvmlReturn=0 if known else 3, value=value)]

    return SimpleNamespace(
        boards=boards,
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        NVML_FI_DEV_POWER_AVERAGE=185,
        NVML_MEMORY_ERROR_TYPE_UNCORRECTED=1,
        NVML_VOLATILE_ECC=0,
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetCount=lambda: len(boards),
        nvmlDeviceGetHandleByIndex=by_index,
        nvmlDeviceGetHandleByUUID=by_uuid,
        nvmlDeviceGetUUID=lambda b: b.uuid,
        nvmlDeviceGetName=lambda b: b.name,
        nvmlDeviceGetEnforcedPowerLimit=lambda _: 700_000,
        nvmlDeviceGetMaxClockInfo=lambda *_: 1980,
        nvmlDeviceGetClockInfo=lambda *_: 1755,
        nvmlDeviceGetTemperature=lambda *_: 61,
        nvmlDeviceGetCurrentClocksEventReasons=lambda _: 4,
        nvmlDeviceGetTotalEnergyConsumption=lambda b: supported(b.energy_mj),
        nvmlDeviceGetMigMode=lambda b: [supported(b.mig), 0],
        nvmlDeviceGetComputeRunningProcesses=lambda b: [SimpleNamespace(pid=p) for p in b.pids],
        nvmlDeviceGetTotalEccErrors=lambda b, *_: supported(b.ecc_errors),
        nvmlDeviceGetFieldValues=field_values,
    )


def refuse(reason: str) -> Callable[..., None]:
    def call(*_: object) -> None:
        raise NVMLError(reason)

    return call


H100 = Board(name="NVIDIA H100 80GB HBM3", uuid="GPU-bbbb")


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    fake = fake_nvml([Board()])
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(gpu, "torch_device_uuid", lambda: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


# Sensor ----------------------------------------------------------------------------------------


def test_units(nvml: SimpleNamespace) -> None:
    sensor = NvmlSensor()
    assert sensor.energy_j() == pytest.approx(1234.567)
    assert sensor.memory_power_w() == pytest.approx(190.5)
    identity = sensor.identity()
    assert identity.power_limit_w == pytest.approx(700.0)
    assert identity.max_sm_clock_hz == 1.98e9
    now = sensor.reading(3.5)
    assert (now.time_s, now.sm_clock_hz, now.temperature_c) == (3.5, 1.755e9, 61)
    assert now.throttle_reasons == 4


def test_the_board_is_known_by_a_hash(nvml: SimpleNamespace) -> None:
    identity = NvmlSensor().identity()
    assert identity.board == hashlib.sha256(b"GPU-aaaa").hexdigest()[:12]
    assert (identity.gpu_name, identity.driver) == ("NVIDIA H200", "580.1")
    assert "aaaa" not in str(identity)


def test_memory_power_is_none_where_unsupported(nvml: SimpleNamespace) -> None:
    nvml.boards[0].memory_mw = None
    assert NvmlSensor().memory_power_w() is None
    nvml.nvmlDeviceGetFieldValues = refuse("Not Supported")
    assert NvmlSensor().memory_power_w() is None


def test_a_sensor_by_uuid_and_by_index(nvml: SimpleNamespace) -> None:
    nvml.boards.append(H100)
    assert NvmlSensor(1).identity().gpu_name == H100.name
    assert NvmlSensor(uuid="GPU-bbbb").identity().gpu_name == H100.name


# Names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "others"),
    [
        ("NVIDIA H200", "h200", ["auto", "H200", "nvidia h200"]),
        ("NVIDIA H200 NVL", "h200-nvl", ["H200-NVL"]),
        ("NVIDIA H100 80GB HBM3", "h100", ["H100", "h100-80gb", "H100_HBM3"]),
        ("NVIDIA H100 PCIe", "h100-pcie", ["auto"]),
        ("NVIDIA H100 NVL", "h100-nvl", []),
        ("NVIDIA H20", "h20", []),
        ("NVIDIA GH200 480GB", "gh200", ["gh200-480gb"]),
        ("NVIDIA GH200 144G HBM3e", "gh200-144gb", []),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb", ["a100", "a100-80gb", "a100-sxm4-80gb"]),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm-40gb", ["a100", "a100-40gb"]),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb", ["a100", "a100-80gb"]),
        ("NVIDIA A100-PCIE-40GB", "a100-pcie-40gb", ["a100", "a100-40gb"]),
        ("A100-SXM4-40GB", "a100-sxm-40gb", ["a100"]),
        ("NVIDIA B200", "b200", []),
        ("NVIDIA B300 SXM6 AC", "b300", []),
        ("NVIDIA L40S", "l40s", []),
        ("NVIDIA L4", "l4", []),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada", ["rtx-6000"]),
        # Without a data sheet: by the product, unless that is the name of another board's sheet.
        ("NVIDIA H100 96GB HBM3", "h100-96gb-hbm3", ["h100-96gb"]),
        ("NVIDIA L40", "l40", []),
        ("Tesla T4", "t4", []),
        ("NVIDIA GeForce RTX 4090", "geforce-rtx-4090", ["rtx-4090"]),
    ],
)
def test_names(name: str, key: str, others: list[str]) -> None:
    assert gpu_key(name) == key
    assert datasheet(name) == (key if key in hardware.available() else None)
    for expected in [key, *others]:
        assert matches(expected, name), expected


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        ("h200", "NVIDIA GH200 480GB"),
        ("h200", "NVIDIA H200 NVL"),
        ("h100", "NVIDIA H200"),
        ("h100", "NVIDIA H100 PCIe"),
        ("h100", "NVIDIA H100 NVL"),
        ("h100", "NVIDIA H100 96GB HBM3"),
        ("h100-pcie", "NVIDIA H100 NVL"),
        ("h100-pcie", "NVIDIA H100 80GB HBM3"),
        ("h20", "NVIDIA H200"),
        ("gh200", "NVIDIA GH200 144G HBM3e"),
        ("a100-40gb", "NVIDIA A100-SXM4-80GB"),
        ("a100-sxm-80gb", "NVIDIA A100 80GB PCIe"),
        ("l4", "NVIDIA L40S"),
        ("l40s", "NVIDIA L4"),
        ("b200", "NVIDIA B300 SXM6 AC"),
        ("", "NVIDIA H200"),
    ],
)
def test_names_that_differ(expected: str, name: str) -> None:
    assert not matches(expected, name)


def test_every_data_sheet_is_that_of_its_own_full_name() -> None:
    for known in hardware.available():
        assert datasheet(hardware.load(known).full_name) == known


# Which device ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "torch_uuid", "name"),
    [
        (None, None, "NVIDIA H200"),
        ("0", None, "NVIDIA H200"),
        ("1,0", None, "NVIDIA H100 80GB HBM3"),
        ("GPU-bbbb", None, "NVIDIA H100 80GB HBM3"),
        (None, "GPU-bbbb", "NVIDIA H100 80GB HBM3"),
        ("0", "GPU-bbbb", "NVIDIA H100 80GB HBM3"),
    ],
)
def test_the_device_is_the_one_that_torch_uses(
    nvml: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    torch_uuid: str | None,
    name: str,
) -> None:
    nvml.boards.append(H100)
    monkeypatch.setattr(gpu, "torch_device_uuid", lambda: torch_uuid)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_gpu().identity().gpu_name == name


@pytest.mark.parametrize("visible", ["", "-1", "7", "GPU-cccc"])
def test_a_hidden_device_is_refused(
    nvml: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(WorkError, match=f"CUDA_VISIBLE_DEVICES={visible}: "):
        find_gpu()


# Refusals --------------------------------------------------------------------------------------


def test_another_gpu_is_refused_and_both_are_named(nvml: SimpleNamespace) -> None:
    find_gpu("h200")
    with pytest.raises(InputError, match=r"NVIDIA H200 \(h200\), got h100\.$"):
        find_gpu("h100")
    nvml.boards[0] = Board(name="NVIDIA H100 PCIe")
    with pytest.raises(InputError, match=r"NVIDIA H100 PCIe \(h100-pcie\), got h100\.$"):
        find_gpu("h100")


@pytest.mark.parametrize(
    ("board", "message"),
    [
        (Board(mig=1), "^MIG is on for this NVIDIA H200: "),
        (Board(pids=(os.getpid(), 17, 4)), r"^Other processes .* \(pid 4, 17\): "),
        (Board(ecc_errors=2), "2 uncorrected memory errors"),
        (Board(energy_mj=None), r"does not count its energy: Not Supported\.$"),
    ],
)
def test_what_would_spoil_the_energy_is_refused(
    nvml: SimpleNamespace, board: Board, message: str
) -> None:
    nvml.boards[0] = board
    with pytest.raises(WorkError, match=message) as caught:
        find_gpu()
    assert "\n" not in str(caught.value)


def test_a_gpu_without_mig_and_ecc_is_fine(nvml: SimpleNamespace) -> None:
    nvml.boards[0] = Board(mig=None, ecc_errors=None, pids=())
    assert find_gpu("auto").energy_j() > 0


def test_a_mig_slice_is_refused(nvml: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    with pytest.raises(WorkError, match="MIG slice"):
        find_gpu()


def test_a_machine_without_gpu(nvml: SimpleNamespace) -> None:
    nvml.boards.clear()
    with pytest.raises(WorkError, match="this machine shows none"):
        find_gpu()
    nvml.nvmlInit = refuse("Driver Not Loaded")
    with pytest.raises(WorkError, match="Driver Not Loaded"):
        find_gpu()


def test_a_machine_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(WorkError, match=r"energymodel\[calibrate\]"):
        find_gpu()
