"""Components on the CUDA GPU that torch uses: launched from Python, or captured in a CUDA graph."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from calibration.clock import REAL_CLOCK
from calibration.components.find import Piece
from calibration.device_time import timed
from calibration.window import Work

# Long enough that waiting for a chunk costs nothing, short against the power controller.
CHUNK_S = 8e-3
# A graph this long hides the launch of the next one.
GRAPH_S = 1e-3
MAX_CALLS = 1000
WARM_S = 0.05


class CudaBench:
    """Makes pieces ready to measure; all graphs share one pool of memory."""

    clock = REAL_CLOCK

    def __init__(self) -> None:
        self._pool: Any = torch.cuda.graph_pool_handle()

    def work(self, piece: Piece, mode: str) -> Work:
        """A piece launched by Python (``eager``) or from a graph (``graph``).

        Raises:
            RuntimeError: a CUDA graph cannot hold it, or memory ran out.
        """
        call_s = _warm(piece.call)
        if mode == "eager":
            return _work(piece.call, _per(CHUNK_S, call_s), calls=1)
        calls = _per(GRAPH_S, call_s)
        graph = self._captured(piece.call, calls)
        return _work(graph.replay, _per(CHUNK_S, _warm(graph.replay)), calls=calls)

    def idle(self) -> Work:
        """Next to no work, which keeps the clocks up."""
        from calibration.replay import clocks_up

        return clocks_up()

    def _captured(self, call: Callable[[], Any], calls: int) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with (
            torch.inference_mode(),
            _as_launched(),
            torch.cuda.graph(graph, pool=self._pool),
        ):
            for _ in range(calls):
                call()
        torch.cuda.synchronize()
        return graph


@contextmanager
def _as_launched() -> Iterator[None]:
    """Let a capture hold the kernels of an eager pass.

    While a stream is captured, transformers does not leave out attention masks that mask nothing,
    and another attention kernel runs, several times slower.
    """
    from transformers.utils import import_utils

    original = getattr(import_utils, "is_cuda_stream_capturing", None)
    if original is None:
        yield
        return
    import_utils.is_cuda_stream_capturing = lambda: False
    try:
        yield
    finally:
        import_utils.is_cuda_stream_capturing = original


def _per(wanted_s: float, one_s: float) -> int:
    return max(1, min(round(wanted_s / one_s), MAX_CALLS))


def _warm(call: Callable[[], Any]) -> float:
    """Run until kernels are loaded and memory is held; wall seconds of one call after that."""
    with torch.inference_mode():
        for _ in range(2):
            call()
        torch.cuda.synchronize()
        begun_s, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - begun_s < WARM_S:
            call()
            count += 1
            torch.cuda.synchronize()
    return max((time.perf_counter() - begun_s) / count, 1e-6)


def _work(launch: Callable[[], Any], launches: int, *, calls: int) -> Work:
    """Chunks of ``launches``, each of which makes ``calls`` calls."""

    def chunk() -> None:
        for _ in range(launches):
            launch()

    def submit() -> Callable[[], float]:
        with torch.inference_mode():
            return timed(chunk)

    return Work(submit=submit, calls_per_chunk=launches * calls)
