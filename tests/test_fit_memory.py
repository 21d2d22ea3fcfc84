"""What a byte costs in the memories of boards that are not alike."""

from dataclasses import replace

import numpy as np
import pytest
from report_builders import CAP_W, HBM_BYTE_J, components, world

from calibration.fit_memory import fit_memory
from calibration.fit_power import cross_validate
from calibration.tables import table
from energymodel.profile import Estimate

BOARDS = dict.fromkeys(("a", "b", "c"), 0.0)
HUNGRY = {"c": 1.75 * HBM_BYTE_J}


def test_boards_that_are_alike_share_one_memory() -> None:
    memory = fit_memory([table("gemm", world(boards=BOARDS))])
    (kind,) = memory.kinds
    assert kind.boards == ("a", "b", "c")
    assert kind.byte_j.value == pytest.approx(HBM_BYTE_J, rel=0.02)
    assert memory.over_usual("c") == 1.0


def test_a_board_with_another_memory_is_a_kind_of_its_own() -> None:
    memory = fit_memory([table("gemm", world(boards=BOARDS, memory=HUNGRY))])
    usual, hungry = memory.kinds
    assert (usual.boards, hungry.boards) == (("a", "b"), ("c",))
    assert usual.byte_j.value == pytest.approx(HBM_BYTE_J, rel=0.02)
    assert hungry.byte_j.value == pytest.approx(1.75 * HBM_BYTE_J, rel=0.02)
    assert memory.over_usual("a") == memory.over_usual("never seen") == 1.0
    assert memory.over_usual("c") == pytest.approx(1.75, rel=0.03)


def test_the_rest_of_the_energy_is_fitted_as_if_all_boards_had_the_usual_memory() -> None:
    alike = components(world(boards=BOARDS)).names["gemm"].power.energy
    mixed = components(world(boards=BOARDS, memory=HUNGRY)).names["gemm"]
    for name in ("flop_j", "weight_byte_j", "busy_w"):
        assert mixed.power.energy[name].value == pytest.approx(alike[name].value, rel=0.05), name
    # Had the memory been taken for the usual, a third of the boards would be 10 % off.
    found = components(world(boards=BOARDS, memory=HUNGRY))
    one = Estimate(value=1.0, stderr=0.05, unit="1")
    told, _ = cross_validate(mixed.windows, found.hbm_byte_j, one, CAP_W)
    assert abs(told[np.isfinite(told)]).max() < 0.03


def test_without_the_sensor_a_byte_costs_nothing_of_its_own() -> None:
    memory = fit_memory([])
    assert memory.usual.value == 0.0
    assert memory.over_usual("a") == 1.0


def test_a_board_seen_little_is_given_to_the_memory_that_it_is_closest_to() -> None:
    full = world(boards=BOARDS, memory=HUNGRY)
    few = world(boards={"d": 0.0}, memory={"d": HUNGRY["c"]})
    memory = fit_memory([table("gemm", (*full, *few[: len(few) // 3]))])
    assert [kind.boards for kind in memory.kinds] == [("a", "b"), ("c", "d")]


def test_points_that_tell_of_no_line_give_no_price() -> None:
    seen = tuple(o for o in world() if o.mode == "sustained")
    t = table("gemm", seen)
    rate = t.hbm_bytes / np.array([o.call_s for o in seen])
    falling = tuple(
        replace(o, memory_power_w=150.0 - 20 * r / rate.max())
        for o, r in zip(seen, rate, strict=True)
    )
    assert fit_memory([replace(t, observations=falling)]).usual.value == 0.0
