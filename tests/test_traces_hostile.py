"""Files that are no traces are refused in one sentence with file, line and column."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from trace_files import AZURE, BENCH, LENGTHS, MOONCAKE, OWN, json_lines

from energymodel.errors import InputError
from energymodel.traces import Columns, files, json_stream, read_trace

HEAD = "arrival_s,input_tokens,output_tokens\n"


@pytest.fixture
def refusal(tmp_path: Path) -> Any:
    """Write a file and return the sentence that refuses it, without the folder."""

    def refuse(name: str, content: str | bytes, **options: Any) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(InputError) as error:
            read_trace(path, **options)
        assert "\n" not in str(error.value)
        assert str(error.value).endswith(".")
        return str(error.value).replace(f"{tmp_path}/", "")

    return refuse


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "a.csv is empty; it must have a header."),
        (HEAD, "a.csv holds no requests."),
        (HEAD + "1,2\n", "a.csv line 2: there are 2 cells, but the header has 3."),
        (HEAD + "1,2,3\n1,2,3,4\n", "a.csv line 3: there are 4 cells, but the header has 3."),
        (HEAD + "1,x,3\n", "a.csv line 2: input_tokens must be a whole number from 0 to 10,000,000, got 'x'."),
        (HEAD + "1,2,3\n\n1,2,3.5\n", "a.csv line 4: output_tokens must be a whole number from 0 to 10,000,000, got '3.5'."),
        (HEAD + "1,2,-3\n", "a.csv line 2: output_tokens must be a whole number from 0 to 10,000,000, got '-3'."),
        (HEAD + "1,nan,3\n", "a.csv line 2: input_tokens must be a whole number from 0 to 10,000,000, got 'nan'."),
        (HEAD + "1,1e400,3\n", "a.csv line 2: input_tokens must be a whole number from 0 to 10,000,000, got '1e400'."),
        (HEAD + "1,10000001,3\n", "a.csv line 2: input_tokens must be a whole number from 0 to 10,000,000, got '10000001'."),
        (HEAD + "1,,3\n", "a.csv line 2: input_tokens must be a whole number from 0 to 10,000,000, got ''."),
        (HEAD + "-1,2,3\n", "a.csv line 2: arrival_s must be a time in s, 0 or later, got '-1'."),
        (HEAD + "inf,2,3\n", "a.csv line 2: arrival_s must be a time in s, 0 or later, got 'inf'."),
        (HEAD + "nan,2,3\n", "a.csv line 2: arrival_s must be a time in s, 0 or later, got 'nan'."),
        (HEAD + "soon,2,3\n", "a.csv line 2: arrival_s must be a time in s, 0 or later, got 'soon'."),
        (HEAD + "1700000000000000,2,3\n", "a.csv line 2: arrival_s must be a time in s and before the year 2100; if it is in us, say --time-unit us, got '1700000000000000'."),
        (HEAD + "1e300,2,3\n", "a.csv line 2: arrival_s must be a time in s and before the year 2100, got '1e300'."),
        (HEAD + "0,2,3\n1700000000,2,3\n", "a.csv spans 54 years: its times must be in one unit, named with --time-unit."),
        (AZURE + "yesterday,1,2\n", "a.csv line 5: TIMESTAMP must be a date and time such as 2023-11-16 18:15:46.680, got 'yesterday'."),
        (AZURE + "2023-02-30 00:00:00,1,2\n", "a.csv line 5: TIMESTAMP must be a date and time such as 2023-11-16 18:15:46.680, got '2023-02-30 00:00:00'."),
        ("a,b\n1,2\n", "a.csv has the columns 'a', 'b', which no known trace has: name those of the tokens with --input-column and --output-column, and that of the times with --arrival-column."),
        (OWN.replace(",", ";"), "a.csv has the columns 'arrival_s;input_tokens;output_tokens', which"),
        (",".join("abcdefghijklmnop") + "\n", "'l' and 4 more, which"),
        ("input_tokens,output_tokens,Input_Tokens\n1,2,3\n", "a.csv has more than one column 'input_tokens'."),
        (HEAD + '1,2,"3\n', "a.csv line 2: unexpected end of data."),
        (HEAD + '1,2,"3"4\n', "a.csv line 2: ',' expected after '\"'."),
        (HEAD + "1,2," + "9" * 200_000 + "\n", "a.csv line 2: field larger than field limit (131072)."),
        (HEAD.encode() + b"1,2,\xff\n", "a.csv must be UTF-8 text; line"),
        (b"\x7fELF\x00\x00,\x00\n", "which no known trace has"),
        ("\x1b[31m,b\n", r"'\x1b[31m', 'b'"),
    ],
)  # fmt: skip
def test_csv(refusal: Any, content: str | bytes, sentence: str) -> None:
    assert sentence in refusal("a.csv", content)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", "", "a.jsonl holds no requests."),
        ("a.json", "", "a.json holds no requests."),
        ("a.json", "[]", "a.json holds no requests."),
        ("a.json", "[1]", "a.json item 1: it must be an object."),
        ("a.jsonl", json_lines([*MOONCAKE, 5]), "a.jsonl line 4: it must be an object."),
        ("a.jsonl", json_lines([*MOONCAKE, {}]), "a.jsonl line 4: timestamp is missing."),
        ("a.jsonl", json_lines([MOONCAKE[0] | {"input_length": True}]), "a.jsonl line 1: input_length must be a whole number from 0 to 10,000,000, got 'True'."),
        ("a.jsonl", json_lines([MOONCAKE[0] | {"input_length": None}]), "a.jsonl line 1: input_length must be"),
        ("a.jsonl", json_lines([MOONCAKE[0] | {"output_length": 10**400}]), "a.jsonl line 1: output_length must be"),
        ("a.jsonl", json_lines([MOONCAKE[0] | {"hash_ids": [1, "2"]}]), "a.jsonl line 1: hash_ids must be a list of whole numbers, got"),
        ("a.jsonl", json_lines([MOONCAKE[0] | {"hash_ids": [2**70]}]), "a.jsonl line 1: hash_ids must be a list of whole numbers, got"),
        ("a.jsonl", json_lines(MOONCAKE) + '{"timestamp": NaN}\n', "a.jsonl line 4 must be JSON: NaN is not a number."),
        ("a.jsonl", json_lines(MOONCAKE) + '{"a": 1, "a": 2}\n', 'a.jsonl line 4 must be JSON: the key "a" appears twice in one object.'),
        ("a.jsonl", json_lines(MOONCAKE) + "{\n", "a.jsonl line 4 must be JSON:"),
        ("a.jsonl", "[" * 100_000, "a.jsonl line 1 must be JSON that is nested less deeply."),
        ("a.json", "[" * 100_000, "a.json item 1 must be JSON that is nested less deeply."),
        ("a.json", json.dumps(MOONCAKE)[:-1], "a.json must end with the bracket that closes its array."),
        ("a.json", json.dumps(MOONCAKE) + "1", "a.json must end with the bracket that closes its array."),
        ("a.json", "[" + json.dumps(MOONCAKE[0]) + " 5]", "a.json item 1: a comma must follow it."),
        ("a.json", "[" + json.dumps(MOONCAKE[0]) + ",]", "a.json item 2 must be JSON: expecting value."),
        ("a.json", '[{"timestamp": Infinity}]', "a.json item 1 must be JSON: Infinity is not a number."),
        ("a.json", '[{"timestamp": 1', "a.json item 1 must be JSON:"),
        ("a.json", b'[{"a": "\xff"}]', "a.json must be UTF-8 text; near item 1 it is not."),
        ("a.json", json.dumps({"request_throughput": 1.0}), "a.json item 1 has no input_lens: `vllm bench serve` keeps the lengths with --save-detailed."),
        ("a.json", json.dumps(BENCH | {"output_lens": [1]}), "a.json item 1: output_lens must have 3 entries, as input_lens has, got 1."),
        ("a.json", json.dumps(BENCH | {"input_lens": [1, -2, 3]}), "a.json item 1: input_lens[1] must be an integer from 0 to 10,000,000, got -2."),
        ("a.json", json.dumps(BENCH | {"errors": ["x", "y", "z"]}), "a.json holds no requests that succeeded."),
        ("a.json", json.dumps({"messages": []}), "a.json holds no answers of a model."),
        ("a.json", json.dumps([{"messages": []}, {}]), "a.json item 2: it must have a list of messages"),
        ("a.json", json.dumps({"messages": ["hello"]}), "a.json item 1: each message must be an object."),
        ("a.json", json.dumps({"messages": [{"role": "user"}]}), "a.json item 1: a message must have its text"),
        ("a.json", json.dumps({"messages": [{"role": "user", "tokens": -1}]}), "a.json item 1: a message must have from 0 to 10,000,000 tokens."),
    ],
)  # fmt: skip
def test_json(refusal: Any, name: str, content: str | bytes, sentence: str) -> None:
    assert sentence in refusal(name, content)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (Columns(input="x"), "--input-column and --output-column must both be given, or neither."),
        (Columns(arrival="x"), "--input-column and --output-column must both be given"),
        (Columns(input="x", output="output_tokens"), "a.csv has no column 'x'; it has 'input_tokens'"),
    ],
)  # fmt: skip
def test_columns(refusal: Any, columns: Columns, sentence: str) -> None:
    assert sentence in refusal("a.csv", LENGTHS, columns=columns)


def test_files(refusal: Any, tmp_path: Path) -> None:
    assert "must be a trace of the kind .csv, .jsonl" in refusal("a.txt", LENGTHS)
    with pytest.raises(InputError, match="no such file"):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="no such file"):
        read_trace(tmp_path / "folder.csv")


def test_lengths_of_lines_and_values(refusal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE", 100)
    assert "a.csv line 2: it must have at most 100" in refusal("a.csv", LENGTHS[:27] + " " * 200)
    monkeypatch.setattr(json_stream, "READ_CHARS", 50)
    monkeypatch.setattr(json_stream, "MAX_VALUE", 100)
    assert "at most 100 characters" in refusal("a.json", json.dumps([{"a": "x" * 1000}]))


def test_too_many_requests(refusal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("energymodel.traces.reader.MAX_REQUESTS", 2)
    assert refusal("a.csv", LENGTHS) == "a.csv must have at most 2 requests."


def test_a_line_is_counted_as_editors_count(refusal: Any) -> None:
    """A quoted cell may span lines, and the place of a later cell is still right."""
    text = 'input_tokens,output_tokens,note\n1,2,"two\nlines"\n3,x,\n'
    assert "a.csv line 4: output_tokens" in refusal("a.csv", text)
    assert csv.field_size_limit() == 131_072
