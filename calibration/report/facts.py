"""Facts of a calibration that no model is needed for: origin, software, GPU time, what was left out."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from calibration.fit_components import Components
from calibration.fit_energy import usable
from calibration.fit_time import full_clock
from calibration.observations import Observation
from calibration.report.contents import GpuTime, LeftOut
from calibration.tables import PREFERRED, names_of
from energymodel.profile import Profile

SIMULATED = "simulated"
# A longer pause on a board is a rest between two sweeps, not part of one.
SESSION_GAP_S = 600.0
# Share of distinct times of day below which they were rounded too far.
LEAST_STAMPS = 0.2


def origin(observations: Sequence[Observation], profile: Profile | None) -> str:
    """The profile's kind; "simulated" too if any observation is of a simulated GPU or kernel."""
    fake = any(SIMULATED in (o.board, o.driver, o.stack) for o in observations)
    if fake or profile is None:
        return SIMULATED if fake else "measured"
    return profile.kind


def boards(observations: Sequence[Observation]) -> tuple[str, ...]:
    """Boards in the order of their names."""
    return tuple(sorted({o.board for o in observations}))


def stacks(observations: Sequence[Observation]) -> dict[str, int]:
    """Observations of each code that was exercised, most first."""
    return dict(Counter(o.stack for o in observations if o.mode != "idle").most_common())


def software(profile: Profile | None) -> dict[str, str]:
    """Versions that the profile's provenance names."""
    found = profile.provenance.get("software") if profile is not None else None
    known = {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
    if profile is not None and "energymodel" in profile.provenance:
        known["energymodel"] = str(profile.provenance["energymodel"])
    return known


def temperature_range_c(observations: Sequence[Observation]) -> tuple[float, float] | None:
    """Lowest and highest temperature that any window saw."""
    seen = [o.temperature_c for o in observations if o.temperature_c is not None]
    return (min(seen), max(seen)) if seen else None


def gpu_time(observations: Sequence[Observation]) -> GpuTime:
    """GPU time from durations and times of day, boards added up, rests between sweeps left out."""
    windows_s = sum(o.duration_s or 0.0 for o in observations)
    total_s, coarse = 0.0, 0
    for board in boards(observations):
        rows = [o for o in observations if o.board == board]
        stamps = np.sort([o.time_s for o in rows if o.time_s is not None])
        # A sweep takes a second or so a line: most have a time of their own.
        if len(np.unique(stamps)) < LEAST_STAMPS * len(rows):
            coarse += 1
            continue
        steps = np.diff(stamps)
        total_s += float(steps[steps < SESSION_GAP_S].sum())
    if coarse:
        note = f"times of day are missing or too coarse on {coarse} of {len(boards(observations))} boards"
        return GpuTime(windows_s=windows_s, total_s=None, note=note)
    return GpuTime(windows_s=windows_s, total_s=total_s, note="")


def left_out(found: Components) -> tuple[LeftOut, ...]:
    """Observations that no fit used, by operation and reason; most first."""
    used = {id(o) for f in found.names.values() for o in f.table.observations}
    count: Counter[tuple[str, str]] = Counter()
    for o in found.observations:
        if id(o) not in used and o.mode != "idle":
            what = o.op if o.dtype == "bfloat16" else f"{o.op} {o.dtype}"
            count[what, _reason(o, found)] += 1
    for name, fit in found.names.items():
        slow = sum(o.mode == "burst" for o in fit.table.observations)
        slow -= int(full_clock(fit.table).sum())
        mixed = int((~usable(fit.windows)).sum()) if fit.shared is None else 0
        if slow:
            count[name, "bursts below full clock: the power limit had slowed them"] += slow
        if mixed:
            count[name, "windows with pauses at a lowered clock: clocks mix inside them"] += mixed
    return tuple(
        LeftOut(what=what, observations=n, reason=reason)
        for (what, reason), n in count.most_common()
    )


def _reason(o: Observation, found: Components) -> str:
    if o.cache != "cold":
        return "operands were warm in the cache; predictions are of cold ones"
    names = names_of(o)
    if not names:
        return "no law describes this operation"
    known = [found.left_out[name] for name in names if name in found.left_out]
    if known:
        return known[0]
    return f"kernels of {o.library}; those of {PREFERRED} are fitted"
