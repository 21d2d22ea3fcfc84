"""Which windows are refused: each cause in one sentence that says what to do."""

import numpy as np
from numpy.typing import NDArray

from calibration.watch import Trace
from energymodel.errors import WorkError

Array = NDArray[np.float64]

# NVML's clock event reasons: software and hardware thermal slowdown.
THERMAL_REASONS = 0x20 | 0x40
# The power limit lowers the clock.
POWER_CAP_REASON = 0x4
# A gap of more usual periods than this lacks an update of the counter.
LOST_PERIODS = 1.8
# The longest gap, as a share of the window.
MAX_GAP = 0.2
# The moments of the first and last update must be known this well, as a share of the window.
MAX_EDGE = 0.03
# Power of one period against the usual one. Beside this, half a read at each end, and what a
# chunk of work and its pause can shift, are allowed for.
UNEVEN = 0.2
# Of the power limit: what the board can draw for the length of a tick.
MOST_POWER = 1.5


class WindowRefused(WorkError):  # noqa: N818 - it is a verdict, not a fault of the program
    """The window cannot be trusted; the message says why."""


def judge(
    trace: Trace,
    opened_s: float,
    closed_s: float,
    *,
    min_ticks: int,
    limit_w: float,
    swing_s: float,
) -> int:
    """How many updates of the energy counter the window lacks, if it can be trusted at all.

    Args:
        trace: what the watcher saw.
        opened_s: from when on the work was steady.
        closed_s: when its last chunk was done.
        min_ticks: periods of the counter that the window must hold.
        limit_w: power limit of the board.
        swing_s: time within which power may go up and down, a chunk and its pause.

    Raises:
        WindowRefused: it cannot be trusted.
    """
    refuse_company(trace)
    _refuse_standstill(trace, opened_s, closed_s, min_ticks)
    _refuse_backward(trace)
    first, last, _ = trace.ticks_between(opened_s, closed_s)
    reasons = trace.throttle_reasons(first, last)
    refuse_thermal(reasons, trace.clock_hz(first, last), trace.temperature_c(first, last))
    lost = _lost_ticks(trace, first, last)
    _refuse_blurred_edges(trace, first, last)
    _refuse_odd_power(trace, first, last, limit_w)
    # The controller of the power limit swings by itself: 515 W for one update after several of
    # 738 W were seen in steady decode attention.
    if not reasons & POWER_CAP_REASON:
        _refuse_uneven_power(trace, first, last, swing_s)
    return lost


def refuse_thermal(throttle_reasons: int, sm_clock_hz: float, temperature_c: float) -> None:
    """Refuse what ran at a clock that heat had lowered; the power limit may lower it.

    Raises:
        WindowRefused: a thermal reason is among ``throttle_reasons``.
    """
    if throttle_reasons & THERMAL_REASONS:
        source = "hardware" if throttle_reasons & 0x40 else "software"
        raise WindowRefused(
            f"The clock fell to {sm_clock_hz / 1e6:.0f} MHz for thermal reasons ({source}, at "
            f"{temperature_c:.0f} C): let the GPU cool down and measure again."
        )


def refuse_company(trace: Trace) -> None:
    """Refuse what another process or an error of the GPU disturbed.

    Raises:
        WindowRefused: other processes or faults were seen.
    """
    if trace.others:
        pids = ", ".join(map(str, sorted(trace.others)))
        raise WindowRefused(
            f"Another process used the GPU meanwhile (pid {pids}): its energy was counted too, "
            "so wait for it to end and measure again."
        )
    if trace.faults:
        raise WindowRefused(
            f"The GPU reported {trace.faults} faults meanwhile (Xid or uncorrected memory "
            "errors): look at the kernel's log before measuring again."
        )


def _refuse_standstill(trace: Trace, opened_s: float, closed_s: float, min_ticks: int) -> None:
    if not trace.tick_s:
        raise WindowRefused(
            "The energy counter did not move: this GPU or its driver does not count energy."
        )
    _, _, ticks = trace.ticks_between(opened_s, closed_s)
    if ticks < min_ticks:
        raise WindowRefused(
            f"The energy counter stood still: only {ticks} updates fell into the window of "
            f"{closed_s - opened_s:.2f} s, which must hold {min_ticks}."
        )


def _refuse_backward(trace: Trace) -> None:
    steps_j = np.diff(trace.tick_j)
    if len(steps_j) and steps_j.min() < 0:
        raise WindowRefused(
            f"The energy counter jumped back by {-steps_j.min():.0f} J: it was reset or wrapped, "
            "so measure again."
        )


def _lost_ticks(trace: Trace, first: float, last: float) -> int:
    """Updates that were not seen: the counter is cumulative, so a few do no harm."""
    ticks = np.array([t for t in trace.tick_s if first <= t <= last])
    gaps_s = np.diff(ticks)
    usual_s = float(np.median(gaps_s))
    wide_s = gaps_s[gaps_s > LOST_PERIODS * usual_s]
    if len(wide_s) and wide_s.max() > MAX_GAP * (last - first):
        raise WindowRefused(
            f"No update of the energy counter was seen for {wide_s.max():.2f} s of a window of "
            f"{last - first:.2f} s: keep the host less busy and measure again."
        )
    return int(np.sum(np.round(wide_s / usual_s) - 1))


def _refuse_blurred_edges(trace: Trace, first: float, last: float) -> None:
    if not trace.within_s:
        return
    edges = [trace.within_s[trace.tick_s.index(t)] for t in (first, last)]
    if 0.5 * sum(edges) > MAX_EDGE * (last - first):
        raise WindowRefused(
            f"The counter's updates were seen {max(edges) * 1e3:.0f} ms apart from a look before, "
            f"too long for a window of {last - first:.2f} s: keep the host less busy."
        )


def _powers(trace: Trace, first: float, last: float) -> tuple[Array, Array]:
    """Mean power between sharp updates, and the time between them."""
    sharp = trace.sharp_between(first, last)
    gaps_s = np.diff([trace.tick_s[i] for i in sharp])
    return np.diff([trace.tick_j[i] for i in sharp]) / gaps_s, gaps_s


def _refuse_odd_power(trace: Trace, first: float, last: float, limit_w: float) -> None:
    """Refuse periods with more power than the board can draw."""
    power_w, gaps_s = _powers(trace, first, last)
    if power_w.max() > MOST_POWER * limit_w * (1.0 + _blur_s(trace) / gaps_s.min()):
        raise WindowRefused(
            f"The energy counter rose by {power_w.max():.0f} W, which a board with a limit of "
            f"{limit_w:.0f} W cannot draw: measure again."
        )


def _refuse_uneven_power(trace: Trace, first: float, last: float, swing_s: float) -> None:
    """Refuse periods unlike the others, which steady work below the power limit does not have."""
    power_w, gaps_s = _powers(trace, first, last)
    deviation = np.abs(power_w / np.median(power_w) - 1.0) - (_blur_s(trace) + swing_s) / gaps_s
    if deviation.max() > UNEVEN:
        odd_w = power_w[int(np.argmax(deviation))]
        raise WindowRefused(
            f"The energy counter advanced unevenly, by {odd_w:.0f} W once and "
            f"{np.median(power_w):.0f} W otherwise: the work or the counter was disturbed."
        )


def _blur_s(trace: Trace) -> float:
    """How well the moment of an update is usually known."""
    return float(np.median(trace.within_s)) if trace.within_s else 0.0
