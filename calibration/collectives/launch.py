"""Start the ranks under torchrun, pass on what they say, and say in one sentence what went wrong."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path
from threading import Thread
from typing import IO, Any

from calibration.collectives.sweep import Progress, Report
from calibration.collectives.task import Task
from energymodel import io
from energymodel.errors import WorkError

# Lines of stderr that are kept for the cause of a failure.
KEPT_LINES = 200
# torchrun's own line about the rank that failed first, and how it ended (torch/distributed/elastic/
# multiprocessing/api.py, SubprocessContext._poll).
FIRST_FAILURE = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")


def measure(
    task: Task,
    gpus: int,
    *,
    report: Report = lambda _: None,
    progress: Progress = lambda *_: None,
) -> int:
    """Run one rank a GPU until all is measured; returns how many lines were written.

    Args:
        task: what to measure and where to.
        gpus: how many ranks; they take the first GPUs that CUDA shows.
        report: gets a line for what was left out.
        progress: gets how far the sweep is.

    Raises:
        WorkError: a rank failed or was killed; what was written until then is kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "task.json")
        file.write_text(io.dumps(task), encoding="utf-8")
        said = _Said()
        errors: deque[str] = deque(maxlen=KEPT_LINES)
        with subprocess.Popen(  # noqa: S603 - our own module under this interpreter
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *(f"--nproc-per-node={gpus}", "-m", "calibration.collectives", str(file)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=_environment(),
        ) as ranks:
            reader = Thread(target=_keep, args=(ranks.stderr, errors), daemon=True)
            reader.start()
            try:
                for line in ranks.stdout or ():
                    said.hear(line, report, progress)
            finally:
                status = _end(ranks)
                reader.join()
    if status or said.written is None:
        raise WorkError(_failure(said, "".join(errors), gpus, task.out))
    return said.written


class _Said:
    """What the ranks said so far: how many lines were written, and which rank failed first."""

    def __init__(self) -> None:
        self.written: int | None = None
        self.failed: tuple[int, str] | None = None

    def hear(self, line: str, report: Report, progress: Progress) -> None:
        """Take in one line; what is not ours is a library's chatter."""
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            return
        if not isinstance(message, dict):
            return
        if "report" in message:
            report(message["report"])
        if "progress" in message:
            progress(*message["progress"])
        if "written" in message:
            self.written = message["written"]
        if "failed" in message and self.failed is None:
            self.failed = (message["failed"], message["error"])


def _environment() -> dict[str, str]:
    """What the ranks see; what the user has set stays.

    All are on this host: gloo takes its loopback, and one thread each leaves it responsive. Engines
    launch their large collectives one by one, where NCCL does not register buffers; ours are in CUDA
    graphs, where it would.
    """
    ours = {"OMP_NUM_THREADS": "1", "NCCL_GRAPH_REGISTER": "0"}
    if Path("/sys/class/net/lo").exists():
        ours["GLOO_SOCKET_IFNAME"] = "lo"
    return ours | dict(os.environ)


def _keep(stream: IO[str] | None, lines: "deque[str]") -> None:
    for line in stream or ():
        lines.append(line)


def _end(ranks: "subprocess.Popen[str]") -> int:
    """Wait for torchrun, which ends its ranks first; told to where we were interrupted."""
    try:
        return ranks.wait(timeout=60)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        ranks.terminate()
        return ranks.wait()


def _failure(said: _Said, errors: str, gpus: int, out: str) -> str:
    kept = f"what was measured is in {out}, and --resume goes on from there"
    found = FIRST_FAILURE.search(errors)
    # Where a rank was killed, the others complain of a connection that was lost.
    if found and int(found[1]) < 0:
        return f"The process of GPU {found[2]} of {gpus} was killed by signal {-int(found[1])}: {kept}."
    if said.failed is not None:
        number, error = said.failed
        return f"GPU {number} of {gpus} failed ({error.rstrip('.')}): {kept}."
    last = next((x.strip() for x in reversed(errors.splitlines()) if x.strip()), "no message")
    return f"torchrun ended without a result ({last}): {kept}."
