"""Run prepared calls on a CUDA GPU the way an engine does: captured in a graph, back to back."""

import time
from collections.abc import Callable

import torch

from calibration.bench import Runnable
from calibration.clock import REAL_CLOCK
from calibration.device_time import timed
from calibration.grid import Point
from calibration.kernels import How, Prepared, build, launch_cost_s
from calibration.window import Work

# A chunk this long keeps launch cost invisible and stays short against the power controller.
CHUNK_S = 4e-3
# Between pauses.
PULSE_S = 1e-3
MAX_CALLS = 2000


class Graph:
    """A CUDA graph that goes round the prepared calls for about ``chunk_s``."""

    def __init__(self, prepared: Prepared, chunk_s: float = CHUNK_S) -> None:
        # The graph reads the operands of the calls, so they must live as long as it does.
        self._prepared = prepared
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
            few = prepared.calls[:4]

            def launch() -> None:
                for call in few:
                    call()

            seconds = timed(launch)()
        torch.cuda.current_stream().wait_stream(side)
        return max(seconds / len(few), 1e-6)

    def replay(self) -> Callable[[], float]:
        """Enqueue the graph; the returned function waits and gives its device seconds."""
        return timed(self._graph.replay)

    def work(self) -> Work:
        """The graph as something that a window can measure."""
        return Work(submit=self.replay, calls_per_chunk=self.calls)


class CudaBench:
    """The CUDA GPU that torch uses."""

    clock = REAL_CLOCK

    def prepare(self, point: Point) -> Runnable:
        """Capture a point's kernels in a graph."""
        how = How(dtype=point.dtype, library=point.library, warm=point.cache == "warm")
        prepared = build(point.op, point.shape, how)
        work = Graph(prepared).work()
        pauses = any(duty < 1 for duty in point.duties)
        pulse = Graph(prepared, PULSE_S).work() if pauses else work
        return Runnable(work=work, pulse=pulse, stack=prepared.stack)

    def launch_s(self, graph: int) -> tuple[float, float]:
        """Seconds to launch a tiny kernel: host time eagerly (0), device time in a graph (1)."""
        return launch_cost_s("cuda", graph)

    def idle(self) -> Work:
        """Next to no work, which keeps the clocks up."""
        return clocks_up()

    def release(self) -> None:
        """Give cached memory back to the device; fails where a kernel has broken the context."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def clocks_up(pause_s: float = 2e-3) -> Work:
    """Next to no work: keeps a context and the clocks up, to measure static power."""
    scrap = torch.zeros(1024, device="cuda")

    def submit() -> Callable[[], float]:
        added = timed(lambda: scrap.add_(1.0))

        def wait() -> float:
            seconds = added()
            time.sleep(pause_s)
            return seconds

        return wait

    return Work(submit=submit, calls_per_chunk=1)
