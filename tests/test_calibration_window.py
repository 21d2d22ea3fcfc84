import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.clock import VirtualClock
from calibration.sensors import Reading
from calibration.simulation.gpu import SimulatedGpu, SimulatedOp, SimulatedSensor
from calibration.watch import Trace, Watcher
from calibration.window import Window, WindowRefused, Work, burst_time_s, steady_window
from energymodel.errors import WorkError

MATRIX = SimulatedOp(time_s=615e-6, power_w=850.0)
STREAM = SimulatedOp(time_s=20e-6, power_w=300.0, clock_bound=0.1, memory_share=0.5)


def reading(time_s: float, clock_hz: float = 1e9, reasons: int = 0) -> Reading:
    return Reading(
        time_s=time_s, sm_clock_hz=clock_hz, temperature_c=40.0, throttle_reasons=reasons
    )


def measure(gpu: SimulatedGpu, op: SimulatedOp = MATRIX, **how: float) -> Window:
    sensor = SimulatedSensor(gpu)
    options = {"settle_s": 0.35} | how
    return steady_window(sensor, sensor.work(op), clock=sensor.clock, **options)


# Trace -----------------------------------------------------------------------------------------

TRACE = Trace(tick_s=[1.0, 1.1, 1.2, 1.4], tick_j=[100.0, 110.0, 130.0, 140.0])


def test_energy_is_interpolated_between_ticks() -> None:
    assert TRACE.energy_between(1.0, 1.4) == pytest.approx(40.0)
    assert TRACE.energy_between(1.05, 1.3) == pytest.approx(5.0 + 20.0 + 5.0)


@pytest.mark.parametrize(("start", "end"), [(0.9, 1.2), (1.0, 1.5)])
def test_energy_outside_the_ticks_is_refused(start: float, end: float) -> None:
    with pytest.raises(ValueError, match="outside the ticks"):
        TRACE.energy_between(start, end)


def test_energy_without_ticks_is_refused() -> None:
    with pytest.raises(ValueError, match="outside the ticks"):
        Trace().energy_between(0.0, 1.0)


@given(st.floats(1.0, 1.4), st.floats(1.0, 1.4), st.floats(1.0, 1.4))
def test_energy_adds_up(a: float, b: float, c: float) -> None:
    a, b, c = sorted((a, b, c))
    parts = TRACE.energy_between(a, b) + TRACE.energy_between(b, c)
    assert parts == pytest.approx(TRACE.energy_between(a, c), abs=1e-9)


def test_ticks_between() -> None:
    assert TRACE.ticks_between(1.0, 1.4) == (1.0, 1.4, 3)
    assert TRACE.ticks_between(1.01, 1.39) == (1.1, 1.2, 1)
    assert TRACE.ticks_between(1.11, 1.3) == (1.11, 1.3, 0)


def test_a_window_does_not_end_on_a_tick_that_was_seen_late() -> None:
    within_s = [0.005, 0.006, 0.005, 0.004, 0.090]
    trace = Trace(tick_s=[1.0, 1.1, 1.2, 1.3, 1.4], tick_j=[0.0] * 5, within_s=within_s)
    assert trace.ticks_between(0.0, 2.0) == (1.0, 1.3, 3)


def test_readings_of_an_interval() -> None:
    trace = Trace(readings=[reading(0.0, 9e9, 0x40), reading(1.0, 1e9, 0x4), reading(2.0, 2e9, 1)])
    assert trace.clock_hz(0.5, 2.5) == 1.5e9
    assert trace.temperature_c(0.5, 2.5) == 40.0
    assert trace.throttle_reasons(0.5, 2.5) == 0x5
    assert math.isnan(trace.clock_hz(3.0, 4.0))
    assert math.isnan(trace.temperature_c(3.0, 4.0))


# Clock and watcher -----------------------------------------------------------------------------


def test_threads_of_a_virtual_clock_take_turns_in_order_of_time() -> None:
    clock, seen = VirtualClock(), []

    def beside() -> None:
        for _ in range(3):
            clock.sleep(2.0)
            seen.append(("beside", clock.now()))

    join = clock.spawn(beside)
    for _ in range(2):
        clock.sleep(3.0)
        seen.append(("caller", clock.now()))
    join()
    # Two at the same moment: whoever asked first.
    assert seen == [
        ("beside", 2.0), ("caller", 3.0), ("beside", 4.0), ("caller", 6.0), ("beside", 6.0),
    ]  # fmt: skip


def test_watcher_sees_ticks_and_readings() -> None:
    sensor = SimulatedSensor(SimulatedGpu(static_power_w=100.0, energy_read_s=4e-3))
    watcher = Watcher(sensor, sensor.clock)
    with watcher as trace:
        watcher.wait_for_tick(1.0)
    assert trace.tick_s[:10] == pytest.approx([0.1 * i for i in range(1, 11)], abs=4e-3)
    assert trace.tick_j[:10] == pytest.approx([10.0 * i for i in range(1, 11)])
    assert max(trace.within_s) == pytest.approx(8e-3)
    gaps = [b.time_s - a.time_s for a, b in zip(trace.readings, trace.readings[1:], strict=False)]
    assert max(gaps) <= 0.0101
    # Once the period is known, the counter is left alone for most of it.
    assert sum(gap > 0.009 for gap in gaps) >= 8 * 7


def test_waiting_for_a_tick_that_never_comes_ends() -> None:
    sensor = SimulatedSensor(SimulatedGpu(counter_works=False))
    watcher = Watcher(sensor, sensor.clock)
    with watcher as trace:
        watcher.wait_for_tick(0.0, timeout_s=1.0)
    assert trace.tick_s == []
    assert sensor.clock.now() == pytest.approx(1.0, abs=0.02)


class LostSensor(SimulatedSensor):
    def energy_j(self) -> float:
        if self.clock.now() > 0.5:
            raise OSError("GPU is lost")
        return super().energy_j()


def test_a_sensor_that_fails_is_reported_to_the_caller() -> None:
    sensor = LostSensor()
    with pytest.raises(WorkError, match=r"stopped answering: GPU is lost\.$"):
        steady_window(sensor, sensor.work(MATRIX), window_s=1.1, settle_s=0.3, clock=sensor.clock)


# Window ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [MATRIX, STREAM])
@pytest.mark.parametrize("duty", [1.0, 0.8, 0.5, 0.2])
@pytest.mark.parametrize(("read_s", "window_s"), [(0.0, 0.0), (4e-3, 3.3)])
def test_declared_coefficients_come_back(
    op: SimulatedOp, duty: float, read_s: float, window_s: float
) -> None:
    gpu = SimulatedGpu(energy_read_s=read_s)
    window = measure(gpu, op, window_s=window_s, duty=duty)
    x = gpu.clock(op, static_w=gpu.static_power_w, busy=duty)
    net_j = window.energy_j - gpu.static_power_w * window.duration_s
    assert net_j / window.calls == pytest.approx(gpu.call_j(op, x), rel=5e-3)
    assert window.call_s == pytest.approx(op.seconds(x), rel=1e-4)
    assert window.sm_clock_hz == pytest.approx(x * gpu.max_sm_clock_hz, rel=1e-4)
    assert window.busy_s / window.duration_s == pytest.approx(duty, rel=0.02)
    assert window.duration_s == pytest.approx(max(window_s, 1.0), abs=0.11)
    assert window.temperature_c == pytest.approx(gpu.temperature_c)


def test_gross_energy_per_call() -> None:
    window = measure(SimulatedGpu(power_limit_w=2000.0))
    gross_j = (120.0 + MATRIX.power_w) * MATRIX.time_s
    assert window.energy_j / window.calls == pytest.approx(gross_j, rel=5e-3)
    assert window.throttle_reasons == 0


def test_the_power_limit_lowers_the_clock_and_is_recorded() -> None:
    window = measure(SimulatedGpu(power_limit_w=500.0, limit_share=0.98))
    assert window.energy_j / window.duration_s == pytest.approx(490.0, rel=5e-3)
    assert window.sm_clock_hz < 1.6e9
    assert window.throttle_reasons == 0x4


def test_memory_power_is_that_of_the_busy_share() -> None:
    window = measure(SimulatedGpu(), STREAM, duty=0.5)
    assert window.memory_power_w == pytest.approx(40.0 + 0.5 * 0.5 * 300.0, rel=0.02)


@pytest.mark.parametrize("tick_s", [0.02, 0.1, 0.25, 1.0])
def test_a_window_ends_with_its_last_tick(tick_s: float) -> None:
    sensor = SimulatedSensor(SimulatedGpu(tick_s=tick_s))
    window = steady_window(sensor, sensor.work(STREAM), settle_s=0.3, clock=sensor.clock)
    assert window.ticks >= 10
    assert window.duration_s == pytest.approx(max(10 * tick_s, 0.9), abs=0.05)
    # It waits for a first tick, and ends soon after the last.
    assert sensor.clock.now() < 0.3 + tick_s + window.duration_s + 0.05


def test_a_window_can_be_asked_to_hold_fewer_ticks() -> None:
    assert measure(SimulatedGpu(), min_ticks=4, window_s=0.0).ticks == 4


def test_chunks_longer_than_the_settling_are_counted_from_the_first_end() -> None:
    slow = SimulatedOp(time_s=0.7, power_w=300.0)
    window = measure(SimulatedGpu(), slow)
    net_j = window.energy_j - 120.0 * window.duration_s
    assert net_j / window.calls == pytest.approx(slow.time_s * slow.power_w, rel=0.01)


def test_a_busy_host_that_sees_ticks_late_costs_no_accuracy() -> None:
    class Stalling(SimulatedSensor):
        def reading(self, time_s: float) -> Reading:
            # Once in a while the watcher gets no turn for 60 ms.
            if int(self.clock.now() * 100) % 37 == 0:
                self.clock.sleep(0.06)
            return super().reading(time_s)

    sensor = Stalling(SimulatedGpu(power_limit_w=2000.0))
    window = steady_window(sensor, sensor.work(MATRIX), settle_s=0.3, clock=sensor.clock)
    power_w = window.energy_j / window.duration_s
    assert power_w == pytest.approx(120.0 + MATRIX.power_w, rel=0.01)


# Bursts ----------------------------------------------------------------------------------------


def test_bursts_run_at_full_clock() -> None:
    sensor = SimulatedSensor()
    call_s, spread_s = burst_time_s(sensor.work(MATRIX), clock=sensor.clock, sensor=sensor)
    assert call_s == pytest.approx(MATRIX.time_s)
    assert spread_s == pytest.approx(0.0, abs=1e-9)


def test_simulated_work_takes_the_same_path_every_time() -> None:
    first = measure(SimulatedGpu(), duty=0.4)
    assert measure(SimulatedGpu(), duty=0.4) == first


# Refusals (those of faults that come and go are in test_faults.py) -------------------------------


@pytest.mark.parametrize(("reason", "source"), [(0x20, "software"), (0x40, "hardware")])
def test_thermal_slowdown_is_refused(reason: int, source: str) -> None:
    gpu = SimulatedGpu(thermal_reasons=reason, temperature_c=91.0)
    with pytest.raises(WindowRefused, match=rf"990 MHz for thermal reasons \({source}, at 91 C\)"):
        measure(gpu)
    sensor = SimulatedSensor(gpu)
    with pytest.raises(WindowRefused, match="thermal reasons"):
        burst_time_s(sensor.work(MATRIX), clock=sensor.clock, sensor=sensor)


def test_a_counter_that_stands_still_is_refused_after_the_timeout() -> None:
    sensor = SimulatedSensor(SimulatedGpu(counter_works=False))
    with pytest.raises(WindowRefused, match="did not move"):
        steady_window(sensor, sensor.work(MATRIX), settle_s=0.3, clock=sensor.clock, timeout_s=2)
    assert sensor.clock.now() == pytest.approx(2.0, abs=0.1)


def test_a_counter_too_coarse_for_its_reads_is_refused() -> None:
    gpu = SimulatedGpu(energy_read_s=0.09)
    with pytest.raises(WindowRefused, match="keep the host less busy"):
        measure(gpu, min_ticks=3, window_s=0.0)


def test_power_that_no_board_draws_is_refused() -> None:
    gpu = SimulatedGpu(power_limit_w=300.0, limit_share=2.0)
    with pytest.raises(
        WindowRefused, match=r"rose by 6\d\d W, which a board with a limit of 300 W"
    ):
        measure(gpu)


def test_work_that_draws_unevenly_is_refused() -> None:
    sensor = SimulatedSensor(SimulatedGpu(power_limit_w=2000.0))
    hot, cold = sensor.work(MATRIX), sensor.work(STREAM)

    def submit() -> Callable[[], float]:
        return (hot if sensor.clock.now() % 0.9 < 0.5 else cold).submit()

    switched = Work(submit=submit, calls_per_chunk=1)
    with pytest.raises(WindowRefused, match=r"unevenly, by \d+ W once and \d+ W otherwise"):
        steady_window(sensor, switched, settle_s=0.3, clock=sensor.clock)
