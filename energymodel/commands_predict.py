"""Commands that predict: ``predict`` and ``validate``."""

from dataclasses import replace
from typing import Any

import click

from energymodel.commands_common import (
    FILE,
    deployment_options,
    emit,
    emit_json,
    gpu_name,
    gpu_option,
    json_option,
    load_profile,
    model_option,
    profile_option,
    warn,
    workload_option,
)
from energymodel.deployment import Deployment


@click.command()
@model_option
@gpu_option
@workload_option
@deployment_options
@profile_option
@json_option
def predict(
    model: str, gpu: str | None, workload: str, path: str | None, as_json: bool, **flags: Any
) -> None:
    """Energy of a model on a GPU for a workload."""
    from energymodel import io, render
    from energymodel.diffusion.pipeline import Pipeline
    from energymodel.find_model import find_any

    profile = load_profile(gpu, path)
    bins = io.read_workload(workload)
    spec, warnings = find_any(model)
    if isinstance(spec, Pipeline):
        from energymodel.diffusion.predict import predict as predict_pipeline

        prediction = predict_pipeline(spec, Deployment(**flags), bins, profile)
    else:
        from energymodel.predict import predict as predict_energy

        prediction = predict_energy(spec, Deployment(**flags), bins, profile)
    prediction = replace(prediction, warnings=(*warnings, *prediction.warnings))
    if as_json:
        emit_json(prediction)
        warn(prediction.warnings)
    else:
        emit(render.prediction(prediction))


@click.command()
@click.argument("runs", type=FILE, metavar="RUNS.JSONL")
@gpu_option
@profile_option
@json_option
def validate(runs: str, gpu: str | None, path: str | None, as_json: bool) -> None:
    """Predictions against measured runs."""
    from energymodel import io, render_validation
    from energymodel import validate as comparison

    measured = io.read_runs(runs)
    result = comparison.validate(measured, comparison.predictor(gpu and gpu_name(gpu), path))
    if as_json:
        emit_json(result)
        warn(f"{s.rows:,} runs skipped: {s.reason}" for s in result.skipped)
    else:
        emit(render_validation.validation(result))
