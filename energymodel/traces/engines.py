"""Lengths counted by a query engine: DuckDB for files, through Ibis any other for its tables.

The query is one Ibis expression, whatever runs it, so a trace of any size is counted where it
lives and only the distinct pairs of lengths come back.
"""

import glob
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from energymodel.errors import InputError, WorkError
from energymodel.traces import documents, files
from energymodel.traces.columns import LAST_S, MAX_TOKENS
from energymodel.traces.formats import SECONDS, Columns, Format, recognise
from energymodel.traces.lengths import (
    OUTSIDE,
    Lengths,
    Range,
    counts_per_minute,
    part_span_s,
)
from energymodel.traces.reader import MAX_REQUESTS, check_span, read_trace

MAX_PAIRS = 20_000_000
_NO_PREFIXES = "How many prompt tokens requests share was not counted."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """An Ibis table with columns as ``format`` names them; ``where`` is what errors call it.

    ``text`` says that it is parsed each time it is read.
    """

    name: str
    where: str
    format: Format
    expression: Any
    text: bool = False


def reads(path: Path) -> bool:
    """Whether DuckDB is there and the file has flat rows."""
    try:
        import ibis.backends.duckdb  # noqa: F401
    except ImportError:
        return False
    if path.suffix.lower() == ".csv":
        return True
    _, first = next(files.json_values(path, lambda *_: None), (0, None))
    return not documents.is_bench(first) and not documents.is_conversation(first)


def file_lengths(path: Path, columns: Columns, part: Range) -> Lengths:
    """Lengths of a CSV, JSON lines or Parquet file, counted by DuckDB.

    Raises:
        InputError: A cell is refused, with the line where the file has lines.
    """
    try:
        return _lengths(_file_table(path, columns), part)
    except (InputError, WorkError):
        if path.suffix.lower() != ".parquet":
            read_trace(path, columns)  # names the line of what is wrong
        raise


def table_lengths(url: str, table: str, columns: Columns, part: Range) -> Lengths:
    """Lengths of a table of an engine.

    Args:
        url: Where it is, as ``ibis.connect`` takes it: ``duckdb://traces.db``,
            ``bigquery://project/dataset``, ...
        table: Its name.
        columns: Names and units where they are not those of a known trace.
        part: The range of time to count.
    """
    ibis = _ibis()
    scheme, _, file = url.partition("?")[0].partition("://")
    if scheme in ("duckdb", "sqlite") and not Path(file).is_file():
        raise InputError(f"--backend: there is no file {file!r}.")  # and none is to be made
    try:
        expression = ibis.connect(url).table(table)
    except ImportError as error:
        raise InputError(f"--backend: {_first_line(error)}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise InputError(f"--backend cannot open {table!r} ({reason}).") from error
    found = recognise(expression.columns, table, columns)
    return _lengths(_Table(name=table, where=table, format=found, expression=expression), part)


def parquet_source(path: Path, columns: Columns) -> files.Source:
    """The requests of a Parquet file, in chunks."""
    table = _file_table(path, columns)
    rows = _run(table.where, lambda: table.expression.count().to_pyarrow().as_py())
    if rows > MAX_REQUESTS:
        raise InputError(f"{path} must have at most {MAX_REQUESTS:,} requests.")
    read = _run(table.where, table.expression.select(*table.format.wanted).to_pyarrow)

    def chunks() -> Iterator[files.Chunk]:
        at = 1
        for batch in read.to_batches(max_chunksize=files.CHUNK_ROWS):
            cells = [_cells(column) for column in batch.columns]
            yield files.Chunk(cells, range(at, at + batch.num_rows))
            at += batch.num_rows

    return files.Source(table.format, "row", chunks())


def _cells(column: Any) -> Any:
    nested = str(column.type).startswith(("list", "large_list"))
    return column.to_pylist() if nested else np.asarray(column.to_numpy(zero_copy_only=False))


# The query -----------------------------------------------------------------------------------


def _lengths(table: _Table, part: Range) -> Lengths:
    found, t = table.format, table.expression
    named = {"input_tokens": found.input, "output_tokens": found.output}
    cells = {name: _number(t[column]) for name, column in named.items()}
    good = {name: _whole(cells[name]) for name in named}
    if found.arrival:
        named["arrival_s"] = found.arrival
        cells["arrival_s"] = _seconds(t[found.arrival], found.unit)
        good["arrival_s"] = cells["arrival_s"].between(0, LAST_S)
    flags = {f"ok_{name}": ok.fill_null(False) for name, ok in good.items()}
    t = t.mutate(**cells, **flags).select(*cells, *flags)
    if table.text:
        t = _run(table.where, lambda: t.get_backend().create_table("parsed", t, temp=True))
    bad = {f"bad_{name}": (~t[f"ok_{name}"]).sum() for name in named}
    ends = {"first": t.arrival_s.min(), "last": t.arrival_s.max()} if found.arrival else {}
    totals = _rows(table, t.aggregate(n=t.count(), **bad, **ends))[0]
    if not totals["n"]:
        raise InputError(f"{table.where} holds no requests.")
    for name, column in named.items():
        if totals[f"bad_{name}"]:
            _refuse(table, name, table.expression[column], ~flags[f"ok_{name}"])

    first_s = float(totals.get("first") or 0)
    last_s = float(totals.get("last") or 0) - first_s
    if found.arrival:
        check_span(last_s, table.where)
        t = t.mutate(since_s=t.arrival_s - first_s)
        t = t.filter(t.since_s >= part.start_s)
        if part.end_s is not None:
            t = t.filter(t.since_s < part.end_s)
    elif not part.whole:
        raise InputError(f"{table.where} gives no times, so no range of them can be chosen.")
    return _counted(table, t, part, int(totals["n"]), last_s)


def _counted(table: _Table, t: Any, part: Range, total: int, last_s: float) -> Lengths:
    lengths = ["input_tokens", "output_tokens"]
    t = t.mutate(**{name: t[name].cast("int64") for name in lengths})
    pairs = t.group_by(lengths).aggregate(count=t.count()).order_by(lengths).limit(MAX_PAIRS + 1)
    counted = _run(table.where, pairs.to_pyarrow)
    if counted.num_rows > MAX_PAIRS:
        raise WorkError(f"{table.where} has more than {MAX_PAIRS:,} distinct pairs of lengths.")
    inputs, outputs, count = (
        np.asarray(counted[c].to_numpy(), dtype=np.int64) for c in (*lengths, "count")
    )
    span_s = minutes = None
    requests = int(count.sum())
    if table.format.arrival:
        span_s = part_span_s(table.name, part, last_s, requests)
        minute = ((t.since_s - part.start_s) / 60).floor()
        by_minute = t.group_by(minute=minute).aggregate(count=t.count())
        found = _run(table.where, by_minute.to_pyarrow)
        minutes = counts_per_minute(
            np.asarray(found["minute"].to_numpy(), dtype=np.float64),
            np.asarray(found["count"].to_numpy(), dtype=np.int64),
            span_s,
        )
    notes = table.format.notes + ((_NO_PREFIXES,) if table.format.prefix else ())
    return Lengths(
        name=table.name,
        format=table.format.name,
        input_tokens=inputs,
        output_tokens=outputs,
        count=count,
        per_minute=minutes,
        span_s=span_s,
        left_out={OUTSIDE: total - requests} if total > requests else {},
        notes=notes,
    )


def _number(column: Any) -> Any:
    """A column as 64-bit floats, null where it is no number."""
    if column.type().is_string():
        # Stripping keeps DuckDB from reading the file as floats, which fails on the first bad cell.
        return column.strip().try_cast("float64")
    return column.cast("float64")


def _whole(number: Any) -> Any:
    """Whether numbers are whole and from 0 to ``MAX_TOKENS``; NaN is not."""
    inside = number.between(0, MAX_TOKENS).fill_null(False)
    # Not even the floor of what is outside is asked for: NaN has none.
    guarded = inside.ifelse(number, -1.0)
    return inside & (guarded == guarded.floor())


def _seconds(column: Any, unit: str) -> Any:
    """A column of times in seconds, whatever their origin."""
    kind = column.type()
    if kind.is_timestamp():
        return column.epoch_seconds().cast("float64")
    if unit == "timestamp":
        if not kind.is_string():
            raise InputError(
                f"{column.get_name()} holds numbers, not timestamps: say --time-unit s, for example."
            )
        return column.strip().try_cast("timestamp('UTC')").epoch_seconds().cast("float64")
    return _number(column) * SECONDS[unit]


def _refuse(table: _Table, name: str, column: Any, bad: Any) -> NoReturn:
    found = table.expression.filter(bad).select(cell=column).limit(1)
    shown = repr(str(_rows(table, found)[0]["cell"]))[:40]
    needed = f"a whole number from 0 to {MAX_TOKENS:,}"
    if name == "arrival_s":
        needed = f"a time ({table.format.unit}) from 1970 to 2100"
    raise InputError(f"{table.where}: {column.get_name()} must be {needed}, got {shown}.")


def _rows(table: _Table, expression: Any) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = _run(table.where, lambda: expression.to_pyarrow().to_pylist())
    return rows


def _run(where: str, query: Any) -> Any:
    try:
        return query()
    except InputError:
        raise
    except Exception as error:  # each engine has its own
        raise WorkError(f"{where} cannot be counted: {_first_line(error)}.") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


# Files ---------------------------------------------------------------------------------------


def _ibis() -> Any:
    try:
        import ibis
        import ibis.backends.duckdb
    except ImportError as error:
        raise InputError(
            f"Parquet and engines need {error.name}: pip install 'energymodel[traces]'."
        ) from error
    return ibis


def _file_table(path: Path, columns: Columns) -> _Table:
    """A file as a DuckDB table; the cells of CSV and JSON are strings."""
    engine = _ibis().duckdb.connect()
    engine.raw_sql("SET TimeZone='UTC'")
    engine.raw_sql("SET autoinstall_known_extensions=false")
    engine.con.execute("SET temp_directory=?", [tempfile.gettempdir()])
    found, expression = _run(str(path), lambda: _opened(engine, path, columns))
    return _Table(
        name=path.name,
        where=str(path),
        format=found,
        expression=expression,
        text=path.suffix.lower() != ".parquet",
    )


def _opened(engine: Any, path: Path, columns: Columns) -> tuple[Format, Any]:
    name = glob.escape(str(path))
    if path.suffix.lower() == ".parquet":
        table = engine.read_parquet(name)
        return recognise(table.columns, str(path), columns), table
    if path.suffix.lower() == ".csv":
        header = files.csv_header(path)
        found = recognise(header, str(path), columns)
        # By number: columns that are not needed may have the same name.
        types = {str(i): "VARCHAR" for i in range(len(header))}
        style = {"auto_detect": False, "header": True, "delim": ",", "quote": '"', "escape": '"'}
        table = engine.read_csv(name, columns=types, **style)
        return found, table.select(**{c: table[str(header.index(c))] for c in found.wanted})
    _, first = next(files.json_values(path, lambda *_: None))
    found = recognise(first, str(path), columns)
    types = dict.fromkeys(found.wanted, "VARCHAR")
    return found, engine.read_json(name, columns=types, format="newline_delimited")
