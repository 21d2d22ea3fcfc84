"""The judge finds structure that was planted, names what carries it, and finds none in noise."""

import numpy as np
import pytest
from report_builders import components, world

from calibration.judgement import judge

GROUPS = np.repeat(np.arange(12.0), 10)


def features(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=len(GROUPS)) for name in ("rows", "width", "temperature")}


@pytest.mark.parametrize("seed", range(4))
def test_noise_holds_no_structure(seed: int) -> None:
    residual = np.random.default_rng(100 + seed).normal(0, 0.02, len(GROUPS))
    found = judge.judge(residual, features(seed), GROUPS)
    assert found.explained is not None
    assert found.explained < judge.NOTHING
    assert found.carriers == ()
    assert found.words == "no structure left in the residuals"


@pytest.mark.parametrize("name", ["rows", "temperature"])
def test_planted_structure_is_found_and_named(name: str) -> None:
    known = features()
    noise = np.random.default_rng(1).normal(0, 0.01, len(GROUPS))
    found = judge.judge(0.03 * np.sign(known[name]) + noise, known, GROUPS)
    assert found.explained is not None
    assert found.explained > judge.MUCH
    assert found.carriers[0].feature == name
    assert f"much structure left ({100 * found.explained:.0f} % of the variance): {name}" in (
        found.words
    )


def test_structure_of_single_families_is_not_taken_for_structure_of_shape() -> None:
    # Each family has an offset of its own: nothing that another family could know.
    offsets = np.random.default_rng(2).normal(0, 0.05, 12)
    known = {"width": np.repeat(np.arange(12.0), 10)}
    found = judge.judge(offsets[GROUPS.astype(int)], known, GROUPS)
    assert found.explained is not None
    assert found.explained < 0.3


def test_one_window_that_went_wrong_does_not_hide_structure() -> None:
    known = features()
    residual = 0.03 * np.sign(known["rows"]) + np.random.default_rng(1).normal(0, 0.01, 120)
    residual[7] = 25.0
    found = judge.judge(residual, known, GROUPS)
    assert found.carriers[0].feature == "rows"


@pytest.mark.parametrize(
    ("rows", "families", "reason"),
    [(20, 20, "20 observations are too few"), (60, 3, "3 shape families are too few to hold out")],
)
def test_too_little_is_not_judged(rows: int, families: int, reason: str) -> None:
    random = np.random.default_rng(0)
    group = np.arange(rows) % families
    found = judge.judge(random.normal(size=rows), {"m": random.normal(size=rows)}, group * 1.0)
    assert found.explained is None
    assert found.words == f"not judged: {reason}"


def test_residuals_that_do_not_differ_are_not_judged() -> None:
    found = judge.judge(np.zeros(len(GROUPS)), features(), GROUPS)
    assert found.words == "not judged: the residuals are all the same"


def judged(seen: tuple) -> judge.Judgement:
    fit = components(seen).names["gemm"]
    w, held = fit.windows, np.isfinite(fit.held_out_j)
    predicted_j = w.gross_j * np.exp(-np.nan_to_num(fit.held_out_j))
    known = judge.window_features(w, predicted_j, held)
    return judge.judge(fit.held_out_j[held], known, fit.table.group[w.chosen][held])


def test_energy_that_the_law_lacks_is_found_in_a_fit() -> None:
    # Full tiles of 256 rows cost 15 % more than anything else: no coefficient can say so.
    found = judged(world(trials=3, twist=lambda s: 0.15 if s["m"] == 256 else 0.0))
    assert found.explained is not None
    assert found.explained > 0.1
    assert found.carriers


def test_a_law_that_holds_leaves_nothing() -> None:
    assert judged(world(trials=3)).words == "no structure left in the residuals"


def test_measured_power_is_not_a_feature() -> None:
    # It holds the residual itself: two equal predictions must give equal features.
    fit = components(world(trials=2)).names["gemm"]
    w = fit.windows
    every = np.ones(len(w.duty), dtype=np.bool_)
    known = judge.window_features(w, w.full_s * 500.0, every)
    assert known["predicted power"] == pytest.approx(w.full_s * 500.0 / w.call_s)
    assert not any(np.allclose(v, w.gross_j / w.call_s) for v in known.values())


def test_trees_alone_learn_energy_of_families_they_have_not_seen() -> None:
    random = np.random.default_rng(3)
    size = random.uniform(0, 3, len(GROUPS))
    found = judge.tree_errors(np.exp(size), {"size": size}, GROUPS)
    assert found is not None
    assert found.count == len(GROUPS)
    assert found.median < 0.1
