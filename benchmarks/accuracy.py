"""How accurate are the predictions? Writes docs/accuracy.md and the table of the README.

    python benchmarks/accuracy.py

Evidence, from the strictest down:

1. runs of models that no fit has seen, predicted with the shipped profile;
2. the runs that an engine's constants were fitted on, each predicted with its model left out of that
   fit (all is refitted here); operation coefficients never see any whole run;
3. single operations, each shape family left out of the fit of its law (from the profile).
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from accuracy_rows import (
    DATA,
    ROOT,
    Row,
    by_model,
    by_regime,
    cells,
    left_out,
    measured,
    percent,
    table,
    unseen,
    with_coverage,
)

from calibration.fit import fit_all
from energymodel import profile as profiles
from energymodel.profile import Profile

TARGET, README = ROOT / "docs" / "accuracy.md", ROOT / "README.md"
BEGIN, END = "<!-- benchmarks/accuracy.py begins -->", "<!-- benchmarks/accuracy.py ends -->"
OUTSIDE = ("overhead", "idle")
README_HEADS = (
    "evidence",
    "runs",
    "energy: median",
    "90th percentile",
    "duration: median",
    "inside the interval: energy, duration",
    "FLOP-only: median",
)
# Files of runs that no fit has seen, and what they are.
UNSEEN = (
    ("held_out_runs", "vLLM, models that no fit has seen"),
    ("fp8_runs", "vLLM, fp8"),
    ("transformers_held_out_runs", "transformers, models that no fit has seen"),
    ("parallel_runs", "vLLM on two and four GPUs"),
)
WHAT = {
    "held_out_runs": """Measured after the calibration, on a board whose energy no fit has seen. Nothing
is predicted from them; they only say, with the runs below, how wide intervals must be, and each is
judged by an interval that its own model had no part in. The width for kernels that were not
calibrated was chosen from the one such model here, which is left out of the totals.""",
    "fp8_runs": """Runs with `--quantization fp8`, which no fit has seen, on boards that no fit has
seen: only the products, experts and caches were calibrated in fp8, one by one.""",
    "transformers_held_out_runs": """Eager, SDPA, bfloat16: nothing of these models is in any fit.""",
    "parallel_runs": """Tensor and expert parallel; energy of all GPUs. What workers add was fitted on these
runs, everything else was not.""",
}
ENGINES = {"vllm": "vLLM", "transformers": "transformers"}


def main() -> None:
    """Predict, refit the engines, compare, write."""
    shipped = profiles.load("h200")
    fit = fit_all(DATA / "observations.jsonl", DATA / "runs.jsonl", "h200")
    out = {engine: left_out(*found, shipped) for engine, found in fit.engines.items()}
    seen = {name: with_coverage(unseen(measured(name), shipped), out["vllm"]) for name, _ in UNSEEN}
    new = [row.run for rows in seen.values() for row in rows]
    out = {engine: [r for r in rows if r.run not in new] for engine, rows in out.items()}
    text = "\n".join(document(shipped, seen, out)) + "\n"
    TARGET.write_text(text, encoding="utf-8")
    block = "\n".join([BEGIN, *readme_table(seen, out), END])
    old = README.read_text(encoding="utf-8")
    README.write_text(old[: old.index(BEGIN)] + block + old[old.index(END) + len(END) :], "utf-8")
    sys.stdout.write(text)


def document(
    shipped: Profile, seen: Mapping[str, Sequence[Row]], out: Mapping[str, Sequence[Row]]
) -> list[str]:
    """docs/accuracy.md, line by line."""
    lines = [
        "# Accuracy",
        "",
        "Written by `python benchmarks/accuracy.py`; every figure follows from the committed",
        "measurements. Errors are of energy (boundary: the GPU board), absolute, relative to the",
        "measurement, unless named otherwise; *inside*: share of runs inside their 90 % interval.",
        software(shipped.provenance),
    ]
    for name, title in UNSEEN:
        if seen[name]:
            lines += ["", f"## {title}", "", WHAT[name], "", *table(by_model(seen[name]), "model")]
            lines += ["", *table(by_regime(seen[name]), "regime")]
    for engine, rows in out.items():
        lines += [
            "",
            f"## {ENGINES[engine]}, models left out in turn",
            "",
            "The runs that the engine's few constants and the width of intervals were fitted on,",
            "each predicted, and its interval made, by a fit without its model.",
            "",
            *table(by_model(rows), "model"),
            "",
            *table(by_regime(rows), "regime"),
        ]
    return [
        *lines,
        "",
        "## Components against the whole",
        "",
        "Predicted energy of the measured components (all but `overhead` and `idle`) over the",
        "measured energy of the whole run, dense models on vLLM.",
        "",
        *closure([*out["vllm"], *seen["held_out_runs"]]),
        "",
        "## Single operations",
        "",
        "Median error on shape families left out of the fit.",
        "",
        "| operation | time | energy (sustained) |",
        "|---|---|---|",
        *(
            f"| {kind} | {percent(op.time_error)} | {percent(op.energy_error)} |"
            for kind, op in shipped.operations.items()
        ),
    ]


def software(provenance: Mapping[str, object]) -> str:
    """GPU, driver and packages of the measurements."""
    known = provenance.get("software")
    listed = ", ".join(f"{k} {v}" for k, v in known.items()) if isinstance(known, dict) else ""
    drivers = provenance.get("driver")
    driver = ", ".join(map(str, drivers)) if isinstance(drivers, list) else ""
    return f"NVIDIA H200, driver {driver}, {listed}."


def closure(rows: Sequence[Row]) -> list[str]:
    """How much of the measured energy the measured components explain."""
    phases: dict[str, list[float]] = {"prefill only": [], "mostly decode": []}
    for row in rows:
        if row.kind == "dense" and not row.warned and row.phase in phases:
            parts = row.prediction.components.items()
            known_j = sum(c.energy_j for name, c in parts if name not in OUTSIDE)
            phases[row.phase].append(known_j / row.run.energy_j)
    lines = [
        "| phase | runs | median | 10th to 90th percentile | within 90-105 % |",
        "|---|---|---|---|---|",
    ]
    for name, shares in phases.items():
        values = np.array(shares)
        low, high = np.quantile(values, [0.1, 0.9])
        within = np.mean((values >= 0.9) & (values <= 1.05))
        lines.append(
            f"| {name} | {len(values)} | {percent(np.median(values))} | "
            f"{percent(low)} to {percent(high)} | {100 * within:.0f} % |"
        )
    return lines


# The table of the README ---------------------------------------------------------------------


def readme_table(seen: Mapping[str, Sequence[Row]], out: Mapping[str, Sequence[Row]]) -> list[str]:
    """Evidence in a few lines, the strictest first."""
    return [
        f"| {' | '.join(README_HEADS)} |",
        "|---|---|---|---|---|---|---|",
        *unseen_lines(seen),
        *(
            line
            for engine, rows in out.items()
            for line in _lines(f"{ENGINES[engine]}: {{models}}, each left out in turn", rows)
        ),
    ]


def unseen_lines(seen: Mapping[str, Sequence[Row]]) -> list[str]:
    """Of runs that no fit has seen; these need no refit."""
    says = {
        "held_out_runs": "vLLM: {models} that no fit has seen",
        "fp8_runs": "vLLM `--quantization fp8`: {models}, no fp8 run in any fit",
        "transformers_held_out_runs": "transformers: {models} that no fit has seen",
        "parallel_runs": "vLLM on 2 and 4 GPUs: {models}; what workers add was fitted on them",
    }
    return [line for name, text in says.items() for line in _lines(text, seen.get(name, []))]


def _lines(text: str, rows: Sequence[Row]) -> list[str]:
    """One line for all kinds of model, and one for each where there are several."""
    fair = [row for row in rows if not row.warned]
    kinds = list(dict.fromkeys(row.kind for row in fair))
    if not fair:
        return []
    lines = [_line(text.format(models=_models(fair, "")), fair)]
    if len(kinds) > 1:
        of = [[row for row in fair if row.kind == kind] for kind in kinds]
        lines += [
            _line(f"of these {_models(rows, kind)}", rows)
            for kind, rows in zip(kinds, of, strict=True)
        ]
    return lines


def _models(rows: Sequence[Row], kind: str) -> str:
    count = len({row.run.model for row in rows})
    words = [str(count), {"moe": "MoE"}.get(kind, kind), "model" if count == 1 else "models"]
    return " ".join(word for word in words if word)


def _line(text: str, rows: Sequence[Row]) -> str:
    runs, median, p90, _, duration, _, energy_in, duration_in, flop = cells(rows)
    return (
        f"| {text} | {runs} | {median} | {p90} | {duration} | {energy_in}, {duration_in} | {flop} |"
    )


if __name__ == "__main__":
    main()
