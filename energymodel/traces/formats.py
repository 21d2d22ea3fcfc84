"""The traces that are recognised by the names of their columns.

A further one is one more ``Format``. Names are compared without regard to case.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from energymodel.errors import InputError

SECONDS: Mapping[str, float] = MappingProxyType({"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9})
"""Seconds in each unit of time."""

UNITS = (*SECONDS, "timestamp")
"""How a column may state time: a number in a unit, or a date and time such as an ISO 8601 one."""

PREFIXES = ("prefix_tokens", "reusable_prefix_tokens_infinite_cache")
"""Columns that count the tokens at the head of a prompt that an earlier request had as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """Columns of a trace; ``unit`` is one of ``UNITS``, ``arrival`` None where there are no times.

    ``marks`` are further columns by which it is told from others. ``block_tokens`` is how many
    tokens each number in the column ``prefix`` stands for, where that is a list of hashes.
    """

    name: str
    input: str
    output: str
    arrival: str | None = None
    unit: str = "s"
    marks: tuple[str, ...] = ()
    prefix: str | None = None
    block_tokens: int = 0
    notes: tuple[str, ...] = ()

    @property
    def wanted(self) -> tuple[str, ...]:
        """The columns to read: arrival, if any, input, output and prefix, if any."""
        return tuple(c for c in (self.arrival, self.input, self.output, self.prefix) if c)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What a user says of the columns of a trace; None is what the format says."""

    arrival: str | None = None
    input: str | None = None
    output: str | None = None
    unit: str | None = None


_IMAGES = "Its images are left out: the trace gives their number, not their size."
KNOWN = (
    Format(name="energymodel", arrival="arrival_s", input="input_tokens", output="output_tokens"),
    # Azure 2023, 2024 and, with NumImages, 2025: github.com/Azure/AzurePublicDataset.
    Format(
        name="azure-multimodal",
        arrival="timestamp",
        input="contexttokens",
        output="generatedtokens",
        unit="timestamp",
        marks=("numimages",),
        notes=(_IMAGES,),
    ),
    Format(
        name="azure",
        arrival="timestamp",
        input="contexttokens",
        output="generatedtokens",
        unit="timestamp",
    ),
    # github.com/HPMLL/BurstGPT: seconds from midnight of the first day; a failure has no response.
    Format(name="burstgpt", arrival="timestamp", input="request tokens", output="response tokens"),
    # github.com/alibaba-edu/qwen-bailian-usagetraces-anon: seconds, blocks of 16 tokens.
    Format(
        name="qwen-bailian",
        arrival="timestamp",
        input="input_length",
        output="output_length",
        marks=("chat_id",),
        prefix="hash_ids",
        block_tokens=16,
    ),
    # github.com/kvcache-ai/Mooncake: milliseconds, blocks of 512 tokens.
    Format(
        name="mooncake",
        arrival="timestamp",
        input="input_length",
        output="output_length",
        unit="ms",
        prefix="hash_ids",
        block_tokens=512,
    ),
    # github.com/microsoft/vidur, with and without arrivals.
    Format(
        name="vidur",
        arrival="arrived_at",
        input="num_prefill_tokens",
        output="num_decode_tokens",
    ),
    Format(name="vidur-lengths", input="num_prefill_tokens", output="num_decode_tokens"),
    # github.com/Mutinifni/splitwise-sim
    Format(name="splitwise", arrival="arrival_timestamp", input="prompt_size", output="token_size"),
    Format(name="lengths", input="input_tokens", output="output_tokens"),
)


def recognise(names: Iterable[str], where: str, columns: Columns) -> Format:
    """The format of a table with columns of these names, spelt as the table spells them.

    Raises:
        InputError: No known trace has such columns and ``columns`` does not name them, or one
            that is needed is there twice.
    """
    names = list(names)
    spelt = {name.strip().lower(): name for name in names}
    found = _named(columns) or next((f for f in KNOWN if _fits(f, spelt)), None)
    if found is None:
        raise InputError(
            f"{where} has the columns {_listed(names)}, which no known trace has: name those of "
            "the tokens with --input-column and --output-column, and that of the times with "
            "--arrival-column."
        )
    for name in found.wanted:
        if name.lower() not in spelt and name != found.prefix:
            raise InputError(f"{where} has no column {name!r}; it has {_listed(names)}.")
        if sum(n.strip().lower() == name.lower() for n in names) > 1:
            raise InputError(f"{where} has more than one column {name!r}.")
    prefix = found.prefix or next((p for p in PREFIXES if p in spelt), None)
    return replace(
        found,
        arrival=found.arrival and spelt[found.arrival.lower()],
        input=spelt[found.input.lower()],
        output=spelt[found.output.lower()],
        prefix=prefix and spelt.get(prefix),
        unit=columns.unit or found.unit,
    )


def _fits(known: Format, spelt: Mapping[str, str]) -> bool:
    needed = {known.input, known.output, *known.marks, *filter(None, (known.arrival,))}
    return needed <= spelt.keys()


def _named(columns: Columns) -> Format | None:
    """The format that the user describes, if any."""
    if columns.input is None and columns.output is None and columns.arrival is None:
        return None
    if columns.input is None or columns.output is None:
        raise InputError("--input-column and --output-column must both be given, or neither.")
    return Format(
        name="named columns",
        arrival=columns.arrival,
        input=columns.input,
        output=columns.output,
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:12])
    return shown + (f" and {len(names) - 12:,} more" if len(names) > 12 else "") or "no columns"
