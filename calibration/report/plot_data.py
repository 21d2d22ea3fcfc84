"""The points of every figure of a calibration report, in the units that its axes name."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from calibration.fit_components import Components, NameFit
from calibration.fit_energy import Windows
from calibration.fit_time import full_clock
from calibration.judgement.memory_power import MemoryPower, memory_rows
from calibration.observations import Observation
from calibration.report.contents import Series

Array = NDArray[np.float64]

# Duties that a shape must have been measured at to show how clock and power follow it.
LEAST_DUTIES, MOST_CURVES = 4, 6
DIGITS = 5


def collect(
    found: Components, windows: Mapping[str, Windows], memory: MemoryPower
) -> dict[str, tuple[Series, ...]]:
    """Points by figure; ``windows`` are the energy windows of each name, none of them twice.

    Residuals are in percent, measured above predicted positive, of held-out shape families.
    """
    own = {n: f for n, f in found.names.items() if f.shared is None}
    power, clock = _duty_curves(found.observations)
    return {
        **_window_plots(own),
        **_time_plots(found.names),
        "intensity": _series_of(
            (name, (w.flop / w.moved_bytes)[some], (w.gross_j / w.flop)[some] * 1e12)
            for name, w in windows.items()
            if (some := (w.duty >= 1.0) & (w.flop > 0)).any()
        ),
        "duty_power": power,
        "duty_clock": clock,
        "memory": _memory(windows, memory),
        "static": _static(found),
    }


def _window_plots(own: Mapping[str, NameFit]) -> dict[str, tuple[Series, ...]]:
    energy, by_rows, by_clock = [], [], []
    for name, f in own.items():
        w, held = f.windows, np.isfinite(f.held_out_j)
        observed = w.rows
        rows = np.array([_rows(o) for o in observed])
        clock_ghz = np.array([o.sm_clock_hz or np.nan for o in observed]) / 1e9
        predicted = w.gross_j * np.exp(-f.held_out_j)
        percent = 100 * np.expm1(f.held_out_j)
        energy.append((name, w.gross_j[held], predicted[held]))
        by_rows.append((name, rows[held], percent[held]))
        by_clock.append((name, clock_ghz[held], percent[held]))
    return {
        "energy": _series_of(energy),
        "energy_residual_by_rows": _series_of(by_rows),
        "energy_residual_by_clock": _series_of(by_clock),
    }


def _time_plots(names: Mapping[str, NameFit]) -> dict[str, tuple[Series, ...]]:
    time, by_rows = [], []
    for name, f in names.items():
        bursts = full_clock(f.table)
        observed = [o for o, b in zip(f.table.observations, bursts, strict=True) if b]
        seconds = np.array([o.call_s for o in observed])
        rows = np.array([_rows(o) for o in observed])
        time.append((name, seconds * 1e6, seconds * np.exp(-f.time.held_out) * 1e6))
        by_rows.append((name, rows, 100 * np.expm1(f.time.held_out)))
    return {"time": _series_of(time), "time_residual_by_rows": _series_of(by_rows)}


def _duty_curves(
    observations: Sequence[Observation],
) -> tuple[tuple[Series, ...], tuple[Series, ...]]:
    """(mean power, clock in GHz) over the share of time busy, of points with enough duties."""
    curves: dict[tuple[str, str], list[Observation]] = {}
    for o in observations:
        if o.mode in ("sustained", "duty") and o.energy_j and o.duration_s and o.sm_clock_hz:
            curves.setdefault((o.point, o.board), []).append(o)
    rich = [(k, v) for k, v in curves.items() if len({o.duty for o in v}) >= LEAST_DUTIES]
    rich.sort(key=lambda item: (-len({o.duty for o in item[1]}), item[0]))
    boards = sorted({o.board for o in observations})
    power, clock = [], []
    for (point, board), rows in rich[:MOST_CURVES]:
        rows.sort(key=lambda o: o.duty or 0.0)
        name = f"{point}, board {boards.index(board) + 1}"
        busy = np.array([o.duty for o in rows], dtype=np.float64)
        watts = np.array([(o.energy_j or 0.0) / (o.duration_s or 1.0) for o in rows])
        power.append((name, busy, watts))
        clock.append((name, busy, np.array([(o.sm_clock_hz or 0.0) / 1e9 for o in rows])))
    return _series_of(power), _series_of(clock)


def _memory(windows: Mapping[str, Windows], memory: MemoryPower) -> tuple[Series, ...]:
    """Memory power over TB per second, and the line that predicts it under the name "fit"."""
    rows = memory_rows(windows)
    series = [(name, rate / 1e12, watts) for name, (rate, watts) in rows.items()]
    if memory.byte_j is not None and memory.base_w is not None:
        ends = np.array([0.0, max(rate.max() for rate, _ in rows.values())])
        series.append(("fit", ends / 1e12, memory.base_w + memory.byte_j.value * ends))
    return _series_of(series)


def _static(found: Components) -> tuple[Series, ...]:
    """Idle power of each board over temperature, and the fitted line under the name "fit"."""
    idle = [
        o
        for o in found.observations
        if o.mode == "idle" and o.temperature_c is not None and o.energy_j and o.duration_s
    ]
    if not idle:
        return ()
    series = []
    for number, board in enumerate(sorted({o.board for o in found.observations}), start=1):
        rows = [o for o in idle if o.board == board]
        celsius = np.array([o.temperature_c for o in rows], dtype=np.float64)
        watts = np.array([(o.energy_j or 0.0) / (o.duration_s or 1.0) for o in rows])
        series.append((f"board {number}", celsius, watts))
    span = [o.temperature_c or 0.0 for o in idle]
    ends = np.array([min(span), max(span)])
    static = found.static
    series.append(("fit", ends, static.watts.value + static.watts_per_c.value * ends))
    return _series_of(series)


def _rows(o: Observation) -> float:
    """Tokens that one call works on, or its rows."""
    s = o.shape
    if "m" in s or "rows" in s:
        return float(s.get("m", s.get("rows", 0)))
    return float(s.get("tokens", 1) * s.get("num_seqs", 1))


def _series_of(points: Iterable[tuple[str, Array, Array]]) -> tuple[Series, ...]:
    series = []
    for name, x, y in points:
        known = np.isfinite(x) & np.isfinite(y)
        if known.any():
            series.append(Series(name=name, x=_rounded(x[known]), y=_rounded(y[known])))
    return tuple(series)


def _rounded(values: Array) -> tuple[float, ...]:
    return tuple(float(f"{v:.{DIGITS}g}") for v in values)
