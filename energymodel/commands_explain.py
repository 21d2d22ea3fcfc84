"""``explain``: why the joules differ, and where FLOP-only misleads."""

from collections.abc import Callable
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import click

from energymodel.commands_common import (
    FILE,
    emit,
    emit_json,
    gpu_name,
    gpu_option,
    json_option,
    lacks,
    load_profile,
    profile_option,
    warn,
)
from energymodel.errors import InputError, WorkError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from energymodel.explain import Explanation
    from energymodel.flop_gap import FlopGap

GAP_WORD = "flop-gap"
PLOT_FORMATS = (".svg", ".png", ".pdf")
# Small to large, dense and of experts.
MODELS = (
    "Qwen3-0.6B",
    "Qwen3-4B",
    "Llama-3.1-8B-Instruct",
    "Qwen3-32B",
    "OLMoE-1B-7B-0924",
    "Qwen3-30B-A3B",
)
BATCHES = (1, 8, 64, 256)
CONTEXTS = (512, 2048, 8192)


@click.command()
@click.argument("files", nargs=-1, type=FILE, metavar="[A.JSON B.JSON]")
@click.option("--flop-gap", "gap", is_flag=True, help="Where FLOP-only is wrong, instead.")
@click.option("--model", "models", multiple=True, metavar="M", help="For --flop-gap; repeatable.")
@gpu_option
@profile_option
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help=f"Requests; repeatable.  [default: {', '.join(map(str, BATCHES))}]",
)
@click.option(
    "--context",
    "contexts",
    multiple=True,
    type=click.IntRange(1, 10_000_000),
    metavar="TOKENS",
    help=f"Prompt tokens; repeatable.  [default: {', '.join(map(str, CONTEXTS))}]",
)
@click.option(
    "--output-tokens",
    type=click.IntRange(0, 10_000_000),
    default=128,
    show_default=True,
    metavar="N",
)
@click.option(
    "--runs",
    multiple=True,
    type=FILE,
    metavar="RUNS.JSONL",
    help="Measured runs instead; repeatable.",
)
@click.option("--plot", type=FILE, metavar="FILE", help="Figure as .svg, .png or .pdf.")
@json_option
def explain(
    files: tuple[str, ...], gap: bool, plot: str | None, as_json: bool, **grid: Any
) -> None:
    """Why joules differ, and where FLOP-only misleads.

    A.JSON and B.JSON are written by `energymodel predict --json`; the factors between them multiply
    back to the ratio of their energies. With --flop-gap: across models, batches and contexts, how
    wrong FLOP-only is and which pairs it ranks the wrong way round, on h200 unless --gpu or
    --profile says otherwise.
    """
    from energymodel import render_explain

    if plot is not None:
        _check_plot(plot)
    if gap or files == (GAP_WORD,):
        found = _gap(**grid, files=files)
        if plot is not None:
            from energymodel.explain_plots import flop_gap

            flop_gap(found, plot)
        _print(found, render_explain.flop_gap, as_json)
    else:
        made = _compared(files, grid)
        if plot is not None:
            from energymodel.explain_plots import waterfall

            waterfall(made, plot)
        _print(made, render_explain.explanation, as_json)


def _print(result: Any, show: Callable[[Any], "RenderableType"], as_json: bool) -> None:
    if as_json:
        emit_json(result)
        warn(result.warnings)
    else:
        emit(show(result))


def _check_plot(plot: str) -> None:
    """Before anything is computed."""
    if PurePath(plot).suffix.lower() not in PLOT_FORMATS:
        raise InputError(f"--plot must end in {', '.join(PLOT_FORMATS)}, got {plot!r}.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise WorkError(lacks("--plot", "plot", error)) from error


def _compared(files: tuple[str, ...], grid: dict[str, Any]) -> "Explanation":
    from energymodel.explain import explain as compare
    from energymodel.explain_document import read_document

    if len(files) != 2:
        raise InputError(f"explain needs two predictions, A.json and B.json, got {len(files)}.")
    stray = next((name for name, value in grid.items() if value and name != "output_tokens"), None)
    if stray is not None:
        flag = {"path": "profile", "models": "model", "batches": "batch", "contexts": "context"}
        raise InputError(f"--{flag.get(stray, stray)} is for --flop-gap.")
    a, b = (read_document(file) for file in files)
    return compare(a, b)


def _gap(
    *,
    files: tuple[str, ...],
    models: tuple[str, ...],
    gpu: str | None,
    path: str | None,
    batches: tuple[int, ...],
    contexts: tuple[int, ...],
    output_tokens: int,
    runs: tuple[str, ...],
) -> "FlopGap":
    from energymodel import flop_gap

    if files not in ((), (GAP_WORD,)):
        raise InputError("--flop-gap takes no files; measured runs are given as --runs.")
    if runs:
        if models or batches or contexts:
            raise InputError("--runs names what was measured: no --model, --batch or --context.")
        from energymodel.io import read_runs
        from energymodel.validate import predictor

        predict_run = predictor(gpu and gpu_name(gpu), path)
        measured = tuple(run for file in runs for run in read_runs(file))
        return flop_gap.measured(measured, predict_run)
    from energymodel.deployment import Deployment
    from energymodel.find_model import find_model
    from energymodel.predict import predict

    profile = load_profile(gpu or (None if path else "h200"), path)
    specs = {name: find_model(name)[0] for name in models or MODELS}
    return flop_gap.predicted(
        lambda name, workload: predict(specs[name], Deployment(), workload, profile),
        tuple(specs),
        batches or BATCHES,
        contexts or CONTEXTS,
        output_tokens,
    )
