"""Commands that predict: ``predict`` and ``validate``."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import click

from energymodel.commands_common import (
    FILE,
    TRACE_TOLD,
    deployment_options,
    emit,
    emit_json,
    gpu_name,
    gpu_option,
    json_option,
    load_profile,
    model_option,
    profile_option,
    trace_columns,
    trace_options,
    warn,
    write_html,
)
from energymodel.deployment import Deployment
from energymodel.errors import InputError

if TYPE_CHECKING:
    from energymodel.diffusion.pipeline import Pipeline
    from energymodel.model import ModelSpec
    from energymodel.prediction import Prediction
    from energymodel.profile import Profile
    from energymodel.workload import Workload

# Steps of requests that arrive in time are merged: what one of them adds is not known.
_TOGETHER = "--attribution must be proportional where requests arrive in time."
_WORKLOAD = click.option(
    "--workload",
    type=FILE,
    metavar="BINS.JSON",
    help="What is asked: numbers of requests, all there at the start, or rates of arrival.",
)
_TRACE = click.option(
    "--trace", type=FILE, metavar="FILE", help="Requests that arrive as they did in a trace."
)
_SEED = click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of arrivals that are drawn at random.",
)
_ATTRIBUTION = click.option(
    "--attribution",
    "sharing",
    type=click.Choice(("proportional", "marginal")),
    default="proportional",
    show_default=True,
    help="How bins share the energy of a step: by what they ask of each operation, or by what each "
    "request adds and an equal part of the rest.",
)


@click.command()
@model_option
@gpu_option
@_WORKLOAD
@_TRACE
@trace_options
@_SEED
@deployment_options
@_ATTRIBUTION
@profile_option
@click.option("--html", type=FILE, metavar="FILE", help="Write a report as one HTML file as well.")
@json_option
def predict(
    *,
    model: str,
    gpu: str | None,
    workload: str | None,
    trace: str | None,
    seed: int,
    sharing: Literal["proportional", "marginal"],
    path: str | None,
    html: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Energy of a model on a GPU for a workload, or for a trace as its requests arrived."""
    from energymodel import io, render
    from energymodel.commands_progress import bar
    from energymodel.find_model import find_any

    if (workload is None) == (trace is None):
        raise InputError("Name what is asked of the model: one of --workload and --trace.")
    if trace is not None and sharing != "proportional":
        raise InputError(_TOGETHER)
    profile = load_profile(gpu, path)
    spec, warnings = find_any(model)
    told = {name: flags.pop(name) for name in TRACE_TOLD}
    deployment = Deployment(**flags)
    with bar():
        if trace is not None:
            prediction = _of_trace(spec, deployment, trace, profile, told)
        else:
            bins = io.read_workload(str(workload))
            prediction = _of_bins(spec, deployment, bins, profile, seed=seed, sharing=sharing)
    prediction = replace(prediction, warnings=(*warnings, *prediction.warnings))
    if html is not None:
        from energymodel.html_report import html_report

        write_html(html, html_report(prediction))
    if as_json:
        emit_json(prediction)
        warn(prediction.warnings)
    else:
        emit(render.prediction(prediction))


def _of_trace(
    spec: "ModelSpec | Pipeline",
    deployment: Deployment,
    trace: str,
    profile: "Profile",
    told: Mapping[str, Any],
) -> "Prediction":
    from energymodel.diffusion.pipeline import Pipeline
    from energymodel.predict_online import predict_trace
    from energymodel.traces import read_trace

    if isinstance(spec, Pipeline):
        raise InputError("--trace holds requests for text; a pipeline needs --workload.")
    found = read_trace(trace, trace_columns(told), chars_per_token=told["chars_per_token"])
    return predict_trace(spec, deployment, found, profile)


def _of_bins(
    spec: "ModelSpec | Pipeline",
    deployment: Deployment,
    bins: "Workload",
    profile: "Profile",
    *,
    seed: int,
    sharing: Literal["proportional", "marginal"],
) -> "Prediction":
    from energymodel.diffusion.pipeline import Pipeline

    if isinstance(spec, Pipeline):
        from energymodel.diffusion.predict import predict as predict_pipeline

        return predict_pipeline(spec, deployment, bins, profile)
    if bins.online:
        if sharing != "proportional":
            raise InputError(_TOGETHER)
        from energymodel.predict_online import predict_online

        return predict_online(spec, deployment, bins, profile, seed=seed)
    from energymodel.predict import predict as predict_energy

    return predict_energy(spec, deployment, bins, profile, sharing=sharing)


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
