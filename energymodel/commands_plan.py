"""``plan``: the fleet that serves most under a power budget."""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from energymodel.commands_common import (
    FILE,
    emit,
    emit_json,
    finite,
    gpu_name,
    json_option,
    warn,
    write_html,
)
from energymodel.commands_progress import bar
from energymodel.errors import InputError, WorkError

if TYPE_CHECKING:
    from energymodel.model import ModelSpec
    from energymodel.planning.request import Demand, Request
    from energymodel.profile import Profile

# As in ``planning.request``, which would load numpy; a test compares them.
_RULES = ("mean", "percentile", "worst", "nameplate")
_PRICES = ("power", "cost", "carbon")
_QUANTIZATIONS = ("none", "fp8")
_SIZE = click.IntRange(1, 1024)
_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)


def _number(
    _: click.Context, param: click.Parameter, value: float | tuple[float, ...] | None
) -> float | tuple[float, ...] | None:
    """Refuse what a range lets pass: nan."""
    values = value if isinstance(value, tuple) else () if value is None else (value,)
    if not all(math.isfinite(x) for x in values):
        raise click.BadParameter("it must be a number", param=param)
    return value


def _above_zero(name: str, metavar: str, text: str, **more: Any) -> Callable[[Any], Any]:
    """An option that takes a finite number above 0."""
    kind = click.FloatRange(0, 1e12, min_open=True)
    return click.option(name, type=kind, callback=finite, metavar=metavar, help=text, **more)


_OPTIONS = (
    click.option(
        "--model",
        "models",
        required=True,
        multiple=True,
        metavar="M",
        help="As in predict; of several, the plan chooses.",
    ),
    click.option(
        "--workload",
        "workloads",
        required=True,
        multiple=True,
        type=FILE,
        metavar="BINS.JSON",
        help="Demand, in bins with requests_per_s; several share the budget.",
    ),
    click.option("--paired", is_flag=True, help="The first workload is of the first model, ..."),
    click.option(
        "--gpu", "gpus", multiple=True, metavar="G", help="GPU to choose from, as in predict."
    ),
    click.option("--profile", "paths", multiple=True, type=FILE, help="Profile file to use, too."),
    _above_zero("--power-budget-w", "W", "Power of the facility that may be used.", required=True),
    _above_zero("--ttft-s", "S", "Longest time to the first token."),
    _above_zero("--itl-s", "S", "Longest time between tokens."),
    click.option(
        "--slo-percentile",
        type=click.FloatRange(1, 99.9),
        callback=_number,
        default=90.0,
        show_default=True,
        metavar="P",
        help="Percentile at which these hold.",
    ),
    click.option(
        "--pue",
        type=click.FloatRange(1, 10),
        callback=_number,
        default=1.25,
        show_default=True,
        help="Power usage effectiveness of the site.",
    ),
    click.option(
        "--server-type",
        default="hgx-8",
        show_default=True,
        metavar="NAME|FILE",
        help="What stands around the GPUs.",
    ),
    click.option(
        "--provision",
        type=click.Choice(_RULES),
        default="percentile",
        show_default=True,
        help="Which power must stay within the budget.",
    ),
    click.option(
        "--confidence",
        type=_SHARE,
        callback=_number,
        default=0.95,
        show_default=True,
        help="Probability of that, for percentile.",
    ),
    click.option("--tensor-parallel-size", "tensor", type=_SIZE, multiple=True, metavar="N"),
    click.option("--pipeline-parallel-size", "stages", type=_SIZE, multiple=True, metavar="N"),
    click.option("--enable-expert-parallel", "experts", is_flag=True, help="Allow it, too."),
    click.option(
        "--quantization",
        "quantizations",
        type=click.Choice(_QUANTIZATIONS),
        multiple=True,
        help="Precisions to choose from; none: as the checkpoint is.  [default: none]",
    ),
    click.option(
        "--power-limit-w",
        "limits_w",
        type=click.FloatRange(1, 100_000),
        callback=_number,
        multiple=True,
        metavar="W",
        help="Power limits of a GPU to choose from.",
    ),
    click.option("--max-num-seqs", type=click.IntRange(1, 1_000_000), default=1024, metavar="N"),
    click.option("--max-gpus", type=click.IntRange(1, 10_000_000), metavar="N"),
    click.option("--max-racks", type=click.IntRange(1, 10_000_000), metavar="N"),
    click.option(
        "--spare",
        type=click.IntRange(0, 1000),
        default=0,
        show_default=True,
        metavar="N",
        help="Replicas of each kind that stand by.",
    ),
    click.option(
        "--minimise",
        type=click.Choice(_PRICES),
        default="power",
        show_default=True,
        help="What is least among the fleets that serve as much.",
    ),
    click.option(
        "--carbon-intensity",
        default="world",
        show_default=True,
        metavar="G|REGION",
        help="Grams of CO2e per kWh, or a region.",
    ),
    _above_zero("--price-per-kwh", "P", "Price of electricity."),
    _above_zero("--price-per-gpu-hour", "P", "Price of a GPU."),
    click.option(
        "--demand-uncertainty",
        type=click.FloatRange(0, 2),
        callback=_number,
        default=0.0,
        help="Standard deviation of the demand, relative.",
    ),
    click.option(
        "--pue-uncertainty",
        type=click.FloatRange(0, 1),
        callback=_number,
        default=0.02,
        show_default=True,
        help="Likewise of the PUE.",
    ),
    click.option(
        "--what-if-budget-w",
        "other_budgets_w",
        type=click.FloatRange(1, 1e12),
        callback=_number,
        multiple=True,
        metavar="W",
        help="Also say what this budget would serve.",
    ),
    click.option(
        "--defer",
        "waiting",
        multiple=True,
        type=FILE,
        metavar="BINS.JSON",
        help="Demand that can wait for other hours, at its mean rate over a day.",
    ),
    click.option(
        "--hourly",
        type=FILE,
        metavar="FILE",
        help="JSON list of 24 shares of the peak: the online demand over a day, for --defer.",
    ),
    click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Of simulations."),
    click.option("--html", type=FILE, metavar="FILE", help="Write a report, too."),
    json_option,
)


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@_options
def plan(
    *,
    as_json: bool,
    html: str | None,
    other_budgets_w: tuple[float, ...],
    waiting: tuple[str, ...],
    hourly: str | None,
    **asked: Any,
) -> None:
    """The fleet that serves most of a demand under a power budget."""
    from importlib.util import find_spec

    # Matrices are small here: threads of BLAS would wait for each other longer than they compute.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if find_spec("scipy") is None:
        raise WorkError("Planning needs scipy: pip install 'energymodel[plan]'.")
    from energymodel.planning import present
    from energymodel.planning.defer import deferral
    from energymodel.planning.plan import Found, find
    from energymodel.render_plan import plan as table

    if html is not None and (Path(html).is_dir() or not Path(html).absolute().parent.is_dir()):
        raise InputError(f"--html {html} must be a file in a folder that exists.")
    request, notes = _request(asked)
    deferred = _deferred(request, waiting, hourly)
    with bar():
        found = find(request)
        document = present.document(found)
        if isinstance(found, Found):
            document = replace(
                document,
                what_if=present.what_if(found, other_budgets_w),
                deferral=deferral(found, *deferred) if deferred else None,
            )
    document = replace(document, warnings=(*notes, *document.warnings))
    if html is not None:
        from energymodel.html_plan import page

        write_html(html, page(document))
    if as_json:
        emit_json(document)
        warn(document.warnings)
    else:
        emit(table(document))
    if document.reason is not None:
        raise WorkError(document.reason)


def _request(asked: dict[str, Any]) -> "tuple[Request, tuple[str, ...]]":
    """(the request, what was assumed of its models)."""
    from energymodel import io
    from energymodel.deployment import Deployment
    from energymodel.planning import carbon, server
    from energymodel.planning.candidates import Allowed
    from energymodel.planning.evaluate import Objective
    from energymodel.planning.request import Money, Request, Site, demands_of
    from energymodel.planning.sureness import Doubts

    models, notes = _models(asked["models"])
    workloads = {_title(path): io.read_workload(path) for path in asked["workloads"]}
    if len(workloads) < len(asked["workloads"]):
        raise InputError("--workload files must have different names.")
    limits_w = asked["limits_w"]
    request = Request(
        demands=demands_of(models, workloads, paired=asked["paired"]),
        profiles=_profiles(asked["gpus"], asked["paths"]),
        allowed=Allowed(
            tensor_parallel_sizes=tuple(sorted(set(asked["tensor"]))) or (1, 2, 4, 8),
            pipeline_parallel_sizes=tuple(sorted(set(asked["stages"]))) or (1,),
            expert_parallel=(False, True) if asked["experts"] else (False,),
            quantizations=tuple(
                None if name == "none" else name for name in dict.fromkeys(asked["quantizations"])
            )
            or (None,),
            power_limits_w=limits_w or (None,),
            base=Deployment(max_num_seqs=asked["max_num_seqs"]),
        ),
        objective=Objective(
            ttft_s=asked["ttft_s"],
            itl_s=asked["itl_s"],
            percentile=asked["slo_percentile"] / 100.0,
        ),
        site=Site(
            budget_w=asked["power_budget_w"],
            server=server.load(asked["server_type"]),
            pue=asked["pue"],
            rule=asked["provision"],
            sure=asked["confidence"],
            spare=asked["spare"],
            max_gpus=asked["max_gpus"],
            max_racks=asked["max_racks"],
            doubts=Doubts(demand=asked["demand_uncertainty"], pue=asked["pue_uncertainty"]),
        ),
        money=Money(
            intensity=carbon.intensity(asked["carbon_intensity"]),
            price_per_kwh=asked["price_per_kwh"],
            price_per_gpu_hour=asked["price_per_gpu_hour"],
        ),
        minimise=asked["minimise"],
        seed=asked["seed"],
    )
    return request, notes


def _deferred(
    request: "Request", waiting: tuple[str, ...], hourly: str | None
) -> "tuple[tuple[Demand, ...], tuple[float, ...]] | None":
    """Work that can wait and the online demand over a day; None where nothing can."""
    from energymodel import io
    from energymodel.planning.defer import check_hours
    from energymodel.planning.request import demands_of

    if not waiting and hourly is None:
        return None
    if not waiting or hourly is None:
        raise InputError("--defer and --hourly go together: what can wait, and for which hours.")
    shares = io.convert(io.read_json(hourly), tuple[float, ...], hourly)
    check_hours(shares)
    workloads = {_title(path): io.read_workload(path) for path in waiting}
    return demands_of(request.models, workloads, paired=False), shares


def _models(names: tuple[str, ...]) -> "tuple[tuple[ModelSpec, ...], tuple[str, ...]]":
    from energymodel.find_model import find_model

    found = [find_model(name) for name in dict.fromkeys(names)]
    return tuple(model for model, _ in found), tuple(note for _, notes in found for note in notes)


def _profiles(gpus: tuple[str, ...], paths: tuple[str, ...]) -> "tuple[Profile, ...]":
    """Those named; all that are shipped where none is."""
    from energymodel import profile

    if not gpus and not paths:
        gpus = profile.available()
    found = [profile.load(gpu_name(gpu)) for gpu in dict.fromkeys(gpus)]
    return (*found, *(profile.load(None, path) for path in dict.fromkeys(paths)))


def _title(path: str) -> str:
    """What a workload is called: its file without folder and suffix."""
    return Path(path).stem
