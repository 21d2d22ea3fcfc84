import json
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energymodel import io
from energymodel.deployment import Deployment
from energymodel.errors import InputError, WorkError
from energymodel.workload import Bin, Workload

BIN = {"input_tokens": 512, "output_tokens": 128, "count": 64}
RUN = {
    "model": "llama-3.1-8b",
    "gpu": "h200",
    "engine": "vllm",
    "bins": [BIN],
    "energy_j": 1234.5,
    "duration_s": 2,
}


def bins(*rows: object, version: object = 1) -> dict[str, Any]:
    return {"schema_version": version, "bins": list(rows)}


@pytest.fixture
def refusal(tmp_path: Path) -> Any:
    """Write a bins.json and return the sentence that refuses it, without the folder."""

    def refuse(content: object) -> str:
        path = tmp_path / "bins.json"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(InputError) as error:
            io.read_workload(path)
        assert "\n" not in str(error.value)
        return str(error.value).replace(f"{tmp_path}/", "")

    return refuse


def test_reads_counts_and_rates(tmp_path: Path) -> None:
    path = tmp_path / "bins.json"
    path.write_text("\ufeff" + json.dumps(bins(BIN, BIN | {"output_tokens": 0})))
    assert io.read_workload(path) == Workload(
        bins=(
            Bin(input_tokens=512, output_tokens=128, count=64),
            Bin(input_tokens=512, output_tokens=0, count=64),
        )
    )
    path.write_text(json.dumps(bins({"input_tokens": 9, "output_tokens": 1, "requests_per_s": 2})))
    assert io.read_workload(str(path)).bins[0].requests_per_s == 2.0


def test_reads_images_and_sound(tmp_path: Path) -> None:
    path = tmp_path / "bins.json"
    shown = {"images": 2, "image_width": 640, "image_height": 480, "audio_s": 1.5}
    path.write_text(json.dumps(bins(BIN | shown)))
    assert io.read_workload(path).bins == (
        Bin(
            input_tokens=512,
            output_tokens=128,
            count=64,
            images=2,
            image_width=640,
            image_height=480,
            audio_s=1.5,
        ),
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            bins(BIN | {"input_tokens": -5}),
            "bins.json: bins[0].input_tokens must be an integer from 1 to 10,000,000, got -5.",
        ),
        (
            bins(BIN, BIN | {"output_tokens": 2.5}),
            "bins.json: bins[1].output_tokens must be an integer from 0 to 10,000,000, got 2.5.",
        ),
        (
            bins(BIN | {"input_tokens": "512"}),
            'bins.json: bins[0].input_tokens must be an integer from 1 to 10,000,000, got "512".',
        ),
        (
            bins(BIN | {"count": None}),
            "bins.json: bins[0].count must be an integer from 1 to 10,000,000, got null.",
        ),
        (
            bins(BIN | {"count": True}),
            "bins.json: bins[0].count must be an integer from 1 to 10,000,000, got true.",
        ),
        (
            bins({"input_tokens": 1, "output_tokens": 1, "requests_per_s": 0}),
            "bins.json: bins[0].requests_per_s must be a number from 1e-06 to 1,000,000, got 0.",
        ),
        (
            bins({"input_tokens": 1, "count": 1}),
            "bins.json: bins[0].output_tokens is missing; it must be an integer from 0 to 10,000,000.",
        ),
        (
            bins(BIN | {"tokens": 1}),
            (
                'bins.json: bins[0] has an unknown field "tokens"; it may have input_tokens, output_tokens, count, '
                "requests_per_s, images, image_width, image_height, audio_s, num_frames, num_inference_steps, "
                "guidance_scale, prefix_tokens."
            ),
        ),
        (bins(3), "bins.json: bins[0] must be an object, got 3."),
        (bins(), "bins.json: bins must be a list of 1 to 100,000 entries, got a list of 0."),
        (
            bins(*[BIN] * 100_001),
            "bins.json: bins must be a list of 1 to 100,000 entries, got a list of 100,001.",
        ),
        (bins(BIN, version=2), "bins.json: schema_version must be 1, got 2."),
        ({"bins": [BIN]}, "bins.json: schema_version is missing; it must be 1."),
        ([BIN], "bins.json: the document must be an object, got a list of 1."),
        (
            bins({"input_tokens": 1, "output_tokens": 1}),
            "bins.json: bins[0] must have one of count and requests_per_s.",
        ),
        (
            bins(BIN | {"requests_per_s": 1}),
            "bins.json: bins[0] must have one of count and requests_per_s.",
        ),
        (
            bins(BIN, {"input_tokens": 1, "output_tokens": 1, "requests_per_s": 1}),
            "bins.json: bins[1] must have count, as bins[0] has.",
        ),
        (
            bins(BIN | {"images": 1, "image_width": 64}),
            "bins.json: bins[0] has images and must have image_width and image_height, in pixels.",
        ),
        (
            bins(BIN | {"images": -1}),
            "bins.json: bins[0].images must be an integer from 0 to 10,000, got -1.",
        ),
        (
            bins(BIN | {"images": 1, "image_width": 0, "image_height": 9}),
            "bins.json: bins[0].image_width must be an integer from 1 to 100,000, got 0.",
        ),
    ],
)
def test_refuses_wrong_fields(refusal: Any, content: object, sentence: str) -> None:
    assert refusal(content) == sentence


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "bins.json must be JSON: expecting value at line 1, column 1."),
        ('{"bins": [\n1,]', "line 2, column"),
        (b"\x80\x04\x95pickle", "bins.json must be UTF-8 text; byte 0 is not."),
        ('{"schema_version": NaN}', "bins.json must be JSON: NaN is not a number."),
        ('{"schema_version": -Infinity}', "-Infinity is not a number"),
        ('{"schema_version": 1e999}', "the number 1e999 is too large"),
        ('{"schema_version": ' + "9" * 5000 + "}", "bins.json must be JSON"),
        ('{"bins": [], "bins": []}', 'the key "bins" appears twice'),
        ("[" * 200_000, "bins.json must be JSON that is nested less deeply."),
        ('{"a":' * 200_000, "bins.json must be JSON that is nested less deeply."),
        ('{"bins": "\\ud800"}', "half a surrogate pair"),
    ],
)
def test_refuses_what_is_not_json(refusal: Any, content: object, words: str) -> None:
    assert words in refusal(content)


def test_refuses_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: no such file or directory"):
        io.read_workload(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read: is a directory"):
        io.read_workload(tmp_path)
    with pytest.raises(InputError, match="cannot be read: embedded null byte"):
        io.read_workload("a\0b")


def test_refuses_large_files(tmp_path: Path) -> None:
    path = tmp_path / "bins.json"
    path.write_text(json.dumps(bins(BIN)))
    with pytest.raises(InputError, match="must be at most 10 bytes long"):
        io.read_json(path, 10)
    assert io.read_json(path) == bins(BIN)
    with pytest.raises(InputError, match="must be at most 67,108,864 bytes long"):
        io.read_text("/dev/zero")


def outcome(read: Callable[[], object]) -> str:
    """The sentence that refuses, empty where nothing is refused; anything else passes through."""
    try:
        read()
    except InputError as error:
        return str(error)
    return ""


def read_again(document: object, kind: type) -> object:
    return io.convert(io.parse_json(json.dumps(document), "x"), kind, "x")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["schema_version", "bins", *BIN, "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(json_values, st.sampled_from([io.WorkloadJson, io.RunJson]))
def test_any_json_is_read_or_refused_in_one_sentence(value: Any, kind: type) -> None:
    for document in (value, bins(value), bins(BIN | {"count": value}), RUN | {"gpu": value}):
        sentence = outcome(partial(read_again, document, kind))
        assert re.fullmatch(r"|x.*\.", sentence)
        assert "at `$" not in sentence


@given(st.text(max_size=30))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    assert re.fullmatch(r"|x .*\.", outcome(lambda: io.parse_json(text, "x")))


def test_reads_runs(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    second = RUN | {
        "max_num_seqs": 8,
        "quantization": "fp8",
        "power_limit_w": None,
        "board": "ab12",
        "software": {"vllm": "0.24.0"},
    }
    path.write_text(json.dumps(RUN) + "\n\n" + json.dumps(second) + "\n")
    first, other = io.read_runs(path)
    assert first.deployment == Deployment()
    assert (first.model, first.gpu) == ("llama-3.1-8b", "h200")
    assert (first.energy_j, first.duration_s, first.extra) == (1234.5, 2.0, {})
    assert first.workload.requests == 64
    assert other.deployment == Deployment(max_num_seqs=8, quantization="fp8")
    assert other.extra == {"board": "ab12", "software": {"vllm": "0.24.0"}}


def test_reads_runs_with_the_deployment_of_a_prediction(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(RUN | {"deployment": {"tensor_parallel_size": 2}}))
    assert io.read_runs(path)[0].deployment.tensor_parallel_size == 2


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            RUN | {"energy_j": 0},
            "line 2: energy_j must be a number above 0, got 0.",
        ),
        (
            RUN | {"power_limit_w": "x"},
            'line 2: power_limit_w must be a number above 0 up to 100,000 or null, got "x".',
        ),
        (RUN | {"energy_j": 10**400}, "line 2: energy_j must be a number above 0, got 1000"),
        (
            RUN | {"sampling": "zzz"},
            'line 2: sampling must be "filtered" or "greedy" or "random", got "zzz".',
        ),
        (RUN | {"model": ""}, 'line 2: model must be a string of 1 to 256 characters, got "".'),
        (RUN | {"bins": [{}]}, "line 2: bins[0].input_tokens is missing;"),
        ([], "line 2: the document must be an object, got a list of 0."),
    ],
)
def test_refuses_runs_by_line(tmp_path: Path, line: object, sentence: str) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(RUN) + "\n" + json.dumps(line))
    with pytest.raises(InputError) as error:
        io.read_runs(path)
    assert sentence in str(error.value)


def test_refuses_broken_and_empty_runs(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(RUN) + "\n" + json.dumps(RUN)[:40])
    with pytest.raises(InputError, match="line 2 must be JSON"):
        io.read_runs(path)
    path.write_text("\n \n")
    with pytest.raises(InputError, match="holds no runs"):
        io.read_runs(path)


def test_runs_know_every_deployment_flag() -> None:
    assert {f.name for f in fields(Deployment)} <= set(io.RunJson.__struct_fields__)


@pytest.mark.parametrize("kind", ["workload", "runs"])
def test_schema_accepts_the_examples(kind: str) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = io.schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good = {"workload": bins(BIN), "runs": RUN | {"board": "x"}}[kind]
    assert validator.is_valid(good)
    for bad_bin in ({**BIN, "requests_per_s": 1}, {**BIN, "input_tokens": 0}, {**BIN, "x": 1}):
        assert not validator.is_valid(good | {"bins": [bad_bin]})


def test_schema_of_unknown_kind() -> None:
    with pytest.raises(InputError, match="workload, runs, got"):
        io.schema("pickle")


@dataclass(frozen=True, slots=True)
class Result:
    energy_j: object
    parts: object = ()


def test_dumps_plain_json() -> None:
    result = Result(energy_j=np.float64(1.5), parts=[np.arange(2), {"é": np.int64(3)}])
    assert json.loads(io.dumps(result)) == {"energy_j": 1.5, "parts": [[0, 1], {"é": 3}]}
    assert io.dumps({"a": 1}, indent=None) == '{"a": 1}'


@pytest.mark.parametrize("number", [float("nan"), np.float64("inf"), -np.inf])
def test_dumps_refuses_what_is_not_finite(number: float) -> None:
    with pytest.raises(WorkError, match=r"not finite: parts\[1\]\.energy_j is -?(nan|inf)"):
        io.dumps(Result(energy_j=1, parts=[{}, {"energy_j": number}]))
