"""What the behaviour of a GPU's sensors means: pure functions from facts to findings."""

from collections.abc import Iterator, Mapping, Sequence

from calibration.doctor.facts import GpuFacts
from calibration.doctor.finding import NOTE, OK, PROBLEM, WARNING, Finding, finding
from calibration.doctor.phases import CONTEXT, LOAD, PhaseFacts
from calibration.doctor.sensors import AVERAGE, COUNTER, INSTANT, MEMORY, SAMPLES, USAGE
from calibration.doctor.timing import SensorFacts

# A window holds ten updates; slower than this it would take 3 s and more.
SLOW_PERIOD_S = 0.3
SLOW_READ_S = 0.02
# Integrated power against the counter: within the first is agreement, beyond the second distrust.
AGREES, DISTRUST = 0.03, 0.10
# A mean over T seconds rises from 10 to 90 % in 0.8 T; slower than this a reading is a mean.
MEAN_RISE_S = 0.4
# With a context and next to no work the clock is the highest, unless something holds it down.
FULL_CLOCK = 0.97

Sensors = Mapping[str, SensorFacts]

LABELS = {
    INSTANT: "instantaneous power",
    USAGE: "power usage (nvmlDeviceGetPowerUsage)",
    AVERAGE: "averaged power",
    MEMORY: "power of the memory",
    SAMPLES: "power samples",
}
USES = {
    INSTANT: "power cannot be integrated as a check on the counter",
    MEMORY: "memory energy cannot be told from that of the rest",
    SAMPLES: "swings of power within 100 ms cannot be seen",
}


def of_sensors(
    facts: GpuFacts, sensors: Sensors, phases: Sequence[PhaseFacts]
) -> Iterator[Finding]:
    """All findings on the sensors of one GPU."""
    yield from _counter(sensors[COUNTER], phases)
    yield from _other_sensors(sensors)
    for phase in phases:
        yield from _agreement(phase)
        yield from _throttling(facts, phase)


def _counter(counter: SensorFacts, phases: Sequence[PhaseFacts]) -> Iterator[Finding]:
    if not counter.supported:
        denied = "permission" in (counter.reason or "").lower()
        yield finding(
            PROBLEM,
            f"the energy counter cannot be read: {counter.reason}",
            "no energy can be measured on this GPU",
            "ask for access to it" if denied else "use a GPU of the Volta generation or later",
        )
        return
    if counter.reason:
        yield finding(
            PROBLEM,
            f"the energy counter stopped answering: {counter.reason}",
            "the GPU or its driver was lost",
            "look into the kernel's log, reset the GPU",
        )
    if any(phase.counter_went_back for phase in phases):
        yield finding(
            PROBLEM,
            "the energy counter went back",
            "differences of it are not energy",
            "turn persistence mode on, update the driver",
        )
    if counter.updates < 2 or counter.update_period_s is None:
        yield finding(
            PROBLEM,
            "the energy counter does not advance",
            "no energy can be measured on this GPU",
            "update the driver",
        )
        return
    yield from _counter_speed(counter, counter.update_period_s)


def _counter_speed(counter: SensorFacts, period_s: float) -> Iterator[Finding]:
    read_ms = (counter.read_median_s or 0.0) * 1e3
    slow = period_s > SLOW_PERIOD_S
    yield finding(
        WARNING if slow else OK,
        f"the energy counter advances every {period_s * 1e3:.0f} ms; a read takes {read_ms:.1f} ms",
        f"a window of ten updates takes {10 * period_s:.1f} s",
        "use longer windows" if slow else None,
    )
    if (counter.read_p95_s or 0.0) > SLOW_READ_S:
        yield finding(
            NOTE,
            f"one read of the counter in twenty takes over {(counter.read_p95_s or 0) * 1e3:.0f} ms",
            "the edges of a window are known less well",
            "keep the host less busy",
        )


def _other_sensors(sensors: Sensors) -> Iterator[Finding]:
    for name, use in USES.items():
        if not sensors[name].supported:
            yield finding(NOTE, f"no {LABELS[name]}: {sensors[name].reason}", use)
        elif sensors[name].reason and name != SAMPLES:
            yield finding(WARNING, f"{LABELS[name]} stopped answering: {sensors[name].reason}", use)
    for name in (USAGE, AVERAGE, INSTANT):
        rise_s = sensors[name].rise_s
        if rise_s is not None and rise_s > MEAN_RISE_S:
            yield finding(
                WARNING if name == INSTANT else NOTE,
                f"{LABELS[name]} is a mean over about {rise_s / 0.8:.1f} s",
                "it lags behind the work and says nothing of short operations",
                "use the energy counter",
            )


def _agreement(phase: PhaseFacts) -> Iterator[Finding]:
    found = (phase.instant_deviation, phase.samples_deviation)
    known = [d for d in found if d is not None]
    if not known:
        return
    worst = max(known, key=abs)
    how = (
        f"integrated power is {round(100 * worst, 1) + 0.0:+.1f} % off the counter ({phase.state})"
    )
    if abs(worst) <= AGREES:
        yield finding(OK, how, "two sensors agree")
    else:
        yield finding(
            WARNING if abs(worst) > DISTRUST else NOTE,
            how,
            "one of the two sensors is off, or power was not steady",
            "repeat it; if it stays, compare with a meter at the plug",
        )


def _throttling(facts: GpuFacts, phase: PhaseFacts) -> Iterator[Finding]:
    reasons = set(phase.throttle_reasons)
    heat = sorted(r for r in reasons if "thermal" in r)
    if heat:
        yield finding(
            WARNING,
            f"heat lowered the clock ({phase.state}): {', '.join(heat)}",
            "time and energy would be those of a GPU that is too hot",
            "improve cooling",
        )
    if reasons & {"hardware slowdown", "power brake"} and not heat:
        yield finding(
            WARNING,
            f"the board lowered its clock ({phase.state})",
            "its supply or a brake signal holds it down",
            "check the power supply",
        )
    if phase.state == LOAD and "power limit" in reasons and phase.sm_clock_hz:
        yield finding(
            OK,
            f"under load the power limit holds the clock at {phase.sm_clock_hz / 1e6:.0f} MHz",
            "as in real use: time and energy are fitted as functions of the clock",
        )
    if phase.state == CONTEXT:
        yield from _held_clock(facts, phase, reasons)


def _held_clock(facts: GpuFacts, phase: PhaseFacts, reasons: set[str]) -> Iterator[Finding]:
    now_hz, full_hz = phase.sm_clock_hz, facts.max_sm_clock_hz
    explained = reasons - {"idle", "application clocks"}
    if now_hz and full_hz and now_hz < FULL_CLOCK * full_hz and not explained:
        yield finding(
            WARNING,
            f"the clock stays at {now_hz / 1e6:.0f} of {full_hz / 1e6:.0f} MHz without load",
            "clocks look locked, or the board boosts less than it names",
            "nvidia-smi -rgc, as root, unless this clock is meant",
        )
