"""Scores of predictions against measured runs, each with its bootstrap interval."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energymodel import bootstrap
from energymodel.bootstrap import Resamples
from energymodel.steps import Floats, Ints

Intervals = Mapping[str, tuple[float, float]]
Statistic = Callable[[Resamples], Floats]

# A bootstrap of fewer runs says nothing.
LEAST_ROWS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelScore:
    """Errors over some runs, as fractions; ``interval_95`` of each, None where runs are too few."""

    rows: int
    median_ape: float
    p90_ape: float
    mape: float
    bias: float
    duration_median_ape: float
    interval_coverage: float
    duration_interval_coverage: float
    interval_95: Intervals | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineScore:
    """Errors of the energy that a simpler method predicts for the same runs, as fractions."""

    rows: int
    median_ape: float
    mape: float
    interval_95: Intervals | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Signed errors of each run, whose model it is, and whether its intervals hold it; [n]."""

    model: Ints
    energy: Floats
    duration: Floats
    inside: Floats
    duration_inside: Floats

    def where(self, chosen: NDArray[np.bool_]) -> "Errors":
        """Those of some runs."""
        return Errors(
            model=self.model[chosen],
            energy=self.energy[chosen],
            duration=self.duration[chosen],
            inside=self.inside[chosen],
            duration_inside=self.duration_inside[chosen],
        )


def score(errors: Errors) -> ModelScore:
    """All scores of some runs."""
    ape, duration = np.abs(errors.energy), np.abs(errors.duration)
    values, intervals = _estimates(
        errors.model,
        {
            "median_ape": lambda r: bootstrap.quantile(ape, r, 0.5),
            "p90_ape": lambda r: bootstrap.quantile(ape, r, 0.9),
            "mape": lambda r: bootstrap.mean(ape, r),
            "bias": lambda r: bootstrap.mean(errors.energy, r),
            "duration_median_ape": lambda r: bootstrap.quantile(duration, r, 0.5),
            "interval_coverage": lambda r: bootstrap.mean(errors.inside, r),
            "duration_interval_coverage": lambda r: bootstrap.mean(errors.duration_inside, r),
        },
    )
    return ModelScore(rows=errors.model.size, **values, interval_95=intervals)


def baseline_score(model: Ints, error: Floats) -> BaselineScore:
    """Scores of a simpler method with the signed ``error`` [n]."""
    ape = np.abs(error)
    values, intervals = _estimates(
        model,
        {
            "median_ape": lambda r: bootstrap.quantile(ape, r, 0.5),
            "mape": lambda r: bootstrap.mean(ape, r),
        },
    )
    return BaselineScore(rows=model.size, **values, interval_95=intervals)


def _estimates(
    model: Ints, statistics: Mapping[str, Statistic]
) -> tuple[dict[str, float], Intervals | None]:
    """(Each statistic of the runs, its interval)."""
    whole = bootstrap.alone(model.size)
    values = {name: float(statistic(whole)[0]) for name, statistic in statistics.items()}
    if model.size < LEAST_ROWS:
        return values, None
    drawn = bootstrap.resample(model)
    return values, {n: bootstrap.interval(statistic(drawn)) for n, statistic in statistics.items()}
