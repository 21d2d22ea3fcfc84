import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

import models_zoo
from energymodel.errors import InputError
from energymodel.find_model import find_config, find_model

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache, no home folder, and nothing can be fetched."""
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


@pytest.fixture
def config() -> str:
    return json.dumps(models_zoo.find("qwen3-0.6b"))


def refusal(name: str) -> str:
    with pytest.raises(InputError) as error:
        find_model(name)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "qwen3-8b", "QWEN/QWEN3-8b", " Qwen3-8B "])
def test_names_of_the_zoo_in_any_case_with_or_without_organisation(name: str) -> None:
    assert find_model(name)[0].name == "Qwen/Qwen3-8B"


def test_every_name_in_the_zoo_is_found() -> None:
    for name in models_zoo.names():
        assert find_model(name)[0].name == name


def test_a_file_and_its_folder(tmp_path: Path, config: str) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(config)
    (tmp_path / "other.json").write_text(config)
    assert find_model(str(folder))[0].name == "mine"
    assert find_model("mine/config.json")[0].name == "mine"
    assert find_model("./mine/")[0].name == "mine"
    assert find_model("other.json")[0].name == "other"
    assert find_model(str(folder))[0].param_count == find_model("qwen3-0.6b")[0].param_count


def test_warnings_of_a_configuration_are_passed_on() -> None:
    _, warnings = find_model("internlm2-7b")
    assert any("read like a Llama" in text for text in warnings)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x00\xff\x80", "UTF-8"),
        (b"{", "must be JSON"),
        (b"[1]", "a JSON object"),
        (b"[" * 100_000, "nested less deeply"),
        (b'{"model_type": "qwen3", "num_attention_heads": -1}', "num_attention_heads"),
        (b'{"model_type": "x"}', "'hidden_size'"),
        (b'"' + b"x" * 1_000_001 + b'"', "at most 1,000,000 bytes"),
    ],
)
def test_unusable_files(content: bytes, reason: str) -> None:
    Path("config.json").write_bytes(content)
    sentence = refusal("config.json")
    assert sentence.startswith("config.json")
    assert reason in sentence


def test_a_missing_file_is_not_taken_for_a_model(tmp_path: Path) -> None:
    assert refusal("nowhere/config.json").endswith("no such file or directory.")
    (tmp_path / "empty").mkdir()
    assert refusal("empty") == ("The folder 'empty' must hold a config.json or a model_index.json.")
    (tmp_path / "a" / "config.json").mkdir(parents=True)
    assert "is a directory" in refusal("a")


@pytest.mark.parametrize(
    "name", ["", " ", "\0", "a\0b", "~nobody-here/x", "x" * 100_000, "é/\x1b[1m"]
)
def test_nonsense_is_an_unknown_model(name: str) -> None:
    assert len(refusal(name)) < 500


def test_unknown_names_come_with_the_closest() -> None:
    assert "Qwen/Qwen3-8B" in refusal("qwen3-8bb")
    assert "meta-llama/Llama-3.1-8B-Instruct" in refusal("meta/llama-3.1-8b-instruct")
    assert "`energymodel models`" in refusal("zzzzzzzzzzzzzzzz")


@pytest.mark.parametrize(
    ("variable", "below"),
    [("HF_HUB_CACHE", ""), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")],
)
def test_the_local_cache(
    variable: str, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "cache"))
    repo = tmp_path / "cache" / below / "models--org--new-model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(REVISION + "\n")
    (repo / "snapshots" / REVISION).mkdir(parents=True)
    assert "not in the zoo" in refusal("org/new-model")
    (repo / "snapshots" / REVISION / "config.json").write_text(config)
    assert find_config("org/new-model").name == "org/new-model"
    (repo / "refs" / "main").write_text("../../..")
    assert "not in the zoo" in refusal("org/new-model")


def a_hub(monkeypatch: pytest.MonkeyPatch, download: object, *, online: bool = True) -> None:
    """Install a stand-in for huggingface_hub."""
    hub, constants, errors, utils = (
        ModuleType(f"huggingface_hub{part}") for part in ("", ".constants", ".errors", ".utils")
    )
    constants.ENDPOINT = "https://hub.example"  # type: ignore[attr-defined]
    monkeypatch.setattr("energymodel.find_model._reachable", lambda _: online)
    hub.hf_hub_download = download  # type: ignore[attr-defined]
    errors.GatedRepoError = type("GatedRepoError", (OSError,), {})  # type: ignore[attr-defined]
    errors.EntryNotFoundError = type("EntryNotFoundError", (Exception,), {})  # type: ignore[attr-defined]
    utils.disable_progress_bars = lambda: None  # type: ignore[attr-defined]
    hub.errors = errors  # type: ignore[attr-defined]
    for module in (hub, constants, errors, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_only_the_configuration_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    asked = []

    def download(repo: str, file: str) -> str:
        asked.append((repo, file))
        (tmp_path / "fetched.json").write_text(config)
        return str(tmp_path / "fetched.json")

    a_hub(monkeypatch, download)
    assert find_model("org/new-model")[0].name == "org/new-model"
    assert asked == [("org/new-model", "config.json")]
    for name in ("no-organisation", "a/b/c", "../x", "a/../b", "https://x.org/y", "a--b/c", "-x/y"):
        refusal(name)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("OSError", "not in the zoo"),
        ("EntryNotFoundError", "not in the zoo"),
        ("GatedRepoError", "is gated"),
    ],
)
def test_a_fetch_that_fails_is_one_sentence(
    error: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repo: str, file: str) -> str:
        from huggingface_hub import errors

        raise getattr(errors, error, OSError)("offline\nsecond line")

    a_hub(monkeypatch, download)
    assert reason in refusal("org/new-model")


def test_without_a_network_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    a_hub(monkeypatch, lambda *args: asked.append(args), online=False)
    assert "nor could it be fetched" in refusal("org/new-model")
    assert asked == []
