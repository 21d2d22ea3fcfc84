"""Predictions against measured whole-model runs: errors, bias, interval coverage, baselines."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from energymodel.deployment import ENGINES
from energymodel.errors import InputError, WorkError
from energymodel.io import Run
from energymodel.model import ModelSpec
from energymodel.prediction import Prediction

N_WORST = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run; ``error`` and ``duration_error`` are signed fractions of the measured value."""

    model: str
    gpu: str
    workload: str
    energy_j: float
    predicted_energy_j: float
    energy_interval_j: tuple[float, float]
    error: float
    duration_s: float
    predicted_duration_s: float
    duration_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelScore:
    """Errors over the runs of one model, as fractions."""

    rows: int
    median_ape: float
    p90_ape: float
    mape: float
    bias: float
    duration_median_ape: float
    interval_coverage: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineScore:
    """Errors of the energy that a simpler method predicts for the same runs, as fractions."""

    rows: int
    median_ape: float
    mape: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """Runs that could not be predicted, for one reason."""

    rows: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What ``validate --json`` prints. Errors are fractions of the measured value.

    APE is the absolute percentage error of energy, ``bias`` the mean signed error (positive where
    the prediction is too high), ``interval_coverage`` the share of runs inside their interval.
    """

    schema_version: int = 1
    rows: int
    median_ape: float
    p90_ape: float
    mape: float
    bias: float
    duration_median_ape: float
    interval_coverage: float
    interval_level: float
    baselines: Mapping[str, BaselineScore]
    by_model: Mapping[str, ModelScore]
    worst: tuple[Row, ...]
    skipped: tuple[Skipped, ...]


def validate(runs: Iterable[Run], predict_one: Callable[[Run], Prediction]) -> Validation:
    """Compare every run that ``predict_one`` can predict with what was measured.

    Raises:
        WorkError: Not one run can be predicted.
    """
    rows: list[Row] = []
    levels: list[float] = []
    baselines: dict[str, list[float]] = {}
    skipped: Counter[str] = Counter()
    for run in runs:
        try:
            p = predict_one(run)
        except (InputError, WorkError) as error:
            skipped[str(error)] += 1
            continue
        rows.append(_row(run, p))
        levels.append(p.interval_level)
        for name, baseline in {"flop_only": p.flop_only, **p.baselines}.items():
            baselines.setdefault(name, []).append(baseline.energy_j / run.energy_j - 1)
    if not rows:
        reason = f"the first reason: {skipped.most_common(1)[0][0]}" if skipped else "there is none"
        raise WorkError(f"No run can be predicted; {reason.rstrip('.')}.")
    models = sorted({r.model for r in rows}, key=str.lower)
    total = _score(rows)
    return Validation(
        rows=total.rows,
        median_ape=total.median_ape,
        p90_ape=total.p90_ape,
        mape=total.mape,
        bias=total.bias,
        duration_median_ape=total.duration_median_ape,
        interval_coverage=total.interval_coverage,
        interval_level=float(np.mean(levels)),
        baselines={
            name: BaselineScore(
                rows=len(errors),
                median_ape=float(np.median(np.abs(errors))),
                mape=float(np.mean(np.abs(errors))),
            )
            for name, errors in baselines.items()
        },
        by_model={m: _score([r for r in rows if r.model == m]) for m in models},
        worst=tuple(sorted(rows, key=lambda r: -abs(r.error))[:N_WORST]),
        skipped=tuple(Skipped(rows=n, reason=text) for text, n in skipped.most_common()),
    )


def predictor(gpu: str | None, path: str | None) -> Callable[[Run], Prediction]:
    """A function that predicts a run from the profile of its GPU, or from the one at ``path``.

    With ``gpu`` or ``path``, runs of other GPUs raise InputError, as do runs of other engines.
    """
    from energymodel import profile as profiles
    from energymodel.find_model import find_model
    from energymodel.predict import predict

    load = cache(profiles.load)
    unknown: dict[str, InputError] = {}  # a model that cannot be found is looked for once

    @cache
    def find(name: str) -> ModelSpec | None:
        try:
            return find_model(name)[0]
        except InputError as error:
            unknown[name] = error
            return None

    only = None if gpu is None and path is None else load(gpu, path)

    def predict_one(run: Run) -> Prediction:
        if run.deployment.engine not in ENGINES:
            known = ", ".join(ENGINES)
            raise InputError(f"engine {run.deployment.engine!r} is not supported; known: {known}.")
        if only is not None and run.gpu.lower() != only.gpu.name.lower():
            raise InputError(f"gpu {run.gpu!r} is not that of the profile, {only.gpu.name}.")
        chosen = only or load(run.gpu.lower(), None)
        model = find(run.model)
        if model is None:
            raise unknown[run.model]
        return predict(model, run.deployment, run.workload, chosen)

    return predict_one


def _row(run: Run, p: Prediction) -> Row:
    return Row(
        model=run.model,
        gpu=run.gpu,
        workload=_label(run),
        energy_j=run.energy_j,
        predicted_energy_j=p.energy_j,
        energy_interval_j=p.energy_interval_j,
        error=p.energy_j / run.energy_j - 1,
        duration_s=run.duration_s,
        predicted_duration_s=p.duration_s,
        duration_error=p.duration_s / run.duration_s - 1,
    )


def _label(run: Run) -> str:
    """Short name of a workload: ``64 x 512+128`` is 64 requests of 512 input, 128 output tokens."""
    first = run.workload.bins[0]
    unit = "/s" if run.workload.online else ""
    text = f"{first.amount:g}{unit} x {first.input_tokens}+{first.output_tokens}"
    more = len(run.workload.bins) - 1
    return f"{text} and {more} more" if more else text


def _score(rows: Sequence[Row]) -> ModelScore:
    error = np.array([r.error for r in rows])
    inside = [r.energy_interval_j[0] <= r.energy_j <= r.energy_interval_j[1] for r in rows]
    return ModelScore(
        rows=len(rows),
        median_ape=float(np.median(np.abs(error))),
        p90_ape=float(np.quantile(np.abs(error), 0.9)),
        mape=float(np.mean(np.abs(error))),
        bias=float(np.mean(error)),
        duration_median_ape=float(np.median([abs(r.duration_error) for r in rows])),
        interval_coverage=float(np.mean(inside)),
    )
