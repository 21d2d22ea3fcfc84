"""From the grid to the profile on a simulated GPU: what was declared comes back."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration import grid, observations
from calibration.fit_components import Components, NameFit, fit_components
from calibration.fit_time import law_seconds
from calibration.grid import Point
from calibration.judgement.boards import board_spread
from calibration.observations import Observation
from calibration.simulation.gpu import SimulatedBench, SimulatedSensor
from calibration.simulation.recovery import recovered
from calibration.simulation.truth import declared, law
from calibration.sweep import sweep
from calibration.tables import POOLED
from energymodel import hardware, laws
from energymodel.laws import REQUIRED
from energymodel.power import StepLoad, core_energy_j, limited_clock, mean_power_w
from energymodel.timing import clocked_seconds

SPEC = hardware.load("h200")
TRUTH = declared(SPEC)
OPS = ("gemm", "attention", "moe", "rms_norm", "silu_and_mul", "kv_write", "embedding", "sampling")
# What is pooled has a truth of its own in each kernel, and none in common.
NAMES = (*(name for name in REQUIRED if name not in POOLED.values()), *POOLED)
# What a window's energy scatters by on the simulated GPU, and the precision that a test of a
# coefficient needs.
SCATTER, PRECISION = 0.004, 0.03
# Coefficients that windows tell apart at all come back at least this close.
COARSE = 0.2


def measured(points: Sequence[Point], folder: Path, **board: float | str) -> list[Observation]:
    sensor = SimulatedSensor(TRUTH.simulated_gpu(**board))
    bench = SimulatedBench(sensor, law(TRUTH))
    refused: list[str] = []
    out = folder / "observations.jsonl"
    sweep(points, sensor, out, budget_s=1e9, bench=bench, report=refused.append)
    assert refused == []
    return list(observations.read(out))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Components:
    points = [p for p in grid.full() if p.op in OPS and p.dtype == "bfloat16"]
    folder = tmp_path_factory.mktemp("simulated")
    return fit_components(measured(points, folder), SPEC)


def identifiable(fit: NameFit) -> set[str]:
    """Coefficients that windows like these can tell apart, whoever fits them.

    The Cramer-Rao bound of what was declared: with shares of each coefficient in the energy of
    each window as design and scatter of each shape (whose trials count once, as in the fit), no
    fit can do better.
    """
    w, truth = fit.windows, TRUTH.energy(fit.table.name)
    work = {"flop_j": w.core_flop, "weight_byte_j": w.weight_bytes, "row_byte_j": w.row_bytes}
    work["busy_w"] = w.full_s
    names = [name for name in work if truth[name] > 0 and work[name].any()]
    design = np.stack([truth[n] * work[n] / w.gross_j for n in names], axis=1)
    repeats = len(w.duty) / len(np.unique(w.point))
    errors = SCATTER * np.sqrt(repeats * np.diag(np.linalg.pinv(design.T @ design)))
    return {name for name, error in zip(names, errors, strict=True) if error < PRECISION}


def test_all_that_a_prediction_needs_was_found(found: Components) -> None:
    assert set(REQUIRED) <= found.names.keys()


def test_power_laws_come_back(found: Components) -> None:
    rows = [r for r in recovered(found, TRUTH) if ": " not in r.name]
    assert len(rows) == 4
    assert [r for r in rows if not r.inside] == []


@pytest.mark.parametrize("name", NAMES)
def test_energy_coefficients_come_back(found: Components, name: str) -> None:
    rows = {r.name: r for r in recovered(found, TRUTH) if r.name.startswith(f"{name}: ")}
    known = {f"{name}: {coefficient}" for coefficient in identifiable(found.names[name])}
    assert known
    assert [r for r in rows.values() if r.name in known and not r.inside] == []
    # What the table of coefficients says is identified is so, and the other way round.
    identified = {r.name for r in rows.values() if r.identified}
    assert known <= identified
    far = [r for r in rows.values() if abs(r.fitted.value / r.declared - 1.0) > COARSE]
    assert identified.isdisjoint(r.name for r in far)


def test_only_what_is_declared_is_compared(found: Components) -> None:
    names = {r.name.partition(": ")[0] for r in recovered(found, TRUTH) if ": " in r.name}
    assert names == set(NAMES)


# Windows of experts tell it apart least.
@pytest.mark.parametrize(
    ("name", "close"), [("gemm", 0.05), ("prefill_attention", 0.05), ("moe", 0.06)]
)
def test_the_stretch_of_the_clock_comes_back(found: Components, name: str, close: float) -> None:
    share = found.names[name].power.clock_share
    assert share.stderr < 0.1 * share.value
    assert share.value == pytest.approx(TRUTH.clock_share(name), rel=close)
    assert share.value == pytest.approx(TRUTH.clock_share(name), abs=2.0 * share.stderr)


def both(fit: NameFit) -> tuple[StepLoad, StepLoad]:
    """What a call asks of the GPU, as declared and as fitted, for every shape that was seen."""
    t = fit.table
    seconds = law_seconds(t.name, t.shapes, fit.time.law, fit.time.residual)
    values = {name: e.value for name, e in fit.time.law.items()}
    timed = laws.LAWS[t.kind](t.shapes, values)
    clocked = clocked_seconds(t.kind, timed, seconds) * fit.power.clock_share.value
    energy = {name: e.value for name, e in fit.power.energy.items()}
    fitted = StepLoad(
        fixed_s=seconds - clocked,
        clocked_s=clocked,
        core_j=core_energy_j(energy, t.core_flop, t.weight_bytes, t.row_bytes, seconds),
        hbm_j=energy["hbm_byte_j"] * t.hbm_bytes,
    )
    return TRUTH.load(t), fitted


def costs(
    load: StepLoad, static_w: float, exponent: float, cap_w: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds and joules of a call at the clock that the limit allows."""
    x = limited_clock(load, static_w, exponent, cap_w)
    seconds = load.fixed_s + load.clocked_s / x
    return seconds, mean_power_w(load, x, static_w, exponent) * seconds


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("limit_w", "tolerance"), [(1e4, 0.02), (700.0, 0.02), (500.0, 0.05)])
def test_predictions_are_right(
    found: Components, name: str, limit_w: float, tolerance: float
) -> None:
    """At the limit that was measured within 2 %, at one that was never seen within 5 %."""
    true, fitted = both(found.names[name])
    static_w = TRUTH.static_w + TRUTH.static_w_per_c * 45.0
    found_w = found.static.watts.value + found.static.watts_per_c.value * 45.0
    true_s, true_j = costs(true, static_w, TRUTH.exponent, TRUTH.limit_share * limit_w)
    share = found.limit_share.value
    fitted_s, fitted_j = costs(fitted, found_w, found.exponent.value, share * limit_w)
    wrong_s, wrong_j = np.abs(fitted_s / true_s - 1.0), np.abs(fitted_j / true_j - 1.0)
    assert np.quantile(wrong_s, 0.95) < tolerance
    # Where energy was measured, and where it follows from other shapes.
    assert wrong_j[found.names[name].windows.chosen].max(initial=0.0) < tolerance
    assert np.quantile(wrong_j, 0.95) < 0.06


def test_a_pool_lies_between_the_kernels_that_it_pools(found: Components) -> None:
    for pool in set(POOLED.values()):
        fit = found.names[pool]
        t = fit.table
        assert {o.op for o in t.observations} == {op for op, name in POOLED.items() if name == pool}
        seconds = law_seconds(pool, t.shapes, fit.time.law, fit.time.residual)
        of_kernels = [
            laws.LAWS[t.kind](t.shapes, TRUTH.law(op)).seconds
            for op, name in POOLED.items()
            if name == pool
        ]
        low, high = np.min(of_kernels, axis=0), np.max(of_kernels, axis=0)
        # They differ by more than what is tested.
        assert np.median(high / low) > 1.1
        assert (seconds >= 0.97 * low).all()
        assert (seconds <= 1.03 * high).all()


def test_two_boards_differ_by_what_was_declared(tmp_path: Path) -> None:
    products = [p for p in grid.full() if p.op == "gemm" and p.dtype == "bfloat16" and p.duties]
    small = [p for p in products if p.shape["m"] <= 64][:8]
    seen = []
    for i, factor in enumerate((1.0, 1.03)):
        folder = tmp_path / str(i)
        seen += measured(small, folder, board=f"board {i}", board_factor=factor, seed=i)
    between = board_spread(seen, "energy")
    # Two values a distance d apart have a standard deviation of d / sqrt(2).
    assert between.deviation == pytest.approx(np.log(1.03) / 2**0.5, rel=0.1)
