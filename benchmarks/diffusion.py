"""Does denoising dominate, and does its energy scale with FLOP? Rewrites the tables of docs/diffusion.md.

    python benchmarks/diffusion.py mlenergy_v3_diffusion.csv

The file holds the image and video runs of the ML.ENERGY benchmark, version 3, on H100 and B200, one
line a run. Only runs on one GPU are used: those on several spend energy on communication.
"""

import csv
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from energymodel import profile
from energymodel.costs import priced
from energymodel.deployment import Deployment
from energymodel.diffusion.passes import operations, schedule
from energymodel.diffusion.pipeline import Pipeline
from energymodel.diffusion.predict import predict
from energymodel.diffusion.requests import read_requests
from energymodel.find_model import find_any
from energymodel.prediction import Prediction
from energymodel.workload import Bin, Workload

TARGET = Path(__file__).resolve().parent.parent / "docs" / "diffusion.md"
GPUS = ("H100", "B200")
H200 = profile.load("h200")
# The largest batch at which a prediction is shown; every measured one costs about as much a sample.
BATCH = 4
# The smaller and the larger network of one architecture.
PAIRS = (
    ("SANA 1.5 1.6B", "SANA 1.5 4.8B"),
    ("Stable Diffusion 3.5 Medium", "Stable Diffusion 3.5 Large"),
    ("CogVideoX 2B", "CogVideoX 1.5 5B"),
)


KINDS = {"gemm": "products", "prefill_attention": "attention", "elementwise": "row by row"}


@dataclass(frozen=True)
class Runs:
    """The runs of one model: joules of an image or video by GPU and batch size, and a prediction.

    ``h100_s`` is the measured latency of a batch of ``batch``, ``full_clock_s`` the predicted time of
    such a batch on an H200 without a power limit, by kind of call.
    """

    name: str
    measured: Mapping[str, Mapping[int, float]]
    predicted: Prediction
    batch: int
    h100_s: float
    full_clock_s: Mapping[str, float]

    def joules(self, gpu: str) -> float:
        """Median over the batch sizes."""
        return float(np.median(list(self.measured[gpu].values())))

    @property
    def flop(self) -> float:
        """FLOP of one image or video, all phases."""
        components = self.predicted.components.values()
        return sum(c.flop for c in components) / self.predicted.requests


def main() -> None:
    """Read, predict, compare, write."""
    if len(sys.argv) != 2:
        sys.exit("Say which file: python benchmarks/diffusion.py mlenergy_v3_diffusion.csv")
    with Path(sys.argv[1]).open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["num_gpus"] == "1"]
    runs = {name: _runs(name, found) for name, found in _by(rows, "nickname").items()}
    text = TARGET.read_text(encoding="utf-8")
    for marker, lines in (
        ("split", _split(runs.values())),
        ("scaling", _scaling(runs)),
        ("models", _models(runs.values())),
        ("kernels", _kernels(runs.values())),
    ):
        begin, end = f"<!-- {marker} -->\n", f"<!-- end of {marker} -->"
        block = begin + "\n".join(["", *lines, "", ""]) + end
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", block, text, flags=re.DOTALL)
    TARGET.write_text(text, encoding="utf-8")


def _by(rows: Iterable[Mapping[str, str]], key: str) -> dict[str, list[Mapping[str, str]]]:
    found = defaultdict(list)
    for row in rows:
        found[row[key]].append(row)
    return dict(found)


def _runs(name: str, rows: Sequence[Mapping[str, str]]) -> Runs:
    first = rows[0]
    pipeline, _ = find_any(first["model_id"])
    if not isinstance(pipeline, Pipeline):
        raise TypeError(first["model_id"])
    h100 = {int(r["batch_size"]): r for r in rows if r["gpu_model"] == "H100"}
    batch = max(size for size in h100 if size <= BATCH)
    asked = Bin(
        input_tokens=32,
        output_tokens=0,
        count=batch,
        image_width=int(first["width"]),
        image_height=int(first["height"]),
        num_frames=int(float(first["num_frames"])) if first["num_frames"] else None,
        num_inference_steps=int(first["inference_steps"]),
    )
    workload, deployment = Workload(bins=(asked,)), Deployment(max_num_seqs=batch)
    measured = {
        gpu: {int(r["batch_size"]): float(r["energy_per_output_joules"]) for r in found}
        for gpu, found in _by(rows, "gpu_model").items()
    }
    return Runs(
        name=name,
        measured=measured,
        predicted=predict(pipeline, deployment, workload, H200),
        batch=batch,
        h100_s=float(h100[batch]["batch_latency_s"]),
        full_clock_s=_full_clock(pipeline, workload, deployment),
    )


def _full_clock(pipeline: Pipeline, workload: Workload, deployment: Deployment) -> dict[str, float]:
    requests = read_requests(pipeline, workload)
    passes = schedule(pipeline, requests, np.array([deployment.max_num_seqs]))
    ops = tuple(operations(pipeline, passes, deployment))
    times = priced(ops, deployment, H200, lambda rows: rows).times
    found = dict.fromkeys(KINDS, 0.0)
    for op, time in zip(ops, times, strict=True):
        kind = op.kind if op.kind in KINDS else "elementwise"
        found[kind] += op.count * float(passes.weight @ time.seconds)
    return found


def _kernels(runs: Iterable[Runs]) -> list[str]:
    """Least squares, in relative terms, of the measured time over the predicted parts of it."""
    listed = list(runs)
    parts = np.array([[r.full_clock_s[kind] / r.h100_s for kind in KINDS] for r in listed])
    slower, *_ = np.linalg.lstsq(parts, np.ones(len(listed)), rcond=None)
    worst = float(np.abs(parts @ slower - 1).max())
    cells = (f"| {what} | x {x:.2f} |" for what, x in zip(KINDS.values(), slower, strict=True))
    return [
        "| calls | time on the H100 over that predicted for an H200 at full clock |",
        "|---|---|",
        *cells,
        "",
        f"With these three numbers the time of every pipeline is met within {100 * worst:.0f} %.",
    ]


def _split(runs: Iterable[Runs]) -> list[str]:
    lines = [
        "| model | per image or video | text encoder | denoising | autoencoder |",
        "|---|---|---|---|---|",
    ]
    for r in runs:
        p = r.predicted
        shares = (100 * phase.energy_j / p.energy_j for phase in p.phases.values())
        cells = " | ".join(f"{share:.1f} %" for share in shares)
        lines.append(f"| {r.name} | {r.flop / 1e15:,.2f} PFLOP | {cells} |")
    return lines


def _scaling(runs: Mapping[str, Runs]) -> list[str]:
    lines = [
        "| from, to | FLOP | predicted energy, H200 | measured, H100 | measured, B200 |",
        "|---|---|---|---|---|",
    ]
    for small, large in PAIRS:
        a, b = runs[small], runs[large]
        predicted = b.predicted.energy_j / a.predicted.energy_j
        measured = (b.joules(gpu) / a.joules(gpu) for gpu in GPUS)
        cells = " | ".join(f"x {x:.2f}" for x in (b.flop / a.flop, predicted, *measured))
        lines.append(f"| {small}, {large} | {cells} |")
    return lines


def _models(runs: Iterable[Runs]) -> list[str]:
    lines = [
        (
            "| model | TFLOP per joule, H100 | B200 | spread over batch sizes, H100 | B200 "
            "| H100 measured over H200 predicted |"
        ),
        "|---|---|---|---|---|---|",
    ]
    for r in runs:
        each_j = r.predicted.energy_per_request_j
        efficiency = " | ".join(f"{r.flop / 1e12 / r.joules(gpu):.2f}" for gpu in GPUS)
        spread = " | ".join(_spread(r.measured[gpu].values()) for gpu in GPUS)
        lines.append(f"| {r.name} | {efficiency} | {spread} | {r.joules('H100') / each_j:.2f} |")
    return lines


def _spread(values: Iterable[float]) -> str:
    listed = list(values)
    return f"{100 * (max(listed) / min(listed) - 1):.0f} %"


if __name__ == "__main__":
    main()
