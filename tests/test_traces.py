"""What is read from traces of each kind."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_files import (
    AZURE,
    AZURE_2024,
    AZURE_2025,
    BAILIAN,
    BENCH,
    BURSTGPT,
    CONVERSATION,
    LENGTHS,
    MOONCAKE,
    OWN,
    SPLITWISE,
    VIDUR,
    VIDUR_LENGTHS,
    json_lines,
    real,
)

from energymodel.errors import InputError
from energymodel.traces import Columns, Limits, Trace, files, json_stream, read_trace, served
from energymodel.traces.formats import KNOWN


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(name: str, content: str, **options: Any) -> Trace:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return read_trace(path, **options)

    return read


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.csv", AZURE, "azure"),
        ("a.csv", AZURE_2024, "azure"),
        ("a.csv", AZURE_2025, "azure-multimodal"),
        ("a.csv", BURSTGPT, "burstgpt"),
        ("a.csv", VIDUR, "vidur"),
        ("a.csv", SPLITWISE, "splitwise"),
        ("a.CSV", OWN.upper().replace("\n", "\r\n"), "energymodel"),
        ("a.csv", '\ufeff"arrival_s",input_tokens,output_tokens\n10, 100,"7"\n\n20,200,8\n70.5,300,9', "energymodel"),
        ("a.jsonl", json_lines(MOONCAKE), "mooncake"),
        ("a.json", json.dumps(MOONCAKE, indent=2), "mooncake"),
        ("a.ndjson", "\n" + json_lines(BAILIAN), "qwen-bailian"),
        ("a.json", json.dumps(BENCH), "vllm-bench"),
        ("a.csv", VIDUR_LENGTHS, "vidur-lengths"),
        ("a.csv", LENGTHS, "lengths"),
        ("a.json", json.dumps(BENCH) + "\n" + json.dumps(BENCH), "vllm-bench"),
    ],
)  # fmt: skip
def test_the_same_requests_in_every_format(read: Any, name: str, content: str, found: str) -> None:
    trace = read(name, content)
    assert trace.format == found
    twice = content.count("request_throughput")
    assert trace.input_tokens.tolist() == [100, 200, 300] * max(twice, 1)
    assert trace.output_tokens.tolist() == [7, 8, 9] * max(twice, 1)
    assert trace.input_tokens.dtype == trace.output_tokens.dtype == np.int64
    if found.endswith("lengths") or twice > 1:
        assert trace.arrival_s is None
    else:
        assert trace.arrival_s.tolist() == [0, 10, 60.5]


def test_notes_say_what_is_lost(read: Any) -> None:
    assert "images" in read("a.csv", AZURE_2025).notes[0]
    assert "common clock" in read("a.jsonl", json_lines([BENCH, BENCH])).notes[0]
    assert read("a.csv", AZURE).notes == ()


def test_the_order_is_that_of_arrival_and_stable(read: Any) -> None:
    text = (
        "arrival_s,input_tokens,output_tokens,prefix_tokens\n5,3,1,9\n1,1,1,0\n5,4,1,2\n1,2,1,0\n"
    )
    trace = read("a.csv", text)
    assert trace.input_tokens.tolist() == [1, 2, 3, 4]
    assert trace.arrival_s.tolist() == [0, 0, 4, 4]
    assert trace.prefix_tokens.tolist() == [0, 0, 3, 2]  # no more than the prompt has


def test_columns_by_name(read: Any) -> None:
    text = "when;x,In,Out,x\n2000,5,6,0\n1500,7,8,0\n"
    columns = Columns(arrival="when;x", input="in", output="OUT", unit="ms")
    trace = read("a.csv", text, columns=columns)
    assert trace.format == "named columns"
    assert trace.arrival_s.tolist() == [0, 0.5]
    assert trace.input_tokens.tolist() == [7, 5]
    assert read("a.csv", text, columns=Columns(input="In", output="Out")).arrival_s is None


def test_a_unit_can_be_corrected(read: Any) -> None:
    text = OWN.replace("10,", "1700000010000,").replace("20,", "1700000020000,")
    text = text.replace("70.5,", "1700000070500,")
    with pytest.raises(InputError, match="say --time-unit ms"):
        read("a.csv", text)
    assert read("a.csv", text, columns=Columns(unit="ms")).arrival_s.tolist() == [0, 10, 60.5]


# Prefixes ------------------------------------------------------------------------------------


def test_prefixes_of_mooncake(read: Any) -> None:
    """The two requests that its README shows share their first 12 blocks of 512 tokens."""
    shared = list(range(46, 58))
    values = [
        {
            "timestamp": 30535,
            "input_length": 6472,
            "output_length": 26,
            "hash_ids": [*shared, 2366],
        },
        {
            "timestamp": 27482,
            "input_length": 6955,
            "output_length": 52,
            "hash_ids": [*shared, 2353, 2354],
        },
        {"timestamp": 40000, "input_length": 6470, "output_length": 1, "hash_ids": [*shared, 2366]},
    ]
    trace = read("a.jsonl", json_lines(values))
    assert trace.input_tokens.tolist() == [6955, 6472, 6470]
    assert trace.prefix_tokens.tolist() == [0, 12 * 512, 6470]


def test_blocks_of_16_tokens(read: Any) -> None:
    assert read("a.jsonl", json_lines(BAILIAN)).prefix_tokens.tolist() == [0, 0, 32]


def test_hashes_in_csv_are_left_out(read: Any) -> None:
    text = 'timestamp,input_length,output_length,hash_ids\n1,5,6,"[1, 2]"\n'
    assert read("a.csv", text).prefix_tokens is None


# Results and conversations -------------------------------------------------------------------


def test_failed_requests_of_a_benchmark_are_counted(read: Any) -> None:
    failed = BENCH | {"errors": ["", "refused", ""], "start_times": [110.0, 0.0, 170.5]}
    trace = read("a.json", json.dumps(failed))
    assert trace.input_tokens.tolist() == [100, 300]
    assert trace.arrival_s.tolist() == [0, 60.5]
    assert served(trace)[1] == {"failed": 1}


def test_a_benchmark_of_an_encoder_has_no_output(read: Any) -> None:
    pooled = {k: v for k, v in BENCH.items() if k not in ("output_lens", "start_times")}
    trace = read("a.json", json.dumps(pooled))
    assert trace.output_tokens.tolist() == [0, 0, 0]
    assert served(trace)[1] == {"no_output": 3}
    assert served(trace, Limits(keep_zero_output=True))[0].requests == 3


def test_each_answer_of_a_conversation_is_a_request(read: Any) -> None:
    content = json.dumps([CONVERSATION, {"id": 2, "messages": []}, CONVERSATION])
    with pytest.raises(InputError, match="item 1 holds text and no numbers of tokens"):
        read("a.json", content)
    trace = read("a.json", content, chars_per_token=4)
    # 40 + 10 characters are 10 + 3 tokens; the second prompt holds them and 5 more.
    assert trace.input_tokens.tolist() == [10, 18] * 2
    assert trace.output_tokens.tolist() == [3, 3] * 2
    assert trace.prefix_tokens.tolist() == [0, 10] * 2
    assert trace.arrival_s is None
    assert "4 characters" in trace.notes[0]


def test_numbers_of_tokens_need_no_characters(read: Any) -> None:
    messages = [{"role": "user", "tokens": 9}, {"role": "assistant", "tokens": 4}]
    trace = read("a.jsonl", json_lines([{"messages": messages}]))
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([9], [4])
    assert trace.notes == ()


# Exclusion -----------------------------------------------------------------------------------


def test_each_exclusion_has_one_reason(read: Any) -> None:
    text = "input_tokens,output_tokens\n0,0\n5,0\n6,1\n50,60\n60,1\n1,70\n"
    trace = read("a.csv", text)
    limits = Limits(max_tokens=100, max_input_tokens=55, max_output_tokens=65)
    kept, excluded = served(trace, limits)
    assert kept.input_tokens.tolist() == [6]
    assert excluded == {"no_input": 1, "no_output": 1, "too_long": 3}


# Streams -------------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@given(values=st.lists(_JSON, max_size=8), read_chars=st.integers(1, 40), array=st.booleans())
def test_a_stream_is_what_json_says(
    tmp_path_factory: Any, values: list[Any], read_chars: int, array: bool
) -> None:
    if not array:
        values = [{"value": value} for value in values]
    text = json.dumps(values, indent=1) if array else " \n".join(map(json.dumps, values))
    path = tmp_path_factory.getbasetemp() / "stream.json"
    path.write_text(text, encoding="utf-8")
    before = json_stream.READ_CHARS
    json_stream.READ_CHARS = read_chars
    try:
        with path.open(encoding="utf-8") as file:
            assert list(json_stream.documents(file, "x", lambda *_: None)) == values
    finally:
        json_stream.READ_CHARS = before


def test_reading_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK_ROWS", 1000)
    path = tmp_path / "a.csv"
    path.write_text(LENGTHS + "5,6\n" * 5000)
    seen: list[tuple[int, int]] = []
    read_trace(path, progress=lambda done, total: seen.append((done, total)))
    size = path.stat().st_size
    assert len(seen) == 6
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)


def test_every_format_is_described() -> None:
    docs = Path(__file__).resolve().parents[1] / "docs" / "formats.md"
    section = docs.read_text(encoding="utf-8").partition("## traces:")[2].partition("\n## ")[0]
    for known in KNOWN[1:]:
        row = next(line for line in section.splitlines() if f"`{known.name}`" in line)
        for column in filter(None, (known.arrival, known.input, known.output, *known.marks)):
            assert column in row.lower() or column == "numimages"


# The real ones -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "requests", "span_s"),
    [
        ("azure_llm_2023_conv", 19_366, 3501.7),
        ("azure_llm_2023_code", 8_819, 3435.9),
        ("mooncake_fast25_conversation", 12_031, 3537.0),
        ("arxiv_summarization_lengths_vidur", 28_257, None),
    ],
)
def test_real_traces(name: str, requests: int, span_s: float | None) -> None:
    trace = read_trace(real(name))
    assert trace.requests == requests
    assert trace.failed == 0
    assert served(trace)[1] == {}
    if span_s is None:
        assert trace.arrival_s is None
    else:
        assert trace.arrival_s is not None
        assert trace.arrival_s[-1] == pytest.approx(span_s, abs=0.05)
    assert (trace.prefix_tokens is not None) == name.startswith("mooncake")
    assert set(asdict(trace)) == set(Trace.__dataclass_fields__)
