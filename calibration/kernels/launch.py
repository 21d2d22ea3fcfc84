"""What it costs the host to start a kernel, and a GPU to go on to the next one in a graph."""

import time
from collections.abc import Callable

import numpy as np
import torch

# Fewer than the driver queues, so that an eager launch never waits for the GPU.
LAUNCHES = 400
REPEATS = 50
NUMBERS = 1024


def launch_cost_s(device: str = "cuda", graph: int = 0) -> tuple[float, float]:
    """Seconds to launch one tiny kernel: median over repeats, and their interquartile range.

    ``graph`` = 0: host time of an eager launch. ``graph`` = 1: device time a node of a replayed
    CUDA graph of dependent tiny kernels, which is what is left of launching when the host is
    out of the way.

    Raises:
        ValueError: the device is not a CUDA GPU.
    """
    if torch.device(device).type != "cuda":
        raise ValueError(f"launch: device {device} has no kernels to launch; use cuda")
    x = torch.zeros(NUMBERS, device=device)
    with torch.cuda.device(x.device):
        once = _replayed_s(x) if graph else _eager_s(x)
        samples = [once() for _ in range(REPEATS)][5:]
    low, median, high = np.percentile(samples, (25, 50, 75))
    return float(median) / LAUNCHES, float(high - low) / LAUNCHES


def _eager_s(x: torch.Tensor) -> Callable[[], float]:
    def once() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(LAUNCHES):
            x.add_(1.0)
        return time.perf_counter() - start

    return once


def _replayed_s(x: torch.Tensor) -> Callable[[], float]:
    x.add_(1.0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            x.add_(1.0)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def once() -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    return once
