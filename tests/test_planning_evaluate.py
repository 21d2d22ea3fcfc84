"""Candidates and their operating points on the shipped profile: what fits, what holds of each."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from fabric_builders import with_fabric

from energymodel import profile as profiles
from energymodel.deployment import Deployment
from energymodel.find_model import find_model
from energymodel.planning.candidates import Allowed, candidates
from energymodel.planning.evaluate import (
    Objective,
    Operating,
    evaluate,
    idle_power_w,
    mix_of,
    pareto,
)
from energymodel.planning.pricing import pricer
from energymodel.predict import predict
from energymodel.step_table import COARSE, step_table
from energymodel.workload import Bin, Workload

PROFILE = profiles.load("h200")
SMALL = find_model("Qwen3-8B")[0]
LARGE = find_model("Llama-3.1-70B-Instruct")[0]
ONE_GPU = Allowed(tensor_parallel_sizes=(1,))
CHAT = Workload(
    bins=(
        Bin(input_tokens=256, output_tokens=256, requests_per_s=3.0),
        Bin(input_tokens=2048, output_tokens=512, requests_per_s=1.0),
    )
)


def operating(objective: Objective, allowed: Allowed = ONE_GPU) -> list[Operating]:
    found, _ = candidates([SMALL], [PROFILE], allowed)
    return [o for c in found for o in evaluate(c, [(0, mix_of(CHAT))], objective)[0]]


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    found, refused = candidates([SMALL, LARGE], [PROFILE], ONE_GPU)
    assert [c.model.name for c in found] == [SMALL.name]
    assert "does not fit" in refused[0].reason


def test_a_tighter_objective_never_serves_more() -> None:
    rates = []
    for itl_s in (0.008, 0.02, 0.05, 0.2):
        (best,) = operating(Objective(itl_s=itl_s))
        assert best.point.itl_s <= itl_s
        rates.append(best.point.rate)
    assert rates == sorted(rates)


def test_an_objective_below_a_single_request_is_missed_by_how_much() -> None:
    (candidate,), _ = candidates([SMALL], [PROFILE], ONE_GPU)
    done, (missed,) = evaluate(candidate, [(0, mix_of(CHAT))], Objective(itl_s=1e-3))
    assert not done
    assert missed.what == "itl_s"
    assert 1e-3 < missed.value < 0.1


def test_lower_power_limits_draw_less_and_serve_no_more() -> None:
    limits = replace(ONE_GPU, power_limits_w=(None, 500.0, 400.0, 100.0))
    found = operating(Objective(), limits)
    assert [o.deployment.power_limit_w for o in found] == [None, 500.0, 400.0]
    assert all(a.point.rate >= b.point.rate for a, b in pairwise(found))
    for o in found:
        limit_w = o.deployment.power_limit_w or PROFILE.gpu.power_limit_w
        assert o.idle_w < o.point.power_w <= o.most_w * (1 + 1e-9) <= limit_w * 1.001


@pytest.mark.parametrize(
    ("name", "tensor", "experts"),
    [
        ("Qwen3-8B", 1, False),
        ("Qwen3-8B", 2, False),
        ("Qwen3-8B", 4, False),
        ("Mixtral-8x7B-Instruct-v0.1", 2, False),
        ("Mixtral-8x7B-Instruct-v0.1", 2, True),
    ],
)
def test_the_price_of_a_step_is_that_of_a_prediction(name: str, tensor: int, experts: bool) -> None:
    # Joules are of all GPUs of the replica, in both.
    model = find_model(name)[0]
    deployment = Deployment(tensor_parallel_size=tensor, enable_expert_parallel=experts)
    profile = PROFILE if PROFILE.fabric is not None else with_fabric(PROFILE)
    table = step_table(model, deployment, profile, COARSE)
    assert table is not None
    n, decode = 64, 129
    one = Workload(bins=(Bin(input_tokens=512, output_tokens=decode, count=n),))
    alone = replace(one, bins=(replace(one.bins[0], output_tokens=1),))
    whole = predict(model, deployment, one, profile)
    prefill = predict(model, deployment, alone, profile)
    none = np.zeros(1)
    context = np.array([512 + (decode - 1) / 2])
    seconds, joules = pricer(table)(np.array([float(n)]), context, none, none)
    assert (decode - 1) * float(seconds[0]) == pytest.approx(
        whole.duration_s - prefill.duration_s, rel=0.02
    )
    assert (decode - 1) * float(joules[0]) == pytest.approx(
        whole.energy_j - prefill.energy_j, rel=0.03
    )


def test_dominated_candidates_are_dropped() -> None:
    (best,) = operating(Objective())
    worse = replace(best, point=replace(best.point, rate=0.5 * best.point.rate))
    assert pareto([worse, best, best]) == [best]
    elsewhere = replace(worse, demand=1)
    assert pareto([elsewhere, best]) == [elsewhere, best]


def test_idle_power_is_a_fixed_point() -> None:
    p = PROFILE.power
    watts = idle_power_w(PROFILE)
    temperature_c = p.ambient_c.value + p.c_per_w.value * watts
    expected_w = p.static_w.value + p.static_w_per_c.value * temperature_c
    assert watts == pytest.approx(expected_w, rel=1e-3)
