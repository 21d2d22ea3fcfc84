"""The CLEAR protocol (arXiv 2510.02810) on one model: each component and the whole, measured.

A component takes microseconds and the sensor milliseconds, so it is repeated until the sensor
sees it. What differs from the published code: windows end on ticks of the energy counter with the
device synchronised, idle power is known, and one call goes through all layers in turn, each with
its own weights and the inputs of one real pass, so that weights come from memory as they do in
the model and the sum over layers is measured, not assumed.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from calibration import jsonl
from calibration.clock import Clock
from calibration.components import windows as window_file
from calibration.components.summary import IDLE, WHOLE, ComponentReport, summarise
from calibration.components.windows import ComponentWindow, Setting
from calibration.sensors import Sensor
from calibration.window import WindowRefused, Work, steady_window
from energymodel.errors import InputError, WorkError

if TYPE_CHECKING:
    from calibration.components.find import Piece
    from calibration.components.pieces import Phase

EAGER, GRAPH = "eager", "graph"
MODES = (EAGER, GRAPH)
SETTLE_S = 0.3
# So many jobs refused in a row are no accident.
MAX_REFUSED = 3

# Fields of a line that come from the window, and those from the piece.
_OF_WINDOW = (
    "energy_j", "duration_s", "calls", "call_s", "ticks", "sm_clock_hz", "temperature_c",
    "throttle_reasons", "memory_power_w",
)  # fmt: skip
_OF_PIECE = ("layers", "flop", "part_of", "parts")

Report = Callable[[str], None]


class ComponentBench(Protocol):
    """Makes pieces ready to measure; its work, its sensor and its clock share one time."""

    @property
    def clock(self) -> Clock:
        """The time that the work runs on."""

    def work(self, piece: "Piece", mode: str) -> Work:
        """A piece as work; RuntimeError where it cannot run in this mode."""

    def idle(self) -> Work:
        """Next to no work: keeps a context and the clocks up, to measure static power."""


def measure_components(
    model_name: str,
    *,
    sensor: Sensor,
    out: Path,
    batch: int = 8,
    prompt: int = 512,
    modes: Sequence[str] = MODES,
    trials: int = 3,
    max_cv: float = 0.095,
    min_capture: float = 0.9,
    seed: int = 0,
    device: str = "cuda",
    bench: ComponentBench | None = None,
    report: Report = lambda _: None,
) -> ComponentReport:
    """Measure the components of a model and the whole of it, and compare them, phase by phase.

    Each window is appended to ``out`` as it ends; windows of the same model, sizes, software and
    board that ``out`` already holds are not measured again. A window that is refused is tried
    once more.

    Args:
        model_name: a name that ``components.model.component_config`` finds, or a path.
        sensor: the GPU that torch uses (``calibration.gpu.find_gpu``).
        out: components.jsonl, appended to.
        batch: sequences.
        prompt: tokens of each: the prompt of a prefill, the cached tokens of a decode.
        modes: "eager" (launched from Python), "graph" (from CUDA graphs), or both.
        trials: windows of each component and mode, in random order over all of them.
        max_cv: the report fails above this coefficient of variation over the trials, a fraction.
        min_capture: the report fails below this share of the whole, gross.
        seed: of weights, inputs and order.
        device: where the model runs.
        bench: what pieces run on, CUDA by default.
        report: gets one line for each window and for what is left out.

    Raises:
        InputError: no such model, it cannot be taken apart, ``out`` holds something else, or an
            argument is out of range.
        WorkError: the model does not fit, the sensor stopped answering, window after window was
            refused, or a line could not be written.
    """
    _check(batch, prompt, modes, trials)
    jsonl.repair(out)
    earlier = list(window_file.read(out))
    from calibration.components.model import component_config, load, passes
    from calibration.components.pieces import phases_of

    loaded = load(component_config(model_name), device=device, seed=seed)
    try:
        runs = passes(loaded, batch=batch, prompt=prompt, device=device)
        phases = phases_of(loaded.model, runs)
    except RuntimeError as error:
        raise WorkError(
            f"{loaded.name} cannot run here with batch {batch} and prompt {prompt}: {_line(error)}."
        ) from error
    identity = sensor.identity()
    setting = Setting(
        model=loaded.name,
        architecture=loaded.architecture,
        batch=batch,
        prompt=prompt,
        stack=loaded.stack,
        gpu=identity.gpu_name,
        board=identity.board,
        driver=identity.driver,
    )
    if bench is None:
        from calibration.components.cuda import CudaBench

        bench = CudaBench()
    session = _Session(
        sensor=sensor,
        bench=bench,
        out=out,
        setting=setting,
        modes=modes,
        report=report,
        known={w.key: w for w in earlier if w.setting == setting},
        missing=[],
        notes=[],
    )
    session.run(session.jobs(phases), trials, random.Random(seed))  # noqa: S311 - an order
    wanted = {IDLE, *modes}
    return summarise(
        [w for w in session.known.values() if w.mode in wanted and w.trial < trials],
        setting,
        trials=trials,
        max_cv=max_cv,
        min_capture=min_capture,
        missing=session.missing,
        notes=session.notes,
    )


def _check(batch: int, prompt: int, modes: Sequence[str], trials: int) -> None:
    for name, value, least in (("batch", batch, 1), ("prompt", prompt, 1), ("trials", trials, 2)):
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}.")
    if not modes or set(modes) - set(MODES):
        raise InputError(f"modes must be of {', '.join(MODES)}, got {', '.join(modes) or 'none'}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A piece in one mode, or the idle GPU (no piece)."""

    mode: str
    piece: "Piece | None" = None

    def key(self, trial: int) -> tuple[str, str, str, int]:
        if self.piece is None:
            return "", self.mode, IDLE, trial
        return self.piece.phase, self.mode, self.piece.component, trial

    @property
    def title(self) -> str:
        return ", ".join(str(k) for k in self.key(0)[:3] if k) if self.piece else IDLE


@dataclass(slots=True, kw_only=True)
class _Session:
    """Measures jobs and appends what was seen."""

    sensor: Sensor
    bench: ComponentBench
    out: Path
    setting: Setting
    modes: Sequence[str]
    report: Report
    known: dict[tuple[str, str, str, int], ComponentWindow]
    missing: list[str]
    notes: list[str]

    def jobs(self, phases: Sequence["Phase"]) -> list[_Job]:
        """Every piece in every mode that can run, and the idle GPU."""
        jobs = [_Job(mode=IDLE)]
        for phase in phases:
            for mode in self.modes:
                if mode == GRAPH and phase.obstacle is not None:
                    self._leave_out(phase.name, mode, phase.obstacle)
                    continue
                jobs += [_Job(mode=mode, piece=piece) for piece in phase.pieces]
        return jobs

    def run(self, jobs: list[_Job], trials: int, order: random.Random) -> None:
        """Every job once a trial, each trial in an order of its own."""
        todo = {j: [t for t in range(trials) if j.key(t) not in self.known] for j in jobs}
        works = self._prepare([j for j in jobs if todo[j]])
        left, refused = sum(len(todo[j]) for j in works), 0
        self.report(f"{left} windows to measure, about {1.5 * left:.0f} s")
        for trial in range(trials):
            turn = [j for j in works if trial in todo[j]]
            order.shuffle(turn)
            for job in turn:
                refusal = self._measure(job, works[job], trial)
                refused = refused + 1 if refusal else 0
                if refusal and refused == MAX_REFUSED:
                    raise WorkError(
                        f"{refused} windows one after the other: {refusal}"
                    ) from refusal
                left -= 1
                self.report(f"{self._seen(job, trial)}; {left} left")
        for job in works:
            if not any(job.key(t) in self.known for t in range(trials)):
                self.missing.append(f"{job.title}: 0 of {trials} trials were measured.")

    def _prepare(self, jobs: list[_Job]) -> dict[_Job, Work]:
        """Work for each job. A phase whose whole cannot run in a mode is left out in that mode."""
        works: dict[_Job, Work] = {}
        refused: set[tuple[str, str]] = set()
        # Eager ones first: a failed capture may leave the device in disorder.
        for job in sorted(jobs, key=lambda j: j.mode == GRAPH):
            if job.piece is None:
                works[job] = self.bench.idle()
            elif (job.piece.phase, job.mode) not in refused:
                try:
                    works[job] = self.bench.work(job.piece, job.mode)
                except (WorkError, InputError):
                    raise
                except (RuntimeError, ValueError, NotImplementedError) as error:
                    if job.piece.component == WHOLE:
                        refused.add((job.piece.phase, job.mode))
                        self._leave_out(job.piece.phase, job.mode, _line(error))
                    else:
                        self.missing.append(f"{job.title}: it cannot run: {_line(error)}.")
        return works

    def _leave_out(self, phase: str, mode: str, reason: str) -> None:
        """A phase that a CUDA graph cannot hold is noted where it is measured eagerly as well."""
        how = "not measured from a CUDA graph" if mode == GRAPH else "not measured"
        sentence = f"{phase}, {mode}: {how}: {reason}."
        self.report(sentence)
        (self.notes if mode == GRAPH and EAGER in self.modes else self.missing).append(sentence)

    def _measure(self, job: _Job, work: Work, trial: int) -> WindowRefused | None:
        """One window, tried again once if it is refused; the refusal if it is again."""
        for last in (False, True):
            try:
                window = steady_window(self.sensor, work, clock=self.bench.clock, settle_s=SETTLE_S)
                break
            except WindowRefused as refusal:
                self.report(f"{job.title}: refused: {refusal}")
                if last:
                    return refusal
        phase, mode, component, _ = job.key(trial)
        line = ComponentWindow(
            setting=self.setting,
            phase=phase,
            mode=mode,
            component=component,
            trial=trial,
            time_s=round(time.time(), 1),
            **{name: getattr(window, name) for name in _OF_WINDOW},
            **({name: getattr(job.piece, name) for name in _OF_PIECE} if job.piece else {}),
        )
        self.known[line.key] = line
        window_file.append(self.out, line)
        return None

    def _seen(self, job: _Job, trial: int) -> str:
        seen = self.known.get(job.key(trial))
        if seen is None:
            return f"{job.title}: left out"
        if job.piece is None:
            return f"{job.title}: {seen.energy_j / seen.duration_s:.1f} W"
        return f"{job.title}: {1e3 * seen.energy_j / seen.calls:.4g} mJ"


def _line(error: Exception) -> str:
    lines = str(error).strip().rstrip(".").splitlines() or [type(error).__name__]
    return lines[0]
