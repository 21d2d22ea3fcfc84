"""Which of the processes on a GPU are somebody else's.

NVML lists process ids as the host numbers them. In a container with its own process ids ours
appears under a number that we do not know, or the list is empty; then this is what can be said:

- nothing is listed: others cannot be seen, and none is reported;
- our own id is listed: the ids are ours to read, and all but ours and our children's are others;
- our own id is not listed, but we hold a CUDA context: one entry must be us, so a single entry is
  us, and with more of them all are reported, for we cannot tell which is ours;
- our own id is not listed and we hold no context: every entry is somebody else.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")


def others(listed: Iterable[int]) -> tuple[int, ...]:
    """Those of the ``listed`` processes that are not this one, nor started by it.

    A worker of torchrun counts the other workers as its own: their agent started them all.
    """
    pids = set(listed)
    family = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else os.getpid()
    strange = {pid for pid in pids if not _descends(pid, family)}
    if strange == pids and len(pids) == 1 and holds_context():
        return ()
    return tuple(sorted(strange))


def holds_context() -> bool:
    """Whether torch, if this process uses it, has set up CUDA."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def _descends(pid: int, ancestor: int) -> bool:
    """Whether ``pid`` is ``ancestor`` or was started by it, as far as /proc tells."""
    while pid > 1:
        if pid == ancestor:
            return True
        pid = _parent(pid)
    return pid == ancestor


def _parent(pid: int) -> int:
    """Process id of the parent; 0 where there is none or it cannot be read."""
    try:
        stat = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        # The name, in brackets, may hold anything; the state and the parent follow it.
        return int(stat.rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
