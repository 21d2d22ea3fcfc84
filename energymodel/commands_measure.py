"""The command ``measure``: whole models on this GPU."""

from typing import Any

import click

from energymodel.commands_common import (
    FILE,
    deployment_options,
    lacks,
    model_option,
)
from energymodel.deployment import Deployment
from energymodel.errors import InputError, WorkError

_GPU = click.option("--gpu", required=True, metavar="G", help="GPU, such as h200, or auto.")


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
    """Energy of a whole model on this GPU, or on several with --tensor-parallel-size."""
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
        from calibration.gpu import find_gpu, find_gpus
        from calibration.measure import measure_all
    except ImportError as error:
        raise WorkError(lacks("Measuring", "calibrate", error)) from error
    deployment = Deployment(**flags)
    gpus = deployment.tensor_parallel_size * deployment.pipeline_parallel_size
    sensor, *others = [find_gpu(gpu)] if gpus == 1 else find_gpus(gpu, gpus)
    measure_all(
        found.name,
        found.config,
        bins,
        deployment=deployment,
        sensor=sensor,
        others=others,
        out=target,
        report=lambda line: click.echo(printable(line), err=True),
    )
