"""What a simulated GPU drew and when, with the heat that follows from it, in closed form.

Between two changes of load the power above static ``p`` is constant, static power is
``s0 + s1 T``, and the temperature relaxes towards what the total settles at,

    dT/dt = (ambient + r (s0 + s1 T + p) - T) / tau

which is linear, so temperature and energy at any moment follow exactly.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass

# Phases kept: half a minute of chunks of a few milliseconds, more than any sensor looks back.
KEPT = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Thermal:
    """Static power ``static_w + static_w_per_c T``; ``c_per_w`` (r) and ``settling_s`` (tau)."""

    static_w: float
    static_w_per_c: float
    ambient_c: float
    c_per_w: float
    settling_s: float

    def settled_c(self, work_w: float) -> float:
        """Temperature at which a constant power above static settles."""
        heated_c = self.ambient_c + self.c_per_w * (self.static_w + work_w)
        return heated_c / (1.0 - self.c_per_w * self.static_w_per_c)

    def power_w(self, temperature_c: float) -> float:
        """Static power at a temperature."""
        return self.static_w + self.static_w_per_c * temperature_c


@dataclass(frozen=True, slots=True)
class _Phase:
    """From ``start_s`` on: constant load, and the sums and the temperature at its start."""

    start_s: float
    work_w: float
    memory_w: float
    clock_hz: float
    temperature_c: float
    energy_j: float
    memory_j: float


class Timeline:
    """Phases of constant load in order of time; the last one lasts until something is added."""

    def __init__(self, thermal: Thermal, clock_hz: float) -> None:
        self._thermal = thermal
        self._phases = [_Phase(0.0, 0.0, 0.0, clock_hz, thermal.settled_c(0.0), 0.0, 0.0)]
        self._starts = [0.0]

    def add(
        self, begun_s: float, done_s: float, *, work_w: float, memory_w: float, clock_hz: float
    ) -> None:
        """Work from ``begun_s``, which is not before all other work is done, to ``done_s``."""
        self._begin(begun_s, work_w, memory_w, clock_hz)
        self._begin(done_s, 0.0, 0.0, clock_hz)
        if len(self._starts) > 2 * KEPT:
            del self._starts[:KEPT], self._phases[:KEPT]

    def _begin(self, start_s: float, work_w: float, memory_w: float, clock_hz: float) -> None:
        before = self._phases[-1]
        phase = _Phase(
            start_s,
            work_w,
            memory_w,
            clock_hz,
            self._temperature_c(before, start_s),
            self._energy_j(before, start_s),
            before.memory_j + before.memory_w * (start_s - before.start_s),
        )
        if start_s <= before.start_s:  # the pause before it had no length
            self._phases[-1] = phase
            return
        self._phases.append(phase)
        self._starts.append(start_s)

    @property
    def done_s(self) -> float:
        """When the work that was added is done."""
        return self._starts[-1]

    def energy_j(self, time_s: float) -> float:
        """All energy until ``time_s``."""
        return self._energy_j(self._at(time_s), time_s)

    def memory_j(self, time_s: float) -> float:
        """Energy that work spent in the memory until ``time_s``."""
        phase = self._at(time_s)
        return phase.memory_j + phase.memory_w * (time_s - phase.start_s)

    def temperature_c(self, time_s: float) -> float:
        """Temperature at ``time_s``."""
        return self._temperature_c(self._at(time_s), time_s)

    def clock_hz(self, time_s: float) -> float:
        """Clock of the work that ran last until ``time_s``."""
        return self._at(time_s).clock_hz

    def _at(self, time_s: float) -> _Phase:
        return self._phases[max(bisect_right(self._starts, time_s) - 1, 0)]

    def _rate(self) -> float:
        t = self._thermal
        return (1.0 - t.c_per_w * t.static_w_per_c) / t.settling_s

    def _temperature_c(self, phase: _Phase, time_s: float) -> float:
        settled_c = self._thermal.settled_c(phase.work_w)
        left = math.exp(-self._rate() * (time_s - phase.start_s))
        return settled_c + (phase.temperature_c - settled_c) * left

    def _energy_j(self, phase: _Phase, time_s: float) -> float:
        t, seconds, rate = self._thermal, time_s - phase.start_s, self._rate()
        settled_c = t.settled_c(phase.work_w)
        # Integral of the temperature above where it settles.
        excess = (settled_c - phase.temperature_c) * math.expm1(-rate * seconds) / rate
        power_w = t.power_w(settled_c) + phase.work_w
        return phase.energy_j + power_w * seconds + t.static_w_per_c * excess
