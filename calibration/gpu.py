"""Find the GPU to measure on, and refuse one whose energy would not be that of the work."""

import os
import re
from typing import Any

from calibration.sensors import NvmlSensor
from energymodel.errors import InputError, WorkError

# h200, gh200, a100, l40s, t4: what NVIDIA's data-centre products are called by.
PRODUCT = re.compile(r"[a-z]{1,2}\d{1,3}[a-z]?")


def find_gpu(expected: str = "auto") -> NvmlSensor:
    """The sensor of the GPU that torch would use; call it before anything runs there.

    Args:
        expected: a name such as ``h200`` or ``h100-pcie``, or ``auto`` for whatever is there.

    Raises:
        InputError: the GPU of this machine is another one.
        WorkError: there is no GPU, or its energy counter cannot be trusted: MIG is on, other
            processes use it, it has memory errors, or it does not count energy.
    """
    nvml = _nvml()
    handle, uuid = _device(nvml)
    name = str(nvml.nvmlDeviceGetName(handle))
    if not matches(expected, name):
        raise InputError(
            f"gpu must be the GPU of this machine, {name} ({gpu_key(name)}), got {expected}."
        )
    _refuse_mig(nvml, handle, name)
    _refuse_other_processes(nvml, handle, name)
    _refuse_faults(nvml, handle, name)
    return NvmlSensor(uuid=uuid)


def matches(expected: str, name: str) -> bool:
    """Whether a GPU of this NVML device name is what was asked for, word by word."""
    return expected.strip().lower() == "auto" or _words(expected) <= _words(name)


def gpu_key(name: str) -> str:
    """Short name of a GPU: ``NVIDIA H100 80GB HBM3`` is ``h100``."""
    words = [w for w in re.split(r"[^a-z0-9]+", name.lower()) if w and w != "nvidia"]
    return next((w for w in words if PRODUCT.fullmatch(w)), "-".join(words))


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", name.lower())) - {"", "nvidia"}


def _nvml() -> Any:
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


def _refuse_other_processes(nvml: Any, handle: Any, name: str) -> None:
    running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    others = sorted({p.pid for p in running} - {os.getpid()})
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
