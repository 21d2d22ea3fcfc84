"""The ranks themselves: CPU processes with gloo, one of which is killed, under a real torchrun."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from calibration import processes
from calibration.collectives import grid, launch, observations, topology
from calibration.collectives.task import Task
from energymodel.errors import WorkError

POWER_W = 200.0


def task(out: Path) -> Task:
    return Task(
        gpu="h200", out=str(out), grid="quick", budget_s=120.0, trials=1, gloo_power_w=POWER_W
    )


def kill_rank(number: int, out: Path, lines: int) -> None:
    """SIGKILL for the process of a rank once so many lines are written."""
    while not out.exists() or out.read_text().count("\n") < lines:
        time.sleep(0.02)
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            there = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        # Of this test, not of another that runs beside it.
        ours = str(out.parent).encode() in b"".join(there)
        if ours and f"RANK={number}".encode() in there and b"calibration.collectives" in command:
            os.kill(int(folder.name), signal.SIGKILL)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found in /proc")
def test_a_killed_rank_costs_one_sentence_and_the_rest_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENERGYMODEL_TEST", str(tmp_path))
    out, reported = tmp_path / observations.FILE, list[str]()
    killer = threading.Thread(target=kill_rank, args=(1, out, 3), daemon=True)
    killer.start()
    with pytest.raises(
        WorkError, match=r"^The process of GPU 1 of 2 was killed by signal 9: .*\.$"
    ):
        launch.measure(task(out), 2)
    killer.join()
    kept = list(observations.read(out))
    assert len(kept) >= 3

    written = launch.measure(task(out), 2, report=reported.append)
    seen = list(observations.read(out))
    assert seen[: len(kept)] == kept
    assert len(seen) == len(kept) + written
    wanted = {p.key(2) for p in grid.on_gloo()}
    assert {o.point for o in seen} <= wanted
    # A busy machine may lose a window to a late tick; it is then left out and said.
    assert len(wanted - {o.point for o in seen}) <= len(reported)
    for o in seen:
        assert o.boards == ("rank0", "rank1")
        for r in o.ranks:
            if r.energy_j is not None:
                assert r.energy_j == pytest.approx(POWER_W * (r.duration_s or 0.0), rel=0.05)


def test_workers_of_torchrun_are_one_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, us, sibling, stranger = os.getppid(), os.getpid(), 4242, 5151
    for pid, parent in ((us, agent), (sibling, agent), (stranger, 1), (agent, 1)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a b) c) S {parent} 0")
    monkeypatch.setattr(processes, "PROC", tmp_path)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert processes.others([us, sibling, stranger]) == (sibling, stranger)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert processes.others([us, sibling, stranger]) == (stranger,)


class NVMLError(Exception):
    pass


def nvml(status: int, links: int) -> SimpleNamespace:
    def state(_: str, number: int) -> int:
        if number >= links:
            raise NVMLError("Invalid Argument")
        return 1

    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_P2P_CAPS_INDEX_NVLINK=2,
        NVML_P2P_STATUS_OK=0,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetP2PStatus=lambda *_: status,
        nvmlDeviceGetNvLinkState=state,
        nvmlDeviceGetNvLinkVersion=lambda *_: 6,
    )


def test_links_are_named() -> None:
    assert topology.link(nvml(0, 18), "a", ["b", "c"]) == "18 NVLinks of version 4.0"
    assert topology.link(nvml(0, 0), "a", ["b"]) == "NVLink"
    assert topology.link(nvml(3, 0), "a", ["b"]) == "PCIe"


def test_the_environment_of_nccl_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "0")
    monkeypatch.setenv("HOME_OF_SOMEBODY", "secret")
    found = topology.environment()
    assert found["NCCL_NVLS_ENABLE"] == "0"
    assert "HOME_OF_SOMEBODY" not in found
