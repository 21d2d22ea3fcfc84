from pathlib import Path
from types import SimpleNamespace

import pytest

from calibration.doctor.findings import of_host
from calibration.doctor.host import container, gather_host, virtual_machine


def write(root: Path, name: str, text: str = "") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "sign"),
    [
        (".dockerenv", "", "/.dockerenv"),
        ("run/.containerenv", "", "/run/.containerenv"),
        ("proc/1/cgroup", "0::/kubepods/burstable/pod1/2\n", "cgroup of kubepods"),
        ("proc/mounts", "overlay / overlay rw,relatime 0 0\n", "overlay root"),
        ("proc/mounts", "overlay /var/lib/x overlay rw 0 0\n", None),
        ("proc/1/cgroup", "0::/init.scope\n", None),
    ],
)
def test_a_container_is_known_by_its_signs(
    name: str, text: str, sign: str | None, tmp_path: Path
) -> None:
    write(tmp_path, name, text)
    assert container(tmp_path) == sign


def test_a_virtual_machine_is_known_by_its_signs(tmp_path: Path) -> None:
    bare = "model name\t: Some CPU\nflags\t\t: fpu vme sse\n"
    assert virtual_machine(tmp_path, bare) is None
    guest = bare.replace("vme", "hypervisor")
    assert virtual_machine(tmp_path, guest) == "hypervisor flag of the CPU"
    write(tmp_path, "sys/hypervisor/type", "xen\n")
    assert virtual_machine(tmp_path, bare) == "hypervisor xen"


def test_facts_of_a_host(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "model name\t: Some CPU\nflags\t: fpu hypervisor\n")
    write(tmp_path, ".dockerenv")
    for name, text in (("name", "package-0"), ("energy_uj", "1"), ("max_energy_range_uj", "9")):
        write(tmp_path, f"sys/class/powercap/intel-rapl:0/{name}", text)
    nvml = SimpleNamespace(
        nvmlSystemGetDriverVersion=lambda: b"580.1", nvmlSystemGetCudaDriverVersion=lambda: 12080
    )
    host = gather_host(nvml, 2, tmp_path)
    assert (host.driver, host.cuda_driver, host.nvml) == ("580.1", "12.8", None)
    assert (host.cpu, host.gpu_count) == ("Some CPU", 2)
    assert [d.name for d in host.energy_domains] == ["package-0"]
    notes = [f.what for f in of_host(host)]
    assert notes == [
        "this is a container (/.dockerenv)",
        "this is a virtual machine (hypervisor flag of the CPU)",
    ]
    assert {f.level for f in of_host(host)} == {"note"}


def test_a_host_of_which_nothing_can_be_read(tmp_path: Path) -> None:
    host = gather_host(SimpleNamespace(), 0, tmp_path)
    assert (host.driver, host.cuda_driver, host.cpu, host.container) == (None,) * 4
    assert [f.what for f in of_host(host)] == ["no CPU energy counters (powercap)"]
