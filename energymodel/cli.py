"""The command line: parse, call one function, print. Imports here are only those of click."""

import click

from energymodel import __version__
from energymodel.commands_bins import bins
from energymodel.commands_calibrate import calibrate
from energymodel.commands_common import abandon_stdout
from energymodel.commands_doctor import doctor
from energymodel.commands_explain import explain
from energymodel.commands_lists import gpus, models, profiles, schema
from energymodel.commands_measure import measure
from energymodel.commands_plan import plan
from energymodel.commands_predict import predict, validate
from energymodel.commands_speculate import speculate
from energymodel.errors import InputError, WorkError

__all__ = ["cli", "main"]

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(invoke_without_command=True, context_settings=_SETTINGS)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Predict the energy of language-model inference before anything is deployed."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


_COMMANDS = (
    *(predict, calibrate, doctor, measure, validate, bins, explain, speculate, plan),
    *(models, gpus, profiles, schema),
)
for _command in _COMMANDS:
    cli.add_command(_command)


def main(args: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 the work failed, 2 unusable input."""
    try:
        status = cli.main(args, prog_name="energymodel", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (a sentence, never a traceback)
        return _fail(error)
    return status if isinstance(status, int) else 0


def _fail(error: BaseException) -> int:
    """Say in one sentence on stderr what went wrong; returns the exit status."""
    from energymodel.render import printable

    message, status = _explain(error)
    sentence = printable(message.strip())
    end = "" if sentence.endswith((".", "?")) else "."
    click.echo(f"energymodel: {sentence}{end}", err=True)
    return status


def _explain(error: BaseException) -> tuple[str, int]:
    match error:
        case click.Abort() | KeyboardInterrupt():
            return "interrupted", 130
        case click.ClickException():
            return " ".join(error.format_message().split()), error.exit_code
        case InputError() | WorkError():
            return str(error), 2 if isinstance(error, InputError) else 1
        case OSError():
            abandon_stdout()
            where = "the output" if error.filename is None else str(error.filename)
            return f"{where}: {(error.strerror or str(error)).lower()}", 1
        case MemoryError():
            return "there is not enough memory for this", 1
        case _:
            return _internal(error), 1


def _internal(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace and trace.tb_frame.f_globals.get("__name__")
    place = f" at {module}:{trace.tb_lineno}" if trace else ""
    return f"internal error{place}, please report it: {type(error).__name__}: {error}"
