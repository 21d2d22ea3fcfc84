"""From what a user calls a model to its specification: zoo, file, Hugging Face cache, Hugging Face."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models_zoo
from energymodel import io
from energymodel.diffusion.files import INDEX, is_pipeline, parts_of, read_folder
from energymodel.errors import InputError
from energymodel.model import ModelSpec, model_from_config

if TYPE_CHECKING:
    from energymodel.diffusion.pipeline import Pipeline

MAX_CONFIG_BYTES = 1_000_000

_HF_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundConfig:
    """A model configuration, what to call the model, and what messages call the configuration."""

    name: str
    where: str
    config: Mapping[str, Any]


def find_model(name: str) -> tuple[ModelSpec, list[str]]:
    """The model called ``name`` (see ``find_config``), and warnings, one sentence each.

    Raises:
        InputError: No such model, or its configuration is unusable.
    """
    spec, warnings = find_any(name)
    if not isinstance(spec, ModelSpec):
        raise InputError(f"{spec.name} makes {spec.kind}s; a language model is needed here.")
    return spec, warnings


def find_any(name: str) -> "tuple[ModelSpec | Pipeline, list[str]]":
    """The model or the pipeline called ``name``, and warnings, one sentence each.

    Raises:
        InputError: No such model, or its configuration is unusable.
    """
    found = find_config(name)
    if is_pipeline(found.config):
        from energymodel.diffusion.pipeline import read_pipeline  # most names are of no pipeline

        pipeline, warnings = read_pipeline(found.config, found.where)
        return replace(pipeline, name=found.name), warnings
    spec, warnings = model_from_config(found.config, found.where)
    return replace(spec, name=found.name), warnings


def find_config(name: str) -> FoundConfig:
    """The configuration of the model called ``name``.

    ``name`` is, tried in this order, a name in the zoo (case does not matter, nor does the
    organisation), the path of a ``config.json`` or of its folder, or a Hugging Face id that is in
    the local cache or, with the ``hf`` extra, can be fetched. Of a repository only
    ``config.json`` is ever read, or ``model_index.json`` and the ``config.json`` of each part.

    Raises:
        InputError: No such model, or its configuration is no JSON object.
    """
    known = models_zoo.find(name)
    if known is not None:
        model_id = str(known["_model_id"])
        return FoundConfig(name=model_id, where=model_id, config=known)
    path = _config_path(name)
    if path is not None:
        return _read(path, str(path), _label(path))
    if _HF_ID.fullmatch(name) and ".." not in name and "--" not in name:
        path = _cached(name) or _fetched(name)
        if path is not None:
            return _read(path, name, name)
    raise InputError(_unknown(name))


def _read(path: Path, where: str, name: str) -> FoundConfig:
    if path.name == INDEX:
        pipeline = read_folder(path.parent, MAX_CONFIG_BYTES)
        return FoundConfig(name=name, where=where, config=pipeline)
    config = io.read_json(path, MAX_CONFIG_BYTES)
    if not isinstance(config, dict):
        raise InputError(f"{where} must be a model configuration, a JSON object.")
    return FoundConfig(name=name, where=where, config=config)


def _config_path(name: str) -> Path | None:
    """The file that ``name`` points to, None where it does not look like a path."""
    if not name:
        return None  # to pathlib it is the current folder
    try:
        path = Path(name).expanduser()
        is_folder, exists = path.is_dir(), path.exists()
        held = [path / file for file in ("config.json", INDEX) if (path / file).exists()]
    except (OSError, RuntimeError, ValueError):  # too long, no home folder, a null character
        return None
    if is_folder and not held:
        raise InputError(f"The folder {_short(name)} must hold a config.json or a {INDEX}.")
    if is_folder:
        return held[0]
    looks_like_path = name.endswith(".json") or name.startswith((".", "~", "/", "\\"))
    return path if exists or looks_like_path else None


def _label(path: Path) -> str:
    """What to call a model that is only a file: its folder, or the file where it has a name."""
    return path.absolute().parent.name if path.name in ("config.json", INDEX) else path.stem


# Hugging Face --------------------------------------------------------------------------------


def _cache_folder() -> Path:
    """Where huggingface_hub keeps repositories, by the variables that it reads."""
    env = os.environ
    default = Path(env.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    hub = env.get("HF_HUB_CACHE") or Path(env.get("HF_HOME") or default) / "hub"
    return Path(hub).expanduser()


def _cached(repo: str) -> Path | None:
    """The configuration that the local cache has for the main revision, or None."""
    try:
        folder = _cache_folder() / f"models--{repo.replace('/', '--')}"
        revision = io.read_text(folder / "refs" / "main", 200).strip()
        if not _REVISION.fullmatch(revision):
            return None
        paths = [folder / "snapshots" / revision / file for file in ("config.json", INDEX)]
        return next((path for path in paths if path.exists()), None)
    except (InputError, OSError, RuntimeError):
        return None


def _fetched(repo: str) -> Path | None:
    """Fetch the configuration of a repository; None without the ``hf`` extra."""
    if "/" not in repo:
        return None
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.constants import ENDPOINT
        from huggingface_hub.errors import EntryNotFoundError, GatedRepoError
        from huggingface_hub.utils import disable_progress_bars
    except ImportError:
        return None
    disable_progress_bars()
    import logging

    # The client retries for half a minute, and says so, where there is no network at all.
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    if not _reachable(ENDPOINT):
        raise InputError(_unknown(repo))
    try:
        try:
            return Path(hf_hub_download(repo, "config.json"))
        except EntryNotFoundError:
            return _fetched_pipeline(lambda file: Path(hf_hub_download(repo, file)))
    except GatedRepoError as error:
        raise InputError(
            f"Model {repo} is gated on Hugging Face: accept its terms and log in, "
            "or give the path of its config.json."
        ) from error
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise InputError(_unknown(repo)) from error


def _fetched_pipeline(fetch: Callable[[str], Path]) -> Path:
    """Fetch the index of a pipeline and the configuration of each part, into one folder."""
    path = fetch(INDEX)
    index = io.read_json(path, MAX_CONFIG_BYTES)
    for part in parts_of(index) if isinstance(index, dict) else ():
        fetch(f"{part}/config.json")
    return path


def _reachable(endpoint: str, timeout_s: float = 3.0) -> bool:
    """Whether a connection can be opened; with a proxy only the client itself can tell."""
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    if getproxies():
        return True

    address = urlsplit(endpoint)
    try:
        with socket.create_connection(
            (address.hostname, address.port or (80 if address.scheme == "http" else 443)), timeout_s
        ):
            return True
    except OSError:
        return False


def _unknown(name: str) -> str:
    ids = (*models_zoo.names(), *models_zoo.pipelines())
    full = {i.lower(): i for i in ids}
    short = {i.lower().split("/", 1)[1]: i for i in ids}
    wanted = name[:100].lower()
    near = get_close_matches(wanted, full, 3, 0.5) + get_close_matches(wanted, short, 3, 0.5)
    closest = list(dict.fromkeys((full | short)[n] for n in near))[:3]
    hint = f"the closest are {', '.join(closest)}" if closest else "`energymodel models` lists them"
    fetches = "huggingface_hub" in sys.modules or find_spec("huggingface_hub")
    extra = "" if fetches else " (that needs pip install 'energymodel[hf]')"
    fetched = f"fetched{extra}" if "/" in name else "fetched"
    return (
        f"Model {_short(name)} is not in the zoo, not a config.json, and not in the local Hugging "
        f"Face cache, nor could it be {fetched}; {hint}."
    )


def _short(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:77] + "...")
