"""How long a prediction takes: from a cold start, warm, step by step, and its schedule alone.

    python benchmarks/predict.py

Prints one table; run it on an idle machine. Nothing is asserted.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from energymodel import power
from energymodel import profile as profiles
from energymodel.deployment import Deployment
from energymodel.find_model import find_model
from energymodel.model import ModelSpec
from energymodel.predict import demand, predict
from energymodel.serving import schedule_offline
from energymodel.steps import Chunks, Decodes, Steps
from energymodel.workload import Bin, Workload

MODELS = ("Llama-3.1-8B-Instruct", "Qwen3-30B-A3B")
ONE_BIN = Workload(bins=(Bin(input_tokens=512, output_tokens=128, count=64),))
COLD_RUNS, WARM_RUNS, STEP_RUNS = 7, 50, 3
STEPS = 200_000
PACKAGES = ("energymodel", "numpy", "msgspec", "click", "rich")


def main() -> None:
    """Measure everything and print the table."""
    print(f"machine   {cpu_model()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"software  Python {platform.python_version()}, {versions}\n")
    row("what", "median", "best")
    cold_start()
    for name in MODELS:
        warm(name)
    many_steps()
    large_schedule()


def cold_start() -> None:
    """The command from a new interpreter, files in the page cache."""
    bins = [{"input_tokens": 512, "output_tokens": 128, "count": 64}]
    with tempfile.TemporaryDirectory() as folder:
        workload = Path(folder) / "bins.json"
        workload.write_text(json.dumps({"schema_version": 1, "bins": bins}), encoding="utf-8")
        arguments = ["--gpu", "h200", "--workload", str(workload)]
        for name in MODELS:
            for output in ([], ["--json"]):
                command = ["predict", "--model", name, *arguments, *output]
                seconds = times(lambda c=command: run_command(c), COLD_RUNS)  # type: ignore[misc]
                report(f"cold command {name} {' '.join(output)}".strip(), seconds, "ms")


def run_command(arguments: list[str]) -> None:
    """``energymodel`` in a new interpreter."""
    code = "import sys; from energymodel.cli import main; sys.exit(main())"
    subprocess.run(  # noqa: S603 (this interpreter, our arguments)
        [sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL
    )


def warm(name: str) -> None:
    """One bin through the library, everything loaded."""
    model, profile = find_model(name)[0], profiles.load("h200")
    seconds = times(lambda: predict(model, Deployment(), ONE_BIN, profile), WARM_RUNS)
    report(f"warm prediction {name}", seconds, "ms")


def many_steps() -> None:
    """Steps of every size and context through operations, times, energies and the power limit."""
    profile = profiles.load("h200")
    p = profile.power
    static_w = power.static_power_w(p, 500.0)
    cap_w = p.limit_share.value * profile.gpu.power_limit_w
    for name in MODELS:
        model = find_model(name)[0]
        for kind, steps in (("decode", decode_steps(STEPS)), ("mixed", mixed_steps(STEPS))):

            def evaluate(model: ModelSpec = model, steps: Steps = steps) -> None:
                load = demand(model, Deployment(), steps, profile).load()
                power.limited_clock(load, static_w, p.exponent.value, cap_w)

            best = min(times(evaluate, STEP_RUNS))
            row(f"{STEPS:,} {kind} steps {name}", f"{STEPS / best / 1e6:.3f} M/s", f"{best:.2f} s")


def decode_steps(size: int) -> Steps:
    """Pure decode: one group of sequences a step."""
    random = np.random.default_rng(0)
    none = np.zeros(0, np.int64)
    return Steps(
        weight=np.ones(size),
        chunks=Chunks(step=none, tokens=none, context=none, count=none, last=none, bin=none),
        decodes=Decodes(
            step=np.arange(size),
            context=random.integers(1, 16_384, size).astype(np.float64),
            count=random.integers(1, 257, size),
            bin=np.zeros(size, np.int64),
        ),
    )


def mixed_steps(size: int) -> Steps:
    """A prompt chunk beside a group of decoding sequences in every step."""
    random = np.random.default_rng(1)
    zeros = np.zeros(size, np.int64)
    chunks = Chunks(
        step=np.arange(size),
        tokens=random.integers(1, 8193, size),
        context=zeros,
        count=zeros + 1,
        last=zeros + 1,
        bin=zeros,
    )
    return Steps(weight=np.ones(size), chunks=chunks, decodes=decode_steps(size).decodes)


def large_schedule() -> None:
    """A day's trace as it would be binned: 19,000 requests of 1,900 different lengths."""
    random = np.random.default_rng(2)
    bins = tuple(
        Bin(input_tokens=int(i), output_tokens=int(o), count=10)
        for i, o in zip(
            random.lognormal(6.5, 1.0, 1900).clip(1, 16_000).round(),
            random.lognormal(5.0, 0.8, 1900).clip(1, 2_000).round(),
            strict=True,
        )
    )
    workload = Workload(bins=bins)
    model, profile = find_model(MODELS[0])[0], profiles.load("h200")
    capacity = 500_000
    seconds = times(lambda: schedule_offline(workload, Deployment(), capacity), 3)
    report("schedule of 19,000 requests in 1,900 bins", seconds, "s")
    seconds = times(lambda: predict(model, Deployment(), workload, profile), 3)
    report(f"the same, predicted for {MODELS[0]}", seconds, "s")


def times(call: Callable[[], object], runs: int) -> list[float]:
    """Seconds of each of ``runs`` calls, after one that does not count."""
    call()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def report(what: str, seconds: list[float], unit: str) -> None:
    """One row: median and best."""
    scale = {"s": 1.0, "ms": 1e3}[unit]
    median, best = statistics.median(seconds) * scale, min(seconds) * scale
    row(what, f"{median:.2f} {unit}", f"{best:.2f} {unit}")


def row(what: str, *values: str) -> None:
    """One line of the table."""
    print(f"{what:<55}" + "".join(f"{value:>14}" for value in values))


def cpu_model() -> str:
    """Name of the processor, as Linux gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
