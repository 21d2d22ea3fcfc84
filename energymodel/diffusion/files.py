"""The files of a pipeline: ``model_index.json`` and a folder with a configuration for each part."""

from collections.abc import Mapping
from pathlib import Path

from energymodel import io
from energymodel.errors import InputError

INDEX = "model_index.json"
PARTS = (
    "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "transformer_2", "unet", "vae",
)  # fmt: skip


def is_pipeline(config: Mapping[str, object]) -> bool:
    """Whether a configuration is that of a pipeline, and not of a single model."""
    return str(config.get("_class_name", "")).endswith("Pipeline")


def parts_of(index: Mapping[str, object]) -> tuple[str, ...]:
    """Parts that an index names, a pair of library and class each, whose files are read."""
    return tuple(key for key in PARTS if _named(index.get(key)))


def _named(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None


def read_folder(folder: Path, limit_bytes: int) -> dict[str, object]:
    """The index with the configuration of each part in the place of its class.

    Raises:
        InputError: a file is missing, too large, or no JSON object.
    """
    index = _object(folder / INDEX, limit_bytes)
    config: dict[str, object] = {k: v for k, v in index.items() if not isinstance(v, list)}
    for key in parts_of(index):
        config[key] = _object(folder / key / "config.json", limit_bytes)
    if _named(index.get("safety_checker")):
        config["safety_checker"] = {}
    return config


def _object(path: Path, limit_bytes: int) -> dict[str, object]:
    value = io.read_json(path, limit_bytes)
    if not isinstance(value, dict):
        raise InputError(f"{path} must be a JSON object.")
    return value
