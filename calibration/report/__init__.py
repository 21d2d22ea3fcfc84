"""How good a calibration is, in one report: plain data, then text and one HTML file.

``write_report`` takes what ``fit.fit_components`` found and writes both files beside the profile.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.files import write_whole
from calibration.fit import Fit
from calibration.fit_components import Components, NameFit
from calibration.fit_time import full_clock
from calibration.folds import together
from calibration.judgement import judge
from calibration.judgement.boards import board_spread
from calibration.judgement.diagnostics import diagnose
from calibration.judgement.memory_power import memory_power
from calibration.judgement.simple_fits import Errors, errors, pooled, simple_errors, sustained
from calibration.judgement.variation import variation
from calibration.report import facts, plot_data
from calibration.report.contents import Component, Report, Target
from calibration.report.render_html import render_html
from calibration.report.text import render_text
from calibration.tables import POOLED
from energymodel.hardware import GpuSpec
from energymodel.laws import REQUIRED, domain_axes
from energymodel.profile import Profile

Array = NDArray[np.float64]

ENERGY_TARGET = TIME_TARGET = 0.05
VARIATION_MEDIAN_TARGET, VARIATION_P95_TARGET = 0.01, 0.03
TEXT_FILE, HTML_FILE = "report.txt", "report.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class FitEvidence:
    """What a report is made of; ``profile`` adds its provenance and origin where there is one."""

    spec: GpuSpec
    components: Components
    profile: Profile | None = None


def evidence(fit: Fit) -> FitEvidence:
    """The evidence behind a finished fit."""
    return FitEvidence(spec=fit.profile.gpu, components=fit.components, profile=fit.profile)


def write_report(fit: FitEvidence, folder: Path) -> tuple[Path, Path]:
    """Write report.txt and report.html into ``folder``, each whole or not at all.

    Returns:
        The paths of the two files.
    """
    report = build_report(fit)
    folder.mkdir(parents=True, exist_ok=True)
    text, html = folder / TEXT_FILE, folder / HTML_FILE
    for path, content in ((text, render_text(report)), (html, render_html(report))):
        write_whole(path, content)
    return text, html


def build_report(fit: FitEvidence) -> Report:
    """Everything that the report says, as plain data."""
    found = fit.components
    seen = found.observations
    components = tuple(
        _component(name, f, fit.spec, found.exponent.value) for name, f in _in_order(found.names)
    )
    energy_variation = variation(seen, "energy")
    windows = {name: f.windows for name, f in found.names.items() if len(f.windows.duty)}
    # What is pooled under elementwise was also fitted kernel by kernel: once is enough here.
    single = {name: w for name, w in windows.items() if _counts_once(name, windows)}
    memory = memory_power(single, seen, found.memory, fit.spec.hbm_bytes_per_s)
    return Report(
        gpu=fit.spec.name,
        gpu_name=", ".join(sorted({o.gpu for o in seen})),
        kind=facts.origin(seen, fit.profile),
        observations=len(seen),
        bursts=sum(o.mode == "burst" for o in seen),
        windows=sum(o.mode in ("sustained", "duty") for o in seen),
        idle=sum(o.mode == "idle" for o in seen),
        boards=facts.boards(seen),
        drivers=tuple(sorted({o.driver for o in seen})),
        stacks=facts.stacks(seen),
        software=facts.software(fit.profile),
        temperature_c=facts.temperature_range_c(seen),
        gpu_time=facts.gpu_time(seen),
        targets=_targets(components, energy_variation.median, energy_variation.p95),
        components=components,
        pooled=_pooled(found.names, single, fit.spec),
        energy_variation=energy_variation,
        time_variation=variation(seen, "time"),
        board_spreads=tuple(board_spread(seen, w) for w in ("energy", "time", "burst time")),
        memory=memory,
        static_w=found.static.watts,
        static_w_per_c=found.static.watts_per_c,
        exponent=found.exponent,
        limit_share=found.limit_share,
        left_out=facts.left_out(found),
        plots=plot_data.collect(found, single, memory),
    )


def _in_order(names: Mapping[str, NameFit]) -> list[tuple[str, NameFit]]:
    """What every prediction needs first, then by name."""
    place = {name: i for i, name in enumerate(REQUIRED)}
    return sorted(names.items(), key=lambda item: (place.get(item[0], len(place)), item[0]))


def _component(name: str, fit: NameFit, spec: GpuSpec, exponent: float) -> Component:
    table, w = fit.table, fit.windows
    bursts = full_clock(table)
    own = fit.shared is None and len(w.duty) > 0
    held = np.isfinite(fit.held_out_j) if own else np.zeros(0, dtype=np.bool_)
    group = w.held_together
    seconds = fit.time.held_out
    plain = sustained(w, spec) if own else None
    axes = domain_axes(table.kind, table.shapes)
    return Component(
        name=name,
        stacks=tuple(sorted({o.stack for o in table.observations})),
        shared=fit.shared,
        shapes=len({o.point for o in table.observations}),
        families=len(np.unique(table.group)),
        bursts=int(bursts.sum()),
        windows=len(w.duty),
        window_families=len(np.unique(table.group[w.chosen])),
        energy=errors(_relative(fit.held_out_j)) if own else None,
        limited_time=errors(_relative(fit.held_out_s)) if own else None,
        time=errors(_relative(seconds)),
        simple=simple_errors(plain) if plain is not None and len(plain.gross_j) else {},
        trees=judge.tree_errors(w.gross_j[held], judge.cost_features(w, held), group[held])
        if own
        else None,
        energy_variation=variation(table.observations, "energy"),
        time_variation=variation(table.observations, "time"),
        energy_judge=judge.judge(
            fit.held_out_j[held],
            judge.window_features(w, w.gross_j * np.exp(-np.nan_to_num(fit.held_out_j)), held),
            group[held],
        )
        if own
        else judge.Judgement(rows=0, explained=None, carriers=(), note=_no_own(fit.shared)),
        time_judge=judge.judge(
            seconds,
            judge.shape_features(table, bursts),
            together(table.group[bursts], table.point[bursts]),
        ),
        coefficients=fit.power.energy,
        clock_share=fit.power.clock_share,
        law=fit.time.law,
        diagnostics=diagnose(w, fit.power.energy, exponent) if own else None,
        domain={
            axis: (float(values[bursts].min()), float(values[bursts].max()))
            for axis, values in axes.items()
            if bursts.any()
        },
    )


def _relative(log_errors: Array) -> Array:
    """Predicted over measured, minus 1, of logarithms of measured over predicted."""
    return np.asarray(np.exp(-log_errors) - 1.0)


def _no_own(shared: str | None) -> str:
    return f"it shares the coefficients of {shared}" if shared else "it has no energy windows"


def _counts_once(name: str, windows: Mapping[str, object]) -> bool:
    return POOLED.get(name) not in windows


def _pooled(
    names: Mapping[str, NameFit], windows: Mapping[str, object], spec: GpuSpec
) -> dict[str, Errors | None]:
    """Errors over all components: ours, and simple estimates with one coefficient for all."""
    own = {n: f for n, f in names.items() if n in windows and f.shared is None}
    if not own:
        return {}
    ours = np.concatenate([_relative(f.held_out_j) for f in own.values()])
    simple = simple_errors(pooled({n: sustained(f.windows, spec) for n, f in own.items()}))
    return {"ours": errors(ours), **simple}


def _targets(
    components: tuple[Component, ...], median: float | None, p95: float | None
) -> tuple[Target, ...]:
    def target(what: str, component: str, value: float | None, limit: float) -> Target:
        return Target(what=what, component=component, value=value, limit=limit)

    return (
        target("variation of energy, median", "all", median, VARIATION_MEDIAN_TARGET),
        target("variation of energy, 95th percentile", "all", p95, VARIATION_P95_TARGET),
        *(
            target("energy, held out", c.name, c.energy.median if c.energy else None, ENERGY_TARGET)
            for c in components
            if c.shared is None
        ),
        *(
            target("time, held out", c.name, c.time.median if c.time else None, TIME_TARGET)
            for c in components
        ),
    )
