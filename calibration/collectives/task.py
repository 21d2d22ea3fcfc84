"""What the ranks of one run are told, in a file that all of them read."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to measure and where to write it.

    ``out`` is collectives.jsonl. ``gloo_power_w`` set: CPU processes with gloo and a sensor that
    counts so many watts, which tests all of it without a GPU.
    """

    gpu: str
    out: str
    grid: str
    budget_s: float
    trials: int
    gloo_power_w: float | None = None
