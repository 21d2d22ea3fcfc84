"""The memory's own power sensor as a second target: joules of an HBM byte, and do they add up.

The slopes are ``fit_memory``'s, from streaming kernels alone. The check asks whether they predict
the memory power of every sustained window, most of which had no part in them. Rates are of bytes as
the usual memory would have them: a byte that costs twice as much counts twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.fit_energy import Windows
from calibration.fit_memory import CACHED, STREAMING_SHARE, Memory
from calibration.observations import Observation
from energymodel.laws import kind_of
from energymodel.profile import Estimate, MemoryKind

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPower:
    """Memory power = ``base_w`` + joules per byte x bytes per second, over sustained windows.

    ``base_w`` is the level of the streaming windows, from which the slope comes.
    ``idle_w`` is what the sensor reads without work. ``median_error`` is of memory power,
    absolute relative; ``by_kind`` its signed median. None, and a ``note``, without the sensor.
    ``byte_j`` is that of the usual memory; ``memories`` are all kinds that boards have.
    """

    windows: int
    byte_j: Estimate | None
    base_w: float | None
    idle_w: float | None
    r2: float | None
    median_error: float | None
    by_kind: dict[str, float]
    note: str
    memories: tuple[MemoryKind, ...] = ()


def memory_rows(windows: Mapping[str, Windows]) -> dict[str, tuple[Array, Array]]:
    """By kind: (bytes per second, measured watts of the memory) of the sustained windows."""
    found = {}
    for kind, w in windows.items():
        rows = w.rows
        watts = np.array([o.memory_power_w or np.nan for o in rows])
        keep = (w.duty >= 1.0) & np.isfinite(watts)
        if keep.any():
            found[kind] = ((w.hbm_bytes / w.call_s)[keep], watts[keep])
    return found


def memory_power(
    windows: Mapping[str, Windows],
    observations: Sequence[Observation],
    memory: Memory,
    hbm_bytes_per_s: float,
) -> MemoryPower:
    """Check ``memory`` against the memory power of every sustained window.

    ``hbm_bytes_per_s`` is the datasheet's rate of the memory.
    """
    rows, byte_j = memory_rows(windows), memory.usual
    if not rows:
        return MemoryPower(
            windows=0,
            byte_j=None,
            base_w=None,
            idle_w=None,
            r2=None,
            median_error=None,
            by_kind={},
            note="no window recorded the power of the memory",
        )
    rate = np.concatenate([r for r, _ in rows.values()])
    watts = np.concatenate([w for _, w in rows.values()])
    fitted = np.concatenate(
        [
            (r > STREAMING_SHARE * hbm_bytes_per_s) & (kind_of(name) not in CACHED)
            for name, (r, _) in rows.items()
        ]
    )
    above = (watts - byte_j.value * rate)[fitted if fitted.any() else slice(None)]
    base_w = float(np.median(above))
    idle = [o.memory_power_w for o in observations if o.mode == "idle" and o.memory_power_w]
    left = watts - base_w - byte_j.value * rate
    total = float(np.square(watts - watts.mean()).sum())
    return MemoryPower(
        windows=len(watts),
        byte_j=byte_j,
        base_w=base_w,
        idle_w=float(np.median(idle)) if idle else None,
        r2=1.0 - float(np.square(left).sum()) / total if total else None,
        median_error=float(np.median(np.abs(left / watts))),
        by_kind={
            kind: float(np.median((base_w + byte_j.value * r) / w - 1.0))
            for kind, (r, w) in rows.items()
        },
        note="",
        memories=memory.kinds,
    )
