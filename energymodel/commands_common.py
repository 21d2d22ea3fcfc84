"""What the commands share: output, options, and the choice of model, GPU and profile."""

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from energymodel.deployment import (
    ENGINES,
    MOST_DRAFTED,
    MOST_LINK_BYTES_PER_S,
    SAMPLINGS,
    Deployment,
)
from energymodel.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from energymodel.profile import Profile
    from energymodel.traces import Columns

Function = TypeVar("Function", bound=Callable[..., Any])

FILE = click.Path()
"""A path stays a string: pathlib would cost every start several milliseconds."""
BROKEN_PIPE_STATUS = 141
"""What a shell reports for a program whose reader went away (128 + SIGPIPE)."""


# Output --------------------------------------------------------------------------------------


def emit(result: "RenderableType") -> None:
    """Print tables; colours only on a terminal, escapes where its encoding lacks a character."""
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(result)
    lines = (line.rstrip() for line in capture.get().splitlines())
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    _write("\n".join(lines).encode(encoding, "backslashreplace"))


def emit_json(document: object) -> None:
    """Print one JSON document, in UTF-8 whatever the locale; control characters are escaped."""
    from energymodel import io

    text = re.sub(r"[^\n -~]", _escape, io.dumps(document))
    _write(text.encode("utf-8", "backslashreplace"))


def _escape(match: re.Match[str]) -> str:
    import unicodedata

    char = match[0]
    harmful = unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp") and ord(char) < 0x10000
    return f"\\u{ord(char):04x}" if harmful else char


def _write(data: bytes) -> None:
    try:
        click.echo(data + b"\n", nl=False)
    except BrokenPipeError:
        abandon_stdout()
        raise click.exceptions.Exit(BROKEN_PIPE_STATUS) from None


def write_html(path: str, page: str) -> None:
    """Write a report where ``--html`` says, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    from pathlib import Path

    from calibration.files import write_whole

    try:
        write_whole(Path(path), page)
    except OSError as error:
        raise InputError(f"--html {path} cannot be written: {error.strerror}.") from error


def abandon_stdout() -> None:
    """Send what is still buffered nowhere, so that Python does not try again when it exits."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (AttributeError, OSError, ValueError):  # no such file descriptor, as under a test
        return


def warn(texts: Iterable[str]) -> None:
    """Warnings on stderr, one line each; for ``--json``."""
    from energymodel.render import printable

    for text in texts:
        click.echo(f"Warning: {printable(text)}", err=True)


# Options -------------------------------------------------------------------------------------


def finite(_: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Refuse what a range lets pass: nan."""
    if value is not None and not 0 < value < float("inf"):
        raise click.BadParameter("it must be a finite number above 0", param=param)
    return value


def share(_: click.Context, param: click.Parameter, value: float) -> float:
    """Refuse what a range lets pass: nan."""
    if not 0.0 <= value <= 1.0:
        raise click.BadParameter("it must be a number from 0 to 1", param=param)
    return value


def _flag(
    name: str, kind: click.IntRange | click.FloatRange | click.Choice[str], **more: Any
) -> Callable[[Function], Function]:
    """An option with the default of the field of ``Deployment`` that it sets."""
    default = getattr(Deployment(), name.removeprefix("--").replace("-", "_"))
    return click.option(name, type=kind, default=default, show_default=True, **more)


def _switch(name: str, text: str) -> Callable[[Function], Function]:
    """An option that is off unless given."""
    return click.option(name, is_flag=True, help=text)


_SIZE = click.IntRange(1, 1_000_000)
# fp8 and bitsandbytes narrow a wide checkpoint, too; the others name how one was stored.
_QUANTIZATIONS = (
    *("awq", "awq_marlin", "bitsandbytes", "compressed-tensors", "fbgemm_fp8", "fp8"),
    *("gptq", "gptq_marlin", "modelopt", "modelopt_fp4", "mxfp4"),
)
_DEPLOYMENT = (
    _flag("--engine", click.Choice(ENGINES)),
    _flag("--tensor-parallel-size", _SIZE, metavar="N"),
    _flag("--pipeline-parallel-size", _SIZE, metavar="N"),
    _flag("--data-parallel-size", _SIZE, metavar="N"),
    _switch("--enable-expert-parallel", "Experts whole, spread over GPUs."),
    _flag("--gpus-per-node", _SIZE, metavar="N", help="GPUs joined by the links calibrated."),
    _flag(
        "--node-link-bytes-per-s",
        click.FloatRange(0, MOST_LINK_BYTES_PER_S, min_open=True),
        callback=finite,
        metavar="RATE",
        help="What one GPU sends to another node; without it a replica stays on one node.",
    ),
    _flag("--dtype", click.Choice(("auto", "bfloat16", "float16"))),
    _flag("--quantization", click.Choice(_QUANTIZATIONS)),
    _flag(
        "--kv-cache-dtype",
        click.Choice(("auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2")),
    ),
    _flag("--max-num-seqs", _SIZE, metavar="N"),
    _flag("--max-num-batched-tokens", click.IntRange(1, 10_000_000), metavar="N"),
    _flag(
        "--gpu-memory-utilization",
        click.FloatRange(0, 1, min_open=True),
        callback=finite,
        metavar="SHARE",
    ),
    _flag(
        "--power-limit-w",
        click.FloatRange(0, 100_000, min_open=True),
        callback=finite,
        metavar="WATT",
        help="Power limit of each GPU, where it is not that of the calibration.",
    ),
    _flag(
        "--hbm-byte-j",
        click.FloatRange(0, 1, min_open=True),
        callback=finite,
        metavar="JOULES",
        help="What a byte costs in the memory of this board, where it is not the usual; "
        "`energymodel doctor` measures it.",
    ),
    _switch("--enforce-eager", "No CUDA graphs."),
    _switch("--enable-prefix-caching", "Prompts that begin alike are computed once."),
    _flag(
        "--prefix-cache-hit-rate",
        click.FloatRange(0, 1),
        callback=share,
        metavar="SHARE",
        help="Share of prompt tokens that the prefix cache holds, where bins do not say.",
    ),
    _flag(
        "--sampling",
        click.Choice(SAMPLINGS),
        help="The likeliest token, a random one, or a random one of the top-k or top-p.",
    ),
    _switch("--penalties", "Repetition, presence or frequency penalties."),
    _switch("--detokenize", "Text comes out, not token ids."),
    _switch("--server", "Served over HTTP, tokens streamed (vllm serve)."),
    click.option(
        "--speculative-model",
        metavar="M",
        help="Draft model of speculative decoding, or ngram.",
    ),
    _flag(
        "--num-speculative-tokens",
        click.IntRange(0, MOST_DRAFTED),
        metavar="N",
        help="Tokens that are drafted for each step.",
    ),
    _flag(
        "--acceptance-rate",
        click.FloatRange(0, 1),
        metavar="SHARE",
        help="Probability that a draft token is accepted where those before it were.",
    ),
    _flag(
        "--draft-rate",
        click.FloatRange(0, 1),
        metavar="SHARE",
        help="Share of a sequence's steps for which n-grams find a draft.",
    ),
)


def deployment_options(command: Function) -> Function:
    """Add the flags of a deployment, spelt as in vLLM: its fields as keyword arguments."""
    for option in reversed(_DEPLOYMENT):
        command = option(command)
    return command


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
gpu_option = click.option(
    "--gpu", metavar="G", help="GPU, such as h200; auto: the one of this machine."
)
profile_option = click.option("--profile", "path", type=FILE, help="Profile file to use instead.")
model_option = click.option(
    "--model",
    required=True,
    metavar="M",
    help="Name in the zoo, config.json or its folder, or Hugging Face id.",
)


# As ``traces.formats.UNITS``, which would load numpy; a test compares them.
TIME_UNITS = ("s", "ms", "us", "ns", "timestamp")
_TRACE_OPTIONS = (
    click.option(
        "--arrival-column", metavar="NAME", help="Column of times, if it is not a known one."
    ),
    click.option("--input-column", metavar="NAME", help="Column of prompt lengths, likewise."),
    click.option("--output-column", metavar="NAME", help="Column of answer lengths, likewise."),
    click.option("--time-unit", type=click.Choice(TIME_UNITS), help="Unit of the times."),
    click.option(
        "--chars-per-token",
        type=click.FloatRange(0.1, 100),
        callback=finite,
        metavar="N",
        help="Characters that make a token, where a trace holds text alone.",
    ),
)


TRACE_TOLD = ("arrival_column", "input_column", "output_column", "time_unit", "chars_per_token")
"""Arguments of a command with ``trace_options``."""


def trace_options(command: Function) -> Function:
    """Add what a trace may have to be told: names of columns, units."""
    for option in reversed(_TRACE_OPTIONS):
        command = option(command)
    return command


def trace_columns(options: Mapping[str, Any]) -> "Columns":
    """The columns that were named; ``options`` as ``trace_options`` gives them."""
    from energymodel.traces import Columns

    return Columns(
        arrival=options["arrival_column"],
        input=options["input_column"],
        output=options["output_column"],
        unit=options["time_unit"],
    )


# Choices -------------------------------------------------------------------------------------


def load_profile(gpu: str | None, path: str | None) -> "Profile":
    """The shipped profile of a GPU, or the one in a file."""
    from energymodel import profile

    if gpu is None and path is None:
        known = ", ".join(profile.available())
        raise InputError(f"--gpu is missing: it must be one of {known}, or --profile a file.")
    return profile.load(gpu and gpu_name(gpu), path)


def gpu_name(gpu: str) -> str:
    """The name as files spell it; ``auto`` asks the driver."""
    if gpu.lower() != "auto":
        return gpu.lower()
    from calibration.gpu import datasheet
    from energymodel import hardware

    found = _board_name()
    name = datasheet(found)
    if name is None:
        known = ", ".join(hardware.available())
        raise InputError(f"--gpu auto found {found!r}, which is not known; known are {known}.")
    return name


def _board_name() -> str:
    try:
        from calibration.sensors import NvmlSensor

        return NvmlSensor().identity().gpu_name
    except ImportError as error:
        raise InputError("--gpu auto needs the calibrate extra: energymodel[calibrate].") from error
    except Exception as error:  # NVMLError, whose module may not be imported
        raise InputError("--gpu auto finds no NVIDIA GPU here; name one instead.") from error


def lacks(what: str, extra: str, error: ImportError) -> str:
    """What to install where a package is missing."""
    return f"{what} needs {error.name or 'a package'}: pip install 'energymodel[{extra}]'."
