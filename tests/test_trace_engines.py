"""What a query engine counts is what is counted here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
    json_lines,
    real,
)

from energymodel.errors import InputError, WorkError
from energymodel.traces import Columns, read_trace
from energymodel.traces.lengths import Lengths, Range, lengths_of, read_lengths

ibis = pytest.importorskip("ibis", reason="the traces extra is not installed")
pytest.importorskip("duckdb", reason="the traces extra is not installed")
engines = pytest.importorskip("energymodel.traces.engines")
pandas = pytest.importorskip("pandas")

# Ibis 12 asks DuckDB 2 and pandas 3 in ways that they are about to drop.
pytestmark = [
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option"),
]

ARRAYS = ("input_tokens", "output_tokens", "count", "per_minute")


def assert_same(a: Lengths, b: Lengths) -> None:
    assert (a.name, a.format, a.left_out) == (b.name, b.format, b.left_out)
    assert a.span_s == pytest.approx(b.span_s, abs=1e-6)
    for name in ARRAYS:
        mine, theirs = getattr(a, name), getattr(b, name)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert mine.dtype == theirs.dtype == np.int64
            assert mine.tolist() == theirs.tolist()


@pytest.mark.parametrize("part", [Range(), Range(start_s=5, end_s=60.5), Range(start_s=10)])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", AZURE),
        ("a.csv", AZURE_2024),
        ("a.csv", AZURE_2025),
        ("a[1]*?.csv", BURSTGPT),
        ("a.csv", VIDUR),
        ("a.csv", SPLITWISE),
        ("a.csv", OWN + OWN.partition("\n")[2] * 3),
        ("a.csv", "\ufeff" + OWN),
        ("a.jsonl", json_lines(MOONCAKE)),
        ("a.ndjson", json_lines(BAILIAN)),
    ],
)
def test_duckdb_counts_what_reading_counts(
    tmp_path: Path, name: str, content: str, part: Range
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert_same(engines.file_lengths(path, Columns(), part), lengths_of(read_trace(path), part))


def test_lengths_without_times(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(LENGTHS)
    assert_same(engines.file_lengths(path, Columns(), Range()), lengths_of(read_trace(path)))
    with pytest.raises(InputError, match="gives no times"):
        engines.file_lengths(path, Columns(), Range(start_s=1))


@pytest.mark.parametrize(
    "content",
    [
        OWN + "x,1,2\n",
        OWN + "1,nan,2\n",
        OWN + "1,2,\n",
        OWN + "1,2,2.5\n",
        OWN + "1,2,-2\n",
        OWN + "1,2,1e9\n",
        OWN + "inf,2,2\n",
        OWN + "1,2\n",
        OWN + '1,2,"3\n',
        OWN + "1700000000,2,2\n",
        AZURE + "never,2,2\n",
        "input_tokens,output_tokens\n",
        "a,b\n1,2\n",
        "",
    ],
)
def test_duckdb_refuses_what_reading_refuses(tmp_path: Path, content: str) -> None:
    """In the same words, which name the line."""
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(InputError) as reading:
        read_trace(path)
    with pytest.raises(InputError) as counting:
        engines.file_lengths(path, Columns(), Range())
    assert str(counting.value) == str(reading.value)


def test_large_files_go_to_duckdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("energymodel.traces.lengths.LARGE_BYTES", 10)
    counted: list[Path] = []
    count = engines.file_lengths

    def spy(path: Path, *rest: Any) -> Lengths:
        counted.append(path)
        found: Lengths = count(path, *rest)
        return found

    monkeypatch.setattr(engines, "file_lengths", spy)
    for name, content in (
        ("flat.csv", OWN),
        ("flat.jsonl", json_lines(MOONCAKE)),
        ("talk.jsonl", json_lines([CONVERSATION])),
        ("bench.json", json.dumps(BENCH)),
    ):
        path = tmp_path / name
        path.write_text(content)
        assert read_lengths(path, chars_per_token=4).requests > 1
    assert [path.name for path in counted] == ["flat.csv", "flat.jsonl"]
    monkeypatch.setattr(engines, "reads", lambda _: False)  # as without the extra
    assert read_lengths(tmp_path / "flat.csv").requests == 3
    assert len(counted) == 2


# Parquet -------------------------------------------------------------------------------------


def parquet(path: Path, **columns: Any) -> Path:
    pandas.DataFrame(columns).to_parquet(path)
    return path


def test_parquet_of_numbers(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet",
        arrival_s=[70.5, 10.0, 20.0],
        input_tokens=np.array([300, 100, 200], dtype=np.int16),
        output_tokens=[9.0, 7.0, 8.0],
    )
    trace = read_trace(path)
    assert trace.arrival_s is not None
    assert trace.arrival_s.tolist() == [0, 10, 60.5]
    assert trace.input_tokens.tolist() == [100, 200, 300]
    assert_same(read_lengths(path), lengths_of(trace))


@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_parquet_of_timestamps(tmp_path: Path, zone: str | None) -> None:
    times = pandas.to_datetime(["2023-11-16 00:00:10.25", "2023-11-16 00:00:20.5"])
    path = parquet(
        tmp_path / "a.parquet",
        TIMESTAMP=times.tz_localize(zone),
        ContextTokens=[1, 2],
        GeneratedTokens=[3, 4],
    )
    trace = read_trace(path)
    assert trace.format == "azure"
    assert trace.arrival_s is not None
    assert trace.arrival_s.tolist() == [0, 10.25]
    assert_same(read_lengths(path), lengths_of(trace))


def test_parquet_with_hashes(tmp_path: Path) -> None:
    columns = {key: [row[key] for row in MOONCAKE] for key in MOONCAKE[0]}
    path = parquet(tmp_path / "a.parquet", **columns)
    trace = read_trace(path)
    assert trace.prefix_tokens is not None
    assert trace.prefix_tokens.tolist() == [0, 0, 300]
    assert "not counted" in read_lengths(path).notes[-1]


@pytest.mark.parametrize(
    ("column", "cells", "row"),
    [
        ("input_tokens", [1.0, None], 2),
        ("input_tokens", [-1, 1], 1),
        ("output_tokens", ["5", "x"], 2),
        ("arrival_s", [0.0, float("nan")], 2),
    ],
)
def test_bad_cells_of_parquet(tmp_path: Path, column: str, cells: list[Any], row: int) -> None:
    good = {"arrival_s": [0, 1], "input_tokens": [1, 2], "output_tokens": [1, 2]}
    path = parquet(tmp_path / "a.parquet", **(good | {column: cells}))
    with pytest.raises(InputError, match=rf"a\.parquet row {row}: {column} must be"):
        read_trace(path)
    with pytest.raises(InputError, match=rf"a\.parquet: {column} must be .*, got"):
        read_lengths(path)


def test_parquet_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 this is not")
    for read in (read_trace, read_lengths):
        with pytest.raises(WorkError, match=r"a\.parquet cannot be counted"):
            read(path)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ibis", None)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    for read in (read_trace, read_lengths):
        with pytest.raises(InputError, match=r"need ibis: pip install 'energymodel\[traces\]'"):
            read(path)


# Engines -------------------------------------------------------------------------------------


def sql(url: str, *statements: str) -> None:
    engine = ibis.connect(url)
    for statement in statements:
        engine.raw_sql(statement)
    engine.con.commit()
    engine.disconnect()


@pytest.mark.parametrize("scheme", ["duckdb", "sqlite"])
def test_tables_of_engines(tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(OWN + "80,5,0\n")
    url = f"{scheme}://{tmp_path}/traces.db"
    sql(
        url,
        "CREATE TABLE \"asked 'for'\" (arrival_s DOUBLE, input_tokens INTEGER, output_tokens INTEGER)",
        "INSERT INTO \"asked 'for'\" VALUES (10, 100, 7), (20, 200, 8), (70.5, 300, 9), (80, 5, 0)",
    )
    for part in (Range(), Range(start_s=10, end_s=60.5)):
        counted = engines.table_lengths(url, "asked 'for'", Columns(), part)
        assert_same(counted, _named(lengths_of(read_trace(path), part), "asked 'for'"))


def _named(lengths: Lengths, name: str) -> Lengths:
    from dataclasses import replace

    return replace(lengths, name=name)


@pytest.mark.parametrize(
    ("url", "table", "sentence"),
    [
        ("nonsense://x", "t", "--backend cannot open 't' (ValueError: Don't know how to connect"),
        ("sqlite:///no/such.db", "t", "--backend: there is no file '/no/such.db'."),
        ("duckdb://no.db?read_only=True", "t", "--backend: there is no file 'no.db'."),
        (f"sqlite://{__file__}", "t", "--backend cannot open 't' (DatabaseError: file is not a"),
        ("bigquery://x", "t", "--backend: Failed to import the bigquery backend"),
    ],
)
def test_engines_that_are_not_there(url: str, table: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        engines.table_lengths(url, table, Columns(), Range())
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


def test_bad_cells_of_a_table(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/traces.db"
    sql(
        url,
        "CREATE TABLE t (arrival_s REAL, input_tokens INTEGER, output_tokens REAL)",
        "INSERT INTO t VALUES (1, 2, 3), (2, 3, 4.5), (3, NULL, 5)",
    )
    with pytest.raises(InputError, match=r"cannot open 'u' \(TableNotFound: u\)"):
        engines.table_lengths(url, "u", Columns(), Range())
    with pytest.raises(InputError, match=r"t: input_tokens must be a whole .*, got 'None'"):
        engines.table_lengths(url, "t", Columns(), Range())


def test_the_real_trace_in_an_engine(tmp_path: Path) -> None:
    path = real("azure_llm_2023_conv")
    mine = lengths_of(read_trace(path), Range(start_s=600, end_s=1800))
    assert_same(engines.file_lengths(path, Columns(), Range(start_s=600, end_s=1800)), mine)
    assert mine.requests > 5000
