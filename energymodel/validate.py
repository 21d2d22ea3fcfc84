"""Predictions against measured whole-model runs: errors, bias, interval coverage, baselines."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from energymodel import baselines
from energymodel.deployment import ENGINES
from energymodel.errors import InputError, WorkError
from energymodel.io import Run
from energymodel.model import ModelSpec
from energymodel.prediction import Prediction
from energymodel.scores import BaselineScore, Errors, ModelScore, baseline_score, score
from energymodel.steps import Floats, Ints
from energymodel.suspects import Suspect, split, suspect

N_WORST = 10
# A run is mostly decode where decode takes more than this share of the predicted energy.
MOSTLY = 0.6
PHASES = ("prefill", "mixed", "decode")
# Upper ends of the classes of runs, the last one open: requests, and tokens of a request at its end.
BATCHES = (1, 8, 64)
CONTEXTS = (512, 2048, 8192)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run; ``error`` and ``duration_error`` are signed fractions of the measured value.

    ``suspect``: the component that may be wrong, of the worst runs.
    """

    model: str
    gpu: str
    workload: str
    phase: str
    energy_j: float
    predicted_energy_j: float
    energy_interval_j: tuple[float, float]
    error: float
    duration_s: float
    predicted_duration_s: float
    duration_interval_s: tuple[float, float]
    duration_error: float
    suspect: Suspect | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """Runs that could not be predicted, for one reason."""

    rows: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What ``validate --json`` prints. Errors are fractions of the measured value.

    APE is the absolute percentage error of energy, ``bias`` the mean signed error (positive where
    the prediction is too high), ``interval_coverage`` the share of runs whose energy is
    inside its interval, ``duration_interval_coverage`` the same of duration.
    ``interval_95`` holds the bootstrap interval of each of these (``bootstrap.py``).
    """

    schema_version: int = 1
    rows: int
    median_ape: float
    p90_ape: float
    mape: float
    bias: float
    duration_median_ape: float
    interval_coverage: float
    duration_interval_coverage: float
    interval_95: Mapping[str, tuple[float, float]] | None
    interval_level: float
    baselines: Mapping[str, BaselineScore]
    by_model: Mapping[str, ModelScore]
    by_phase: Mapping[str, ModelScore]
    by_batch: Mapping[str, ModelScore]
    by_context: Mapping[str, ModelScore]
    worst: tuple[Row, ...]
    skipped: tuple[Skipped, ...]


def validate(runs: Iterable[Run], predict_one: Callable[[Run], Prediction]) -> Validation:
    """Compare every run that ``predict_one`` can predict with what was measured.

    Raises:
        WorkError: Not one run can be predicted.
    """
    pairs: list[tuple[Run, Prediction]] = []
    skipped: Counter[str] = Counter()
    for run in runs:
        try:
            pairs.append((run, predict_one(run)))
        except (InputError, WorkError) as error:
            skipped[str(error)] += 1
    if not pairs:
        reason = f"the first reason: {skipped.most_common(1)[0][0]}" if skipped else "there is none"
        raise WorkError(f"No run can be predicted; {reason.rstrip('.')}.")
    rows = [_row(run, p) for run, p in pairs]
    errors = _errors(rows)
    total = score(errors)
    return Validation(
        rows=total.rows,
        median_ape=total.median_ape,
        p90_ape=total.p90_ape,
        mape=total.mape,
        bias=total.bias,
        duration_median_ape=total.duration_median_ape,
        interval_coverage=total.interval_coverage,
        duration_interval_coverage=total.duration_interval_coverage,
        interval_95=total.interval_95,
        interval_level=float(np.mean([p.interval_level for _, p in pairs])),
        baselines=_baselines(pairs, errors.model),
        by_model=_by([r.model for r in rows], errors),
        by_phase=_by([r.phase for r in rows], errors, PHASES),
        by_batch=_by_class([run.workload.requests for run, _ in pairs], errors, BATCHES),
        by_context=_by_class([_length(run) for run, _ in pairs], errors, CONTEXTS),
        worst=_worst(pairs, rows, errors.model),
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
        if run.extra.get("profiled"):
            raise InputError("a profiler slowed the host while it ran.")
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
        phase=_phase(p),
        energy_j=run.energy_j,
        predicted_energy_j=p.energy_j,
        energy_interval_j=p.energy_interval_j,
        error=p.energy_j / run.energy_j - 1,
        duration_s=run.duration_s,
        predicted_duration_s=p.duration_s,
        duration_interval_s=p.duration_interval_s,
        duration_error=p.duration_s / run.duration_s - 1,
    )


def _label(run: Run) -> str:
    """Short name of a workload: ``64 x 512+128`` is 64 requests of 512 input, 128 output tokens."""
    first = run.workload.bins[0]
    unit = "/s" if run.workload.online else ""
    text = f"{first.amount:g}{unit} x {first.input_tokens}+{first.output_tokens}"
    more = len(run.workload.bins) - 1
    return f"{text} and {more} more" if more else text


# Classes of runs -----------------------------------------------------------------------------


def _phase(p: Prediction) -> str:
    """What most of the energy goes to, by the prediction."""
    decode_j = p.phases["decode"].energy_j if "decode" in p.phases else 0.0
    if decode_j == 0.0:
        return "prefill"
    return "decode" if decode_j > MOSTLY * p.energy_j else "mixed"


def _length(run: Run) -> float:
    """Mean tokens of a request when it ends."""
    load = run.workload
    return (load.input_tokens + load.output_tokens) / load.requests


def _errors(rows: Sequence[Row]) -> Errors:
    inside = [r.energy_interval_j[0] <= r.energy_j <= r.energy_interval_j[1] for r in rows]
    in_time = [r.duration_interval_s[0] <= r.duration_s <= r.duration_interval_s[1] for r in rows]
    return Errors(
        model=_numbers([r.model for r in rows]),
        energy=np.array([r.error for r in rows]),
        duration=np.array([r.duration_error for r in rows]),
        inside=np.array(inside, dtype=np.float64),
        duration_inside=np.array(in_time, dtype=np.float64),
    )


def _numbers(names: Sequence[str]) -> Ints:
    """Names as numbers, the same for the same name."""
    known = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([known[name] for name in names], dtype=np.int64)


def _by(
    names: Sequence[str], errors: Errors, order: Sequence[str] | None = None
) -> dict[str, ModelScore]:
    """Scores of the runs of each name that there is, in ``order`` or by the alphabet."""
    own = np.array(names, dtype=object)
    order = order or sorted(set(names), key=str.lower)
    return {name: score(errors.where(own == name)) for name in order if name in names}


def _by_class(
    values: Sequence[float], errors: Errors, ends: Sequence[int]
) -> dict[str, ModelScore]:
    """Scores by class, such as "1", "2 to 8" and "above 8" for ends of 1 and 8."""
    starts = (0, *ends[:-1])
    names = [
        f"{low + 1:,} to {end:,}" if low + 1 < end else f"{end:,}"
        for low, end in zip(starts, ends, strict=True)
    ]
    names.append(f"above {ends[-1]:,}")
    return _by([names[i] for i in np.searchsorted(ends, values)], errors, names)


# Baselines and suspects ----------------------------------------------------------------------


def _baselines(pairs: Sequence[tuple[Run, Prediction]], model: Ints) -> dict[str, BaselineScore]:
    measured_j = np.array([run.energy_j for run, _ in pairs])
    load = np.array([run.workload.online for run, _ in pairs], dtype=np.int64)
    simple_j: dict[str, Floats] = {}
    for i, (_, p) in enumerate(pairs):
        for name, baseline in {"flop_only": p.flop_only, **p.baselines}.items():
            values = simple_j.setdefault(name, np.full(len(pairs), np.nan))
            values[i] = baseline.energy_j
    for name, base in baselines.FITTED.items():
        if base in simple_j:
            known = np.isfinite(simple_j[base])
            values = np.full(len(pairs), np.nan)
            values[known] = baselines.fitted(
                simple_j[base][known], measured_j[known], model[known], load[known]
            )
            simple_j[name] = values
    found = {}
    for name, values in simple_j.items():
        known = np.isfinite(values)
        if known.any():
            error = values[known] / measured_j[known] - 1
            found[name] = baseline_score(model[known], error)
    return found


def _worst(
    pairs: Sequence[tuple[Run, Prediction]], rows: Sequence[Row], model: Ints
) -> tuple[Row, ...]:
    components = [{name: c.energy_j for name, c in p.components.items()} for _, p in pairs]
    runs = split(components, [run.energy_j for run, _ in pairs], model)
    order = sorted(range(len(rows)), key=lambda i: -abs(rows[i].error))[:N_WORST]
    return tuple(replace(rows[i], suspect=suspect(runs, i)) for i in order)
