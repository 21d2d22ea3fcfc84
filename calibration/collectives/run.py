"""What ``energymodel calibrate --collectives`` does: measure or simulate, resume, and refit.

collectives.jsonl lies beside the observations of single operations, in a file of its own.
"""

from pathlib import Path

from calibration import jsonl
from calibration.collectives import grid, launch, observations
from calibration.collectives.sweep import TRIALS, Progress, Report, sweep
from calibration.collectives.task import Task
from calibration.gpu import datasheet, find_gpus
from calibration.simulation.fabric import SimulatedHost
from calibration.simulation.gpu import DRIVER as SIMULATED
from calibration.simulation.truth import declared
from energymodel import hardware
from energymodel.errors import InputError


def start(folder: Path, gpu: str, *, resume: bool, simulated: bool) -> Path:
    """The file of ``folder``, ready to be written to.

    Runs of other numbers of GPUs go into the same file with ``resume``.

    Raises:
        InputError: there are lines already and ``resume`` is off, or none and it is on; or what
            would be resumed is of another GPU, or simulated where this one is not.
    """
    file = folder / observations.FILE
    if file.exists() and not resume:
        raise InputError(
            f"{file} holds collectives already: add --resume to continue them, or choose another "
            "--out."
        )
    if resume and not file.exists():
        raise InputError(f"--resume finds no {file}: leave it out to begin.")
    for o in observations.read(file) if resume else ():
        if datasheet(o.gpu) != gpu:
            raise InputError(f"--resume: {file} is of '{o.gpu}', not {gpu}: choose another --out.")
        if (o.driver == SIMULATED) != simulated:
            kind = "measured" if simulated else "simulated"
            raise InputError(f"--resume: {file} was {kind}: choose another --out.")
    return file


def measure(
    file: Path,
    gpu: str,
    gpus: int,
    *,
    grid_name: str,
    budget_s: float,
    trials: int = TRIALS,
    report: Report,
    progress: Progress,
) -> int:
    """Measure on the first ``gpus`` GPUs of this machine; returns how many lines were added.

    Args:
        file: collectives.jsonl, appended to.
        gpu: what they are to be; ``auto`` takes what is there.
        gpus: how many.
        grid_name: quick or full.
        budget_s: time after which nothing more is begun.
        trials: how often each window is taken.
        report: gets a line for what was left out.
        progress: gets how far the sweep is.

    Raises:
        InputError: a GPU is another one.
        WorkError: there are fewer GPUs, one cannot be trusted, or its process failed; what was
            written is kept.
    """
    find_gpus(gpu, gpus)  # refuses in one sentence what every rank would refuse
    task = Task(gpu=gpu, out=str(file.absolute()), grid=grid_name, budget_s=budget_s, trials=trials)
    with jsonl.owned(file):
        return launch.measure(task, gpus, report=report, progress=progress)


def simulate(
    file: Path, gpu: str, gpus: int, *, grid_name: str, report: Report, progress: Progress
) -> int:
    """Measure the same grid on simulated GPUs with declared costs; no time budget."""
    host = SimulatedHost(declared(hardware.load(gpu)).simulated_gpu(), gpus)
    points = grid.GRIDS[grid_name](custom=True)
    with jsonl.owned(file):
        return sweep(points, host, file, budget_s=1e9, report=report, progress=progress)


def is_simulated(file: Path) -> bool:
    """Whether a file of collectives came from a simulated host."""
    return any(o.driver == SIMULATED for o in observations.read(file))
