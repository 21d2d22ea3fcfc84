"""Pipelines by name, folder, cache and hub, and on the command line."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

import models_zoo
from energymodel.cli import cli
from energymodel.diffusion.pipeline import Pipeline
from energymodel.errors import InputError
from energymodel.find_model import find_any

REVISION = "0123456789abcdef0123456789abcdef01234567"
PARTS = {
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
}
INDEX = {
    "_class_name": "FluxPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "feature_extractor": [None, None],
    "safety_checker": [None, None],
    **PARTS,
}


def write(folder: Path, index: dict[str, Any] | None = None) -> Path:
    """A pipeline's repository, as its files lie on the hub."""
    config: dict[str, Any] = dict(models_zoo.find("FLUX.1-schnell") or {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(index or INDEX))
    for part in PARTS:
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config[part]))
    return folder


def read(name: object) -> Pipeline:
    found, warnings = find_any(str(name))
    assert isinstance(found, Pipeline)
    assert warnings == []
    return found


def test_a_folder_is_read_like_the_zoo(tmp_path: Path) -> None:
    folder = write(tmp_path / "flux")
    known = read("black-forest-labs/flux.1-SCHNELL")
    for name in (folder, folder / "model_index.json"):
        found = read(name)
        assert found.name == "flux"
        assert found.param_count == known.param_count
        assert found.patch == known.patch


def test_files_that_are_missing_or_wrong(tmp_path: Path) -> None:
    folder = write(tmp_path / "flux")
    (folder / "vae" / "config.json").write_text("[1]")
    with pytest.raises(InputError, match=r"vae/config.json must be a JSON object"):
        find_any(str(folder))
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(InputError, match=r"vae/config.json cannot be read: no such file"):
        find_any(str(folder))


def test_parts_that_an_index_leaves_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {**INDEX, "text_encoder_2": [None, None]})
    found, warnings = find_any(str(folder))
    assert isinstance(found, Pipeline)
    assert len(found.texts) == 1
    assert "no text_encoder_2" in warnings[0]
    checked = write(tmp_path / "b", {**INDEX, "safety_checker": ["stable_diffusion", "Checker"]})
    assert "safety checker is not counted" in find_any(str(checked))[1][0]


def test_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--org--flux"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(REVISION)
    write(repo / "snapshots" / REVISION)
    assert read("org/flux").name == "org/flux"


def test_the_hub_is_asked_for_configurations_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = write(tmp_path / "there"), []
    hub, constants, errors, utils = (
        ModuleType(f"huggingface_hub{part}") for part in ("", ".constants", ".errors", ".utils")
    )
    missing = type("EntryNotFoundError", (Exception,), {})

    def download(repo: str, file: str) -> str:
        asked.append(file)
        if not (folder / file).exists():
            raise missing(f"{repo} has no {file}")
        return str(folder / file)

    for module, values in (
        (hub, {"hf_hub_download": download}),
        (constants, {"ENDPOINT": "https://hub.example"}),
        (errors, {"EntryNotFoundError": missing, "GatedRepoError": type("G", (OSError,), {})}),
        (utils, {"disable_progress_bars": lambda: None}),
    ):
        vars(module).update(values)
        monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    monkeypatch.setattr("energymodel.find_model._reachable", lambda _: True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "nothing"))
    assert read("org/flux").name == "org/flux"
    parts = ("text_encoder", "text_encoder_2", "transformer", "vae")
    files = [f"{part}/config.json" for part in parts]
    assert asked == ["config.json", "model_index.json", *files]
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(InputError, match="not in the zoo"):
        find_any("org/flux")


def test_predict_on_the_command_line(tmp_path: Path) -> None:
    bins = tmp_path / "bins.json"
    size = {"image_width": 1024, "image_height": 1024, "num_inference_steps": 4}
    content = {"input_tokens": 20, "output_tokens": 0, "count": 2, "guidance_scale": 0, **size}
    bins.write_text(json.dumps({"schema_version": 1, "bins": [content]}))
    flags = ["--gpu", "h200", "--workload", str(bins)]
    command = ["predict", "--model", "FLUX.1-schnell", *flags]
    result = CliRunner().invoke(cli, [*command, "--json"])
    assert result.exit_code == 0, result.output
    p = json.loads(result.stdout)
    assert p["engine"] == "diffusers"
    assert p["energy_per_request_j"] == p["energy_j"] / 2
    assert sum(phase["energy_j"] for phase in p["phases"].values()) == pytest.approx(p["energy_j"])
    assert "Warning: no image pipeline was measured" in result.stderr
    table = CliRunner().invoke(cli, command).stdout
    assert "text_encoder" in table
    assert "output tokens per second" not in table


def test_pipelines_are_listed() -> None:
    result = CliRunner().invoke(cli, ["models", "--json"])
    rows = {row["name"]: row for row in json.loads(result.stdout)["models"]}
    flux = rows["black-forest-labs/FLUX.1-dev"]
    assert flux["kind"] == "image"
    assert flux["active_param_count"] < flux["param_count"]
    assert rows["tencent/HunyuanVideo"]["kind"] == "video"
    assert set(models_zoo.pipelines()) <= set(rows)


def test_names_are_unique_with_and_without_their_organisation() -> None:
    names = (*models_zoo.names(), *models_zoo.pipelines())
    short = [name.split("/", 1)[1].lower() for name in names]
    assert len(set(short)) == len(short)
    for name in models_zoo.pipelines():
        config = models_zoo.find(name)
        assert config is not None
        assert config["_model_id"] == name
        assert config["_source"]
        assert config["_confirmed"]
