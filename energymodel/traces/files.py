"""Traces in files: chunks of cells, with the place of each request.

CSV and JSON lines are read line by line, a JSON document value by value, so that memory holds one
chunk. Parquet goes through DuckDB.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

from energymodel import io
from energymodel.errors import InputError
from energymodel.traces.columns import Cells
from energymodel.traces.formats import Columns, Format, recognise
from energymodel.traces.json_stream import documents

CHUNK_ROWS = 8_192
MAX_LINE = 16 * 1024 * 1024
"""Most characters of a line."""
KINDS = (".csv", ".jsonl", ".ndjson", ".json", ".parquet")

Progress = Callable[[int, int], None]
"""Gets the bytes read so far, and the bytes of the file."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Cells of requests, column by column as ``Format.wanted``, and the place of each."""

    cells: Sequence[Cells]
    places: Sequence[int]


@dataclass(frozen=True, slots=True)
class Source:
    """A table of requests in a file; ``place`` is what to call the place of one."""

    format: Format
    place: str
    chunks: Iterator[Chunk]


def kind_of(path: Path) -> str:
    """The kind of file by its suffix; there is such a file.

    Raises:
        InputError: It is of no known kind, or is not there.
    """
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        raise InputError(f"{path} must be a trace of the kind {', '.join(KINDS)}.")
    if not path.is_file():
        raise InputError(f"{path} cannot be read: no such file.")
    return suffix


def csv_header(path: Path) -> list[str]:
    """The names of the columns of a CSV file."""
    return _header(path, _csv_rows(path, lambda *_: None))


def csv_source(path: Path, columns: Columns, progress: Progress) -> Source:
    """The requests of a CSV file with a header."""
    rows = _csv_rows(path, progress)
    header = _header(path, rows)
    found = recognise(header, str(path), columns)
    if found.block_tokens:  # CSV has no lists
        found = replace(found, prefix=None, block_tokens=0)
    width = len(header)

    def check(line: int, row: list[str]) -> None:
        if len(row) != width:
            raise InputError(
                f"{path} line {line}: there are {len(row):,} cells, but the header has {width:,}."
            )

    return Source(found, "line", _chunks(rows, [header.index(n) for n in found.wanted], check))


def json_values(path: Path, progress: Progress) -> Iterator[tuple[int, Any]]:
    """The values of JSON lines with their lines, or of a JSON document with their numbers.

    A document is an array, whose items are its values, or values one after another.
    """
    with _open(path) as file:
        if path.suffix.lower() != ".json":
            for number, line in _lines(path, file, progress):
                if not line.isspace():
                    yield number, io.parse_json(line, f"{path} line {number}")
        else:
            yield from enumerate(documents(file, str(path), progress), start=1)


def json_source(
    path: Path, values: Iterator[tuple[int, Any]], columns: Columns, first: tuple[int, Any]
) -> Source:
    """The requests of a file whose JSON values are flat objects; ``first`` is taken already."""
    place = place_of(path)
    if not isinstance(first[1], dict):
        raise InputError(f"{path} {place} {first[0]}: it must be an object.")
    found = recognise(first[1], f"{path} {place} {first[0]}", columns)

    def check(number: int, value: object) -> None:
        if not isinstance(value, dict):
            raise InputError(f"{path} {place} {number}: it must be an object.")
        missing = next((name for name in found.wanted if name not in value), None)
        if missing is not None:
            raise InputError(f"{path} {place} {number}: {missing} is missing.")

    return Source(found, place, _chunks(chain((first,), values), found.wanted, check))


def place_of(path: Path) -> str:
    """What to call the place of a value in a JSON file."""
    return "item" if path.suffix.lower() == ".json" else "line"


def _header(path: Path, rows: Iterator[tuple[int, list[str]]]) -> list[str]:
    try:
        return next(rows)[1]
    except StopIteration:
        raise InputError(f"{path} is empty; it must have a header.") from None


def _chunks(
    rows: Iterable[tuple[int, Any]], keys: Sequence[Any], check: Callable[[int, Any], None]
) -> Iterator[Chunk]:
    """Rows turned into columns: of each row, once checked, what stands under each key."""
    rows = iter(rows)
    while taken := list(islice(rows, CHUNK_ROWS)):
        for place, row in taken:
            check(place, row)
        yield Chunk([[row[key] for _, row in taken] for key in keys], [place for place, _ in taken])


def _open(path: Path) -> TextIO:
    try:
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {(error.strerror or '').lower()}.") from error


def _lines(path: Path, file: TextIO, progress: Progress) -> Iterator[tuple[int, str]]:
    """Numbered lines of at most ``MAX_LINE`` characters."""
    total = path.stat().st_size
    number = 0
    try:
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise InputError(
                    f"{path} line {number}: it must have at most {MAX_LINE:,} characters."
                )
            if number % CHUNK_ROWS == 0:
                progress(file.buffer.tell(), total)
            yield number, line
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be UTF-8 text; line {number + 1} is not.") from error
    progress(total, total)


def _csv_rows(path: Path, progress: Progress) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, with the line on which each ends."""
    with _open(path) as file:
        lines = map(itemgetter(1), _lines(path, file, progress))
        reader = csv.reader(lines, strict=True)
        try:
            for row in reader:
                if row:
                    yield reader.line_num, row
        except csv.Error as error:
            raise InputError(f"{path} line {reader.line_num}: {error}.") from error
