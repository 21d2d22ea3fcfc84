"""Intervals: what they are made of adds up, and their ends hold what they say of boards and errors."""

import math
from dataclasses import replace

import numpy as np
import pytest
from fabric_builders import estimate, with_fabric
from hypothesis import given
from hypothesis import strategies as st

from energymodel import profile as profiles
from energymodel.costs import planned, step_costs
from energymodel.deployment import Deployment
from energymodel.find_model import find_model
from energymodel.profile import Profile, Spread
from energymodel.uncertainty import Sources, boards, ends, sources
from energymodel.workload import Bin, Workload

PROFILE = profiles.load("h200")
MODEL = find_model("Qwen3-8B")[0]


def sources_of(profile: Profile, deployment: Deployment | None = None) -> tuple[Sources, Sources]:
    deployment = deployment or Deployment()
    load = Workload(bins=(Bin(input_tokens=300, output_tokens=40, count=16),))
    served, schedule = planned(MODEL, deployment, load, profile.gpu)
    costs = step_costs(MODEL, deployment, served, schedule, profile)
    return sources(costs, schedule.steps.weight, profile)


def with_errors(energy: float, time: float) -> Profile:
    """The profile with the same held-out errors of all operations."""
    operations = {
        name: replace(op, energy_error=energy, time_error=time)
        for name, op in PROFILE.operations.items()
    }
    return replace(PROFILE, operations=operations)


def test_variances_add_up() -> None:
    of = Sources(coefficients=0.03, operations=0.04, boards=0.12, outside=0.5)
    spread = Spread(model=0.84, outside=0.0, inner=1.0, outer=1.0)
    assert of.scale(spread) == pytest.approx(0.85)  # 3, 4, 12, 84: 85
    lone = Sources(coefficients=0.0, operations=0.0, boards=0.0, outside=0.5)
    assert lone.scale(replace(spread, model=0.0, outside=0.3)) == pytest.approx(0.15)


def test_errors_of_operations_count_by_their_shares() -> None:
    energy, duration = sources_of(with_errors(0.1, 0.0))
    # Independent errors of many operations: less than that of one, more than nothing.
    assert 0.02 < energy.operations < 0.1
    assert 0 < duration.operations < 0.1
    twice = sources_of(with_errors(0.2, 0.0))[0]
    assert twice.operations == pytest.approx(2 * energy.operations)
    assert sources_of(with_errors(0.0, 0.0))[0].operations == 0.0
    by_time = sources_of(with_errors(0.0, 0.1))
    # Energy at full clock follows the time only by static power and what a busy SM draws.
    assert by_time[0].operations < by_time[1].operations


def test_one_coefficient_alone_carries_its_share() -> None:
    gemm = PROFILE.operations["gemm"]
    covariance = gemm.energy_covariance
    assert covariance is not None
    size = len(covariance.names)
    at = covariance.names.index("weight_byte_j")
    matrix = tuple(tuple(0.01 if i == j == at else 0.0 for j in range(size)) for i in range(size))
    operations = {n: replace(op, energy_covariance=None) for n, op in PROFILE.operations.items()}
    operations["gemm"] = replace(gemm, energy_covariance=replace(covariance, matrix=matrix))
    energy, _ = sources_of(replace(PROFILE, operations=operations))
    # A tenth of the energy of bytes through the SMs, which is less than all energy.
    assert 0.005 < energy.coefficients < 0.1


def test_what_a_busy_collective_draws_errs_with_its_time() -> None:
    plain = with_fabric(with_errors(0.0, 0.0))
    assert plain.fabric is not None
    links = replace(
        plain.fabric,
        collectives=tuple(
            replace(c, time_error=0.1, energy_error=0.0) for c in plain.fabric.collectives
        ),
    )
    idle = replace(
        links, collectives=tuple(replace(c, busy_w=estimate(0.0)) for c in links.collectives)
    )
    two = Deployment(tensor_parallel_size=2)
    busy, none = (sources_of(replace(plain, fabric=f), two)[0].operations for f in (links, idle))
    # Static power of about 120 W, and 100 W more while a collective runs.
    assert 1.5 < busy / none < 1.85


def test_boards_come_from_the_profile() -> None:
    accuracy = replace(PROFILE.accuracy, board_energy=0.011, board_duration=0.007)
    energy, duration = sources_of(replace(PROFILE, accuracy=accuracy))
    assert (energy.boards, duration.boards) == (0.011, 0.007)


# --- ends -----------------------------------------------------------------------------------------

widths = st.floats(0.005, 0.5)


@given(outer=widths, share=st.floats(0.4, 0.95))
def test_on_one_kind_of_board_the_ends_are_the_half_width(outer: float, share: float) -> None:
    low, high = ends(outer, share * outer)
    assert [low, high] == pytest.approx([-outer, outer])


@given(outer=widths, share=st.floats(0.4, 0.95))
def test_kinds_far_apart_leave_out_a_tenth_of_each(outer: float, share: float) -> None:
    inner, far = share * outer, 10.0
    low, high = ends(outer, inner, [(0.0, 0.5), (far, 0.5)])
    assert low == pytest.approx(-inner, rel=1e-6)
    assert high == pytest.approx(far + inner, rel=1e-6)


@given(outer=widths, shift=st.floats(-0.3, 0.3), share=st.floats(0.0, 1.0))
def test_ends_stay_between_those_of_the_kinds(outer: float, shift: float, share: float) -> None:
    low, high = ends(outer, 0.7 * outer, [(0.0, 1.0 - share), (shift, share)])
    near = 1e-6
    assert min(0.0, shift) - outer - near <= low < high <= max(0.0, shift) + outer + near


def test_simulated_errors_are_held() -> None:
    random = np.random.default_rng(0)
    kinds = [(0.0, 0.6), (0.1, 0.4)]
    errors = random.laplace(0.0, 0.02, 200_000)  # a tail of probabilities that halve, as assumed
    outer, inner = (float(np.quantile(abs(errors), level)) for level in (0.9, 0.8))
    low, high = ends(outer, inner, kinds)
    shifted = errors + np.where(random.random(len(errors)) < kinds[1][1], kinds[1][0], 0.0)
    assert np.mean((shifted >= low) & (shifted <= high)) == pytest.approx(0.9, abs=0.01)


def test_boards_are_shared_out_by_their_number() -> None:
    first, second = PROFILE.memory
    mixed = replace(
        PROFILE, memory=(replace(first, boards=("a", "b", "c")), replace(second, boards=("d",)))
    )
    assert boards((1.0, math.e), mixed) == [(0.0, 0.75), (pytest.approx(1.0), 0.25)]
    assert boards((1.0,), mixed) == [(0.0, 1.0)]
