"""The command ``calibrate``: measure this GPU, or refit, and say how good the result is."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from energymodel.commands_common import FILE, emit, emit_json, finite, gpu_name, json_option, lacks
from energymodel.errors import InputError, WorkError

if TYPE_CHECKING:
    from collections.abc import Callable

    from calibration.run import Outcome
    from calibration.simulation.recovery import Recovered


@click.command()
@click.option("--gpu", required=True, metavar="G", help="GPU, such as h200; auto: this machine's.")
@click.option(
    "--out", type=FILE, default=".", metavar="DIR", help="Folder of the files that are written."
)
@click.option(
    "--grid",
    type=click.Choice(("quick", "full", "wide")),
    default="full",
    show_default=True,
    help="What is measured: a minute, ten, or twenty with what is rarely served.",
)
@click.option("--resume", is_flag=True, help="Continue what a run before has begun in DIR.")
@click.option("--simulate", is_flag=True, help="A simulated GPU with known coefficients.")
@click.option(
    "--from", "source", type=FILE, metavar="OBSERVATIONS.JSONL", help="Refit these; needs no GPU."
)
@click.option(
    "--runs",
    type=FILE,
    metavar="RUNS.JSONL",
    help="Whole runs to fit the engine on; those shipped for G unless given.",
)
@click.option(
    "--kernels", type=click.Choice(("vllm", "torch")), help="Whose; vllm's where it is installed."
)
@click.option(
    "--cache",
    type=click.Choice(("cold", "warm")),
    default="cold",
    show_default=True,
    help="warm: operands stay in the L2 cache; measured only, no profile is fitted to it.",
)
@click.option(
    "--budget-s",
    type=click.FloatRange(1, 100_000),
    callback=finite,
    default=600.0,
    show_default=True,
    metavar="S",
    help="Stop measuring after this time; --resume goes on from there.",
)
@click.option(
    "--collectives", is_flag=True, help="Measure what several GPUs say to each other instead."
)
@click.option(
    "--gpus",
    type=click.IntRange(2, 64),
    default=2,
    show_default=True,
    metavar="N",
    help="With --collectives: on the first N GPUs of this machine.",
)
@click.option("--components", is_flag=True, help="Measure the components of one model instead.")
@click.option("--model", metavar="M", help="With --components: name, config.json or its folder.")
@click.option("--batch", type=click.IntRange(1, 4096), default=8, show_default=True, metavar="N")
@click.option(
    "--prompt", type=click.IntRange(1, 131_072), default=512, show_default=True, metavar="TOKENS"
)
@click.option(
    "--mode", type=click.Choice(("eager", "graph", "both")), default="both", show_default=True
)
@click.option("--trials", type=click.IntRange(2, 100), default=3, show_default=True, metavar="N")
@click.option(
    "--max-cv",
    type=click.FloatRange(0, 1),
    default=0.095,
    show_default=True,
    metavar="SHARE",
    help="Fail above this coefficient of variation.",
)
@click.option(
    "--min-capture",
    type=click.FloatRange(0, 1),
    default=0.9,
    show_default=True,
    metavar="SHARE",
    help="Fail where components add up to less of the whole.",
)
@json_option
def calibrate(**options: Any) -> None:
    """Measure this GPU and fit a profile, or refit one.

    Writes observations.jsonl, a profile, report.txt and report.html into DIR. What was measured
    is kept whatever happens; --resume goes on from there.
    """
    folder = Path(options["out"])
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} must be a folder; it is a file.")
    _check(options)
    try:
        if options["components"]:
            _components(folder, options)
        elif options["collectives"]:
            from energymodel.commands_collectives import collectives

            collectives(folder, options, _bar)
        else:
            _profile(folder, options)
    except ImportError as error:
        extra = "fit" if options["source"] or options["simulate"] else "calibrate"
        raise WorkError(lacks("Calibrating", extra, error)) from error


def _check(options: dict[str, Any]) -> None:
    """Refuse options that do not go together."""
    ways = [name for name in ("simulate", "source", "components") if options[name]]
    if len(ways) > 1:
        flags = " and ".join("--from" if w == "source" else f"--{w}" for w in ways)
        raise InputError(f"{flags} do not go together: choose one.")
    if options["components"] != bool(options["model"]):
        raise InputError("--components and --model go together: name the model to take apart.")
    if options["components"] and options["collectives"]:
        raise InputError("--components and --collectives do not go together: choose one.")
    if options["collectives"] and options["grid"] == "wide":
        raise InputError("--grid must be quick or full with --collectives, got wide.")
    if options["source"] and options["resume"]:
        raise InputError("--from measures nothing, so there is nothing to --resume.")
    for name, flag in (("source", "--from"), ("runs", "--runs")):
        if options[name] and not Path(options[name]).is_file():
            raise InputError(f"{flag} {options[name]} must be a file of JSON lines; there is none.")


def _profile(folder: Path, options: dict[str, Any]) -> None:
    from calibration import run
    from energymodel import hardware

    gpu = gpu_name(options["gpu"])
    hardware.load(gpu)  # what the fit cannot do without is asked for before anything is measured
    source = options["source"] and Path(options["source"])
    observations = source or run.start(
        folder, gpu, resume=options["resume"], simulated=options["simulate"]
    )
    if not source:
        _measure(observations, gpu, options)
    if options["cache"] == "warm":
        if options["as_json"]:
            emit_json({"observations_file": str(observations), "profile": None})
        click.echo(f"Wrote {observations}: what stays in the cache is not fitted.", err=True)
        return
    outcome = run.conclude(
        observations,
        folder,
        gpu,
        runs=options["runs"] and Path(options["runs"]),
        simulated=run.is_simulated(observations),
        report=lambda _: None,
    )
    _show(outcome, as_json=options["as_json"])
    if not source and options["grid"] == "quick" and not options["as_json"]:
        click.echo(
            "The quick grid shows that everything runs; for figures to rely on, use --grid full.",
            err=True,
        )


def _measure(observations: Path, gpu: str, options: dict[str, Any]) -> None:
    from calibration import run

    with _bar() as (report, progress):
        try:
            if options["simulate"]:
                run.simulate(
                    observations, gpu, grid=options["grid"], report=report, progress=progress
                )
                return
            from calibration.gpu import find_gpu

            sensor = find_gpu(options["gpu"])
            run.measure(
                observations,
                sensor,
                grid=options["grid"],
                library=options["kernels"],
                cache=options["cache"],
                budget_s=options["budget_s"],
                report=report,
                progress=progress,
            )
        except KeyboardInterrupt:
            report(f"stopped: what was measured is in {observations}; --resume goes on from there")
            raise


class _bar:  # noqa: N801 - reads as the function that it replaces
    """A progress bar on stderr: ``with _bar() as (report, progress)``."""

    def __enter__(self) -> "tuple[Callable[[str], None], Callable[[float, float, str], None]]":
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        from energymodel.render import printable

        columns = (
            TextColumn("{task.description:20}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        # Where nobody looks on, a bar would leave an empty line.
        self._bar = Progress(
            *columns, console=console, transient=True, disable=not console.is_interactive
        )
        self._bar.start()
        task = self._bar.add_task("", total=None)

        def report(line: str) -> None:
            self._bar.console.print(printable(line), soft_wrap=True)

        def progress(done_s: float, total_s: float, what: str) -> None:
            self._bar.update(task, completed=done_s, total=total_s, description=what)

        return report, progress

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _show(outcome: "Outcome", *, as_json: bool) -> None:
    from energymodel.render import printable

    if as_json:
        emit_json(
            {
                "profile": str(outcome.profile),
                "report_text": str(outcome.report_text),
                "report_html": str(outcome.report_html),
                "kind": outcome.fit.profile.kind,
                "observations": len(outcome.fit.components.observations),
                "operations": {
                    name: {"time_error": o.time_error, "energy_error": o.energy_error}
                    for name, o in outcome.fit.profile.operations.items()
                },
                "left_out": dict(outcome.fit.components.left_out),
                "recovered": [
                    {
                        "name": r.name,
                        "declared": r.declared,
                        "fitted": r.fitted.value,
                        "stderr": r.fitted.stderr,
                        "identified": r.identified,
                        "inside": r.inside,
                    }
                    for r in outcome.recovered
                ],
            }
        )
        return
    click.echo(outcome.report_text.read_text(encoding="utf-8"), nl=False)
    if outcome.recovered:
        emit(_recovered(outcome))
    for path in (outcome.profile, outcome.report_text, outcome.report_html):
        click.echo(f"Wrote {printable(str(path))}", err=True)


def _recovered(outcome: "Outcome") -> Any:
    from rich.table import Table

    table = Table("coefficient", "declared", "fitted", "standard error", "came back", box=None)
    for r in outcome.recovered:
        values = (r.declared, r.fitted.value, r.fitted.stderr)
        table.add_row(r.name, *(f"{v:.4g}" for v in values), _verdict(r))
    return table


def _verdict(r: "Recovered") -> str:
    if not r.identified:
        return "not identified"
    return "yes" if r.inside else "no"


def _components(folder: Path, options: dict[str, Any]) -> None:
    from calibration.components import MODES, measure_components
    from calibration.components.report import as_dict, render
    from calibration.gpu import find_gpu
    from energymodel.render import printable

    folder.mkdir(parents=True, exist_ok=True)
    mode = options["mode"]
    report = measure_components(
        options["model"],
        sensor=find_gpu(options["gpu"]),
        out=folder / "components.jsonl",
        batch=options["batch"],
        prompt=options["prompt"],
        modes=MODES if mode == "both" else (mode,),
        trials=options["trials"],
        max_cv=options["max_cv"],
        min_capture=options["min_capture"],
        report=lambda line: click.echo(printable(line), err=True),
    )
    if options["as_json"]:
        emit_json(as_dict(report))
    else:
        emit(render(report))
    if not report.ok:
        raise WorkError("; ".join(report.failures))
