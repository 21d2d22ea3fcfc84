"""How good and how costly is the calibration? Writes docs/calibration.md from committed lines.

    python benchmarks/measurements.py

Everything is computed from calibration/data/h200: observations.jsonl (operations alone) and
components.jsonl (components of whole models, ``calibrate --components``).
"""

import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from calibration import grid, observations
from calibration.components import windows as component_file
from calibration.components.summary import ComponentReport, Row, summarise
from calibration.fit import fit_all
from calibration.judgement.simple_fits import Errors
from calibration.observations import Observation
from calibration.report import build_report, evidence
from calibration.report.contents import Component, Report
from energymodel.find_model import find_model
from energymodel.io import read_runs
from energymodel.predict import predict
from energymodel.profile import Profile

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "calibration" / "data" / "h200"
TARGET = ROOT / "docs" / "calibration.md"
# Longer than any point takes: the sweep had stopped in between.
PAUSE_S = 45.0


def main() -> None:
    """Fit, judge, write."""
    seen = list(observations.read(DATA / "observations.jsonl"))
    fit = fit_all(DATA / "observations.jsonl", DATA / "runs.jsonl", "h200")
    report = build_report(evidence(fit))
    lines = [
        "# Calibration of the H200",
        "",
        "Written by `python benchmarks/measurements.py` from the committed measurements. Boundary of",
        f"every energy: the GPU board. {report.gpu_name}, driver {', '.join(report.drivers)}.",
        "",
        "## Repeatability and boards",
        "",
        *_repeatability(report),
        "",
        "## Cost",
        "",
        "Minutes between the first and last line of each board that were spent on points of",
        "`--grid full`: set-up, compiling of kernels, settling, idle windows and trials included,",
        "pauses between two runs left out. Boards that measured nine tenths of the grid. Board",
        "151b79da9426 is `energymodel calibrate --gpu h200` and nothing else, one command of 531 s",
        "from start to report; the others ran it within a longer sweep, four boards of one host side",
        "by side.",
        "",
        "| board | points of the full grid | minutes |",
        "|---|---|---|",
        *_cost(seen),
        "",
        "## One board, ten minutes",
        "",
        "A profile that is fitted to nothing but the full grid of one board (and the engine's",
        "constants from the committed whole runs of other boards), against runs of models that no",
        "fit has seen. The last row is the shipped profile.",
        "",
        "| calibrated on | runs | energy: median | 90th percentile | duration: median | 90th percentile |",
        "|---|---|---|---|---|---|",
        *_single_boards(seen),
        _whole_runs("all boards, shipped", fit.profile),
        "",
        "## Operations that the fit had not seen",
        "",
        "Errors of whole shape families held out (single shapes where an operation has fewer than",
        "three families): median / 90th percentile. Energy is of sustained windows, through the",
        "power limit, at the known full-clock time; time is of bursts at full clock. FLOP, time and",
        "roofline are one coefficient each, fitted on the same folds; *time* is told the measured",
        "time of the very window, which no prediction has. Targets: 5 % median.",
        "",
        "| operation | windows | energy | FLOP-only | time-only | roofline | shapes timed | time |",
        "|---|---|---|---|---|---|---|---|",
        *(_component(c) for c in report.components),
        "",
        f"Left out for want of shapes: {_left_out(fit.components.left_out)}.",
        "",
        "## Components of whole models",
        "",
        "`energymodel calibrate --components`: every component of a `transformers` model with",
        "random weights, and the whole of it, measured alone (CLEAR, arXiv 2510.02810). The sum of",
        "the components over the measured whole, gross and above idle power; the largest",
        "coefficient of variation of a component that is 1 % of the whole or more. In these lines,",
        "components below 2 % of a whole have windows of six updates of the counter after the first;",
        "the program now takes ten always.",
        "",
        "| model | kind | batch x prompt | phase | mode | whole | gross | above idle | of the time | largest variation |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *_captures(),
        "",
        *_clear_tables(),
    ]
    TARGET.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    sys.stdout.write("\n".join(lines) + "\n")


def _repeatability(r: Report) -> Iterator[str]:
    for what, v in (("Energy", r.energy_variation), ("Time", r.time_variation)):
        yield (
            f"- {what} of a call over trials on one board: coefficient of variation {v.median:.1%} "
            f"(median) and {v.p95:.1%} (95th percentile) over {v.points} points."
        )
    for spread in r.board_spreads:
        if spread.deviation is not None and spread.interval is not None:
            low, high = spread.interval
            yield (
                f"- Between boards, {spread.what}: standard deviation {spread.deviation:.1%} (90 % "
                f"interval {low:.1%} to {high:.1%}), {spread.boards} boards, mixed-effects model."
            )
    yield (
        "\n".join(
            f"- A byte in the HBM costs {kind.byte_j.value * 1e12:.1f} pJ by the memory's own "
            f"sensor on {len(kind.boards)} boards."
            for kind in r.memory.memories
        )
        if r.memory is not None
        else "- No memory-power sensor."
    )


def _cost(seen: Sequence[Observation]) -> Iterator[str]:
    duties = {point.key: {None, *point.duties} for point in grid.full()}
    for board, lines in _by_board(seen).items():
        seconds, points = 0.0, set()
        for before, o in pairwise(lines):
            cost_s = (o.time_s or 0.0) - (before.time_s or 0.0)
            wanted = o.op == "idle" or o.duty in duties.get(o.point, ())
            if wanted and 0 <= cost_s < PAUSE_S:
                seconds += cost_s
                points.add(o.point)
        done = len(points & duties.keys())
        if done < 0.9 * len(duties):
            continue
        yield f"| {board} | {done} of {len(duties)} | {seconds / 60:.1f} |"


def _by_board(seen: Sequence[Observation]) -> dict[str, list[Observation]]:
    """Lines of each board, in order; of those sweeps whose lines carry a time of their own."""
    boards = defaultdict(list)
    for o in seen:
        boards[o.board].append(o)
    return {b: lines for b, lines in boards.items() if any(o.net_j is not None for o in lines)}


def _single_boards(seen: Sequence[Observation]) -> Iterator[str]:
    duties = {point.key: {None, *point.duties} for point in grid.full()}
    for board, lines in _by_board(seen).items():
        kept = [o for o in lines if o.op == "idle" or o.duty in duties.get(o.point, ())]
        done = len({o.point for o in kept} & duties.keys())
        if done < 0.99 * len(duties):
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "observations.jsonl"
            for o in kept:
                observations.append(path, o)
            profile = fit_all(path, DATA / "runs.jsonl", "h200").profile
        yield _whole_runs(f"board {board}", profile)


def _whole_runs(name: str, profile: Profile) -> str:
    errors = []
    for run in read_runs(DATA / "held_out_runs.jsonl"):
        model, _ = find_model(run.model)
        p = predict(model, run.deployment, run.workload, profile)
        if not any("not calibrated" in warning for warning in p.warnings):
            errors.append((p.energy_j / run.energy_j - 1, p.duration_s / run.duration_s - 1))
    size = np.abs(np.array(errors))
    cells = (f"{np.quantile(column, q):.1%}" for column in size.T for q in (0.5, 0.9))
    return f"| {name} | {len(errors)} | {' | '.join(cells)} |"


def _component(c: Component) -> str:
    simple = (_two(c.simple.get(name)) for name in ("flop_only", "time_only", "roofline"))
    energy = f"as {c.shared}" if c.shared else _two(c.energy)
    return f"| {c.name} | {c.windows} | {energy} | {' | '.join(simple)} | {c.shapes} | {_two(c.time)} |"


def _two(e: Errors | None) -> str:
    return "" if e is None else f"{e.median:.1%} / {e.p90:.1%}"


def _left_out(why: object) -> str:
    facts = dict(why) if isinstance(why, dict) else {}
    return "; ".join(f"{name} ({reason})" for name, reason in facts.items()) or "nothing"


def _reports() -> Iterator[ComponentReport]:
    windows = list(component_file.read(DATA / "components.jsonl"))
    for setting in dict.fromkeys(w.setting for w in windows):
        own = [w for w in windows if w.setting == setting]
        yield summarise(own, setting, trials=3, max_cv=0.095, min_capture=0.9)


def _captures() -> Iterator[str]:
    for r in _reports():
        s = r.setting
        for c in r.captures:
            rows = [x for x in r.rows if (x.phase, x.mode) == (c.phase, c.mode)]
            whole = next(x for x in rows if x.component == "whole")
            large = [x.cv for x in rows if x.cv is not None and (x.share or 0) >= 0.01]
            net = "" if c.net is None else f"{c.net:.1%}"
            yield (
                f"| {s.model} | {s.architecture} | {s.batch} x {s.prompt} | {c.phase} | {c.mode} | "
                f"{whole.mj_per_call / 1e3:.3g} J | {c.gross:.1%} | {net} | {c.time:.1%} | "
                f"{max(large):.1%} |"
            )


def _clear_tables() -> Iterator[str]:
    """Each component of each model from CUDA graphs: the CLEAR table."""
    for r in _reports():
        yield f"### {r.setting.model}: components, CUDA graphs"
        yield ""
        yield "| phase | component | layers | mJ a call | mJ a layer | variation | FLOP | J/GFLOP | share |"
        yield "|---|---|---|---|---|---|---|---|---|"
        for x in r.rows:
            if x.mode == "graph" and (x.share or 0) >= 0.001:
                yield _clear_row(x)
        yield ""


def _clear_row(x: Row) -> str:
    cv = "by difference" if x.cv is None else f"{x.cv:.1%}"
    per_flop = "" if x.j_per_gflop is None else f"{x.j_per_gflop:.3g}"
    flop = f"{x.flop:.3g}" if x.flop else ""
    share = "" if x.share is None else f"{x.share:.1%}"
    return (
        f"| {x.phase} | {x.component} | {x.layers} | {x.mj_per_call:.4g} | {x.mj_per_layer:.3g} | "
        f"{cv} | {flop} | {per_flop} | {share} |"
    )


if __name__ == "__main__":
    main()
