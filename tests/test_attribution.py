"""Whose energy: shares by hand, and conservation on real schedules."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from step_builders import steps_of

from energymodel import attribution
from energymodel.costs import OpCost, StepCosts
from energymodel.deployment import Deployment
from energymodel.find_model import find_model
from energymodel.ops import lower
from energymodel.prediction import BinEnergy, PhaseEnergy
from energymodel.serving import Milestones, Schedule, schedule_offline
from energymodel.steps import Chunks, Steps
from energymodel.workload import Bin, Workload

MODEL = find_model("Qwen2.5-0.5B-Instruct")[0]
WINDOWED = find_model("gemma-3-1b-it")[0]


def a_schedule(steps: Steps) -> Schedule:
    none = np.zeros(0, np.int64)
    milestones = Milestones(bin=none, count=none, first_token_row=none, finish_row=none)
    return Schedule(steps=steps, milestones=milestones, iterations=steps.size)


def costs_of(steps: Steps, joules: dict[str, float], overhead_j: float = 0.0) -> StepCosts:
    """Every operation costs what ``joules`` says for its name (else 0) in each step, at 100 W."""
    ops = tuple(
        OpCost(
            op=op,
            seconds=j / 100 * each,
            energy_j=j * each,
            core_j=0 * each,
            full_clock_s=j / 100 * each,
        )
        for op in lower(MODEL, Deployment(), steps)
        for j, each in [(joules.get(op.name, 0.0), np.ones(steps.size))]
    )
    per_step_j = sum(joules.values()) + overhead_j
    return StepCosts(
        ops=ops,
        step_s=np.full(steps.size, per_step_j / 100),
        step_j=np.full(steps.size, per_step_j),
        overhead_s=np.full(steps.size, overhead_j / 100),
        overhead_j=np.full(steps.size, overhead_j),
        relative_clock=np.ones(steps.size),
        launch_s=np.zeros(steps.size),
        submit_s=0.25,
        submit_j=30.0,
        static_w=120.0,
    )


def phases_of(schedule: Schedule, costs: StepCosts) -> dict[str, PhaseEnergy]:
    return attribution.phases(schedule, costs, attribution.shares(schedule, costs))


def bins_of(workload: Workload, schedule: Schedule, costs: StepCosts) -> tuple[BinEnergy, ...]:
    return attribution.bins(workload, schedule, costs, attribution.shares(schedule, costs))


# One chunk of 6 tokens after 4 others (pairs 5+6+7+8+9+10 = 45) and two sequences decoding after
# 14 tokens (15 keys each): 6 + 2 tokens, 1 + 2 sampled rows, 1 + 2 sequences.
MIXED = steps_of(([(6, 4, 1, 1)], [(14.0, 2)]))


@pytest.mark.parametrize(
    ("name", "prefill"),
    [
        ("qkv_proj", 6 / 8),
        ("down_proj", 6 / 8),
        ("lm_head", 1 / 3),
        ("sampling", 1 / 3),
        ("attention_prefill", 1.0),
        ("attention_decode", 0.0),
    ],
)
def test_an_operation_goes_by_what_is_asked_of_it(name: str, prefill: float) -> None:
    phases = phases_of(a_schedule(MIXED), costs_of(MIXED, {name: 8.0}))
    assert phases["prefill"].energy_j == pytest.approx(8 * prefill)
    assert phases["decode"].energy_j == pytest.approx(8 * (1 - prefill))
    assert phases["prefill"].duration_s == pytest.approx(0.08 * prefill)
    assert phases["idle"].energy_j == 30.0
    assert phases["idle"].duration_s == 0.25


def test_overhead_goes_by_sequences() -> None:
    phases = phases_of(a_schedule(MIXED), costs_of(MIXED, {}, overhead_j=9.0))
    assert phases["prefill"].energy_j == pytest.approx(3.0)
    assert phases["decode"].energy_j == pytest.approx(6.0)


def test_bins_share_attention_by_pairs_and_products_by_tokens() -> None:
    # Two prompts of 3 (6 pairs) and of 9 tokens (45 pairs) in one step, of two bins.
    steps = steps_of(([(3, 0, 1, 1), (9, 0, 1, 1)], []))
    chunks = Chunks(
        **{
            name: getattr(steps.chunks, name)
            for name in ("step", "tokens", "context", "count", "last")
        },
        bin=np.array([0, 1]),
    )
    steps = replace(steps, chunks=chunks)
    workload = Workload(
        bins=(
            Bin(input_tokens=3, output_tokens=1, count=1),
            Bin(input_tokens=9, output_tokens=1, count=1),
        )
    )
    costs = costs_of(steps, {"attention_prefill": 51.0, "o_proj": 12.0, "lm_head": 2.0})
    short, long = bins_of(workload, a_schedule(steps), costs)
    idle_j = 15.0
    assert short.energy_j == pytest.approx(6 + 3 + 1 + idle_j)
    assert long.energy_j == pytest.approx(45 + 9 + 1 + idle_j)
    assert short.decode_j == long.decode_j == 0.0
    assert short.energy_per_output_token_j == pytest.approx(short.energy_j)


bins = st.builds(
    Bin,
    input_tokens=st.integers(1, 3000),
    output_tokens=st.integers(0, 200),
    count=st.integers(1, 300),
)


@given(st.lists(bins, min_size=1, max_size=4), st.integers(0, 2**32 - 1), st.booleans())
def test_nothing_is_lost_and_nothing_is_negative(
    some: list[Bin], seed: int, windowed: bool
) -> None:
    workload = Workload(bins=tuple(some))
    run = schedule_offline(workload, Deployment(), 300_000)
    random = np.random.default_rng(seed)
    ops = tuple(
        OpCost(
            op=op,
            seconds=active * s,
            energy_j=active * j,
            core_j=0 * active,
            full_clock_s=active * s,
        )
        for op in lower(WINDOWED if windowed else MODEL, Deployment(), run.steps)
        for active in [op.hbm_bytes > 0]
        for s, j in [random.uniform(0, 1, (2, run.steps.size))]
    )
    overhead_s, overhead_j = random.uniform(0, 1, (2, run.steps.size))
    costs = StepCosts(
        ops=ops,
        step_s=overhead_s + sum(c.seconds for c in ops),
        step_j=overhead_j + sum(c.energy_j for c in ops),
        overhead_s=overhead_s,
        overhead_j=overhead_j,
        relative_clock=np.ones(run.steps.size),
        launch_s=np.zeros(run.steps.size),
        submit_s=0.5,
        submit_j=60.0,
        static_w=120.0,
    )
    total_j = float(run.steps.weight @ costs.step_j) + 60.0
    phases = phases_of(run, costs)
    by_bin = bins_of(workload, run, costs)
    assert sum(p.energy_j for p in phases.values()) == pytest.approx(total_j)
    assert sum(b.energy_j for b in by_bin) == pytest.approx(total_j)
    idle_j = phases["idle"].energy_j
    assert sum(b.prefill_j for b in by_bin) == pytest.approx(phases["prefill"].energy_j + idle_j)
    assert sum(b.decode_j for b in by_bin) == pytest.approx(phases["decode"].energy_j, abs=1e-6)
    total_s = float(run.steps.weight @ costs.step_s) + 0.5
    assert sum(p.duration_s for p in phases.values()) == pytest.approx(total_s)
    for b in by_bin:
        assert min(b.prefill_j, b.decode_j) >= 0
        assert b.energy_j == pytest.approx(b.prefill_j + b.decode_j)
        if b.output_tokens <= 1:
            assert b.decode_j == 0
        if not b.output_tokens:
            assert b.energy_per_output_token_j is None
    assert phases["decode"].energy_j >= -1e-9 * total_j
