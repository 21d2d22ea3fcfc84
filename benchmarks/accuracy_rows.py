"""Errors of predictions of whole runs, and tables of them; ``accuracy.py`` writes them down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from calibration.fit_accuracy import case_sources, group_of, left_out_widths
from calibration.fit_engine import Case, EngineFit
from energymodel.costs import step_costs
from energymodel.find_model import find_model
from energymodel.io import Run, read_runs
from energymodel.model import ModelSpec
from energymodel.predict import predict
from energymodel.prediction import Prediction
from energymodel.profile import Profile
from energymodel.uncertainty import boards, ends

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "calibration" / "data" / "h200"
# A run that takes less is short; a run is mostly decode where that takes more than this share.
SHORT_S, MOSTLY = 0.1, 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run and its prediction; errors are fractions of the measured value.

    ``inside`` says whether the interval held (energy, duration). ``kind`` is "dense", "moe",
    "encoder" or "encoder-decoder". ``warned``: another kernel runs than those that were calibrated.
    """

    run: Run
    kind: str
    prediction: Prediction
    energy: float
    duration: float
    inside: tuple[bool, bool]
    warned: bool

    @property
    def flop_only(self) -> float:
        """Error of the FLOP-only estimate."""
        return self.prediction.flop_only.energy_j / self.run.energy_j - 1

    @property
    def phase(self) -> str:
        """Where most of the energy goes, by the prediction."""
        phases = self.prediction.phases
        decode_j = phases["decode"].energy_j if "decode" in phases else 0.0
        if decode_j == 0.0:
            return "prefill only"
        return "mostly decode" if decode_j > MOSTLY * self.prediction.energy_j else "mixed"


def measured(name: str) -> list[tuple[Run, ModelSpec]]:
    """Committed runs and their models; none where there is no such file."""
    path = DATA / f"{name}.jsonl"
    return [(r, find_model(r.model)[0]) for r in read_runs(path)] if path.exists() else []


def unseen(runs: Sequence[tuple[Run, ModelSpec]], profile: Profile) -> list[Row]:
    """Runs that no fit has seen, as the profile predicts them."""
    rows = []
    for run, model in runs:
        p = predict(model, run.deployment, run.workload, profile)
        inside = (
            p.energy_interval_j[0] <= run.energy_j <= p.energy_interval_j[1],
            p.duration_interval_s[0] <= run.duration_s <= p.duration_interval_s[1],
        )
        rows.append(
            Row(
                run=run,
                kind=kind_of(model),
                prediction=p,
                energy=p.energy_j / run.energy_j - 1,
                duration=p.duration_s / run.duration_s - 1,
                inside=inside,
                warned=any("not calibrated" in warning for warning in p.warnings),
            )
        )
    return rows


def left_out(cases: Sequence[Case], fitted: EngineFit, profile: Profile) -> list[Row]:
    """Each run, predicted by an engine fit without its model; the interval knows no more."""
    models = [group_of(case) for case in cases]
    energy, duration = case_sources(cases, profile, profile.accuracy)
    outer, inner = left_out_widths(fitted.energy_error, energy, models)
    widest, _ = left_out_widths(fitted.duration_error, duration, models)
    rows = []
    for i, case in enumerate(cases):
        run, model = case.run, case.model
        costs = step_costs(model, run.deployment, case.workload, case.schedule, profile)
        low, high = ends(outer[i], inner[i], boards(costs.other_boards, profile))
        error, late = float(fitted.energy_error[i]), float(fitted.duration_error[i])
        rows.append(
            Row(
                run=run,
                kind=kind_of(model),
                prediction=predict(model, run.deployment, run.workload, profile),
                energy=float(np.expm1(-error)),
                duration=float(np.expm1(-late)),
                inside=(low <= error <= high, abs(late) <= float(widest[i])),
                warned=False,
            )
        )
    return rows


def with_coverage(rows: Sequence[Row], judged: Sequence[Row]) -> list[Row]:
    """Rows with the intervals of ``judged``, where the same run is there."""
    return [
        replace(row, inside=next((j.inside for j in judged if j.run == row.run), row.inside))
        for row in rows
    ]


def kind_of(model: ModelSpec) -> str:
    """Dense or of experts; what does not decode alone by its own name."""
    return model.regime if model.kind == "decoder" else model.kind


# Tables --------------------------------------------------------------------------------------


def percent(value: float) -> str:
    """A fraction in percent."""
    return f"{100 * value:.1f} %"


def cells(rows: Sequence[Row]) -> list[str]:
    """Runs, energy median, 90th percentile and bias, duration median, coverage, FLOP-only median."""
    energy = np.array([row.energy for row in rows])
    duration = np.array([row.duration for row in rows])
    flop = np.array([row.flop_only for row in rows])
    fair = [row.inside for row in rows if not row.warned]
    inside = [f"{100 * share:.0f} %" for share in np.mean(fair, axis=0)] if fair else ["-", "-"]
    return [
        str(len(rows)),
        percent(float(np.median(abs(energy)))),
        percent(float(np.quantile(abs(energy), 0.9))),
        f"{100 * np.median(energy):+.1f} %",
        percent(float(np.median(abs(duration)))),
        percent(float(np.quantile(abs(duration), 0.9))),
        *inside,
        percent(float(np.median(abs(flop)))),
    ]


HEADS = (
    "runs",
    "energy: median",
    "90th percentile",
    "bias",
    "duration: median",
    "90th percentile",
    "energy inside",
    "duration inside",
    "FLOP-only: median",
)


def table(groups: Mapping[str, Sequence[Row]], what: str) -> list[str]:
    """One line for each group that has runs."""
    head = f"| {what} | {' | '.join(HEADS)} |"
    lines = [f"| {name} | {' | '.join(cells(rows))} |" for name, rows in groups.items() if rows]
    return [head, "|---" * (len(HEADS) + 1) + "|", *lines]


def by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Runs of each model, then of each kind, then all, without those of other kernels."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.run.model):
        mark = " (another kernel)" if row.warned else ""
        groups.setdefault(row.run.model + mark, []).append(row)
    fair = [row for row in rows if not row.warned]
    for kind in dict.fromkeys(row.kind for row in fair):
        groups[f"**all {kind}**"] = [row for row in fair if row.kind == kind]
    groups["**all**"] = fair
    return groups


def by_regime(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Runs by what decides them: kind of model, phase, and whether they are over at once."""
    fair = [row for row in rows if not row.warned]
    groups = {
        kind: [r for r in fair if r.kind == kind] for kind in dict.fromkeys(r.kind for r in fair)
    }
    for phase in ("prefill only", "mixed", "mostly decode"):
        groups[phase] = [r for r in fair if r.phase == phase]
    groups[f"shorter than {SHORT_S:g} s"] = [r for r in fair if r.run.duration_s < SHORT_S]
    groups[f"{SHORT_S:g} s and longer"] = [r for r in fair if r.run.duration_s >= SHORT_S]
    return groups
