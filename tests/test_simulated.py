"""The simulated GPU obeys what it declares: the equations are checked against ``energymodel``."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration import grid
from calibration.fit_time import START
from calibration.grid import Point
from calibration.simulation.gpu import SimulatedGpu, SimulatedOp, SimulatedSensor
from calibration.simulation.timeline import Thermal, Timeline
from calibration.simulation.truth import declared, law
from calibration.window import Window, steady_window
from energymodel import hardware, laws
from energymodel.power import StepLoad, limited_clock, mean_power_w

MATRIX = SimulatedOp(time_s=615e-6, power_w=850.0, clock_bound=0.8, memory_share=0.1)
TRUTH = declared(hardware.load("h200"))


def load(op: SimulatedOp) -> StepLoad:
    return StepLoad(
        fixed_s=np.array([op.time_s * (1 - op.clock_bound)]),
        clocked_s=np.array([op.time_s * op.clock_bound]),
        core_j=np.array([op.core_j(1.0, 1.0)]),
        hbm_j=np.array([op.hbm_j()]),
    )


def measure(gpu: SimulatedGpu, op: SimulatedOp, duty: float = 1.0) -> Window:
    sensor = SimulatedSensor(gpu)
    return steady_window(sensor, sensor.work(op), settle_s=0.3, duty=duty, clock=sensor.clock)


# Clock and energy --------------------------------------------------------------------------------


@given(
    st.builds(
        SimulatedOp,
        time_s=st.floats(1e-6, 1e-2),
        power_w=st.floats(0.0, 1200.0),
        clock_bound=st.floats(0.0, 1.0),
        memory_share=st.floats(0.0, 0.3),
    ),
    st.floats(300.0, 1000.0),
    st.floats(1.0, 3.0),
)
def test_the_clock_is_what_the_model_of_power_solves_for(
    op: SimulatedOp, limit_w: float, exponent: float
) -> None:
    gpu = SimulatedGpu(power_limit_w=limit_w, limit_share=0.99, exponent=exponent)
    x = gpu.clock(op, static_w=120.0)
    assert x == pytest.approx(limited_clock(load(op), 120.0, exponent, 0.99 * limit_w)[0], rel=1e-5)


def test_a_window_at_the_limit_is_what_the_model_of_power_says() -> None:
    gpu = SimulatedGpu(exponent=1.4, limit_share=0.98)
    window = measure(gpu, MATRIX)
    x = limited_clock(load(MATRIX), 120.0, 1.4, 0.98 * 700.0)
    assert x[0] < 0.9
    power_w = mean_power_w(load(MATRIX), x, 120.0, 1.4)[0]
    assert window.energy_j / window.duration_s == pytest.approx(power_w, rel=5e-3)
    assert window.call_s == pytest.approx(MATRIX.seconds(x[0]), rel=1e-4)
    assert window.sm_clock_hz == pytest.approx(x[0] * gpu.max_sm_clock_hz, rel=1e-4)


def test_memory_power_does_not_follow_the_clock() -> None:
    gpu = SimulatedGpu()
    window = measure(gpu, MATRIX)
    expected_w = gpu.memory_idle_power_w + MATRIX.hbm_j() / window.call_s
    assert window.memory_power_w == pytest.approx(expected_w, rel=0.01)


def test_boards_differ_by_the_declared_factor() -> None:
    first, second = SimulatedGpu(power_limit_w=2e3), SimulatedGpu(power_limit_w=2e3, board="other")
    second = replace(second, board_factor=1.03)
    energies = [w.energy_j / w.calls for w in (measure(g, MATRIX) for g in (first, second))]
    assert energies[1] / energies[0] == pytest.approx(1.03, rel=2e-3)
    assert SimulatedSensor(second).identity().board == "other"


# Heat --------------------------------------------------------------------------------------------

THERMAL = Thermal(static_w=90.0, static_w_per_c=0.7, ambient_c=30.0, c_per_w=0.04, settling_s=5.0)


def test_heat_and_energy_are_those_of_small_steps() -> None:
    line = Timeline(THERMAL, 1e9)
    temperature_c, energy_j, step_s = THERMAL.settled_c(0.0), 0.0, 1e-4
    for i in range(40):
        line.add(0.2 * i, 0.2 * i + 0.15, work_w=400.0, memory_w=0.0, clock_hz=1e9)
    for i in range(round(10.0 / step_s)):
        time_s = i * step_s
        work_w = 400.0 if time_s < 8.0 and time_s % 0.2 < 0.15 else 0.0
        power_w = THERMAL.power_w(temperature_c) + work_w
        energy_j += power_w * step_s
        settled_c = THERMAL.ambient_c + THERMAL.c_per_w * power_w
        temperature_c += (settled_c - temperature_c) / THERMAL.settling_s * step_s
    assert line.energy_j(10.0) == pytest.approx(energy_j, rel=2e-4)
    assert line.temperature_c(10.0) == pytest.approx(temperature_c, abs=0.05)


def test_a_gpu_that_works_gets_warm_and_draws_more() -> None:
    sensor = SimulatedSensor(TRUTH.simulated_gpu(noisy=False))
    work = sensor.work(SimulatedOp(time_s=1e-3, power_w=300.0))
    windows = [steady_window(sensor, work, settle_s=s, clock=sensor.clock) for s in (0.2, 60.0)]
    cold, warm = windows
    assert warm.temperature_c > cold.temperature_c + 5.0
    extra_w = warm.energy_j / warm.duration_s - cold.energy_j / cold.duration_s
    risen_c = warm.temperature_c - cold.temperature_c
    assert extra_w == pytest.approx(0.7 * risen_c, rel=0.25)


# Counter and noise -------------------------------------------------------------------------------


def test_the_counter_moves_in_quanta_and_only_with_its_ticks() -> None:
    gpu = SimulatedGpu(quantum_j=5.0, tick_jitter_s=0.03, counter_noise_j=0.3, seed=3)
    sensor = SimulatedSensor(gpu)
    seen, changes_s = [], []
    while sensor.clock.now() < 3.0:
        seen.append(sensor.energy_j())
        if len(seen) > 1 and seen[-1] != seen[-2]:
            changes_s.append(sensor.clock.now())
    assert all(value % 5.0 == 0.0 for value in seen)
    assert seen == sorted(seen)
    assert len(changes_s) == pytest.approx(29, abs=1)
    late_s = np.array(changes_s) % 0.1
    assert np.ptp(late_s) > 0.015
    assert np.all(late_s < 0.03 + 2 * gpu.energy_read_s)


def test_noise_is_that_of_the_seed() -> None:
    gpu = TRUTH.simulated_gpu(seed=5)
    assert measure(gpu, MATRIX, 0.5) == measure(gpu, MATRIX, 0.5)
    assert measure(gpu, MATRIX, 0.5) != measure(replace(gpu, seed=6), MATRIX, 0.5)


def test_preparations_differ_as_declared() -> None:
    sensor = SimulatedSensor(SimulatedGpu(run_noise=0.02))
    times_s = [
        sensor.work(MATRIX).submit()() / sensor.work(MATRIX).calls_per_chunk for _ in range(400)
    ]
    assert np.std(np.log(times_s)) == pytest.approx(0.02, rel=0.1)


# Declared truth ----------------------------------------------------------------------------------


def test_every_point_of_the_grid_has_a_plausible_cost() -> None:
    cost = law(TRUTH)
    for point in (*grid.quick(), *grid.full()):
        op = cost(point)
        assert 1e-7 < op.time_s < 2.0, point.key
        assert 0.0 < op.power_w < 1500.0, point.key
        assert 0.0 <= op.clock_bound <= 1.0, point.key
        assert 0.0 <= op.memory_share < 0.9, point.key


@pytest.mark.parametrize("kind", START)
def test_every_law_is_declared_away_from_where_its_fit_starts(kind: str) -> None:
    found = TRUTH.law(kind)
    assert set(laws.PARAMETERS[kind]) <= found.keys()
    away = [found[name] / value - 1.0 for name, value in START[kind].items()]
    assert max(map(abs, away)) > 0.05
    assert max(map(abs, away)) <= 0.12 + 1e-9


def test_a_product_costs_what_its_coefficients_say() -> None:
    m, n, k = 4096, 8192, 4096
    op = TRUTH.op(Point(op="gemm", shape={"m": m, "n": n, "k": k}))
    energy = TRUTH.energy("gemm")
    moved = 2.0 * (m * k + n * k + m * n)
    core_j = (
        energy["flop_j"] * 2.0 * m * n * k
        + energy["weight_byte_j"] * 2.0 * n * k
        + energy["row_byte_j"] * 2.0 * m * (n + k)
        + energy["busy_w"] * op.time_s
    )
    assert op.core_j(1.0, TRUTH.exponent) == pytest.approx(core_j)
    assert op.hbm_j() == pytest.approx(TRUTH.hbm_byte_j * moved)


def test_narrow_types_are_faster_and_cheaper() -> None:
    assert TRUTH.law("gemm.fp8")["flop_per_s"] > 1.5 * TRUTH.law("gemm")["flop_per_s"]
    assert TRUTH.energy("gemm.fp8")["flop_j"] < 0.7 * TRUTH.energy("gemm")["flop_j"]
