"""Sensors of one GPU polled while it is in a known state, and what they said of its power."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.clock import Clock
from calibration.doctor.facts import (
    CLOCK_SM,
    TEMPERATURE_GPU,
    Asker,
    throttle_bits,
    throttle_names,
)
from calibration.doctor.load import Stream, busy
from calibration.doctor.sensors import (
    AVERAGE,
    COUNTER,
    INSTANT,
    MEMORY,
    MIN_SAMPLES,
    SAMPLES,
    USAGE,
    SampleBuffer,
    sources,
    split,
)
from calibration.doctor.timing import (
    SensorFacts,
    Series,
    counter_power_w,
    describe,
    poll,
    rise_s,
    went_back,
)
from calibration.window import Work

NO_CONTEXT, CONTEXT, LOAD = "no context", "context", "load"


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseFacts:
    """Mean power of a GPU in one state by each sensor, over the same interval; None without it.

    ``counter_power_w`` is between the first and the last update of the energy counter. The
    deviations are those of integrated power from the counter, as fractions.
    """

    state: str
    duration_s: float
    counter_power_w: float | None
    power_instant_w: float | None
    power_samples_w: float | None
    power_usage_w: float | None
    power_average_w: float | None
    memory_power_w: float | None
    instant_deviation: float | None
    samples_deviation: float | None
    sm_clock_hz: float | None
    temperature_c: float | None
    throttle_reasons: tuple[str, ...]
    counter_went_back: bool


class Bedside:
    """One GPU under examination: its sensors, and everything that was polled of them."""

    def __init__(self, nvml: Any, handle: Any, clock: Clock) -> None:
        self.phases: list[PhaseFacts] = []
        self._clock = clock
        self._sources, self._missing = split(sources(nvml, handle))
        self._samples = SampleBuffer(nvml, handle, clock)
        self._asker = Asker(nvml, handle)
        self._runs: dict[str, list[Series]] = {}
        self._sampled: list[Series] = []
        self._rises: dict[str, float | None] = {}

    def rest(self, state: str, duration_s: float) -> PhaseFacts:
        """Poll a GPU on which nothing of ours runs."""
        return self._observe(state, duration_s)

    def work(self, state: str, work: Work, *, settle_s: float, duration_s: float) -> PhaseFacts:
        """Poll a GPU that runs ``work``, after it has settled.

        Raises:
            WorkError: the work failed.
        """
        with busy(work, self._clock):
            onset = poll(self._sources, settle_s, self._clock)
            phase = self._observe(state, duration_s)
        if state == LOAD and len(self.phases) > 1:
            self._note_rises(onset, self.phases[-2], phase)
        return phase

    def stream(
        self, stream: Stream, *, settle_s: float, duration_s: float
    ) -> tuple[float, float | None]:
        """(bytes per second, mean watts of the memory) while ``stream`` runs.

        Raises:
            WorkError: the stream failed.
        """
        memory = [source for source in self._sources if source.name == MEMORY]
        with busy(stream.work, self._clock):
            poll(memory, settle_s, self._clock)
            started_s, before = self._clock.now(), stream.moved_bytes()
            series = poll(memory, duration_s, self._clock)
            passed_s, moved = self._clock.now() - started_s, stream.moved_bytes() - before
        watts = series[MEMORY].mean_between(float("-inf"), float("inf")) if memory else None
        return moved / passed_s, watts

    def sensors(self) -> dict[str, SensorFacts]:
        """How each sensor behaved over all phases."""
        units = {source.name: source.unit for source in self._sources}
        facts = {
            name: describe(units[name], runs, self._rises.get(name))
            for name, runs in self._runs.items()
        }
        return facts | self._missing | {SAMPLES: self._sample_facts()}

    def _observe(self, state: str, duration_s: float) -> PhaseFacts:
        readings: list[tuple[float | None, float | None, int | None]] = []

        def beat() -> None:
            self._samples.fetch()
            clock_hz = self._asker.scaled(1e6, "nvmlDeviceGetClockInfo", CLOCK_SM)
            heat_c = self._asker.scaled(1.0, "nvmlDeviceGetTemperature", TEMPERATURE_GPU)
            readings.append((clock_hz, heat_c, throttle_bits(self._asker)))

        self._samples.restart()
        series = poll(self._sources, duration_s, self._clock, beat)
        self._sampled.append(self._samples.run)
        for name, run in series.items():
            self._runs.setdefault(name, []).append(run)
        phase = _phase(state, duration_s, series, self._samples.run, readings)
        self.phases.append(phase)
        return phase

    def _note_rises(self, onset: dict[str, Series], low: PhaseFacts, high: PhaseFacts) -> None:
        for name in (INSTANT, USAGE, AVERAGE):
            before, after = getattr(low, f"{name}_w"), getattr(high, f"{name}_w")
            if name in onset and before is not None and after is not None:
                self._rises[name] = rise_s(onset[name], before, after)

    def _sample_facts(self) -> SensorFacts:
        gaps = [gap for run in self._sampled for gap in np.diff(run.time_s)]
        if len(gaps) < MIN_SAMPLES:
            return SensorFacts(supported=False, reason=self._samples.refused or "no samples")
        values = describe("W", self._sampled)
        return SensorFacts(
            supported=True,
            reason=self._samples.refused,
            reads=len(self._samples.fetch_s),
            read_median_s=float(np.percentile(self._samples.fetch_s, 50)),
            read_p95_s=float(np.percentile(self._samples.fetch_s, 95)),
            updates=len(gaps),
            update_period_s=float(np.percentile(gaps, 50)),
            update_period_p95_s=float(np.percentile(gaps, 95)),
            smallest_step_w=values.smallest_step_w,
            quantum_w=values.quantum_w,
        )


def _phase(
    state: str,
    duration_s: float,
    series: dict[str, Series],
    samples: Series,
    readings: Sequence[tuple[float | None, float | None, int | None]],
) -> PhaseFacts:
    counter = series.get(COUNTER, Series())
    ticks = counter_power_w(counter)
    start_s, end_s, counter_w = ticks or (float("-inf"), float("inf"), None)
    power_w = {name: run.mean_between(start_s, end_s) for name, run in series.items()}
    power_w[SAMPLES] = samples.mean_between(float("-inf"), float("inf"))
    bits = 0
    for _, _, now in readings:
        bits |= now or 0
    return PhaseFacts(
        state=state,
        duration_s=duration_s if ticks is None else end_s - start_s,
        counter_power_w=counter_w,
        power_instant_w=power_w.get(INSTANT),
        power_samples_w=power_w[SAMPLES],
        power_usage_w=power_w.get(USAGE),
        power_average_w=power_w.get(AVERAGE),
        memory_power_w=power_w.get(MEMORY),
        instant_deviation=_deviation(power_w.get(INSTANT), counter_w),
        samples_deviation=_deviation(power_w[SAMPLES], counter_w),
        sm_clock_hz=_mean([clock for clock, _, _ in readings]),
        temperature_c=_mean([heat for _, heat, _ in readings]),
        throttle_reasons=throttle_names(bits),
        counter_went_back=went_back(counter),
    )


def _deviation(integrated_w: float | None, counter_w: float | None) -> float | None:
    return integrated_w / counter_w - 1 if integrated_w is not None and counter_w else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None
