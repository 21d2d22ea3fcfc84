"""Spreads: planted errors come back, models left out are covered, and what is unknown is wide."""

import numpy as np
import pytest

from calibration.fit_accuracy import fit_spread, unknown_accuracy
from energymodel.profile import Spread
from energymodel.uncertainty import Sources

MODELS, RUNS = 40, 15


def planted(
    seed: int, *, model: float, outside: float, own: float = 0.0
) -> tuple[np.ndarray, list[Sources], list[str]]:
    """Normal errors of runs; ``own`` is the deviation of what all runs of a model share."""
    random = np.random.default_rng(seed)
    names = [f"model-{i}" for i in range(MODELS) for _ in range(RUNS)]
    shared = np.repeat(random.normal(0.0, own, MODELS), RUNS)
    shares = random.uniform(0.0, 0.6, len(names)) ** 2
    errors = shared + random.normal(0.0, np.hypot(model, outside * shares))
    known = [Sources(coefficients=0.0, operations=0.0, boards=0.0, outside=s) for s in shares]
    return errors, known, names


def covered(spread: Spread, errors: np.ndarray, known: list[Sources]) -> float:
    half = np.array([of.scale(spread) * spread.outer for of in known])
    return float(np.mean(np.abs(errors) <= half))


def test_planted_spreads_come_back() -> None:
    errors, known, names = planted(0, model=0.02, outside=0.3)
    spread = fit_spread(errors, known, names)
    # Scales are told up to a factor, which the quantiles make up for.
    assert spread.outside / spread.model == pytest.approx(0.3 / 0.02, rel=0.25)
    assert spread.outer * spread.model == pytest.approx(1.645 * 0.02, rel=0.12)
    assert spread.inner / spread.outer == pytest.approx(1.282 / 1.645, rel=0.06)


def test_new_models_are_covered() -> None:
    """Also where all runs of a model share most of their error."""
    for own in (0.0, 0.04):
        train = planted(1, model=0.02, outside=0.2, own=own)
        test = planted(2, model=0.02, outside=0.2, own=own)
        spread = fit_spread(*train)
        assert 0.85 < covered(spread, *test[:2]) < 0.95


def test_few_models_are_taken_for_what_they_are() -> None:
    """Four models say little of a fifth: the level of the quantile goes up."""
    shares = []
    for seed in range(60):
        errors, known, names = planted(100 + seed, model=0.01, outside=0.2, own=0.04)
        few = 4 * RUNS
        spread = fit_spread(errors[:few], known[:few], names[:few])
        shares.append(covered(spread, errors[few:], known[few:]))
    assert 0.8 < np.mean(shares) < 0.96


def test_a_single_model_gives_its_own_quantile() -> None:
    errors = np.linspace(-0.1, 0.1, 201)
    known = [Sources(coefficients=0.0, operations=0.0, boards=0.0, outside=0.0)] * len(errors)
    spread = fit_spread(errors, known, ["only"] * len(errors))
    assert spread.outer * spread.model == pytest.approx(0.09, rel=0.02)
    assert spread.inner * spread.model == pytest.approx(0.08, rel=0.02)


def test_known_sources_are_not_counted_twice() -> None:
    random = np.random.default_rng(3)
    names = [f"model-{i}" for i in range(30) for _ in range(10)]
    sizes = random.uniform(0.01, 0.1, len(names))
    errors = random.normal(0.0, sizes)
    known = [Sources(coefficients=0.0, operations=s, boards=0.0, outside=0.0) for s in sizes]
    spread = fit_spread(errors, known, names)
    assert spread.model < 0.01
    assert spread.outer == pytest.approx(1.645, rel=0.15)


def test_without_runs_the_interval_is_wide() -> None:
    accuracy = unknown_accuracy(("vllm", "other"))
    assert set(accuracy.regimes) == {"vllm", "other"}
    nothing = Sources(coefficients=0.0, operations=0.0, boards=0.0, outside=0.0)
    for regime in accuracy.regimes.values():
        assert regime.runs == 0
        half = nothing.scale(regime.energy) * regime.energy.outer
        assert half == pytest.approx(np.log(1.5))
