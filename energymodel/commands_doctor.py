"""The command ``doctor``: what the GPUs and sensors of this machine are worth."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from energymodel.commands_common import emit, emit_json, json_option
from energymodel.errors import WorkError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType
    from rich.table import Table

    from calibration.doctor import GpuReport, Report
    from calibration.doctor.finding import Finding
    from calibration.doctor.host import HostFacts

_STYLES = {"ok": "green", "note": "", "warning": "yellow", "problem": "red"}
_VERDICT_STYLES = {"trustworthy": "bold green", "with care": "bold yellow"}


@click.command()
@json_option
@click.option(
    "--gpu-index", type=click.IntRange(0), metavar="N", help="Only this GPU, as nvidia-smi counts."
)
@click.option("--quick", is_flag=True, help="At rest only, a few seconds: no CUDA, no load.")
def doctor(as_json: bool, gpu_index: int | None, quick: bool) -> None:
    """What the sensors of this machine can and cannot see.

    Changes nothing.
    """
    from energymodel.render import printable

    try:
        from calibration.doctor import examine_this_machine
    except ImportError as error:
        raise WorkError(
            f"The doctor needs {error.name or 'a package'}: pip install 'energymodel[calibrate]'."
        ) from error
    report = examine_this_machine(
        gpu_index, quick=quick, say=lambda line: click.echo(printable(line), err=True)
    )
    if as_json:
        emit_json(document(report))
    else:
        emit(show(report))


def document(report: "Report") -> dict[str, object]:
    """The report as one JSON document; a GPU's facts stand at its top level."""
    whole = asdict(report)
    gpus = [{"verdict": g["verdict"]} | g.pop("facts") | g for g in whole["gpus"]]
    return {
        "schema_version": whole["schema_version"],
        "host": whole["host"],
        "gpus": gpus,
        "findings": whole["findings"],
    }


def show(report: "Report") -> "RenderableType":
    """The report as tables that fit 80 columns."""
    from rich.console import Group

    parts: list[RenderableType] = [_host(report.host), *_findings(report.findings, None)]
    for gpu in report.gpus:
        parts += ["", *_gpu(gpu), "", *_findings(report.findings, gpu.facts.index)]
    return Group(*parts)


def _host(host: "HostFacts") -> "RenderableType":
    known = {
        "driver": host.driver,
        "CUDA": host.cuda_driver,
        "torch": host.torch,
        "nvidia-ml-py": host.nvidia_ml_py,
        "Python": host.python,
    }
    software = ", ".join(f"{name} {version}" for name, version in known.items() if version)
    energy = ", ".join(d.name for d in host.energy_domains if d.remedy is None)
    count = f"{host.gpu_count} GPU" + ("" if host.gpu_count == 1 else "s")
    return _text(f"{count}; {software}; CPU energy: {energy or 'none'}")


def _gpu(gpu: "GpuReport") -> "Iterable[RenderableType]":
    from energymodel.render import BYTES, HERTZ, POWER, quantity

    f = gpu.facts
    yield _text(
        f"GPU {f.index}: {f.name} ({f.gpu}), board {f.board or 'unknown'}: {gpu.verdict}",
        _VERDICT_STYLES.get(gpu.verdict, "bold red"),
    )
    yield _text(
        f"limit {quantity(f.power_limit_w, POWER)} "
        f"(default {quantity(f.default_power_limit_w, POWER)}, "
        f"{quantity(f.min_power_limit_w, POWER)} to {quantity(f.max_power_limit_w, POWER)}), "
        f"SM clock up to {quantity(f.max_sm_clock_hz, HERTZ)}, "
        f"memory {quantity(f.memory_bytes, BYTES)}"
    )
    yield ""
    yield _sensors(gpu)
    yield ""
    yield _phases(gpu)


def _sensors(gpu: "GpuReport") -> "Table":
    from energymodel.render import ENERGY, POWER, TIME, quantity

    table = _table("sensor", ">updates every", ">a read", ">95 %", ">quantum", ">rises in")
    for name, s in gpu.sensors.items():
        if s.supported:
            step = quantity(s.quantum_j, ENERGY) if s.quantum_j else quantity(s.quantum_w, POWER)
            table.add_row(
                name.replace("_", " "),
                quantity(s.update_period_s, TIME),
                quantity(s.read_median_s, TIME),
                quantity(s.read_p95_s, TIME),
                step,
                quantity(s.rise_s, TIME),
            )
        else:
            table.add_row(name.replace("_", " "), "none")
    return table


def _phases(gpu: "GpuReport") -> "Table":
    from energymodel.render import HERTZ, POWER, quantity

    power = ("counter", "instant", "samples", "usage", "average", "memory")
    table = _table("state", *(f">{name}" for name in power), ">clock", ">temp.")
    for p in gpu.phases:
        watts = (
            p.counter_power_w,
            p.power_instant_w,
            p.power_samples_w,
            p.power_usage_w,
            p.power_average_w,
            p.memory_power_w,
        )
        heat = "-" if p.temperature_c is None else f"{p.temperature_c:.0f} C"
        cells = [quantity(w, POWER) for w in watts]
        table.add_row(p.state, *cells, quantity(p.sm_clock_hz, HERTZ), heat)
    return table


def _findings(findings: "Iterable[Finding]", gpu: int | None) -> "Iterable[RenderableType]":
    mine = [f for f in findings if f.gpu == gpu]
    if mine:
        table = _table("", "")
        table.show_header = False
        for f in mine:
            remedy = f" Remedy: {f.remedy}." if f.remedy and f.level != "ok" else ""
            text = f"{f.what[:1].upper()}{f.what[1:]}: {f.meaning}.{remedy}"
            table.add_row(_text(f.level, _STYLES[f.level]), _text(text))
        yield table


def _table(*headers: str) -> "Table":
    """A table without lines; a header that starts with > is of a column aligned to the right."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for header in headers:
        right = header.startswith(">")
        table.add_column(
            header.removeprefix(">"), justify="right" if right else "left", no_wrap=right
        )
    return table


def _text(text: str, style: str = "") -> "RenderableType":
    from rich.text import Text

    from energymodel.render import printable

    return Text(printable(text), style=style)
