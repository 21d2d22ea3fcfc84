"""What the doctor runs on a GPU: next to nothing with a context, a bf16 matrix product, a copy."""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from calibration.clock import Clock
from calibration.doctor.facts import reason
from calibration.window import Work
from energymodel.errors import WorkError

# 3 operands of 8192 x 8192 in 16 bits take 400 MB and a product about 1.1 TFLOP.
SIZE = 8192
CALLS_PER_CHUNK = 4
# A copy reads and writes as much; far more than any L2 cache holds.
COPY_BYTES = 512 << 20
COPIES_PER_CHUNK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A copy through the memory; ``moved_bytes`` is what it has read and written so far."""

    work: Work
    moved_bytes: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Works:
    """``context`` keeps a context and the clocks up, ``load`` keeps the GPU busy.

    ``stream_of`` gives a copy that streams for a share of the time and waits on the GPU, without
    touching its memory, for the rest.
    """

    context: Work
    load: Work
    stream_of: Callable[[float], Stream] | None = None


def torch_works(uuid: str) -> Works:
    """Both works on the GPU of this UUID; makes a context there and warms up.

    Raises:
        WorkError: torch is missing, or does not see this GPU.
    """
    try:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a broken CUDA is reported below
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found = [i for i in range(count) if _uuid(torch, i) == uuid]
        if not found:
            raise WorkError("torch does not see this GPU through CUDA")
        with torch.cuda.device(found[0]):
            return _works(torch, found[0])
    except ImportError as error:
        raise WorkError(f"it needs {error.name or 'torch'}") from error
    except RuntimeError as error:  # out of memory, no kernels for this GPU
        raise WorkError(reason(error)) from error


def _uuid(torch: Any, index: int) -> str:
    return f"GPU-{torch.cuda.get_device_properties(index).uuid}"


def _works(torch: Any, index: int) -> Works:
    from calibration.device_time import timed
    from calibration.replay import clocks_up

    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    a, b = (torch.randn(SIZE, SIZE, device="cuda", dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)

    def products() -> None:
        for _ in range(CALLS_PER_CHUNK):
            torch.matmul(a, b, out=out)

    def submit() -> Callable[[], float]:
        return timed(products)

    submit()()
    return Works(
        context=_on(torch, index, clocks_up()),
        load=_on(torch, index, Work(submit=submit, calls_per_chunk=CALLS_PER_CHUNK)),
        stream_of=lambda share: _stream(torch, index, share),
    )


def _stream(torch: Any, index: int, share: float) -> Stream:
    from calibration.device_time import timed

    with torch.cuda.device(index):
        source = torch.ones(COPY_BYTES, device="cuda", dtype=torch.uint8)
        target = torch.empty_like(source)
        hertz = 1e3 * torch.cuda.get_device_properties(index).clock_rate
    chunks = [0]
    waiting_s = [0.0]

    def copies() -> None:
        for _ in range(COPIES_PER_CHUNK):
            target.copy_(source)

    def submit() -> Callable[[], float]:
        copied = timed(copies)
        if waiting_s[0] > 0:
            torch.cuda._sleep(int(waiting_s[0] * hertz))

        def wait() -> float:
            busy_s = copied()
            chunks[0] += 1
            waiting_s[0] = busy_s * (1.0 / share - 1.0)
            return busy_s

        return wait

    work = _on(torch, index, Work(submit=submit, calls_per_chunk=COPIES_PER_CHUNK))
    return Stream(
        work=work, moved_bytes=lambda: 2.0 * COPY_BYTES * COPIES_PER_CHUNK * float(chunks[0])
    )


def _on(torch: Any, index: int, work: Work) -> Work:
    """The same work from any thread: a thread's current device is its own."""

    def submit() -> Callable[[], float]:
        with torch.cuda.device(index):
            return work.submit()

    return Work(submit=submit, calls_per_chunk=work.calls_per_chunk)


@contextmanager
def busy(work: Work, clock: Clock) -> Iterator[None]:
    """Repeat ``work`` beside the caller, two chunks in the queue so that the GPU never waits.

    Raises:
        WorkError: the work failed.
    """
    stop = threading.Event()
    failed: list[Exception] = []

    def run() -> None:
        try:
            pending = [work.submit(), work.submit()]
            while not stop.is_set():
                pending.pop(0)()
                pending.append(work.submit())
            for wait in pending:
                wait()
        except Exception as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    join = clock.spawn(run)
    try:
        yield
    finally:
        stop.set()
        join()
    if failed:
        raise WorkError(reason(failed[0]))
