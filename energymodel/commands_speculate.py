"""``speculate``: whether drafts pay, batch by batch."""

from typing import Any

import click

from energymodel.commands_common import (
    deployment_options,
    emit,
    emit_json,
    gpu_option,
    json_option,
    load_profile,
    model_option,
    profile_option,
    warn,
)
from energymodel.deployment import Deployment
from energymodel.errors import InputError

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = click.IntRange(1, 10_000_000)


@click.command()
@model_option
@gpu_option
@click.option("--input-tokens", type=_TOKENS, default=512, show_default=True, metavar="N")
@click.option("--output-tokens", type=_TOKENS, default=256, show_default=True, metavar="N")
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1, 100_000),
    metavar="N",
    help=f"Requests at a time; repeatable.  [default: {', '.join(map(str, BATCHES))}]",
)
@deployment_options
@profile_option
@json_option
def speculate(
    *,
    model: str,
    gpu: str | None,
    input_tokens: int,
    output_tokens: int,
    batches: tuple[int, ...],
    path: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Up to which batch speculative decoding saves energy and time."""
    from energymodel import speculation
    from energymodel.diffusion.pipeline import Pipeline
    from energymodel.find_model import find_any
    from energymodel.render_speculation import speculation as table

    deployment = Deployment(**flags)
    profile = load_profile(gpu, path)
    spec, _ = find_any(model)
    if isinstance(spec, Pipeline):
        raise InputError(f"model '{model}' makes images or videos: it decodes no tokens.")
    most = deployment.max_num_seqs
    if any(batch > most for batch in batches):
        raise InputError(f"batch must be at most max_num_seqs, which is {most:,}.")
    found = speculation.speculate(
        spec,
        deployment,
        profile,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        batches=batches or [batch for batch in BATCHES if batch <= most],
    )
    if as_json:
        emit_json(found)
        warn(found.warnings)
    else:
        emit(table(found))
