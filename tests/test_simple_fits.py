"""Simple estimates: each is exact in the world that it describes, and held out everywhere."""

import numpy as np
import pytest
from report_builders import SPEC, components, world

from calibration.judgement.simple_fits import (
    Sustained,
    errors,
    held_out,
    pooled,
    simple_errors,
    sustained,
)

COUNT = 40


def windows(**columns: np.ndarray) -> Sustained:
    random = np.random.default_rng(0)
    plain = {
        "gross_j": np.ones(COUNT),
        "call_s": random.uniform(1e-5, 1e-3, COUNT),
        "flop": random.uniform(1e9, 1e12, COUNT),
        "roofline_s": random.uniform(1e-5, 1e-3, COUNT),
        "group": np.repeat(np.arange(10.0), 4),
    }
    return Sustained(**(plain | columns))


@pytest.mark.parametrize(
    ("name", "column"), [("flop_only", "flop"), ("time_only", "call_s"), ("roofline", "roofline_s")]
)
def test_the_estimate_that_describes_the_world_wins(name: str, column: str) -> None:
    plain = windows()
    found = simple_errors(windows(gross_j=3.0 * getattr(plain, column)))
    best = found.pop(name)
    assert best is not None
    assert best.median == pytest.approx(0.0, abs=1e-12)
    assert best.count == COUNT
    assert all(e is not None and e.median > 0.1 for e in found.values())


def test_a_family_is_estimated_by_the_others() -> None:
    # Ten families at 1 J/FLOP but one at 2: that one is estimated at half, the others exactly.
    plain = windows()
    odd = plain.group == 4
    relative = held_out(plain.flop, windows(gross_j=plain.flop * np.where(odd, 2.0, 1.0)))
    assert relative[odd] == pytest.approx(-0.5)
    assert relative[~odd] == pytest.approx(0.0)


def test_what_has_no_flop_cannot_be_estimated_by_flop() -> None:
    assert simple_errors(windows(flop=np.zeros(COUNT)))["flop_only"] is None
    some = windows().flop * (windows().group > 2)
    relative = held_out(some, windows(flop=some))
    assert relative[some == 0] == pytest.approx(-1.0)


def test_pooled_families_of_two_components_stay_apart() -> None:
    one = windows()
    both = pooled({"gemm": one, "moe": windows(gross_j=2 * one.gross_j)})
    assert len(both.group) == 2 * COUNT
    assert len(np.unique(both.group)) == 20


def test_errors_by_hand() -> None:
    found = errors(np.array([-0.1, 0.2, 0.3, np.nan]))
    assert found is not None
    assert (found.count, found.median) == (3, pytest.approx(0.2))
    assert found.p90 == pytest.approx(0.28)
    assert found.bias == pytest.approx(0.4 / 3)
    assert errors(np.array([np.nan])) is None


def test_our_fit_beats_them_where_its_law_holds() -> None:
    fit = components(world()).names["gemm"]
    s = sustained(fit.windows, SPEC)
    assert len(s.gross_j) == 30
    ours = errors(np.exp(-fit.held_out_j) - 1)
    assert ours is not None
    for simple in simple_errors(s).values():
        assert simple is not None
        assert simple.median > 5 * ours.median


def test_peak_rates_follow_the_dtype() -> None:
    fit = components(world()).names["gemm"]
    plain = sustained(fit.windows, SPEC)
    peak = SPEC.peak_flop_per_s["bfloat16"]
    moved_s = (fit.windows.moved_bytes / SPEC.hbm_bytes_per_s)[fit.windows.duty >= 1]
    assert plain.roofline_s == pytest.approx(np.maximum(plain.flop / peak, moved_s))
