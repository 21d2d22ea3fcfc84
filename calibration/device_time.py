"""Seconds on the CUDA device of what is launched, without waiting for it."""

from collections.abc import Callable

import torch


def timed(launch: Callable[[], object]) -> Callable[[], float]:
    """Enqueue ``launch``; the returned function waits for it and gives its device seconds."""
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True, blocking=True)
    start.record()
    launch()
    end.record()

    def wait() -> float:
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    return wait
