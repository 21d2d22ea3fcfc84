"""From a file to a trace: each kind of file, its cells checked, in order of arrival."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from energymodel.errors import InputError
from energymodel.steps import Ints
from energymodel.traces import documents, files
from energymodel.traces.columns import BadCellError, Cells, hashes, times, tokens
from energymodel.traces.formats import Columns, Format
from energymodel.traces.trace import Trace

MAX_REQUESTS = 100_000_000
MAX_SPAN_S = 10 * 366 * 86_400.0
"""A trace that is longer mixes units, or times with numbers that are none."""


def read_trace(
    path: str | Path,
    columns: Columns | None = None,
    *,
    chars_per_token: float | None = None,
    progress: files.Progress = lambda *_: None,
) -> Trace:
    """Read a trace: CSV, JSON lines, JSON or Parquet (which needs the ``traces`` extra).

    Args:
        path: The file; what it is shows in its suffix and in the names of its columns.
        columns: Names and units where the file's own are not known.
        chars_per_token: Characters that make a token, where it holds text and no tokens.
        progress: Gets the bytes read so far and the bytes of the file.

    Raises:
        InputError: The file is no trace: one sentence with file, line and column.
    """
    path = Path(path)
    columns = columns or Columns()
    kind = files.kind_of(path)
    if kind == ".parquet":
        from energymodel.traces.engines import parquet_source

        return _from_table(path, parquet_source(path, columns))
    if kind == ".csv":
        return _from_table(path, files.csv_source(path, columns, progress))
    values = files.json_values(path, progress)
    first = next(values, None)
    if first is None:
        raise InputError(f"{path} holds no requests.")
    if documents.is_bench(first[1]):
        return _from_bench(path, chain((first,), values))
    if documents.is_conversation(first[1]):
        return _from_conversations(path, chain((first,), values), chars_per_token)
    return _from_table(path, files.json_source(path, values, columns, first))


def check_span(span_s: float, where: str) -> None:
    """Refuse a trace that is longer than any."""
    if span_s > MAX_SPAN_S:
        raise InputError(
            f"{where} spans {span_s / 31_557_600:,.0f} years: its times must be in one unit, named "
            "with --time-unit."
        )


# Flat tables ---------------------------------------------------------------------------------


def _from_table(path: Path, source: files.Source) -> Trace:
    found = source.format
    parsers = _parsers(found)
    parts: dict[str, list[Any]] = {role: [] for role in parsers}
    requests = 0
    for chunk in source.chunks:
        for column, (role, parse) in enumerate(parsers.items()):
            parts[role].append(_parsed(path, source, chunk, column, parse))
        requests += len(chunk.places)
        if requests > MAX_REQUESTS:
            raise InputError(f"{path} must have at most {MAX_REQUESTS:,} requests.")
    if not requests:
        raise InputError(f"{path} holds no requests.")
    blocks = list(chain.from_iterable(parts.pop("blocks", ())))
    arrays = {role: np.concatenate(part) for role, part in parts.items()}
    prefix = arrays.get("prefix")
    trace = Trace(
        name=path.name,
        format=found.name,
        arrival_s=arrays.get("arrival"),
        input_tokens=arrays["input"],
        output_tokens=arrays["output"],
        prefix_tokens=None if prefix is None else np.minimum(prefix, arrays["input"]),
        notes=found.notes,
    )
    order = _order(trace)
    trace = _from_zero(trace.where(order), path)
    if not blocks:
        return trace
    shared = _shared_blocks([blocks[i] for i in order]) * found.block_tokens
    return replace(trace, prefix_tokens=np.minimum(shared, trace.input_tokens))


def _parsers(found: Format) -> dict[str, Callable[[Cells], Any]]:
    """What turns the cells of each wanted column into values, in the order of the columns."""
    parsers: dict[str, Callable[[Cells], Any]] = {}
    if found.arrival:
        parsers["arrival"] = lambda cells: times(cells, found.unit)
    parsers |= {"input": tokens, "output": tokens}
    if found.prefix:
        parsers |= {"blocks": hashes} if found.block_tokens else {"prefix": tokens}
    return parsers


def _parsed(
    path: Path, source: files.Source, chunk: files.Chunk, column: int, parse: Callable[[Cells], Any]
) -> Any:
    try:
        return parse(chunk.cells[column])
    except BadCellError as bad:
        where = f"{path} {source.place} {chunk.places[bad.index]:,}"
        name = source.format.wanted[column]
        shown = repr(bad.cell if isinstance(bad.cell, str) else str(bad.cell))[:40]
        raise InputError(f"{where}: {name} must be {bad.needed}, got {shown}.") from bad


def _order(trace: Trace) -> Ints:
    """Indices in the order of arrival."""
    if trace.arrival_s is None:
        return np.arange(trace.requests)
    return np.argsort(trace.arrival_s, kind="stable")


def _from_zero(trace: Trace, path: Path) -> Trace:
    """The ordered trace with its times from the first."""
    if trace.arrival_s is None:
        return trace
    arrival_s = trace.arrival_s - trace.arrival_s[0]
    check_span(float(arrival_s[-1]), str(path))
    return replace(trace, arrival_s=arrival_s)


def _shared_blocks(blocks: Sequence[Ints]) -> Ints:
    """How many leading blocks of each request earlier ones had. A hash stands for all before it."""
    seen: set[int] = set()
    shared = np.zeros(len(blocks), dtype=np.int64)
    for i, ids in enumerate(blocks):
        listed = ids.tolist()
        shared[i] = next((k for k, h in enumerate(listed) if h not in seen), len(listed))
        seen.update(listed)
    return shared


# JSON that is no table -----------------------------------------------------------------------


def _from_bench(path: Path, values: Iterable[tuple[int, Any]]) -> Trace:
    place = files.place_of(path)
    runs = [documents.bench_requests(v, f"{path} {place} {i}") for i, v in values]
    one = len(runs) == 1
    inputs, outputs = (np.concatenate([run[i] for run in runs]) for i in (1, 2))
    if not inputs.size:
        raise InputError(f"{path} holds no requests that succeeded.")
    trace = Trace(
        name=path.name,
        format="vllm-bench",
        arrival_s=runs[0][0] if one else None,
        input_tokens=inputs,
        output_tokens=outputs,
        failed=sum(run[3] for run in runs),
        notes=() if one else (f"Its {len(runs):,} runs have no common clock, so it has no times.",),
    )
    return _from_zero(trace.where(_order(trace)), path)


def _from_conversations(
    path: Path, values: Iterable[tuple[int, Any]], chars_per_token: float | None
) -> Trace:
    place = f"{path} {files.place_of(path)}"
    answers = documents.conversation_requests(values, place, chars_per_token)
    table = np.fromiter(chain.from_iterable(answers), dtype=np.int64).reshape(-1, 3)
    if not len(table):
        raise InputError(f"{path} holds no answers of a model.")
    note = f"Where it holds text, a token is taken to be {chars_per_token} characters."
    return Trace(
        name=path.name,
        format="conversations",
        arrival_s=None,
        input_tokens=table[:, 0],
        output_tokens=table[:, 1],
        prefix_tokens=table[:, 2],
        notes=() if chars_per_token is None else (note,),
    )
