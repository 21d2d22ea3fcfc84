"""Commands of the measurement stage: ``calibrate`` (refit) and ``measure``."""

import os
from typing import TYPE_CHECKING, Any

import click

from energymodel.commands_common import (
    FILE,
    deployment_options,
    gpu_name,
    model_option,
)
from energymodel.deployment import Deployment
from energymodel.errors import InputError, WorkError

if TYPE_CHECKING:
    from pathlib import Path

_GPU = click.option("--gpu", required=True, metavar="G", help="GPU, such as h200, or auto.")


@click.command()
@click.option("--from", "source", required=True, type=FILE, metavar="OBSERVATIONS.JSONL")
@click.option("--runs", type=FILE, metavar="RUNS.JSONL", help="Whole runs to fit and check with.")
@_GPU
@click.option("--out", type=FILE, default=".", metavar="DIR", help="Folder of the profile.")
def calibrate(source: str, runs: str | None, gpu: str, out: str) -> None:
    """Refit a profile; needs no GPU."""
    from pathlib import Path

    from energymodel import io

    observations, whole = Path(source), None if runs is None else Path(runs)
    for path in (observations, whole):
        if path is not None and not path.is_file():
            raise InputError(f"{path} must be a file of JSON lines; there is none.")
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {out} must be a folder; it is a file.")
    try:
        from calibration.fit import fit_profile
    except ImportError as error:
        raise WorkError(_lacks("Refitting", "fit", error)) from error
    name = gpu_name(gpu)
    profile = fit_profile(observations, whole, name)
    target = folder / f"{name}.json"
    _write_whole(target, io.dumps(profile, indent=1) + "\n")
    click.echo(f"Wrote {target}", err=True)


@click.command()
@model_option
@click.option(
    "--workload",
    "workloads",
    required=True,
    multiple=True,
    type=FILE,
    metavar="BINS.JSON",
    help="What is asked of it; may be given several times for one start of the engine.",
)
@_GPU
@click.option("--out", required=True, type=FILE, metavar="RUNS.JSONL", help="File to append to.")
@deployment_options
def measure(model: str, workloads: tuple[str, ...], gpu: str, out: str, **flags: Any) -> None:
    """Energy of a whole model on this GPU."""
    from pathlib import Path

    from energymodel import io
    from energymodel.find_model import find_config
    from energymodel.render import printable

    bins = [io.read_workload(workload) for workload in workloads]
    found = find_config(model)
    target = Path(out)
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise InputError(f"--out {out} must be a file in a folder that exists.")
    try:
        from calibration.gpu import find_gpu
        from calibration.measure import measure_all
    except ImportError as error:
        raise WorkError(_lacks("Measuring", "calibrate", error)) from error
    measure_all(
        found.name,
        found.config,
        bins,
        deployment=Deployment(**flags),
        sensor=find_gpu(gpu),
        out=target,
        report=lambda line: click.echo(printable(line), err=True),
    )


def _lacks(what: str, extra: str, error: ImportError) -> str:
    return f"{what} needs {error.name or 'a package'}: pip install 'energymodel[{extra}]'."


def _write_whole(target: "Path", text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
