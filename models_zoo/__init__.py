"""One config.json per known model: unmodified facts, with their source.

Files are named ``<organisation>__<name>.json``. Top-level keys that start with an underscore are
ours: ``_model_id`` (the Hugging Face id), ``_source`` (where the facts were read) and
``_confirmed`` (how far that source is the model's own ``config.json``). ``pipelines`` holds those of
diffusers, each the ``model_index.json`` with the configuration of every part in its place.
"""

import json
from importlib import resources
from importlib.resources.abc import Traversable

__all__ = ["find", "names", "pipelines"]

_SUFFIX = ".json"
_PIPELINES = "pipelines"


def names() -> tuple[str, ...]:
    """Every known language model as ``organisation/name``, sorted without regard to case."""
    return _ids(resources.files(__name__))


def pipelines() -> tuple[str, ...]:
    """Every known pipeline that makes images or videos, likewise."""
    return _ids(resources.files(__name__) / _PIPELINES)


def _ids(folder: Traversable) -> tuple[str, ...]:
    files = (entry.name for entry in folder.iterdir())
    ids = (n.removesuffix(_SUFFIX).replace("__", "/", 1) for n in files if n.endswith(_SUFFIX))
    return tuple(sorted(ids, key=str.lower))


def find(name: str) -> dict[str, object] | None:
    """The configuration of a model or a pipeline, None if unknown.

    ``name`` is matched without regard to case, with or without its organisation.
    """
    wanted = name.strip().lower()
    root = resources.files(__name__)
    for folder in (root, root / _PIPELINES):
        for model_id in _ids(folder):
            lower = model_id.lower()
            if wanted in (lower, lower.split("/", 1)[1]):
                file = folder / (model_id.replace("/", "__", 1) + _SUFFIX)
                config: dict[str, object] = json.loads(file.read_text(encoding="utf-8"))
                return config
    return None
