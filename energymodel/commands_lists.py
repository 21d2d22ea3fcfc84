"""Commands that say what is known: ``models``, ``gpus``, ``profiles`` and ``schema``."""

from collections.abc import Callable
from typing import Any

import click

from energymodel.commands_common import emit, emit_json, json_option

SCHEMAS = ("workload", "prediction", "profile", "runs")


@click.command()
@json_option
def models(as_json: bool) -> None:
    """Models in the zoo, with their sizes in bfloat16."""
    import models_zoo
    from energymodel import render
    from energymodel.find_model import find_model

    rows = []
    for name in models_zoo.names():
        spec, _ = find_model(name)
        rows.append(
            {
                "name": name,
                "kind": spec.regime,
                "model_type": spec.model_type,
                "param_count": spec.param_count,
                "active_param_count": spec.active_param_count,
                "kv_bytes_per_token": spec.kv_bytes_per_token(),
                "weight_bytes": spec.weight_bytes(),
            }
        )
    _show("models", rows, render.models, as_json)


@click.command()
@json_option
def gpus(as_json: bool) -> None:
    """GPUs whose data sheet is known."""
    from dataclasses import asdict

    from energymodel import hardware, profile, render

    profiled = {profile.load(name, None).gpu.name for name in profile.available()}
    rows = [asdict(hardware.load(n)) | {"profile": n in profiled} for n in hardware.available()]
    _show("gpus", rows, render.gpus, as_json)


@click.command()
@json_option
def profiles(as_json: bool) -> None:
    """Shipped profiles and their origin."""
    from energymodel import profile, render

    loaded = [profile.load(name, None) for name in profile.available()]
    rows = [
        {"name": p.name, "gpu": p.gpu.name, "kind": p.kind, "provenance": dict(p.provenance)}
        for p in loaded
    ]
    _show("profiles", rows, render.profiles, as_json)


@click.command()
@click.argument("kind", type=click.Choice(SCHEMAS))
def schema(kind: str) -> None:
    """JSON Schema of a file or of an output."""
    from energymodel import io

    if kind in ("prediction", "profile"):
        emit_json(_output_schema(kind))
    else:
        emit_json(io.schema(kind))


def _output_schema(kind: str) -> dict[str, Any]:
    import msgspec

    if kind == "prediction":
        from energymodel.prediction import Prediction as Document
    else:
        from energymodel.profile import Profile as Document  # type: ignore[assignment]
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return draft | msgspec.json.schema(Document)


def _show(key: str, rows: list[dict[str, Any]], table: Callable[[Any], Any], as_json: bool) -> None:
    if as_json:
        emit_json({key: rows})
    else:
        emit(table(rows))
