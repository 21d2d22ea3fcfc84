"""``bins``: from a request trace to bins.json."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from energymodel.commands_common import (
    FILE,
    emit,
    emit_json,
    finite,
    gpu_option,
    json_option,
    load_profile,
    profile_option,
    trace_columns,
    trace_options,
    warn,
)
from energymodel.commands_progress import bar
from energymodel.errors import InputError

if TYPE_CHECKING:
    from energymodel.traces import Limits, Trace
    from energymodel.traces.lengths import Lengths, Range

# As ``binning.METHODS``, which would load numpy; a test compares them.
_METHODS = ("powers-of-two", "quantile", "k-means", "exact")
_BAR_BYTES = 16 * 1024 * 1024
"""From this size on, reading shows how far it is."""


@click.command()
@click.argument("trace", type=FILE)
@click.option("-o", "--out", type=FILE, metavar="BINS.JSON", help="File to write.")
@click.option(
    "--method",
    type=click.Choice(_METHODS),
    default="powers-of-two",
    show_default=True,
    help="How requests are put together.",
)
@click.option(
    "--bins", type=click.IntRange(1, 100_000), metavar="N", help="Most bins, 32 unless given."
)
@click.option("--online", is_flag=True, help="Rates of arrival instead of numbers of requests.")
@click.option(
    "--start-s",
    type=click.FloatRange(0, 1e10),
    default=0.0,
    metavar="S",
    help="Leave out what arrives earlier, in seconds since the first request.",
)
@click.option(
    "--end-s",
    type=click.FloatRange(0, 1e10, min_open=True),
    callback=finite,
    metavar="S",
    help="Leave out what arrives then or later.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(2),
    metavar="N",
    help="Leave out requests of more tokens, input and output together.",
)
@click.option(
    "--max-input-tokens", type=click.IntRange(1), metavar="N", help="Likewise by input alone."
)
@click.option(
    "--max-output-tokens", type=click.IntRange(1), metavar="N", help="Likewise by output alone."
)
@click.option("--keep-zero-output", is_flag=True, help="Requests without output did not fail.")
@click.option(
    "--sample", type=click.IntRange(1), metavar="N", help="Draw so many requests at random."
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Of the sample and of k-means."
)
@trace_options
@click.option(
    "--backend",
    metavar="URL",
    help="Engine that holds TRACE as a table, such as duckdb://traces.db or bigquery://project.",
)
@click.option(
    "--model", metavar="M", help="Compare the energy of the bins with a replay of the trace by M."
)
@gpu_option
@profile_option
@json_option
def bins(
    *,
    trace: str,
    out: str | None,
    model: str | None,
    gpu: str | None,
    path: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Bins of a request TRACE (CSV, JSONL, JSON or Parquet), and what they distort."""
    from energymodel.traces import Limits, binning, lengths, report

    paths = [Path(p) for p in (out, trace) if p is not None and Path(p).exists()]
    if len(paths) == 2 and paths[0].samefile(paths[1]):
        raise InputError(f"--out {out} is the trace itself; it must be another file.")
    limits = Limits(**{name: options[name] for name in Limits.__dataclass_fields__})
    found = lengths.usable(_lengths(trace, options), limits)
    if options["sample"] is not None:
        found = lengths.drawn(found, options["sample"], options["seed"])
    binned = binning.bin_lengths(found, options["method"], options["bins"], options["seed"])
    made = report.report(found, binned, online=options["online"], seed=options["seed"])
    if out is not None:
        _write(out, report.bins_document(made))
    if model is not None:
        from energymodel.binned_estimate import compare

        chosen = _chosen(model, gpu, path, options)
        kept = _trace(trace, limits, options)
        with bar():
            estimate = compare(kept, found, binned, **chosen)
        made = replace(made, estimate=estimate, warnings=(*made.warnings, *estimate.warnings))
    if as_json:
        emit_json(made)
        warn(made.warnings)
    else:
        emit(report.tables(made))


def _chosen(
    model: str, gpu: str | None, path: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    """What a comparison is made with; it needs the trace itself."""
    from energymodel.deployment import Deployment
    from energymodel.find_model import find_model

    for name in ("sample", "backend"):
        if options[name] is not None:
            raise InputError(
                f"--{name} must be left out with --model: the trace is replayed whole."
            )
    profile = load_profile(gpu, path)
    return {"model": find_model(model)[0], "deployment": Deployment(), "profile": profile}


def _trace(trace: str, limits: "Limits", options: dict[str, Any]) -> "Trace":
    """The requests that the bins were made of."""
    from energymodel.traces import read_trace, served

    part = _range(options)
    whole = read_trace(trace, trace_columns(options), chars_per_token=options["chars_per_token"])
    return served(whole.within(part.start_s, part.end_s), limits)[0]


def _lengths(trace: str, options: dict[str, Any]) -> "Lengths":
    from energymodel.traces import lengths

    columns, part = trace_columns(options), _range(options)
    if options["backend"] is not None:
        from energymodel.traces.engines import table_lengths

        return table_lengths(options["backend"], trace, columns, part)
    with _bar(Path(trace)) as progress:
        return lengths.read_lengths(
            trace, columns, part, chars_per_token=options["chars_per_token"], progress=progress
        )


def _range(options: dict[str, Any]) -> "Range":
    from energymodel.traces.lengths import Range

    start_s, end_s = options["start_s"], options["end_s"]
    if end_s is not None and end_s <= start_s:
        raise InputError(f"--end-s must be above --start-s ({start_s:g}), got {end_s:g}.")
    return Range(start_s=start_s, end_s=end_s)


@contextmanager
def _bar(path: Path) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr where the file is long and somebody looks on."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    long = path.is_file() and path.stat().st_size >= _BAR_BYTES
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    shown = console.is_interactive and long
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _write(out: str, document: dict[str, Any]) -> None:
    """Write bins.json, such as ``predict`` reads."""
    from calibration.files import write_whole
    from energymodel import io

    io.convert(document, io.WorkloadJson, out)
    write_whole(Path(out), io.dumps(document) + "\n")
