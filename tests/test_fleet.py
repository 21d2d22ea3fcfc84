"""Fleets from the solver against all fleets that there are, and against what must hold."""

import itertools
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energymodel.planning.fleet import Choice, Fleet, Host, Problem, Use, most_served
from energymodel.steps import Floats


def a_choice(
    name: str, seconds: Floats, idle_w: float, request_j: Floats, gpus: float = 1.0
) -> Choice:
    none = np.zeros_like(seconds)
    uses = {
        "power_w": Use(per_replica=idle_w, per_request=request_j),
        "gpus": Use(per_replica=gpus, per_request=none),
    }
    return Choice(name=name, bins=np.arange(len(seconds)), seconds=seconds, uses=uses)


NO_HOST = Host(name="none", places=1, uses={"power_w": 0.0, "gpus": 0.0})


def a_problem(
    choices: list[Choice],
    demand: list[float],
    *,
    power_w: float,
    gpus: float = 1e9,
    spare: int = 0,
    host: Host = NO_HOST,
) -> Problem:
    return Problem(
        demand=np.array(demand),
        worth=np.ones(len(demand)),
        choices=tuple(choices),
        hosts=(host,),
        limits={"power_w": power_w, "gpus": gpus},
        price="power_w",
        spare=spare,
    )


SMALL = st.builds(
    lambda seconds, idle_w, request_j, gpus: a_choice(
        "any", np.array([seconds]), idle_w, np.array([request_j]), gpus
    ),
    st.floats(0.1, 2.0),
    st.floats(10.0, 300.0),
    st.floats(1.0, 200.0),
    st.sampled_from([1.0, 2.0]),
)


def best_by_hand(problem: Problem) -> float:
    """Most requests of a single bin over all numbers of replicas, the frugal ones filled first."""
    best = 0.0
    demand, limits = float(problem.demand[0]), problem.limits
    ranges = [range(int(np.ceil(demand * c.seconds[0])) + 1) for c in problem.choices]
    for numbers in itertools.product(*ranges):
        uses = [c.uses for c in problem.choices]
        gpus = sum(n * u["gpus"].per_replica for n, u in zip(numbers, uses, strict=True))
        left_w = limits["power_w"] - sum(
            n * u["power_w"].per_replica for n, u in zip(numbers, uses, strict=True)
        )
        if gpus > limits["gpus"] or left_w < 0:
            continue
        served = 0.0
        order = sorted(
            zip(numbers, problem.choices, strict=True),
            key=lambda pair: pair[1].uses["power_w"].per_request[0],
        )
        for n, choice in order:
            each_j = float(choice.uses["power_w"].per_request[0])
            rate = min(n / choice.seconds[0], demand - served, left_w / each_j)
            served, left_w = served + rate, left_w - rate * each_j
        best = max(best, served)
    return best


@given(st.lists(SMALL, min_size=1, max_size=3), st.floats(0.5, 4.0), st.floats(50.0, 1500.0))
@settings(max_examples=40, deadline=None)
def test_the_solver_finds_the_best_of_all_fleets(
    choices: list[Choice], demand: float, power_w: float
) -> None:
    problem = a_problem(choices, [demand], power_w=power_w, gpus=6.0)
    fleet = most_served(problem, gap=1e-9)
    assert fleet.served.sum() == pytest.approx(best_by_hand(problem), rel=1e-5, abs=1e-6)


def within(problem: Problem, fleet: Fleet) -> None:
    """What holds of every fleet."""
    assert (fleet.served <= problem.demand * (1 + 1e-6) + 1e-9).all()
    for resource, limit in problem.limits.items():
        assert fleet.used[resource] <= limit * (1 + 1e-6) + 1e-6
    for choice, n, rate in zip(problem.choices, fleet.replicas, fleet.rates, strict=True):
        busy = float(choice.seconds @ rate)
        assert busy <= max(n - problem.spare, 0) * (1 + 1e-6) + 1e-6


@given(
    st.lists(st.floats(0.05, 3.0), min_size=2, max_size=2),
    st.lists(st.floats(1.0, 500.0), min_size=2, max_size=2),
    st.floats(100.0, 5000.0),
    st.floats(1.0, 3.0),
    st.integers(0, 2),
)
@settings(max_examples=30, deadline=None)
def test_more_power_never_serves_less(
    seconds: list[float], request_j: list[float], power_w: float, more: float, spare: int
) -> None:
    choice = a_choice("one", np.array(seconds), 120.0, np.array(request_j))
    small = a_problem([choice], [3.0, 5.0], power_w=power_w, spare=spare)
    large = a_problem([choice], [3.0, 5.0], power_w=power_w * more, spare=spare)
    few, many = most_served(small), most_served(large)
    within(small, few)
    within(large, many)
    assert many.served.sum() >= few.served.sum() * (1 - 2e-4) - 1e-6


def test_the_dear_requests_are_shed_first() -> None:
    # One replica has time for 1 s of work a second; the budget allows 700 W over idle.
    choice = a_choice("one", np.array([0.1, 0.1]), 100.0, np.array([50.0, 500.0]))
    fleet = most_served(a_problem([choice], [4.0, 4.0], power_w=800.0))
    assert fleet.replicas.tolist() == [1]
    assert fleet.served == pytest.approx([4.0, 1.0])


def test_of_equal_fleets_the_frugal_one_is_taken() -> None:
    hungry = a_choice("hungry", np.array([0.5]), 100.0, np.array([300.0]))
    frugal = a_choice("frugal", np.array([0.5]), 100.0, np.array([200.0]))
    fleet = most_served(a_problem([hungry, frugal], [4.0], power_w=1e6))
    assert fleet.replicas.tolist() == [0, 2]
    assert fleet.used["power_w"] == pytest.approx(2 * 100.0 + 4 * 200.0)


def test_spares_stand_by_and_draw_power() -> None:
    choice = a_choice("one", np.array([0.5]), 100.0, np.array([10.0]))
    fleet = most_served(a_problem([choice], [4.0], power_w=1e6, spare=1))
    assert fleet.replicas.tolist() == [3]
    assert fleet.used["power_w"] == pytest.approx(340.0)


def test_a_budget_too_small_for_one_replica_serves_nothing() -> None:
    choice = a_choice("one", np.array([0.5]), 100.0, np.array([10.0]))
    fleet = most_served(a_problem([choice], [4.0], power_w=90.0))
    assert fleet.replicas.tolist() == [0]
    assert fleet.served.tolist() == [0.0]


def test_hosts_are_there_whole_or_not_at_all() -> None:
    server = Host(name="server", places=4, uses={"power_w": 1000.0, "gpus": 0.0})
    choice = a_choice("one", np.array([0.5]), 100.0, np.array([10.0]))
    # Five replicas for ten requests a second take two servers; 1,600 W allow one, and four.
    all_served = most_served(a_problem([choice], [10.0], power_w=1e6, host=server))
    assert (all_served.replicas.tolist(), all_served.hosts.tolist()) == ([5], [2])
    assert all_served.used["power_w"] == pytest.approx(2 * 1000.0 + 5 * 100.0 + 10 * 10.0)
    fewer = most_served(a_problem([choice], [10.0], power_w=1600.0, host=server))
    assert (fewer.replicas.tolist(), fewer.hosts.tolist()) == ([4], [1])
    assert fewer.served == pytest.approx([8.0])


def test_the_solver_says_nothing_on_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    choices = [
        a_choice(str(i), rng.uniform(0.1, 2.0, 3), 100.0 + 10 * i, rng.uniform(10.0, 200.0, 3))
        for i in range(6)
    ]
    most_served(a_problem(choices, [3.0, 2.0, 5.0], power_w=1500.0, gpus=7.0, spare=1))
    os.write(1, b"still heard")
    assert capfd.readouterr().out == "still heard"
