"""What is fitted to a sweep of a simulated GPU, name by name, and what is left out of the fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration import grid
from calibration import observations as observation_file
from calibration.fit import Fit, fit_all
from calibration.fit_components import LEAST_BURSTS, LEAST_WINDOWS, Components, fit_components
from calibration.grid import Point
from calibration.observations import Observation
from calibration.simulation.gpu import SimulatedBench, SimulatedSensor
from calibration.simulation.truth import declared, law
from calibration.sweep import TRIALS, sweep
from energymodel import hardware
from energymodel.laws import PARAMETERS, REQUIRED, kind_of
from energymodel.profile import ENERGY, Covariance, Estimate

SPEC = hardware.load("h200")
TRUTH = declared(SPEC)
MORE = {"gemm.fp8": ("gemm", "fp8"), "scan_decode": ("selective_scan", "bfloat16")}


def points() -> list[Point]:
    """The quick grid, and families of it that no prediction needs."""
    more = [
        point
        for family in grid.FAMILIES
        for point in (*family.energy_points(), *family.burst_points())
        if (family.op, family.dtype) in MORE.values()
    ]
    # The quick grid has too few windows of products to tell a FLOP from a second.
    products = next(f for f in grid.FAMILIES if (f.op, f.dtype) == ("gemm", "bfloat16"))
    return [*products.energy_points(), *grid.quick(), *more]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("swept") / "observations.jsonl"
    sensor = SimulatedSensor(TRUTH.simulated_gpu(noisy=False))
    sweep(points(), sensor, out, budget_s=1e6, bench=SimulatedBench(sensor, law(TRUTH)))
    return out


@pytest.fixture(scope="module")
def seen(swept: Path) -> list[Observation]:
    return list(observation_file.read(swept))


@pytest.fixture(scope="module")
def fit(swept: Path) -> Fit:
    return fit_all(swept, None, "h200", kind="simulated")


@pytest.fixture(scope="module")
def found(fit: Fit) -> Components:
    return fit.components


def test_what_has_evidence_is_fitted_and_the_rest_is_named(found: Components) -> None:
    assert set(found.names) == {*REQUIRED, *MORE, "scan_prefill"}
    # One shape is evidence for the pool, and too little for itself, however often it was taken.
    for name, shapes in (("rms_norm", 1), ("silu_and_mul", 1), ("kv_write", 0)):
        taken = [o for o in found.observations if o.op == name and o.mode == "sustained"]
        assert len(taken) >= shapes * TRIALS >= shapes * LEAST_WINDOWS
        why = f"{shapes} shapes with sustained windows, {LEAST_WINDOWS} are needed"
        assert found.left_out[name] == why
    assert set(found.left_out) == {"rms_norm", "silu_and_mul", "kv_write"}


def test_a_number_format_has_rates_and_energy_of_its_own(found: Components) -> None:
    wide, narrow = found.names["gemm"], found.names["gemm.fp8"]
    for name, fitted in (("gemm", wide), ("gemm.fp8", narrow)):
        rate = fitted.time.law["flop_per_s"].value
        assert rate == pytest.approx(TRUTH.law(name)["flop_per_s"], rel=0.1), name
        joules = fitted.power.energy["flop_j"].value
        assert joules == pytest.approx(TRUTH.energy(name)["flop_j"], rel=0.15), name


def test_names_without_windows_share_those_of_another(found: Components) -> None:
    for name in ("gather", "sampling"):
        fitted = found.names[name]
        assert fitted.shared == "elementwise"
        assert fitted.power == found.names["elementwise"].power
        # Time is its own.
        assert fitted.time.law != found.names["elementwise"].time.law
    assert {name for name, f in found.names.items() if f.shared} == {"gather", "sampling"}


def test_errors_are_of_shapes_that_no_fit_has_seen(found: Components) -> None:
    for name, fitted in found.names.items():
        assert fitted.held_out_j.shape == fitted.held_out_s.shape == (
            len(fitted.windows.duty),
        ) or (fitted.shared is not None), name
        if fitted.shared is not None:
            continue
        w = fitted.windows
        # Windows with pauses are no test, and a single shape leaves nothing to fit.
        tested = (w.duty >= 1) & (len(np.unique(w.held_together)) > 1)
        for errors in (fitted.held_out_j, fitted.held_out_s):
            assert np.array_equal(np.isfinite(errors), tested), name
    several = {"gemm", "elementwise", *MORE, "scan_prefill"}
    assert {n for n, f in found.names.items() if np.isfinite(f.held_out_j).any()} == several | {
        name for name, f in found.names.items() if f.shared in several
    }
    # Nothing is noisy here, and there are other shapes to learn from.
    for name in MORE:
        assert np.nanmedian(np.abs(found.names[name].held_out_j)) < 0.1, name


def test_what_was_fitted_is_what_the_profile_holds(fit: Fit) -> None:
    profile, components = fit.profile, fit.components
    assert fit.engines == {}
    assert (profile.kind, profile.name) == ("simulated", "h200")
    assert set(profile.operations) == set(components.names)
    assert profile.provenance["left_out"] == dict(components.left_out)
    assert profile.power.exponent == components.exponent
    assert profile.power.limit_share == components.limit_share
    for name, operation in profile.operations.items():
        fitted = components.names[name]
        assert operation.law == fitted.time.law
        assert operation.law["sm_count"] == Estimate(value=132.0, stderr=0.0, unit="1")
        assert set(operation.law) == {*PARAMETERS[kind_of(name)], "sm_count"}
        assert set(operation.energy) == set(ENERGY)
        assert operation.stack == "simulated"
        assert operation.energy["hbm_byte_j"] == components.hbm_byte_j


def test_standard_errors_are_those_of_the_covariance(fit: Fit) -> None:
    def check(covariance: Covariance | None, estimates: dict[str, Estimate]) -> None:
        assert covariance is not None
        matrix = np.array(covariance.matrix)
        assert np.array_equal(matrix, matrix.T)
        for name, variance in zip(covariance.names, np.diag(matrix), strict=True):
            estimate = estimates[name]
            if estimate.value > 0:
                relative = estimate.stderr / estimate.value
                assert relative == pytest.approx(variance**0.5, rel=1e-3, abs=1e-12), name

    for operation in fit.profile.operations.values():
        check(operation.law_covariance, dict(operation.law))
        everything = {**operation.energy, "clock_share": operation.clock_share}
        check(operation.energy_covariance, everything)


# --- too little -----------------------------------------------------------------------------------


def test_too_few_shapes_of_what_no_prediction_needs_are_left_out(seen: list[Observation]) -> None:
    bursts = [o for o in seen if o.dtype == "fp8" and o.mode == "burst"]
    dropped = {id(o) for o in bursts[LEAST_BURSTS - 1 :]}
    components = fit_components([o for o in seen if id(o) not in dropped], SPEC)
    few = LEAST_BURSTS - 1
    assert components.left_out["gemm.fp8"] == f"{few} timed shapes, {LEAST_BURSTS} are needed"
    assert "gemm.fp8" not in components.names


def test_too_few_windows_of_what_no_prediction_needs_are_left_out(seen: list[Observation]) -> None:
    windows = [o for o in seen if o.dtype == "fp8" and o.mode == "sustained"]
    shapes = list(dict.fromkeys(o.point for o in windows))
    few = LEAST_WINDOWS - 1
    dropped = {id(o) for o in windows if o.point in shapes[few:]}
    kept = [o for o in seen if id(o) not in dropped]
    # More windows than shapes are needed: trials of one shape count once.
    assert len(windows) - len(dropped) > LEAST_WINDOWS
    components = fit_components(kept, SPEC)
    why = f"{few} shapes with sustained windows, {LEAST_WINDOWS} are needed"
    assert components.left_out["gemm.fp8"] == why
    assert "gemm.fp8" not in components.names


def test_warm_operands_are_no_evidence(seen: list[Observation], found: Components) -> None:
    warm = [replace(o, cache="warm", call_s=o.call_s / 9) for o in seen if o.op == "gemm"]
    again = fit_components([*seen, *warm], SPEC)
    assert again.names["gemm"].time.law == found.names["gemm"].time.law
