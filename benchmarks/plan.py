"""How long a plan takes: four models on three GPUs, and a site of 100 MW.

    python benchmarks/plan.py [small|large]

Prints wall time and CPU time of finding the fleet; run it on an idle machine. Nothing is asserted. The
three GPUs are the shipped H200 under three names, which takes as long as three that differ.
"""

import os
import platform
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np

from energymodel import profile as profiles
from energymodel.find_model import find_model
from energymodel.planning import carbon, server
from energymodel.planning.candidates import Allowed, candidates
from energymodel.planning.evaluate import Objective
from energymodel.planning.plan import find
from energymodel.planning.present import document
from energymodel.planning.request import Money, Request, Site, demands_of
from energymodel.workload import Bin, Workload

SMALL = ("Llama-3.2-3B-Instruct", "Qwen3-8B", "Qwen2.5-14B-Instruct", "Qwen3-32B")
LARGE = ("Qwen3-8B", "Qwen2.5-14B-Instruct")
WORKLOADS, BINS = 50, 10


def main() -> None:
    """Plan both and print how long it took."""
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    )
    for name in sys.argv[1:]:
        timed(name, {"small": small, "large": large}[name]())


def small() -> Request:
    """Four models, three GPUs, 1 to 8 GPUs a replica, two precisions, four power limits."""
    usual = profiles.load("h200")
    names = ("h200", "h200-b", "h200-c")
    gpus = tuple(replace(usual, name=n, gpu=replace(usual.gpu, name=n)) for n in names)
    chat = Workload(
        bins=tuple(
            Bin(input_tokens=i, output_tokens=o, requests_per_s=r)
            for i, o, r in (
                (120, 150, 30.0),
                (600, 200, 30.0),
                (1500, 250, 25.0),
                (3500, 300, 15.0),
            )
        )
    )
    base = request(SMALL, {"chat": chat}, 1e5)
    limits = (None, 600.0, 500.0, 400.0)
    return replace(base, profiles=gpus, allowed=replace(base.allowed, power_limits_w=limits))


def large() -> Request:
    """100 MW, 50 workloads of 10 bins each drawn at random, two models for each, two power limits."""
    rng = np.random.default_rng(1)
    workloads = {}
    for k in range(WORKLOADS):
        inputs = rng.lognormal(6.5, 0.6) * rng.lognormal(0.0, 1.0, BINS)
        outputs = rng.lognormal(5.0, 0.6) * rng.lognormal(0.0, 0.7, BINS)
        rates = rng.uniform(600.0, 12_000.0, BINS)
        workloads[f"workload-{k:02d}"] = Workload(
            bins=tuple(
                Bin(
                    input_tokens=int(np.clip(i, 8, 30_000)),
                    output_tokens=int(np.clip(o, 4, 4_000)),
                    requests_per_s=float(r),
                )
                for i, o, r in zip(inputs, outputs, rates, strict=True)
            )
        )
    return request(LARGE, workloads, 1e8)


def request(names: tuple[str, ...], workloads: dict[str, Workload], budget_w: float) -> Request:
    """What both have in common."""
    models = tuple(find_model(name)[0] for name in names)
    return Request(
        demands=demands_of(models, workloads, paired=False),
        profiles=(profiles.load("h200"),),
        allowed=Allowed(quantizations=(None, "fp8"), power_limits_w=(None, 500.0)),
        objective=Objective(ttft_s=1.0, itl_s=0.05),
        site=Site(budget_w=budget_w, server=server.load()),
        money=Money(intensity=carbon.intensity("world")),
    )


def timed(name: str, asked: Request) -> None:
    """Find the fleet of a request and print how long that took."""
    models = tuple({m.name: m for d in asked.demands for m in d.models}.values())
    fit, _ = candidates(models, asked.profiles, asked.allowed)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    plan = document(find(asked))
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    choices = sum(len(c.power_limits_w) for c in fit) * len(asked.demands)
    print(
        f"{name:6} {choices:6,} choices, {sum(plan.gpus.values()):7,} GPUs, "
        f"{plan.served_requests_per_s / plan.demand_requests_per_s:6.1%} served, gap "
        f"{plan.mip_gap:.1g}: {wall_s:5.1f} s, {cpu_s:5.1f} s of CPU"
    )


def again() -> None:
    """Each plan in an interpreter of its own, with one thread of BLAS, as the command runs it."""
    for name in sys.argv[1:] or ("small", "large"):
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        subprocess.run([sys.executable, __file__, name], env=environment, check=True)  # noqa: S603


if __name__ == "__main__":
    if os.environ.get("OPENBLAS_NUM_THREADS") == "1":
        main()
    else:
        again()
