"""The memory-power domain as a second target."""

from dataclasses import replace

import pytest
from report_builders import HBM_BYTE_J, MEMORY_BASE_W, components, world

from calibration.fit_memory import Memory
from calibration.judgement.memory_power import memory_power
from energymodel.profile import Estimate, MemoryKind

HBM_BYTES_PER_S = 4.8e12


def costing(byte_j: float) -> Memory:
    estimate = Estimate(value=byte_j, stderr=0.0, unit="J/B")
    return Memory(kinds=(MemoryKind(byte_j=estimate, boards=("board-a",)),))


def test_what_was_planted_comes_back() -> None:
    seen = world()
    found = components(seen)
    windows = {"gemm": found.names["gemm"].windows}
    m = memory_power(windows, seen, found.memory, HBM_BYTES_PER_S)
    assert m.windows == 30
    assert m.byte_j is not None
    assert m.byte_j.value == pytest.approx(HBM_BYTE_J, rel=0.02)
    assert m.base_w == pytest.approx(MEMORY_BASE_W, rel=0.02)
    assert m.idle_w == MEMORY_BASE_W
    assert m.r2 == pytest.approx(1.0, abs=0.01)
    assert m.median_error is not None
    assert m.median_error < 0.01
    assert m.by_kind["gemm"] == pytest.approx(0.0, abs=0.01)


def test_a_wrong_slope_does_not_pass_the_check() -> None:
    seen = world()
    windows = {"gemm": components(seen).names["gemm"].windows}
    wrong = costing(2 * HBM_BYTE_J)
    m = memory_power(windows, seen, wrong, HBM_BYTES_PER_S)
    assert m.median_error is not None
    assert m.median_error > 0.1
    assert m.r2 is not None
    assert m.r2 < 0.7


def test_without_the_sensor_it_says_so() -> None:
    seen = world()
    w = components(seen).names["gemm"].windows
    blind = tuple(replace(o, memory_power_w=None) for o in w.table.observations)
    blind_windows = replace(w, table=replace(w.table, observations=blind))
    m = memory_power({"gemm": blind_windows}, blind, costing(HBM_BYTE_J), HBM_BYTES_PER_S)
    assert (m.windows, m.byte_j, m.median_error) == (0, None, None)
    assert m.note == "no window recorded the power of the memory"
