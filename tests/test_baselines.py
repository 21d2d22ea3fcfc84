import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_predict import DENSE, PROFILE, one_bin, run

from energymodel import power
from energymodel.baselines import EXPONENT, SATURATION, fitted


def test_the_mfu_power_law_by_hand() -> None:
    """One token after another: every step has the same MFU, but for the first."""
    p = run(workload=one_bin(1, 2000, 1))
    flop = sum(c.flop for c in p.components.values())
    gpu = PROFILE.gpu
    mfu = flop / p.duration_s / gpu.peak_flop_per_s["bfloat16"]
    assert mfu < 0.01
    idle_w = float(power.static_power_w(PROFILE.power, 0.0))
    watts = idle_w + (gpu.power_limit_w - idle_w) * (mfu / SATURATION) ** EXPONENT
    assert p.baselines["mfu_power_law"].energy_j == pytest.approx(watts * p.duration_s, rel=0.02)


def test_the_mfu_power_law_ends_at_the_limit() -> None:
    p = run(DENSE, one_bin(4096, 1, 64))
    # A prefill runs above 45 % of peak.
    assert p.baselines["mfu_power_law"].energy_j == pytest.approx(
        p.baselines["tdp"].energy_j, rel=0.01
    )
    assert p.baselines["mfu_power_law"].energy_j <= p.baselines["tdp"].energy_j


def test_a_factor_comes_from_other_models_under_the_same_load() -> None:
    simple = np.array([10.0, 10.0, 10.0, 10.0])
    measured = np.array([20.0, 30.0, 50.0, 70.0])
    model, load = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    assert fitted(simple, measured, model, load).tolist() == [30.0, 20.0, 70.0, 50.0]
    # Alone under its load, a model has nobody to learn from.
    nobody = fitted(simple[:3], measured[:3], model[:3], load[:3])
    assert nobody[:2].tolist() == [30.0, 20.0]
    assert np.isnan(nobody[2])


@given(
    st.lists(st.floats(0.01, 100.0), min_size=2, max_size=12),
    st.floats(0.1, 10.0),
)
def test_what_one_factor_mends_is_mended(simple: list[float], factor: float) -> None:
    joules = np.array(simple)
    model = np.arange(joules.size) % 2
    found = fitted(joules, factor * joules, model, np.zeros_like(model))
    assert found == pytest.approx(factor * joules)
