"""Diagnostics of the energy regression say what was planted into it."""

from dataclasses import replace

import numpy as np
import pytest
from report_builders import components, world

from calibration.fit_components import NameFit
from calibration.fit_energy import CORE, Windows, fit_coefficients
from calibration.judgement.diagnostics import Diagnostics, diagnose, regression


@pytest.fixture(scope="module")
def fitted() -> NameFit:
    return components(world(trials=2, noise=0.004)).names["gemm"]


def changed(fit: NameFit, factor: np.ndarray) -> Diagnostics:
    """Diagnostics after multiplying each window's energy."""
    w = fit.windows
    gross_j = w.gross_j * factor
    other = replace(w, gross_j=gross_j, work_j=gross_j - (w.gross_j - w.work_j))
    return diagnose(other, fit.power.energy, 1.0)


def test_a_sound_regression(fitted: NameFit) -> None:
    found = diagnose(fitted.windows, fitted.power.energy, 1.0)
    assert found.windows == 60
    assert found.active == CORE
    assert found.r2 is not None
    assert found.r2 > 0.999
    assert found.r2_log is not None
    assert found.r2_log > 0.999
    assert found.durbin_watson == pytest.approx(2.0, abs=0.7)
    assert found.breusch_pagan_p is not None
    assert found.jarque_bera_p is not None
    assert found.jarque_bera_p > 0.001
    assert found.note == ""


def test_it_is_the_regression_that_the_fit_solves(fitted: NameFit) -> None:
    w = fitted.windows
    hbm = fitted.power.energy["hbm_byte_j"]
    design, target = regression(w, hbm.value, 1.0)
    lengths = np.linalg.norm(design, axis=0)
    solved = np.linalg.lstsq(design / lengths, target, rcond=None)[0] / lengths
    expected = fit_coefficients(w, hbm, 1.0)
    assert solved == pytest.approx([expected[name].value for name in CORE], rel=1e-6)


def test_drift_over_time_is_seen(fitted: NameFit) -> None:
    rows = [o for o, c in zip(fitted.table.observations, fitted.windows.chosen, strict=True) if c]
    rank = np.argsort(np.argsort([o.time_s or 0.0 for o in rows]))
    found = changed(fitted, np.exp(0.1 * (rank / len(rows) - 0.5)))
    assert found.durbin_watson is not None
    assert found.durbin_watson < 1.0


def test_uneven_scatter_is_seen(fitted: NameFit) -> None:
    # Scatter that grows with the share of energy that FLOP explain.
    share = regression(fitted.windows, fitted.power.energy["hbm_byte_j"].value, 1.0)[0][:, 0]
    noise = np.random.default_rng(0).normal(0, 0.1, len(share)) * (share / share.max()) ** 2
    found = changed(fitted, np.exp(noise))
    assert found.breusch_pagan_p is not None
    assert found.breusch_pagan_p < 0.01


def test_a_window_that_moves_the_fit_is_named(fitted: NameFit) -> None:
    factor = np.ones(len(fitted.windows.duty))
    odd = int(np.argmax(fitted.windows.weight_bytes))
    factor[odd] = 1.5
    found = changed(fitted, factor)
    rows = [o for o, c in zip(fitted.table.observations, fitted.windows.chosen, strict=True) if c]
    assert found.influential[0].point.startswith(rows[odd].point)
    assert found.jarque_bera_p is not None
    assert found.jarque_bera_p < 0.001


def test_columns_that_are_multiples_of_each_other_are_told(fitted: NameFit) -> None:
    w = fitted.windows
    same = replace(w.table, weight_bytes=2.0 * w.table.flop)
    found = diagnose(replace(w, table=same), fitted.power.energy, 1.0)
    assert found.condition is None
    assert set(found.inflation.values()) == {None}
    assert "multiples of each other" in found.note


def test_inflation_by_hand() -> None:
    # Two unit columns at an angle with cosine c have a factor of 1 / (1 - c^2).
    from calibration.judgement.diagnostics import _inflation

    columns = np.array([[1.0, 0.6], [0.0, 0.8]])
    assert _inflation(columns, False) == pytest.approx([1 / (1 - 0.36)] * 2)


def test_too_few_windows_are_said() -> None:
    fit = components(world()).names["gemm"]
    few = _first(fit.windows, 6)
    found = diagnose(few, fit.power.energy, 1.0)
    assert found.r2 is None
    assert found.note == "too few windows for tests of the residuals"


def test_coarse_times_of_day_are_said(fitted: NameFit) -> None:
    w = fitted.windows
    rows = tuple(replace(o, time_s=None) for o in w.table.observations)
    found = diagnose(
        replace(w, table=replace(w.table, observations=rows)), fitted.power.energy, 1.0
    )
    assert found.durbin_watson is None
    assert "too coarse" in found.note


def _first(w: Windows, count: int) -> Windows:
    from calibration.fit_energy import subset

    return subset(w, np.arange(len(w.duty)) < count)
