"""Windows of components -> what each costs, how well they add up to the whole, and the verdict."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from calibration.components.windows import ComponentWindow, Setting

WHOLE, IDLE, ATTENTION, PROJECTIONS = "whole", "idle", "attention", "attention_projections"
CORE = "attention_core"

# What the components leave out or count differently, by the sign of the residual.
_LEFT_OUT = {
    "eager": "host time of the Python between components",
    "graph": "gaps between components, and the clock that they share",
}
_TOO_MUCH = {
    "eager": "launching components alone costs more than in the model",
    "graph": "activations that the cache holds in the model, and the clock of each component alone",
}


# Of the whole: what is less than this cannot change a conclusion by scattering.
SMALL_SHARE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One component, or the whole, in one phase and mode. Gross; boundary: the GPU board.

    One call goes through all ``layers`` that hold the component. ``cv`` is the coefficient of
    variation of the energy over ``trials``, None where that is not measured. ``counted`` is
    False for the whole and for parts of another component, which the sum leaves out.
    """

    phase: str
    mode: str
    component: str
    counted: bool
    layers: int
    parts: tuple[str, ...]
    trials: int
    mj_per_call: float
    net_mj_per_call: float | None
    cv: float | None
    flop: int
    j_per_gflop: float | None
    duration_s: float
    power_w: float
    sm_clock_hz: float | None
    share: float | None

    @property
    def mj_per_layer(self) -> float:
        """Mean energy of one layer, mJ."""
        return self.mj_per_call / self.layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """Sum over layers of components against the measured whole of one phase and mode.

    ``gross``, ``net`` (without idle power), ``time`` and ``flop`` are shares of the whole.
    """

    phase: str
    mode: str
    gross: float
    net: float | None
    time: float
    flop: float | None
    residual_j: float
    residual_s: float
    residual_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentReport:
    """The CLEAR table of one model, and whether it met the thresholds."""

    setting: Setting
    idle_power_w: float | None
    max_cv: float
    min_capture: float
    rows: tuple[Row, ...]
    captures: tuple[Capture, ...]
    failures: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything was measured within the thresholds."""
        return not self.failures


def summarise(
    windows: Iterable[ComponentWindow],
    setting: Setting,
    *,
    trials: int,
    max_cv: float,
    min_capture: float,
    missing: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> ComponentReport:
    """The report of the windows of one setting.

    Args:
        windows: of this setting, in any order.
        setting: what was measured.
        trials: how many windows of each component there must be.
        max_cv: the largest coefficient of variation that passes, a fraction; a component below
            ``SMALL_SHARE`` of the whole that scatters more is noted and does not fail.
        min_capture: the smallest share of the whole that passes, gross.
        missing: sentences on what could not be measured; each is a failure.
        notes: sentences on what was left out with good reason.
    """
    windows = list(windows)
    idle = [w.energy_j / w.duration_s for w in windows if w.component == IDLE]
    idle_power_w = mean(idle) if idle else None
    groups: dict[tuple[str, str], list[ComponentWindow]] = {}
    for window in windows:
        if window.component != IDLE:
            groups.setdefault((window.phase, window.mode), []).append(window)
    rows: list[Row] = []
    captures: list[Capture] = []
    failures, small = list(missing), []
    for (phase, mode), found in groups.items():
        some = _rows(found, idle_power_w)
        rows += some
        failures += _row_failures([r for r in some if _matters(r)], trials, max_cv)
        small += _row_failures([r for r in some if not _matters(r)], trials, max_cv)
        whole = next((r for r in some if r.component == WHOLE), None)
        if whole is None:
            failures.append(f"{phase}, {mode}: the whole was not measured.")
            continue
        captures.append(_capture(phase, mode, some, whole))
        if captures[-1].gross < min_capture:
            failures.append(
                f"{phase}, {mode}: components add up to {100 * captures[-1].gross:.1f} % of the "
                f"whole, less than {100 * min_capture:g} %."
            )
    if not captures and not failures:
        failures.append("Nothing was measured.")
    return ComponentReport(
        setting=setting,
        idle_power_w=idle_power_w,
        max_cv=max_cv,
        min_capture=min_capture,
        rows=tuple(rows),
        captures=tuple(captures),
        failures=tuple(failures),
        notes=(
            *notes,
            *(f"{sentence[:-1]}; below {SMALL_SHARE:.0%} of the whole." for sentence in small),
        ),
    )


def _rows(windows: list[ComponentWindow], idle_power_w: float | None) -> list[Row]:
    """Rows of one phase and mode: the costliest first, the whole last."""
    by_component: dict[str, list[ComponentWindow]] = {}
    for window in windows:
        by_component.setdefault(window.component, []).append(window)
    whole = by_component.get(WHOLE)
    whole_mj = mean(_mj(w) for w in whole) if whole else None
    rows = [_row(some, idle_power_w, whole_mj) for some in by_component.values()]
    rows.sort(key=lambda r: (r.component == WHOLE, -r.mj_per_call))
    core = _core(rows)
    if core is None:
        return rows
    # Beside what they are parts of.
    projections = next(r for r in rows if r.component == PROJECTIONS)
    rows.remove(projections)
    place = next(i for i, r in enumerate(rows) if r.component == ATTENTION)
    return [*rows[: place + 1], projections, core, *rows[place + 1 :]]


def _row(windows: list[ComponentWindow], idle_power_w: float | None, whole_mj: float | None) -> Row:
    first, energies_mj = windows[0], [_mj(w) for w in windows]
    mj = mean(energies_mj)
    duration_s = mean(w.duration_s / w.calls for w in windows)
    return Row(
        phase=first.phase,
        mode=first.mode,
        component=first.component,
        counted=first.component != WHOLE and first.part_of is None,
        layers=max(1, first.layers),
        parts=first.parts,
        trials=len(windows),
        mj_per_call=mj,
        net_mj_per_call=None if idle_power_w is None else mj - 1e3 * idle_power_w * duration_s,
        cv=stdev(energies_mj) / mj if len(windows) > 1 else None,
        flop=first.flop,
        j_per_gflop=_j_per_gflop(mj, first.flop),
        duration_s=duration_s,
        power_w=1e-3 * mj / duration_s,
        sm_clock_hz=mean(w.sm_clock_hz for w in windows),
        share=mj / whole_mj if whole_mj else None,
    )


def _core(rows: list[Row]) -> Row | None:
    """Attention without its projections, by difference; None where that is not positive."""
    found = {r.component: r for r in rows}
    all_of_it, projections = found.get(ATTENTION), found.get(PROJECTIONS)
    if all_of_it is None or projections is None:
        return None
    mj = all_of_it.mj_per_call - projections.mj_per_call
    duration_s = all_of_it.duration_s - projections.duration_s
    if mj <= 0 or duration_s <= 0:
        return None
    nets = (all_of_it.net_mj_per_call, projections.net_mj_per_call)
    flop = all_of_it.flop - projections.flop
    share = None
    if all_of_it.share is not None and projections.share is not None:
        share = all_of_it.share - projections.share
    return Row(
        phase=all_of_it.phase,
        mode=all_of_it.mode,
        component=CORE,
        counted=False,
        layers=all_of_it.layers,
        parts=("attention less its projections",),
        trials=min(all_of_it.trials, projections.trials),
        mj_per_call=mj,
        net_mj_per_call=None if nets[0] is None or nets[1] is None else nets[0] - nets[1],
        cv=None,
        flop=flop,
        j_per_gflop=_j_per_gflop(mj, flop),
        duration_s=duration_s,
        power_w=1e-3 * mj / duration_s,
        sm_clock_hz=None,
        share=share,
    )


def _matters(row: Row) -> bool:
    return row.share is None or row.share >= SMALL_SHARE


def _row_failures(rows: list[Row], trials: int, max_cv: float) -> list[str]:
    failures = []
    for row in rows:
        if row.component == CORE:
            continue  # by difference
        name = f"{row.phase}, {row.mode}, {row.component}"
        if row.trials < trials:
            failures.append(f"{name}: {row.trials} of {trials} trials were measured.")
        if row.cv is not None and row.cv > max_cv:
            failures.append(
                f"{name}: the coefficient of variation is {100 * row.cv:.1f} %, more than "
                f"{100 * max_cv:g} %."
            )
    return failures


def _capture(phase: str, mode: str, rows: list[Row], whole: Row) -> Capture:
    counted = [r for r in rows if r.counted]
    sum_mj = sum(r.mj_per_call for r in counted)
    sum_s = sum(r.duration_s for r in counted)
    nets = [r.net_mj_per_call for r in counted if r.net_mj_per_call is not None]
    whole_net = whole.net_mj_per_call
    residual_j = 1e-3 * (whole.mj_per_call - sum_mj)
    names = _LEFT_OUT if residual_j >= 0 else _TOO_MUCH
    captured = "not captured" if residual_j >= 0 else "captured too much"
    return Capture(
        phase=phase,
        mode=mode,
        gross=sum_mj / whole.mj_per_call,
        net=sum(nets) / whole_net if whole_net and len(nets) == len(counted) else None,
        time=sum_s / whole.duration_s,
        flop=sum(r.flop for r in counted) / whole.flop if whole.flop else None,
        residual_j=residual_j,
        residual_s=whole.duration_s - sum_s,
        residual_name=f"{captured}: {names.get(mode, mode)}",
    )


def _mj(window: ComponentWindow) -> float:
    return 1e3 * window.energy_j / window.calls


def _j_per_gflop(mj: float, flop: int) -> float | None:
    return 1e-3 * mj / (1e-9 * flop) if flop > 0 else None
