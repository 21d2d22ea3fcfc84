"""Requests in time: against a literal engine, against queueing theory, against offline runs."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energymodel import power_in_time, simulation
from energymodel.arrivals import Arrivals, at_once, of_trace, poisson
from energymodel.costs import demand, planned, settled
from energymodel.deployment import Deployment
from energymodel.engines import engine_of
from energymodel.errors import InputError
from energymodel.find_model import find_model
from energymodel.profile import load
from energymodel.simulation import Replay, energy_j, idle_s, replica, simulate
from energymodel.step_table import step_loads, step_sums
from energymodel.traces import Trace
from energymodel.workload import Bin, Workload

MODEL, PROFILE = find_model("Qwen3-0.6B")[0], load("h200")
STEP_S = 0.01


def arrivals(times: Sequence[float], lengths: Sequence[tuple[int, int]]) -> Arrivals:
    """One bin a request."""
    return Arrivals(
        time_s=np.array(times),
        bin=np.arange(len(times)),
        bins=tuple(Bin(input_tokens=i, output_tokens=o) for i, o in lengths),
        end_s=float(times[-1]),
    )


def constant(monkeypatch: pytest.MonkeyPatch, step_s: float = STEP_S) -> None:
    """Every step takes as long."""
    monkeypatch.setattr(simulation, "_pricer", lambda *_: lambda *_: (step_s, 0.0, 0.0, 0.0))


def served(asked: Arrivals, deployment: Deployment | None = None) -> Replay:
    return simulate(replica(MODEL, deployment or Deployment(), PROFILE), asked)


# Against a literal engine ------------------------------------------------------------------------


def literal(  # noqa: C901 (one loop, as literal as the rules)
    asked: Arrivals, budget: int, seqs: int
) -> tuple[list[float], list[float], list[float]]:
    """(admitted, first token, finished) of each request, step by step, with asynchronous scheduling.

    The step that begins at ``now`` was scheduled when the one before it began.
    """
    count = len(asked.time_s)
    admitted, first, finish = [-1.0] * count, [-1.0] * count, [-1.0] * count
    left = [asked.bins[i].input_tokens for i in range(count)]
    tokens = [asked.bins[i].output_tokens for i in range(count)]
    waiting: list[int] = []
    running: list[int] = []
    leaving: list[int] = []
    now, seen, come = 0.0, 0.0, 0
    while min(finish) < 0:
        while come < count and asked.time_s[come] <= seen:
            waiting.append(come)
            come += 1
        done_before, leaving = leaving, []
        room, ran = budget, False
        for r in [r for r in running if r not in done_before]:
            spent = 1 if left[r] == 0 else min(left[r], room)
            room -= spent
            ran = ran or spent > 0
            if left[r]:
                left[r] -= spent
            if left[r] == 0 and spent:
                tokens[r] -= 1
                if first[r] < 0:
                    first[r] = now + STEP_S
                if tokens[r] == 0:
                    finish[r] = now + STEP_S
                    leaving.append(r)
        while waiting and room and len(running) < seqs:
            r = waiting.pop(0)
            running.append(r)
            admitted[r] = now
            spent = min(left[r], room)
            left[r] -= spent
            room -= spent
            ran = True
            if left[r] == 0:
                tokens[r] -= 1
                first[r] = now + STEP_S
                if tokens[r] == 0:
                    finish[r] = now + STEP_S
                    leaving.append(r)
        running = [r for r in running if r not in done_before]
        if ran:
            seen, now = now, now + STEP_S
        elif not (leaving or done_before or waiting):
            seen = now = max(now, float(asked.time_s[come]))
    return admitted, first, finish


REQUESTS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(REQUESTS)
def test_requests_are_served_as_by_a_literal_engine(rows: list[tuple[int, int, int]]) -> None:
    # Times between the ends of steps, so that rounding decides nothing.
    times = np.cumsum([gap * STEP_S / 3 + STEP_S / 7 for gap, _, _ in rows])
    asked = arrivals((times - times[0]).tolist(), [(i, o) for _, i, o in rows])
    deployment = Deployment(max_num_seqs=4, max_num_batched_tokens=16)
    with pytest.MonkeyPatch.context() as patch:
        constant(patch)
        found = served(asked, deployment)
    admitted, first, finish = literal(asked, 16, 4)
    np.testing.assert_allclose(found.admitted_s, admitted, atol=1e-9)
    np.testing.assert_allclose(found.first_token_s, first, atol=1e-9)
    np.testing.assert_allclose(found.finish_s, finish, atol=1e-9)


def test_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # The second request comes during the first step: step 2 is scheduled by then, so it joins step
    # 3, from 20 to 30 ms. The third finds the engine idle.
    constant(monkeypatch)
    found = served(arrivals([0.0, 0.004, 0.2], [(8, 5), (8, 1), (8, 2)]))
    np.testing.assert_allclose(found.admitted_s, [0.0, 0.02, 0.2])
    np.testing.assert_allclose(found.first_token_s, [0.01, 0.03, 0.21])
    np.testing.assert_allclose(found.finish_s, [0.05, 0.03, 0.22])
    assert idle_s(found) == pytest.approx(0.15)


# Against queueing theory -------------------------------------------------------------------------


@pytest.mark.parametrize("load_", [0.3, 0.7])
def test_one_at_a_time_waits_as_in_a_queue_of_one_server(
    monkeypatch: pytest.MonkeyPatch, load_: float
) -> None:
    # Scoring requests that fill a step, scheduled one after the other: Poisson arrivals at a server
    # of constant time s wait rho s / (2 (1 - rho)) in the mean (Pollaczek and Khinchine).
    constant(monkeypatch)
    rate = load_ / STEP_S
    workload = Workload(bins=(Bin(input_tokens=32, output_tokens=0, requests_per_s=rate),))
    found = served(
        poisson(workload, 20_000, seed=5), Deployment(max_num_batched_tokens=32, max_num_seqs=32)
    )
    waited = float((found.admitted_s - found.arrivals.time_s).mean())
    assert waited == pytest.approx(load_ * STEP_S / (2 * (1 - load_)), rel=0.06)


# Against offline runs ----------------------------------------------------------------------------


def test_all_at_once_is_an_offline_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_in_time, "AVERAGED_S", 1e-9)  # what an idle GPU spares aside
    bins = (
        Bin(input_tokens=700, output_tokens=90, requests_per_s=1.0),
        Bin(input_tokens=100, output_tokens=200, requests_per_s=1.0),
    )
    asked = at_once(Workload(bins=bins), 400, seed=1)
    found = served(asked)
    ordered = [bins[i] for i in asked.bin]
    offline = Workload(bins=tuple(replace(b, count=1, requests_per_s=None) for b in ordered))
    _, schedule = planned(MODEL, Deployment(), offline, PROFILE.gpu)
    assert found.schedule().iterations == schedule.iterations
    steps, weight = schedule.steps, schedule.steps.weight
    wanted = demand(MODEL, Deployment(), steps, PROFILE)
    added = engine_of(Deployment()).time(MODEL, Deployment(), steps, PROFILE, offline)
    costs = settled(wanted, replace(added, submit_s=0.0), weight, Deployment(), PROFILE)
    assert found.end_s == pytest.approx(float(weight @ costs.step_s), rel=5e-3)
    joules = float(found.weight @ energy_j(found))
    assert joules == pytest.approx(float(weight @ costs.step_j), rel=5e-3)
    assert idle_s(found) == pytest.approx(0.0, abs=1e-9)


def test_rows_know_what_they_hold() -> None:
    asked = poisson(
        Workload(bins=(Bin(input_tokens=300, output_tokens=60, requests_per_s=40.0),)), 300, seed=2
    )
    found = served(asked)
    steps = found.schedule().steps
    np.testing.assert_array_equal(found.scheduler.decoding, steps.decoding)
    visible = np.array(found.scheduler.visible)[:, 0]
    np.testing.assert_allclose(visible, steps.sum_decodes(steps.decodes.context + 1.0))
    table = found.replica.table
    assert table is not None
    loads = step_loads(table, step_sums(steps, table.windows))
    np.testing.assert_allclose(found.core_j, loads.core_j, rtol=1e-6)
    assert float(steps.weight @ steps.sampled) == 300 * 60


def test_steps_priced_one_by_one_are_those_of_the_table() -> None:
    rate = Workload(bins=(Bin(input_tokens=300, output_tokens=60, requests_per_s=40.0),))
    one, asked = replica(MODEL, Deployment(), PROFILE), poisson(rate, 60, seed=2)
    found, exact = (simulate(r, asked) for r in (one, replace(one, table=None)))
    assert exact.end_s == pytest.approx(found.end_s, rel=0.01)
    joules = [float(r.weight @ energy_j(r)) for r in (found, exact)]
    assert joules[1] == pytest.approx(joules[0], rel=0.02)


def test_a_model_with_windows_and_one_without_a_table_are_served() -> None:
    bins = (Bin(input_tokens=200, output_tokens=20, requests_per_s=5.0),)
    for name in ("gpt-oss-20b", "whisper-tiny"):
        model = find_model(name)[0]
        found = simulate(
            replica(model, Deployment(), PROFILE), poisson(Workload(bins=bins), 6, seed=0)
        )
        assert np.isfinite(found.finish_s).all()


# Arrivals ----------------------------------------------------------------------------------------


def test_poisson_arrivals_have_the_rates_asked_for_and_repeat() -> None:
    workload = Workload(
        bins=(
            Bin(input_tokens=1, output_tokens=1, requests_per_s=3.0),
            Bin(input_tokens=2, output_tokens=1, requests_per_s=1.0),
        )
    )
    found = poisson(workload, 4000, seed=7)
    assert np.bincount(found.bin).tolist() == [3000, 1000]
    assert found.end_s == pytest.approx(1000.0)
    assert found.requests_per_s == pytest.approx(4.0)
    gaps = np.diff(found.time_s)
    assert (gaps >= 0).all()
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.05)  # exponential
    np.testing.assert_array_equal(found.time_s, poisson(workload, 4000, seed=7).time_s)
    assert (found.time_s != poisson(workload, 4000, seed=8).time_s).any()


def test_a_trace_becomes_arrivals_with_its_prefixes() -> None:
    trace = Trace(
        name="t",
        format="x",
        arrival_s=np.array([2.0, 3.0, 5.0]),
        input_tokens=np.array([10, 20, 10]),
        output_tokens=np.array([1, 2, 1]),
        prefix_tokens=np.array([0, 16, 0]),
    )
    found = of_trace(trace)
    assert found.time_s.tolist() == [0.0, 1.0, 3.0]
    chosen = [found.bins[i] for i in found.bin]
    assert [(b.input_tokens, b.output_tokens, b.prefix_tokens) for b in chosen] == [
        (10, 1, 0),
        (20, 2, 16),
        (10, 1, 0),
    ]


def test_a_trace_without_times_cannot_be_replayed() -> None:
    trace = Trace(
        name="t.csv",
        format="x",
        arrival_s=None,
        input_tokens=np.array([1]),
        output_tokens=np.array([1]),
    )
    with pytest.raises(InputError, match=r"t\.csv gives no times"):
        of_trace(trace)


@pytest.mark.parametrize("flag", ["data_parallel_size", "pipeline_parallel_size"])
def test_copies_and_stages_are_not_followed_in_time(flag: str) -> None:
    asked = arrivals([0.0], [(8, 2)])
    with pytest.raises(InputError, match=flag):
        served(asked, Deployment(**{flag: 2}))
