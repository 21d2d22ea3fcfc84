"""``calibrate --collectives``: what several GPUs of this machine say to each other, and its cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from energymodel.commands_common import emit_json, gpu_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    Bar = Callable[
        [],
        AbstractContextManager[tuple[Callable[[str], None], Callable[[float, float, str], None]]],
    ]


def collectives(folder: Path, options: dict[str, Any], bar: "Bar") -> None:
    """Measure or simulate into collectives.jsonl of ``folder``, and refit its profile.

    Args:
        folder: ``--out``.
        options: those of ``calibrate``.
        bar: a progress bar, as a context manager of report and progress.
    """
    from calibration.collectives import run
    from calibration.fit_collectives import conclude
    from energymodel import hardware
    from energymodel.render import printable

    gpu = gpu_name(options["gpu"])
    hardware.load(gpu)
    file = options["source"] and Path(options["source"])
    if file is None:
        file = run.start(folder, gpu, resume=options["resume"], simulated=options["simulate"])
        with bar() as (report, progress):
            _measure(file, gpu, options, report, progress)
    profile = conclude(file, folder, gpu, simulated=run.is_simulated(file))
    if options["as_json"]:
        emit_json({"observations_file": str(file), "profile": str(profile)})
        return
    for path in (file, profile):
        click.echo(f"Wrote {printable(str(path))}", err=True)


def _measure(
    file: Path,
    gpu: str,
    options: dict[str, Any],
    report: "Callable[[str], None]",
    progress: "Callable[[float, float, str], None]",
) -> None:
    from calibration.collectives import run

    gpus, grid = options["gpus"], options["grid"]
    try:
        if options["simulate"]:
            run.simulate(file, gpu, gpus, grid_name=grid, report=report, progress=progress)
            return
        run.measure(
            file,
            gpu,
            gpus,
            grid_name=grid,
            budget_s=options["budget_s"],
            report=report,
            progress=progress,
        )
    except KeyboardInterrupt:
        report(f"stopped: what was measured is in {file}; --resume goes on from there")
        raise
