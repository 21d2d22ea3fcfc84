"""What do GPUs pay to talk to each other? Writes the tables of docs/collectives.md.

    python benchmarks/collectives.py

Everything is computed from calibration/data/h200: collectives.jsonl (``calibrate --collectives``) and
the whole models of parallel_runs.jsonl and runs.jsonl (``measure --tensor-parallel-size``).
"""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from calibration.collectives import observations
from calibration.collectives.observations import CollectiveObservation
from energymodel.collectives import wire_share

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "calibration" / "data" / "h200"
TARGET = ROOT / "docs" / "collectives.md"
KIB, MIB = 1 << 10, 1 << 20
SMALL, LARGE = 16 * KIB, 256 * MIB
# Largest message of vLLM's own all-reduce that was measured.
LARGE_OF = {"vllm": 4 * MIB}


def main() -> None:
    """Replace what stands between the markers of the document."""
    TARGET.write_text(current(TARGET.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"Wrote {TARGET}\n")


def current(text: str) -> str:
    """The document with the tables of the committed measurements."""
    seen = list(observations.read(DATA / observations.FILE))
    blocks = {
        "collectives": collectives(seen),
        "waiting": waiting(seen),
        "overlap": overlap(seen),
        "quality": quality(seen),
        "models": models(),
    }
    for name, lines in blocks.items():
        block = "\n".join(lines)
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.DOTALL)
    return text


def collectives(seen: Sequence[CollectiveObservation]) -> Iterator[str]:
    """One row for each collective, library and number of GPUs."""
    yield (
        "| collective | GPUs | 16 KiB | largest | bus rate | power above idle, each GPU "
        "| energy above idle, a byte on the wire |"
    )
    yield "|---|---|---|---|---|---|---|"
    kinds = dict.fromkeys(
        (o.op, o.library, o.gpus)
        for o in sorted(seen, key=lambda o: o.gpus)
        if o.op not in ("idle", "product", "overlap") and o.dtype == "bfloat16"
    )
    for op, library, gpus in kinds:
        mine = [
            o
            for o in seen
            if (o.op, o.library, o.gpus, o.dtype, o.skew_us) == (op, library, gpus, "bfloat16", 0)
        ]
        size = LARGE_OF.get(library, LARGE)
        small = [o.call_s for o in mine if o.message_bytes == SMALL and o.mode == "burst"]
        large = [o for o in mine if o.message_bytes == size and o.energy_call_j is not None]
        if not (small and large):
            continue
        wire = wire_share(op, gpus) * size
        rate = wire / median(o.call_s for o in large)
        power_w = median(_net_w(o) for o in large)
        byte_j = median(_net_w(o) * o.call_s for o in large) / wire
        name = f"{op.replace('_', '-')}, {'NCCL' if library == 'nccl' else 'vLLM'}"
        yield (
            f"| {name} | {gpus} | {median(small) * 1e6:.1f} us | {size // MIB} MiB "
            f"| {rate / 1e9:.0f} GB/s | {power_w:.0f} W | {byte_j * 1e12:.0f} pJ |"
        )


def waiting(seen: Sequence[CollectiveObservation]) -> Iterator[str]:
    """Power of the GPUs that wait, of the late one, and idle."""
    yield "| waiting in | GPUs | those that wait, above idle | the late one, above idle | idle |"
    yield "|---|---|---|---|---|"
    kinds = dict.fromkeys(
        (o.gpus, o.library, o.message_bytes)
        for o in sorted(seen, key=lambda o: o.gpus)
        if o.mode == "wait"
    )
    for gpus, library, size in kinds:
        mine = [
            o
            for o in seen
            if o.mode == "wait" and (o.gpus, o.library, o.message_bytes) == (gpus, library, size)
        ]
        others_w = median(_rank_w(o, i) for o in mine for i in range(1, gpus))
        late_w = median(_rank_w(o, 0) for o in mine)
        idle_w = median(r.idle_power_w for o in mine for r in o.ranks if r.idle_power_w)
        shown = f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"
        name = f"{'NCCL' if library == 'nccl' else 'vLLM'}, {shown}"
        yield f"| {name} | {gpus} | {others_w:.0f} W | {late_w:.0f} W | {idle_w:.0f} W |"


def overlap(seen: Sequence[CollectiveObservation]) -> Iterator[str]:
    """A product, an all-reduce, and both at once: time at full clock, energy back to back."""
    yield "| GPUs | | product alone | all-reduce alone | both at once |"
    yield "|---|---|---|---|---|"
    for gpus in sorted({o.gpus for o in seen if o.op == "overlap"}):
        size = next(o.message_bytes for o in seen if o.op == "overlap")
        wanted = (("product", 0), ("all_reduce", size), ("overlap", size))
        mine = [
            [
                o
                for o in seen
                if (o.op, o.message_bytes, o.gpus) == (op, message, gpus)
                and (o.library, o.dtype) == ("nccl", "bfloat16")
            ]
            for op, message in wanted
        ]
        times = [median(o.call_s for o in part if o.mode == "burst") for part in mine]
        energies = [median(_sustained_j(part)) for part in mine]
        yield f"| {gpus} | time | {' | '.join(f'{s * 1e6:.0f} us' for s in times)} |"
        yield f"| | energy, all GPUs | {' | '.join(f'{j * 1e3:.0f} mJ' for j in energies)} |"


def _sustained_j(part: Sequence[CollectiveObservation]) -> list[float]:
    return [o.energy_call_j for o in part if o.energy_call_j is not None]


def quality(seen: Sequence[CollectiveObservation]) -> Iterator[str]:
    """How far trials of one point differ, and what was measured."""
    groups: defaultdict[tuple[str, tuple[str, ...]], list[float]] = defaultdict(list)
    for o in seen:
        if o.energy_call_j is not None:
            groups[o.point, o.boards].append(o.energy_call_j)
    spreads = sorted(stdev(v) / mean(v) for v in groups.values() if len(v) > 1)
    windows = sum(len(v) for v in groups.values())
    boards = {b for o in seen for b in o.boards}
    yield (
        f"{len(seen) - windows} bursts and {windows} windows of {len(boards)} boards; energy of a "
        f"call repeats within {median(spreads):.1%} (median coefficient of variation; 90th "
        f"percentile {spreads[int(0.9 * len(spreads))]:.1%})."
    )


def models() -> Iterator[str]:
    """Whole models at the same load on 1, 2 and 4 GPUs."""
    runs = [
        json.loads(line)
        for name in ("runs.jsonl", "parallel_runs.jsonl")
        for line in (DATA / name).read_text(encoding="utf-8").splitlines()
    ]
    table: defaultdict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for run in runs:
        table[run["model"], _load(run)][_ways(run)] = run
    yield "| model | requests | GPUs | time | energy | against fewest GPUs: time, energy |"
    yield "|---|---|---|---|---|---|"
    for (model, load), by_ways in sorted(table.items()):
        if len(by_ways) < 2 or {w.split(",")[0] for w in by_ways} == {"1"}:
            continue
        first = next(iter(sorted(by_ways.items())))[1]
        for ways, run in sorted(by_ways.items()):
            ratios = "" if run is first else (
                f"{run['duration_s'] / first['duration_s']:.2f}, "
                f"{run['energy_j'] / first['energy_j']:.2f}"
            )  # fmt: skip
            yield (
                f"| {model.split('/')[1]} | {load} | {ways} | {run['duration_s']:.3g} s "
                f"| {run['energy_j']:.4g} J | {ratios} |"
            )


def _load(run: dict[str, Any]) -> str:
    return " and ".join(
        f"{b['count']} x {b['input_tokens']}+{b['output_tokens']}" for b in run["bins"]
    )


def _ways(run: dict[str, Any]) -> str:
    """Number of GPUs, and how they share the work unless by tensor parallelism alone."""
    tensor, stages = run.get("tensor_parallel_size", 1), run.get("pipeline_parallel_size", 1)
    how = ", expert parallel" if run.get("enable_expert_parallel") else ""
    return f"{tensor * stages}{how}{', pipeline' if stages > 1 else ''}"


def _rank_w(o: CollectiveObservation, number: int) -> float:
    """Power of one GPU above idle."""
    r = o.ranks[number]
    return (r.net_j or 0.0) / (r.duration_s or 1.0)


def _net_w(o: CollectiveObservation) -> float:
    """Mean power of a GPU above idle."""
    return mean(_rank_w(o, i) for i in range(o.gpus))


if __name__ == "__main__":
    main()
