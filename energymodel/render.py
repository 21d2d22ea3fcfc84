"""Results as tables for people: plain text that fits 80 columns, in units a person would say.

Every function returns something that rich can print. Text that came from outside (names, reasons,
warnings) goes through ``printable``, so that no escape sequence reaches a terminal.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from energymodel.deployment import changed_flags

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

    from energymodel.prediction import Latency, Online, Prediction

MAX_ROWS = 20

Ladder = Sequence[tuple[float, str]]

ENERGY: Ladder = (
    (1e-9, "nJ"),
    (1e-6, "uJ"),
    (1e-3, "mJ"),
    (1.0, "J"),
    (1e3, "kJ"),
    (1e6, "MJ"),
    (3.6e8, "kWh"),  # from 100 kWh
    (3.6e9, "MWh"),
    (3.6e12, "GWh"),
)
TIME: Ladder = (
    (1e-9, "ns"),
    (1e-6, "us"),
    (1e-3, "ms"),
    (1.0, "s"),
    (60.0, "min"),
    (3600.0, "h"),
    (86400.0, "d"),
)
POWER: Ladder = ((1e-3, "mW"), (1.0, "W"), (1e3, "kW"), (1e6, "MW"), (1e9, "GW"))
HERTZ: Ladder = ((1.0, "Hz"), (1e3, "kHz"), (1e6, "MHz"), (1e9, "GHz"))
BYTES: Ladder = tuple((10.0**e, f"{p}B") for e, p in zip(range(0, 19, 3), " kMGTPE", strict=True))
FLOP: Ladder = tuple(
    (10.0**e, f"{p}FLOP") for e, p in zip(range(0, 25, 3), " kMGTPEZY", strict=True)
)
COUNT: Ladder = ((1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "B"), (1e12, "T"))

_UNIT_SIZE = {"kWh": 3.6e6}
"""Units that start later than at 1: kWh takes over from MJ at 100."""


def printable(text: object) -> str:
    r"""Text with every character that is not printable written as an escape such as ``\x1b``."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text)
    )


def quantity(value: float | None, ladder: Ladder) -> str:
    """Three significant digits in the unit of ``ladder`` that suits, "-" for None.

    ``ladder`` names each unit with the value, in SI, from which it is used.
    """
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    rounded = float(f"{value:.3g}")
    if rounded == 0:
        ladder = ((1.0, next(u for start, u in ladder if start == 1.0)),)
    start, unit = next((s for s in reversed(ladder) if abs(rounded) >= s[0]), ladder[0])
    return f"{digits(value / _UNIT_SIZE.get(unit, start))} {unit.strip()}".rstrip()


def digits(value: float) -> str:
    """Three significant digits without an exponent where that is short."""
    if not math.isfinite(value):
        return str(value)
    value = float(f"{value:.3g}")
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1000:
        return f"{value:#.3g}".rstrip(".")
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e8 else f"{value:.2e}"


def integer(value: float) -> str:
    """A count with its thousands set apart; three digits where it is not whole."""
    whole = isinstance(value, int) or (math.isfinite(value) and value == int(value))
    return f"{int(value):,}" if whole else digits(value)


def percent(fraction: float | None, *, signed: bool = False) -> str:
    """A fraction in percent with one decimal."""
    if fraction is None:
        return "-"
    return f"{100 * fraction:{'+' if signed else ''},.1f} %"


# Prediction ----------------------------------------------------------------------------------


def prediction(p: "Prediction") -> "Group":
    """Totals, phases, components, bins, baselines, warnings and provenance of a prediction."""
    parts: list[RenderableType] = [_header(p), "", _totals(p), "", _phases(p), "", _components(p)]
    if len(p.bins) > 1:
        parts += ["", *_bins(p)]
    parts += ["", *_baselines(p), *warnings(p.warnings), provenance(p.provenance)]
    return stack(parts)


def _header(p: "Prediction") -> "Group":
    title, load = headings(p)
    return stack([line(title, "bold"), line(load)])


def headings(p: "Prediction") -> tuple[str, str]:
    """What runs where, and what is asked of it."""
    flags = changed_flags(p.deployment)
    gpus = p.gpu if p.gpus == 1 else f"{p.gpus} x {p.gpu}"
    title = f"{p.model} on {gpus}, {p.engine}" + (f" {' '.join(flags)}" if flags else "")
    media = sum(b.count * b.media_tokens for b in p.bins)
    shown = f" input (and {media:,} of images and sound) and " if media else " input and "
    load = (
        f"{integer(p.requests)} requests, {integer(p.input_tokens)}{shown}"
        f"{integer(p.output_tokens)} output tokens"
    )
    return title, load


def _totals(p: "Prediction") -> "Table":
    grid = columns()
    for key, value in totals(p):
        grid.add_row(key, value)
    return grid


def totals(p: "Prediction") -> list[tuple[str, str]]:
    """Names and values of what holds for the whole run."""
    name = f"{100 * p.interval_level:.0f} % interval"
    clock = quantity(p.clock_hz.mean, HERTZ)
    if p.power_limited:
        clock += f", power limited {percent(p.power_limited_share)} of the time"
    rows = [
        ("energy", quantity(p.energy_j, ENERGY)),
        (name, _interval(p.energy_interval_j, ENERGY)),
        ("duration", quantity(p.duration_s, TIME)),
        (name, _interval(p.duration_interval_s, TIME)),
        ("mean power", quantity(p.mean_power_w, POWER)),
        ("mean clock", clock),
        ("energy per request", quantity(p.energy_per_request_j, ENERGY)),
        ("energy per output token", quantity(p.energy_per_output_token_j, ENERGY)),
        ("output tokens per second", _rate(p.output_tokens_per_s)),
        ("time to first token", _latency(p.ttft_s)),
        ("inter-token latency", _latency(p.itl_s)),
        *_online(p.online),
    ]
    return [(key, value) for key, value in rows if value != "-"]


def _interval(ends: tuple[float, float], ladder: Ladder) -> str:
    """Nothing to show of what is given."""
    return " to ".join(quantity(end, ladder) for end in ends) if ends[0] < ends[1] else "-"


def _online(x: "Online | None") -> list[tuple[str, str]]:
    if x is None:
        return []
    rate = digits(x.requests_per_s)
    if x.capacity_requests_per_s is not None:
        rate += f", of {digits(x.capacity_requests_per_s)} that it can serve"
    return [
        ("requests per second", rate),
        ("time in the queue", _latency(x.queue_s)),
        ("time to last token", _latency(x.e2e_s)),
        ("running, waiting", f"{digits(x.running)}, {digits(x.waiting)} requests in the mean"),
        ("utilisation", percent(x.utilisation) + (", saturated" if x.saturated else "")),
    ]


def _rate(per_s: float) -> str:
    return integer(float(f"{per_s:.3g}")) if per_s else "-"


def _latency(x: "Latency | None") -> str:
    if x is None:
        return "-"
    tail = ", ".join(f"{k} {quantity(getattr(x, k), TIME)}" for k in ("p50", "p90", "p99"))
    return f"{quantity(x.mean, TIME)} mean, {tail}"


def _phases(p: "Prediction") -> "Table":
    table = columns("phase", ">energy", ">share", ">time", ">power")
    for name, phase in p.phases.items():
        power = phase.energy_j / phase.duration_s if phase.duration_s > 0 else None
        table.add_row(
            printable(name),
            quantity(phase.energy_j, ENERGY),
            _share(phase.energy_j, p.energy_j),
            quantity(phase.duration_s, TIME),
            quantity(power, POWER),
        )
    return table


def _components(p: "Prediction") -> "Table":
    table = columns(
        "component", ">energy", ">share", ">time", ">FLOP", ">HBM traffic", ">per GFLOP"
    )
    found = sorted(p.components.items(), key=lambda item: -item[1].energy_j)
    for name, c in found:
        table.add_row(
            printable(name),
            quantity(c.energy_j, ENERGY),
            _share(c.energy_j, p.energy_j),
            quantity(c.duration_s, TIME),
            quantity(c.flop or None, FLOP),
            quantity(c.hbm_bytes or None, BYTES),
            quantity(1e9 * c.energy_j / c.flop if c.flop > 0 else None, ENERGY),
        )
    return table


def _bins(p: "Prediction") -> list["RenderableType"]:
    table = columns(
        ">input", ">output", ">requests", ">energy", ">prefill", ">decode", ">per token"
    )
    shown = p.bins
    if len(p.bins) > MAX_ROWS:
        shown = tuple(sorted(p.bins, key=lambda b: -b.energy_j)[:MAX_ROWS])
    for b in shown:
        table.add_row(
            integer(b.input_tokens) + (f" + {b.media_tokens:,}" if b.media_tokens else ""),
            integer(b.output_tokens),
            integer(b.count),
            quantity(b.energy_j, ENERGY),
            quantity(b.prefill_j, ENERGY),
            quantity(b.decode_j, ENERGY),
            quantity(b.energy_per_output_token_j, ENERGY),
        )
    rest = len(p.bins) - len(shown)
    if not rest:
        return [table]
    return [table, line(f"The {MAX_ROWS} bins with the most energy; {rest:,} more in --json.")]


def _baselines(p: "Prediction") -> list["RenderableType"]:
    found = {"flop_only": p.flop_only, **p.baselines}
    names = {"flop_only": "FLOP-only", "tdp": "TDP", "mfu_power_law": "MFU^0.7"}
    return [
        line(
            f"{names.get(key, key.replace('_', ' '))} estimate: "
            f"{quantity(b.energy_j, ENERGY)}, {b.ratio:.2f} of this"
        )
        for key, b in found.items()
    ]


def _share(part: float, whole: float) -> str:
    return percent(part / whole) if whole else "-"


# Lists ---------------------------------------------------------------------------------------


# Formats by what their names begin with, in the four letters that a line has room for.
_SHORT_FORMATS = {
    "fp8": "fp8",
    "int8": "int8",
    "llm": "int8",
    "w8a16": "int8",
    "int4": "int4",
    "uint4": "int4",
    "nf4": "nf4",
    "mxfp4": "fp4",
    "nvfp4": "fp4",
}


def models(rows: Iterable[Mapping[str, Any]]) -> "Table":
    """Known models, one line each, without their organisations."""
    table = columns("model", "kind", ">params", ">active", ">KV/token", ">weights")
    for r in rows:
        formats = (f.partition("_")[0] for f in r["weight_formats"])
        narrow = sorted({_SHORT_FORMATS[f] for f in formats if f in _SHORT_FORMATS})
        kind = {"encoder-decoder": "enc-dec"}.get(r["kind"], r["kind"])
        table.add_row(
            printable(r["name"].split("/", 1)[-1]),
            " ".join((kind, *narrow)),
            quantity(r["param_count"], COUNT),
            quantity(r["active_param_count"], COUNT),
            quantity(r.get("kv_bytes_per_token"), BYTES),
            quantity(r["weight_bytes"], BYTES),
        )
    return table


def gpus(rows: Iterable[Mapping[str, Any]]) -> "Table":
    """Known GPUs, one line each."""
    table = columns("gpu", "name", ">bf16", ">memory", ">bandwidth", ">limit", ">clock", "profile")
    table.columns[0].no_wrap = True
    for r in rows:
        peak = r["peak_flop_per_s"].get("bfloat16")
        table.add_row(
            printable(r["name"]),
            printable(r["full_name"].removeprefix("NVIDIA ")),
            f"{quantity(peak, FLOP)}/s",
            quantity(r["hbm_bytes"], BYTES),
            f"{quantity(r['hbm_bytes_per_s'], BYTES)}/s",
            quantity(r["power_limit_w"], POWER),
            quantity(r["max_sm_clock_hz"], HERTZ),
            "yes" if r["profile"] else "no",
        )
    return table


def profiles(rows: Iterable[Mapping[str, Any]]) -> "Table":
    """Known profiles, one line each."""
    table = columns("profile", "gpu", "kind")
    for r in rows:
        table.add_row(printable(r["name"]), printable(r["gpu"]), printable(r["kind"]))
    return table


# Shared --------------------------------------------------------------------------------------


def warnings(texts: Iterable[str]) -> list["RenderableType"]:
    """One line for each warning."""
    return [line(f"Warning: {text}", "yellow") for text in texts]


def provenance(facts: Mapping[str, Any]) -> "RenderableType":
    """The profile, where its numbers come from, and what else is short enough for one line."""
    name, kind = facts.get("profile", "unknown"), facts.get("kind", "unknown origin")
    return line(f"Profile {name} ({kind})", "dim")


def line(text: str, style: str = "") -> "RenderableType":
    """A line of text, made printable."""
    from rich.text import Text

    return Text(printable(text), style=style)


def stack(parts: Iterable["RenderableType"]) -> "Group":
    """One below the other; a string is an empty line or plain text of our own."""
    from rich.console import Group

    return Group(*parts)


def columns(*headers: str) -> "Table":
    """A table without lines; a header that starts with > is of a column aligned to the right."""
    from rich.table import Table

    table = Table(box=None, show_header=bool(headers), padding=(0, 1, 0, 0), pad_edge=False)
    for index, header in enumerate(headers or ("", "")):
        right = header.startswith(">")
        table.add_column(
            header.removeprefix(">"),
            justify="right" if right else "left",
            no_wrap=right,
            overflow="fold",
            min_width=24 if not headers and index == 0 else None,
        )
    return table
