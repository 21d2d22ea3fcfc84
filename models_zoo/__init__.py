"""One config.json per known model: unmodified facts, with their source.

Files are named ``<organisation>__<name>.json``. Top-level keys that start with an underscore are
ours: ``_model_id`` (the Hugging Face id), ``_source`` (where the facts were read) and
``_confirmed`` (how far that source is the model's own ``config.json``).
"""

import json
from importlib import resources

__all__ = ["find", "names"]

_SUFFIX = ".json"


def names() -> tuple[str, ...]:
    """Every known model as ``organisation/name``, sorted without regard to case."""
    files = (entry.name for entry in resources.files(__name__).iterdir())
    ids = (n.removesuffix(_SUFFIX).replace("__", "/", 1) for n in files if n.endswith(_SUFFIX))
    return tuple(sorted(ids, key=str.lower))


def find(name: str) -> dict[str, object] | None:
    """The configuration of a model, None if unknown.

    ``name`` is matched without regard to case, with or without its organisation.
    """
    wanted = name.strip().lower()
    for model_id in names():
        lower = model_id.lower()
        if wanted in (lower, lower.split("/", 1)[1]):
            file = resources.files(__name__) / (model_id.replace("/", "__", 1) + _SUFFIX)
            config: dict[str, object] = json.loads(file.read_text(encoding="utf-8"))
            return config
    return None
