"""Find the GPU to measure on, and refuse one whose energy would not be that of the work."""

import os
import re
from typing import Any

from calibration.sensors import NvmlSensor
from energymodel import hardware
from energymodel.errors import InputError, WorkError

# h200, gh200, a100, l40s, t4: what NVIDIA's data-centre products are called by.
PRODUCT = re.compile(r"[a-z]{1,2}\d{1,3}[a-z]?")


def find_gpu(expected: str = "auto") -> NvmlSensor:
    """The sensor of the GPU that torch would use; call it before anything runs there.

    Args:
        expected: a name such as ``h200`` or ``h100-pcie``, or ``auto`` for whatever is there; see
            ``matches``.

    Raises:
        InputError: the GPU of this machine is another one.
        WorkError: there is no GPU, or its energy counter cannot be trusted: MIG is on, other
            processes use it, it has memory errors, or it does not count energy.
    """
    nvml = open_nvml()
    handle, uuid = _device(nvml)
    return _fit_sensor(nvml, handle, uuid, expected)


def find_gpus(expected: str, count: int) -> list[NvmlSensor]:
    """The sensors of the first ``count`` GPUs that CUDA shows, in its order.

    CUDA is not asked, since processes that are started later are to set it up; it is told to count
    GPUs as NVML does, by their place on the bus.

    Raises:
        InputError: a GPU is another one.
        WorkError: there are fewer, or one's energy counter cannot be trusted (``find_gpu``).
    """
    nvml = open_nvml()
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = range(nvml.nvmlDeviceGetCount()) if visible is None else visible.split(",")
    chosen = [str(c).strip() for c in there]
    if len(chosen) < count:
        raise WorkError(f"{count} GPUs are needed, and CUDA shows {len(chosen)} here.")
    sensors = []
    for name in chosen[:count]:
        try:
            by_index = name.isdecimal()
            handle = (
                nvml.nvmlDeviceGetHandleByIndex(int(name))
                if by_index
                else nvml.nvmlDeviceGetHandleByUUID(name)
            )
            uuid = str(nvml.nvmlDeviceGetUUID(handle))
        except nvml.NVMLError as error:
            raise WorkError(
                f"GPU {name} of CUDA_VISIBLE_DEVICES cannot be used: {error}."
            ) from error
        sensors.append(_fit_sensor(nvml, handle, uuid, expected))
    return sensors


def _fit_sensor(nvml: Any, handle: Any, uuid: str, expected: str) -> NvmlSensor:
    """The sensor of a GPU, if it is what was asked for and fit to be measured on."""
    name = str(nvml.nvmlDeviceGetName(handle))
    if not matches(expected, name):
        raise InputError(
            f"gpu must be the GPU of this machine, {name} ({gpu_key(name)}), got {expected}."
        )
    _refuse_mig(nvml, handle, name)
    sensor = NvmlSensor(uuid=uuid)
    _refuse_other_processes(sensor, name)
    _refuse_faults(nvml, handle, name)
    return sensor


def matches(expected: str, name: str) -> bool:
    """Whether a GPU of this NVML device name is what was asked for.

    The name of a data sheet means that very board: ``h100`` is not an H100 PCIe, whose own sheet
    fits better. Any other name is compared word by word, so ``a100`` is every A100.
    """
    wanted = expected.strip().lower()
    if wanted in hardware.available():
        return datasheet(name) == wanted
    words = set(_words(wanted))
    return wanted == "auto" or (bool(words) and words <= set(_words(name)))


def datasheet(name: str) -> str | None:
    """The data sheet of a GPU of this NVML device name, None where there is none.

    A sheet fits if the device name begins with its full name, word by word; the longest wins:
    ``NVIDIA H200 NVL`` is ``h200-nvl`` although it begins like an ``NVIDIA H200``.
    """
    words = _words(name)
    full = {known: _words(hardware.load(known).full_name) for known in hardware.available()}
    fitting = [known for known, start in full.items() if words[: len(start)] == start]
    return max(fitting, key=lambda known: len(full[known]), default=None)


def gpu_key(name: str) -> str:
    """Short name of a GPU: that of its data sheet, else what its product is called by.

    ``NVIDIA H100 80GB HBM3`` is ``h100`` and ``Tesla T4`` is ``t4``. A variant without a sheet
    keeps all its words, lest it be taken for another: an H100 of 96 GB is ``h100-96gb-hbm3``.
    """
    known = datasheet(name)
    if known is not None:
        return known
    words = _words(name)
    product = next((w for w in words if PRODUCT.fullmatch(w)), None)
    return "-".join(words) if product is None or product in hardware.available() else product


def _words(name: str) -> list[str]:
    return [w for w in re.split(r"[^a-z0-9]+", name.lower()) if w and w != "nvidia"]


def open_nvml() -> Any:
    """The module ``pynvml``, ready to be asked.

    Raises:
        WorkError: it is not installed, the driver does not answer, or there is no GPU.
    """
    try:
        import pynvml
    except ImportError as error:
        raise WorkError(
            "Measuring needs NVML: install it with pip install 'energymodel[calibrate]'."
        ) from error
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        raise WorkError(
            f"Measuring needs an NVIDIA GPU and its driver, which does not answer: {error}."
        ) from error
    if not count:
        raise WorkError("Measuring needs an NVIDIA GPU, and this machine shows none.")
    return pynvml


def _device(nvml: Any) -> tuple[Any, str]:
    """Handle and UUID of torch's first device; without torch, of the first one that CUDA sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = "0" if visible is None else visible.split(",")[0].strip()
    if chosen.startswith("MIG-"):
        raise WorkError(
            f"CUDA_VISIBLE_DEVICES names a MIG slice ({chosen}): energy is counted for a whole "
            "GPU only, so turn MIG off or choose another GPU."
        )
    uuid = torch_device_uuid()
    try:
        if uuid:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        elif chosen.isdecimal():
            handle = nvml.nvmlDeviceGetHandleByIndex(int(chosen))
        else:
            handle = nvml.nvmlDeviceGetHandleByUUID(chosen)
        return handle, str(nvml.nvmlDeviceGetUUID(handle))
    except nvml.NVMLError as error:
        raise WorkError(
            f"No GPU can be used with CUDA_VISIBLE_DEVICES={visible or ''}: {error}."
        ) from error


def torch_device_uuid() -> str | None:
    """UUID of torch's current CUDA device as NVML spells it; None without torch or CUDA."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


def _refuse_mig(nvml: Any, handle: Any, name: str) -> None:
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        return  # a GPU without MIG
    if current:
        raise WorkError(
            f"MIG is on for this {name}: energy is counted for a whole GPU only, so turn it off."
        )


def _refuse_other_processes(sensor: NvmlSensor, name: str) -> None:
    others = sensor.other_processes()
    if others:
        pids = ", ".join(map(str, others))
        raise WorkError(
            f"Other processes use this {name} (pid {pids}): their energy would be counted, so "
            "wait for them or choose another GPU."
        )


def _refuse_faults(nvml: Any, handle: Any, name: str) -> None:
    try:
        errors = nvml.nvmlDeviceGetTotalEccErrors(
            handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        )
    except nvml.NVMLError:
        errors = 0  # a GPU without ECC
    if errors:
        raise WorkError(
            f"This {name} has had {errors} uncorrected memory errors since it was reset: it is "
            "not fit to measure on."
        )
    try:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        raise WorkError(f"This {name} does not count its energy: {error}.") from error
