import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from step_builders import Chunk, Decode, steps_of

from energymodel.deployment import Deployment
from energymodel.latency import latencies
from energymodel.serving import Milestones, Schedule, schedule_offline
from energymodel.workload import Bin, Workload


def schedule(
    *rows: tuple[list[Chunk], list[Decode]], first: list[int], count: list[int]
) -> Schedule:
    """Steps of weight 1 and groups of ``count`` requests whose first token is of row ``first``."""
    last = np.full(len(first), len(rows) - 1)
    return Schedule(
        steps=steps_of(*rows),
        milestones=Milestones(
            bin=np.zeros(len(first), np.int64),
            count=np.array(count),
            first_token_row=np.array(first),
            finish_row=last,
        ),
        iterations=len(rows),
    )


TALK = Workload(bins=(Bin(input_tokens=10, output_tokens=5, count=3),))
SCORING = Workload(bins=(Bin(input_tokens=10, output_tokens=0, count=2),))


def test_by_hand() -> None:
    # Two prompts in the first step, one more in the second, while the two decode; then all three.
    run = schedule(
        ([(10, 0, 2, 1)], []),
        ([(10, 0, 1, 1)], [(10.0, 2)]),
        ([], [(11.0, 3)]),
        first=[0, 1],
        count=[2, 1],
    )
    ttft, itl = latencies(TALK, run, np.array([0.1, 0.2, 0.01]), submit_s=0.5)
    assert ttft is not None
    assert itl is not None
    assert ttft.mean == pytest.approx((0.6 + 0.6 + 0.8) / 3)
    assert (ttft.p50, ttft.p90, ttft.p99) == pytest.approx((0.6, 0.8, 0.8))
    # Two tokens took 0.2 s, three took 0.01 s.
    assert itl.mean == pytest.approx((2 * 0.2 + 3 * 0.01) / 5)
    assert (itl.p50, itl.p90) == pytest.approx((0.01, 0.2))


def test_scoring_has_no_tokens() -> None:
    run = schedule(([(10, 0, 2, 0)], []), first=[0], count=[2])
    assert latencies(SCORING, run, np.array([0.1]), submit_s=0.0) == (None, None)


def test_a_single_token_has_no_distance() -> None:
    run = schedule(([(10, 0, 2, 1)], []), first=[0], count=[2])
    ttft, itl = latencies(TALK, run, np.array([0.1]), submit_s=0.0)
    assert ttft is not None
    assert ttft.mean == pytest.approx(0.1)
    assert itl is None


workloads = st.lists(
    st.builds(
        Bin,
        input_tokens=st.integers(1, 3000),
        output_tokens=st.integers(1, 200),
        count=st.integers(1, 300),
    ),
    min_size=1,
    max_size=3,
).map(lambda bins: Workload(bins=tuple(bins)))


@given(workloads, st.floats(1e-3, 1.0), st.integers(0, 2**32 - 1))
def test_percentiles_are_in_order_and_within_the_run(
    workload: Workload, submit_s: float, seed: int
) -> None:
    run = schedule_offline(workload, Deployment(), 500_000)
    step_s = np.random.default_rng(seed).uniform(0.01, 0.1, run.steps.size)
    ttft, itl = latencies(workload, run, step_s, submit_s)
    assert ttft is not None
    total_s = submit_s + run.steps.weight @ step_s
    assert submit_s < ttft.p50 <= ttft.p90 <= ttft.p99 <= total_s * (1 + 1e-12)
    assert submit_s < ttft.mean <= ttft.p99 * (1 + 1e-9) + total_s / 100
    if itl is not None:
        assert step_s.min() <= itl.p50 <= itl.p90 <= itl.p99 <= step_s.max()
        assert step_s.min() * (1 - 1e-12) <= itl.mean <= step_s.max() * (1 + 1e-12)


@given(workloads, st.floats(0.001, 1000))
def test_slower_steps_scale_both(workload: Workload, times: float) -> None:
    run = schedule_offline(workload, Deployment(), 500_000)
    step_s = np.linspace(0.01, 0.02, run.steps.size)
    one, many = (latencies(workload, run, t * step_s, 0.0) for t in (1.0, times))
    for a, b in zip(one, many, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert (b.mean, b.p50, b.p99) == pytest.approx(
                (times * a.mean, times * a.p50, times * a.p99)
            )


def test_scoring_requests_do_not_count_as_first_tokens() -> None:
    scoring = Bin(input_tokens=512, output_tokens=0, count=500)
    workload = Workload(bins=(scoring, Bin(input_tokens=512, output_tokens=4, count=1)))
    run = schedule_offline(workload, Deployment(), 500_000)
    step_s = np.full(run.steps.size, 0.1)
    ttft, _ = latencies(workload, run, step_s, 0.0)
    assert ttft is not None
    assert ttft.mean == ttft.p50 == ttft.p99
    assert ttft.mean > 1.0
