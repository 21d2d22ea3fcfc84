"""How long a prediction takes: from a cold start, warm, step by step, and its schedule alone.

    python benchmarks/predict.py [TRACE.csv]

Prints one table, and what others publish of theirs; run it on an idle machine. Nothing is asserted.
A trace, such as the conversations of the Azure LLM inference trace of 2023, is replayed, too.
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
from energymodel.costs import demand
from energymodel.deployment import Deployment
from energymodel.find_model import find_model
from energymodel.model import ModelSpec
from energymodel.predict import predict
from energymodel.predict_online import predict_online
from energymodel.serving import schedule_offline
from energymodel.step_table import StepTable, step_loads, step_sums, step_table
from energymodel.steps import Chunks, Decodes, Steps
from energymodel.workload import Bin, Workload

MODELS = ("Llama-3.1-8B-Instruct", "Qwen3-30B-A3B")
ONE_BIN = Workload(bins=(Bin(input_tokens=512, output_tokens=128, count=64),))
COLD_RUNS, WARM_RUNS, STEP_RUNS = 7, 50, 3
STEPS, MANY = 200_000, 1_000_000
# From their papers and documentation; an engine step is one iteration of the engine.
PEERS = (
    ("AIConfigurator (Rust), one engine step", "17 to 94 us"),
    ("Vidur, a simulation", "9 s"),
    ("LLMServingSim, a simulation", "353 s"),
)
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
    looked_up_steps()
    large_schedule()
    steady_state()
    for trace in sys.argv[1:]:
        replay(trace)
    print("\nPublished by others, not measured here:")
    for what, value in PEERS:
        row(what, value)


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


def looked_up_steps() -> None:
    """The same steps from a table: times, energies and the power limit."""
    profile = profiles.load("h200")
    p = profile.power
    static_w = power.static_power_w(p, 500.0)
    cap_w = p.limit_share.value * profile.gpu.power_limit_w
    for name in MODELS:
        model = find_model(name)[0]
        seconds = times(lambda m=model: step_table(m, Deployment(), profile), STEP_RUNS)  # type: ignore[misc]
        report(f"step table {name}", seconds, "ms")
        table = step_table(model, Deployment(), profile)
        assert table is not None  # noqa: S101 (both models have one)
        for kind, steps in (("decode", decode_steps(MANY)), ("mixed", mixed_steps(MANY))):

            def evaluate(table: StepTable = table, steps: Steps = steps) -> None:
                load = step_loads(table, step_sums(steps, table.windows))
                power.limited_clock(load, static_w, p.exponent.value, cap_w)

            best = min(times(evaluate, STEP_RUNS))
            row(f"{MANY:,} {kind} steps looked up", f"{MANY / best / 1e6:.2f} M/s", f"{best:.2f} s")


def steady_state() -> None:
    """Poisson arrivals at half of what a replica serves."""
    model, profile = find_model(MODELS[0])[0], profiles.load("h200")
    workload = Workload(bins=(Bin(input_tokens=512, output_tokens=128, requests_per_s=30.0),))
    seconds = times(lambda: predict_online(model, Deployment(), workload, profile), 3)
    report(f"online, 4,000 requests {MODELS[0]}", seconds, "s")


def replay(trace: str) -> None:
    """The command that serves a trace as it came, from a new interpreter."""
    command = ["predict", "--model", MODELS[0], "--gpu", "h200", "--trace", trace, "--json"]
    report(f"cold command --trace {Path(trace).name}", times(lambda: run_command(command), 3), "s")


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
