"""Errors on whole runs -> how wide the interval of a prediction must be.

Each run was predicted by an engine fit that had not seen its model. ``uncertainty.sources`` says what
its prediction may be off by. Two numbers of each engine are fitted: the error of time outside the
operations, and what no source explains. Scores are errors over the scale that follows; their
quantiles are taken so that models which had no part in scale or quantile are covered.

Runs that no fit has seen at all, of other models and formats, count as well. Runs of one model are
alike, so it is models that count as exchangeable, not runs: each has the same
weight, and the level of the quantile is the lowest at which models left out in turn are covered as
often as wanted on average. This is cross-conformal prediction (V. Vovk, Ann. Math. Artif. Intell. 74,
2015; with normalised scores: H. Papadopoulos et al., ECML 2002) on two-layer data (R. Dunn, L.
Wasserman and A. Ramdas, J. Amer. Statist. Assoc. 118, 2023).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import t as student

from calibration.fit_engine import Case, EngineFit
from energymodel.costs import step_costs
from energymodel.profile import Accuracy, Profile, Regime, Spread
from energymodel.uncertainty import Sources, sources

Array = NDArray[np.float64]

# Where the fit of a spread starts, and how much a factor of e away from it weighs against a model.
MODEL, OUTSIDE, PULL = 0.02, 0.2, 0.02
# Errors have heavier tails than a normal distribution: a router that collapses, a host that stalls.
FREEDOM = 4.0
LEVELS = np.linspace(0.5, 1.0, 101)
# Without whole runs, a factor of 1.5 either way.
UNKNOWN = Spread(model=float(np.log(1.5)), outside=1.0, inner=0.78, outer=1.0)
UNKNOWN_REGIME = Regime(energy=UNKNOWN, duration=UNKNOWN, runs=0, models=0)


def unknown_accuracy(engines: Sequence[str]) -> Accuracy:
    """Of a profile without whole runs."""
    regimes = dict.fromkeys(engines, UNKNOWN_REGIME)
    return Accuracy(regimes=regimes, board_energy=0.0, board_duration=0.0)


def fit_accuracy(
    fits: Mapping[str, tuple[Sequence[Case], EngineFit]],
    profile: Profile,
    *,
    board_energy: float,
    board_duration: float,
) -> Accuracy:
    """What intervals are made of.

    Args:
        fits: of each engine with whole runs, the runs and their errors with models left out.
        profile: complete but for its accuracy.
        board_energy: standard deviation of the log energy between boards of one kind.
        board_duration: the same of time.
    """
    bare = Accuracy(regimes={}, board_energy=board_energy, board_duration=board_duration)
    regimes = dict.fromkeys(profile.engines, UNKNOWN_REGIME)
    for engine, (cases, fitted) in fits.items():
        models = [group_of(case) for case in cases]
        energy, duration = case_sources(cases, profile, bare)
        regimes[engine] = Regime(
            energy=fit_spread(fitted.energy_error, energy, models),
            duration=fit_spread(fitted.duration_error, duration, models),
            runs=len(cases),
            models=len(set(models)),
        )
    return Accuracy(regimes=regimes, board_energy=board_energy, board_duration=board_duration)


def group_of(case: Case) -> str:
    """What is left out together: a model in one number format."""
    return f"{case.model.name} {case.run.deployment.quantization or ''}"


def case_sources(
    cases: Sequence[Case], profile: Profile, accuracy: Accuracy
) -> tuple[list[Sources], list[Sources]]:
    """What the prediction of each run may be off by: of (energy, duration)."""
    known = replace(profile, accuracy=accuracy)
    found = []
    for case in cases:
        deployment, schedule = case.run.deployment, case.schedule
        costs = step_costs(case.model, deployment, case.workload, schedule, known)
        found.append(sources(costs, schedule.steps.weight, known))
    return [energy for energy, _ in found], [duration for _, duration in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Errors:
    """Log errors of runs [n_runs], the variance of their known sources, and whose runs they are."""

    error: Array
    known: Array
    outside: Array
    model: NDArray[np.int64]

    def where(self, chosen: NDArray[np.bool_]) -> "_Errors":
        """The chosen runs."""
        return _Errors(
            error=self.error[chosen],
            known=self.known[chosen],
            outside=self.outside[chosen],
            model=self.model[chosen],
        )

    def weights(self) -> Array:
        """Of each run, so that every model weighs the same; sum 1."""
        _, place, counts = np.unique(self.model, return_inverse=True, return_counts=True)
        return np.asarray(1.0 / (len(counts) * counts[place]))

    def scores(self, model: float, outside: float) -> Array:
        """Absolute errors in units of their scale."""
        return np.abs(self.error) / self.scale(model, outside)

    def scale(self, model: float, outside: float) -> Array:
        """As ``uncertainty.Sources.scale``."""
        return np.sqrt(self.known + (outside * self.outside) ** 2 + model**2)


def fit_spread(errors: Array, known: Sequence[Sources], models: Sequence[str]) -> Spread:
    """The spread of log errors [n_runs] whose sources are ``known``.

    ``models``: whose run each is. With a single model nothing can be left out, and the quantiles
    are those of its own runs.
    """
    names = sorted(set(models))
    runs = _Errors(
        error=errors,
        known=np.array([s.coefficients**2 + s.operations**2 + s.boards**2 for s in known]),
        outside=np.array([s.outside for s in known]),
        model=np.array([names.index(m) for m in models]),
    )
    model, outside = _scale(runs)
    scores, weights = runs.scores(model, outside), runs.weights()
    inner, outer = (_quantile(scores, weights, _level(runs, share)) for share in (0.8, 0.9))
    return Spread(model=model, outside=outside, inner=inner, outer=max(outer, inner))


def left_out_widths(
    errors: Array, known: Sequence[Sources], models: Sequence[str]
) -> tuple[Array, Array]:
    """What 90 % and 80 % of errors stay below, of each run by the runs of other models; [n_runs]."""
    outer, inner = np.zeros(len(errors)), np.zeros(len(errors))
    for model in sorted(set(models)):
        own = [i for i, name in enumerate(models) if name == model]
        other = [i for i, name in enumerate(models) if name != model]
        spread = fit_spread(errors[other], [known[i] for i in other], [models[i] for i in other])
        scales = np.array([known[i].scale(spread) for i in own])
        outer[own], inner[own] = spread.outer * scales, spread.inner * scales
    return outer, inner


def _scale(runs: _Errors) -> tuple[float, float]:
    """(what no source explains, error of the time outside) of the greatest likelihood."""
    weights = runs.weights() * len(np.unique(runs.model))
    start = np.log([MODEL, OUTSIDE])

    def loss(log_values: Array) -> float:
        scale = runs.scale(*np.exp(log_values))
        logs = student.logpdf(runs.error / scale, FREEDOM) - np.log(scale)
        return float(-weights @ logs + PULL * np.sum((log_values - start) ** 2))

    model, outside = np.exp(minimize(loss, start, method="Nelder-Mead").x)
    return float(model), float(outside)


def _level(runs: _Errors, wanted: float) -> float:
    """The lowest level of the quantile that covers ``wanted`` of the runs of models left out."""
    held_out = np.unique(runs.model)
    if len(held_out) == 1:
        return wanted
    covered = np.zeros_like(LEVELS)
    for model in held_out:
        out = runs.model == model
        others, own = runs.where(~out), runs.where(out)
        values = _scale(others)
        ends = [_quantile(others.scores(*values), others.weights(), level) for level in LEVELS]
        covered += np.mean(own.scores(*values)[None] <= np.array(ends)[:, None], axis=1)
    enough = covered >= wanted * len(held_out)
    return float(LEVELS[np.argmax(enough)]) if enough.any() else 1.0


def _quantile(values: Array, weights: Array, level: float) -> float:
    """Weighted quantile, interpolated between the middles of the weights."""
    order = np.argsort(values)
    middles = np.cumsum(weights[order]) - 0.5 * weights[order]
    return float(np.interp(level, middles, values[order]))
