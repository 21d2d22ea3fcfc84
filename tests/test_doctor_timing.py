import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.clock import VirtualClock
from calibration.doctor.facts import throttle_names
from calibration.doctor.finding import finding, verdict
from calibration.doctor.timing import (
    Series,
    Source,
    counter_power_w,
    describe,
    poll,
    rise_s,
    went_back,
)


def series(*points: tuple[float, float]) -> Series:
    return Series(
        time_s=[t for t, _ in points],
        value=[v for _, v in points],
        cost_s=[1e-3] * len(points),
    )


STAIRS = series((0.0, 1.0), (0.1, 1.0), (0.2, 3.0), (0.3, 3.0), (0.4, 5.0), (0.5, 5.0))


def test_changes_lie_between_two_reads() -> None:
    moments, values = zip(*STAIRS.changes(), strict=True)
    assert moments == pytest.approx((0.15, 0.35))
    assert values == (3.0, 5.0)
    assert counter_power_w(STAIRS) == pytest.approx((0.15, 0.35, 10.0))
    assert counter_power_w(series((0.0, 1.0), (0.1, 2.0))) is None


def test_the_mean_is_over_time_not_over_reads() -> None:
    uneven = series((0.0, 2.0), (0.1, 2.0), (1.1, 4.0))
    assert uneven.mean_between(0.0, 2.0) == pytest.approx((0.1 * 2 + 1.0 * 3) / 1.1)
    assert uneven.mean_between(0.05, 0.15) is None


def test_a_step_is_timed_from_a_tenth_to_nine_tenths() -> None:
    ramp = series(*((0.01 * i, 100.0 + i) for i in range(101)))
    assert rise_s(ramp, 100.0, 200.0) == pytest.approx(0.8)
    assert rise_s(ramp, 100.0, 110.0) is None  # hardly a step
    assert rise_s(ramp, 0.0, 200.0) is None  # it began before
    assert rise_s(ramp, 100.0, 300.0) is None  # it did not get there
    assert rise_s(Series(), 100.0, 200.0) is None


def test_a_missed_update_does_not_lengthen_the_period() -> None:
    values = [6.0 if i == 7 else float(i) for i in range(20)]  # the same value twice
    run = series(*((0.1 * i + d, v) for i, v in enumerate(values) for d in (0.0, 0.05)))
    facts = describe("W", [run])
    assert facts.update_period_s == pytest.approx(0.1)
    assert facts.updates == 18


@given(st.lists(st.integers(1, 400), min_size=3, max_size=30), st.sampled_from([1, 5, 100]))
def test_the_quantum_divides_every_step(steps: list[int], quantum_mw: int) -> None:
    value_mw, points = 0, [(0.0, 0.0)]
    for i, step in enumerate(steps):
        value_mw += step * quantum_mw
        points.append((0.1 * (i + 1), value_mw * 1e-3))
    facts = describe("J", [series(*points)])
    assert facts.smallest_step_j == pytest.approx(min(steps) * quantum_mw * 1e-3)
    assert facts.quantum_j is not None
    found_mw = round(facts.quantum_j * 1e3)
    assert found_mw % quantum_mw == 0
    assert all(step * quantum_mw % found_mw == 0 for step in steps)
    assert (facts.quantum_w, facts.smallest_step_w) == (None, None)


def test_a_constant_reading_has_no_period() -> None:
    facts = describe("W", [series((0.0, 5.0), (0.1, 5.0))])
    assert (facts.supported, facts.reads, facts.updates) == (True, 2, 0)
    assert (facts.update_period_s, facts.quantum_w) == (None, None)
    assert not describe("W", [Series(failed="lost")]).supported


def test_polling_leaves_a_failed_source_alone() -> None:
    clock, asked = VirtualClock(), []

    def fails() -> float:
        asked.append(clock.now())
        if len(asked) > 2:
            raise OSError("GPU is\nlost")
        return 1.0

    beats: list[float] = []
    sources = (
        Source(name="a", unit="W", read=clock.now),
        Source(name="b", unit="W", read=fails),
    )
    found = poll(sources, 1.0, clock, lambda: beats.append(clock.now()))
    assert len(asked) == 3
    assert (len(found["b"].value), found["b"].failed) == (2, "GPU is lost")
    assert (found["a"].failed, clock.now()) == (None, pytest.approx(1.0, abs=2e-3))
    assert len(found["a"].value) > 900
    assert len(beats) == 6


def test_a_counter_that_falls_is_seen() -> None:
    assert not went_back(STAIRS)
    assert went_back(series((0.0, 2.0), (0.1, 1.0)))


def test_throttle_reasons_in_words() -> None:
    assert throttle_names(0) == ()
    assert throttle_names(0x4 | 0x40) == ("power limit", "hardware thermal slowdown")
    assert throttle_names(0x1 | 0x1000) == ("idle", "0x1000")


def test_the_worst_finding_decides() -> None:
    ok, note, warning, problem = (
        finding(level, "w", "m") for level in ("ok", "note", "warning", "problem")
    )
    assert verdict([]) == verdict([ok, note]) == "trustworthy"
    assert verdict([note, warning]) == "with care"
    assert verdict([warning, problem, ok]) == "not usable"
