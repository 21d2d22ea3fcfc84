"""Commands that say what is known: ``models``, ``gpus``, ``profiles`` and ``schema``."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from energymodel.commands_common import emit, emit_json, json_option

if TYPE_CHECKING:
    from energymodel.diffusion.pipeline import Pipeline
    from energymodel.model import ModelSpec

_INPUTS = {"vision": "image", "audio": "audio"}
# Documents that are dataclasses: (module, name) of each; the others are structs of ``io``.
_DATACLASSES = {
    "prediction": ("energymodel.prediction", "Prediction"),
    "profile": ("energymodel.profile", "Profile"),
    "observations": ("calibration.observations", "Observation"),
    "bins": ("energymodel.traces.report", "Report"),
    "validation": ("energymodel.validate", "Validation"),
    "plan": ("energymodel.planning.document", "Plan"),
}
SCHEMAS = ("workload", "runs", *_DATACLASSES)


@click.command()
@json_option
def models(as_json: bool) -> None:
    """Models in the zoo, with their sizes as they are published."""
    import models_zoo
    from energymodel import render
    from energymodel.find_model import find_any

    known = (*models_zoo.names(), *models_zoo.pipelines())
    rows = [_model_row(find_any(name)[0]) for name in known]
    _show("models", rows, render.models, as_json)


def _model_row(spec: "ModelSpec | Pipeline") -> dict[str, Any]:
    """One model; ``weight_formats`` are those of its layers, ``state_bytes`` of each sequence."""
    from energymodel.diffusion.pipeline import Pipeline

    row = {
        "name": spec.name,
        "param_count": spec.param_count,
        "active_param_count": spec.active_param_count,
        "weight_bytes": spec.weight_bytes(),
        "weight_formats": ["bfloat16"],
    }
    if isinstance(spec, Pipeline):
        return row | {"kind": spec.kind, "model_type": spec.class_name, "inputs": ["text"]}
    formats = {stored for layer, _ in spec.layer_groups() for _, stored in layer.formats}
    return row | {
        "kind": spec.regime if spec.kind == "decoder" else spec.kind,
        "model_type": spec.model_type,
        "inputs": ["text", *(_INPUTS[tower.component] for tower in spec.towers)],
        "kv_bytes_per_token": spec.kv_bytes_per_token(dtype=spec.kv_cache_dtype or "bfloat16"),
        "state_bytes": spec.state_bytes(),
        "weight_formats": sorted(formats) or ["bfloat16"],
    }


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
    """JSON Schema of a file or of an output; of one line, for runs and observations."""
    from energymodel import io

    if kind not in _DATACLASSES:
        emit_json(io.schema(kind))
        return
    from importlib import import_module

    import msgspec

    module, name = _DATACLASSES[kind]
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    emit_json(draft | msgspec.json.schema(getattr(import_module(module), name)))


def _show(key: str, rows: list[dict[str, Any]], table: Callable[[Any], Any], as_json: bool) -> None:
    if as_json:
        emit_json({key: rows})
    else:
        emit(table(rows))
