"""What can be said of the host that the GPUs are in, without naming it."""

import platform
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from calibration.powercap import Domain, domains

CONTAINER_WORDS = re.compile(r"docker|kubepods|containerd|libpod|lxc|garden")
CONTAINER_FILES = (".dockerenv", "run/.containerenv")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """Software and surroundings; None is what could not be read.

    ``container`` and ``virtual_machine`` name the sign by which they were recognised.
    """

    driver: str | None
    cuda_driver: str | None
    nvml: str | None
    nvidia_ml_py: str | None
    torch: str | None
    python: str
    kernel: str
    cpu: str | None
    container: str | None
    virtual_machine: str | None
    gpu_count: int
    energy_domains: tuple[Domain, ...]


def gather_host(nvml: Any, gpu_count: int, root: Path = Path("/")) -> HostFacts:
    """Facts of this host; ``root`` is where its file system begins."""
    cpuinfo = _read(root / "proc/cpuinfo")
    return HostFacts(
        driver=_ask(nvml, "nvmlSystemGetDriverVersion"),
        cuda_driver=_cuda(_ask(nvml, "nvmlSystemGetCudaDriverVersion")),
        nvml=_ask(nvml, "nvmlSystemGetNVMLVersion"),
        nvidia_ml_py=_version("nvidia-ml-py"),
        torch=_version("torch"),
        python=platform.python_version(),
        kernel=platform.release(),
        cpu=_first(r"^model name\s*:\s*(.+)$", cpuinfo),
        container=container(root),
        virtual_machine=virtual_machine(root, cpuinfo),
        gpu_count=gpu_count,
        energy_domains=domains(root / "sys/class/powercap"),
    )


def container(root: Path) -> str | None:
    """The sign that this is a container, None where there is none."""
    for name in CONTAINER_FILES:
        if _exists(root / name):
            return f"/{name}"
    found = CONTAINER_WORDS.search(_read(root / "proc/1/cgroup"))
    if found:
        return f"cgroup of {found[0]}"
    if re.search(r"^overlay / overlay", _read(root / "proc/mounts"), re.MULTILINE):
        return "overlay root"
    return None


def virtual_machine(root: Path, cpuinfo: str) -> str | None:
    """The sign that this is a virtual machine, None where there is none."""
    kind = _read(root / "sys/hypervisor/type").strip()
    if kind:
        return f"hypervisor {kind}"
    flags = _first(r"^flags\s*:\s*(.+)$", cpuinfo) or ""
    return "hypervisor flag of the CPU" if "hypervisor" in flags.split() else None


def _ask(nvml: Any, function: str) -> str | None:
    try:
        value: Any = getattr(nvml, function)()
    except Exception:  # noqa: BLE001 - old drivers and bindings fail in many ways
        return None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _cuda(number: str | None) -> str | None:
    """12080 is CUDA 12.8 (cuda.h)."""
    if number is None or not number.isdecimal():
        return None
    return f"{int(number) // 1000}.{int(number) % 1000 // 10}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1].strip() if found else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False
