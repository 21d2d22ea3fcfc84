import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energymodel import bootstrap
from energymodel.bootstrap import Resamples

groups = st.lists(st.integers(0, 4), min_size=1, max_size=25).map(np.array)


@given(groups)
def test_a_resample_takes_whole_models_and_then_runs(group: np.ndarray) -> None:
    r = bootstrap.resample(group)
    sizes = {g: int((group == g).sum()) for g in set(group.tolist())}
    for i in range(0, len(r.index), 97):
        drawn = group[r.index[i][r.used[i]]]
        assert drawn.size == r.used[i].sum() > 0
        times = {g: int((drawn == g).sum()) / n for g, n in sizes.items()}
        # A group comes back a whole number of times, as many runs as it has.
        assert all(t == int(t) for t in times.values())
        assert sum(times.values()) == len(sizes)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20), st.floats(0, 1))
def test_statistics_are_those_of_numpy(values: list[float], q: float) -> None:
    v = np.array(values)
    short = Resamples(index=np.zeros((1, 5), dtype=int), used=np.arange(5)[None, :] < 1)
    assert bootstrap.quantile(v, short, q)[0] == v[0]
    assert bootstrap.mean(v, short)[0] == v[0]
    whole = bootstrap.alone(v.size)
    assert bootstrap.mean(v, whole)[0] == pytest.approx(v.mean())
    assert bootstrap.quantile(v, whole, q)[0] == pytest.approx(np.quantile(v, q), abs=1e-9)


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    random = np.random.default_rng(0)
    values = random.normal(0.0, 1.0, 400)
    drawn = bootstrap.resample(np.zeros(400, dtype=int))
    low, high = bootstrap.interval(bootstrap.mean(values, drawn))
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(400), rel=0.1)
    # Ten models of 40 runs that err alike tell no more than ten runs.
    model = np.repeat(np.arange(10), 40)
    alike = random.normal(0.0, 1.0, 10)[model]
    low, high = bootstrap.interval(bootstrap.mean(alike, bootstrap.resample(model)))
    spread = alike[::40].std()
    assert high - low == pytest.approx(2 * 1.96 * spread / np.sqrt(10), rel=0.15)


def test_large_tables_keep_memory_bounded() -> None:
    r = bootstrap.resample(np.zeros(100_000, dtype=int))
    assert 50 <= len(r.index) <= 100
