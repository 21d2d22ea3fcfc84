"""Run prepared calls on a CUDA GPU the way an engine does: captured in a graph, back to back."""

import time
from collections.abc import Callable
from statistics import median

import torch

from calibration.kernels import Prepared
from calibration.window import Work

# A chunk this long keeps launch cost invisible and stays short against the power controller.
CHUNK_S = 4e-3
MAX_CALLS = 2000


class Graph:
    """A CUDA graph of whole rotations over the prepared calls."""

    def __init__(self, prepared: Prepared, chunk_s: float = CHUNK_S) -> None:
        call_s = self._warm(prepared)
        self.calls = max(1, min(round(chunk_s / call_s), MAX_CALLS))
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for i in range(self.calls):
                prepared.calls[i % len(prepared.calls)]()
        self.replay()()

    @staticmethod
    def _warm(prepared: Prepared) -> float:
        """Run until kernels are loaded; seconds that one call takes, launched one by one."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in prepared.calls[:3]:
                call()
            torch.cuda.synchronize()
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            timed = prepared.calls[:4]
            start.record()
            for call in timed:
                call()
            end.record()
            torch.cuda.synchronize()
        torch.cuda.current_stream().wait_stream(side)
        return max(start.elapsed_time(end) * 1e-3 / len(timed), 1e-6)

    def replay(self) -> Callable[[], float]:
        """Enqueue the graph; the returned function waits and gives its device seconds."""
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True, blocking=True)
        start.record()
        self._graph.replay()
        end.record()

        def wait() -> float:
            end.synchronize()
            return start.elapsed_time(end) * 1e-3

        return wait

    def work(self) -> Work:
        """The graph as something that a window can measure."""
        return Work(submit=self.replay, calls_per_chunk=self.calls)


def burst_time_s(graph: Graph, *, bursts: int = 5, duty: float = 0.25) -> tuple[float, float]:
    """Median and spread (half range) of the device time of one call, at full clock.

    Short bursts with pauses keep mean power under the limit, so that the clock stays at its
    maximum.
    """
    times = []
    for _ in range(bursts):
        chunk_s = graph.replay()()
        times.append(chunk_s / graph.calls)
        time.sleep(min(chunk_s * (1 / duty - 1), 0.2))
    return median(times), 0.5 * (max(times) - min(times))


def clocks_up(graph_chunk_s: float = 2e-3) -> Work:
    """Next to no work: keeps a context and the clocks up, to measure static power."""
    scrap = torch.zeros(1024, device="cuda")

    def submit() -> Callable[[], float]:
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True, blocking=True)
        start.record()
        scrap.add_(1.0)
        end.record()

        def wait() -> float:
            end.synchronize()
            time.sleep(graph_chunk_s)
            return start.elapsed_time(end) * 1e-3

        return wait

    return Work(submit=submit, calls_per_chunk=1)
