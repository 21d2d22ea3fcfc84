"""What ``explain`` reads of a ``predict --json`` document, checked."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from energymodel.errors import InputError
from energymodel.io import convert, read_json

_Name = Annotated[str, Meta(min_length=1, max_length=256)]
_Count = Annotated[int, Meta(ge=0, le=10**15)]
# Bounds keep sums, ratios and logarithms finite; an amount is 0 or at least LEAST.
LEAST = 1e-30
_Amount = Annotated[float, Meta(ge=0, le=1e30)]
_Positive = Annotated[float, Meta(ge=LEAST, le=1e30)]
_MOST = 1000


class CauseJson(Struct, frozen=True, kw_only=True):
    """As ``prediction.Cause``."""

    amount: _Amount = 0.0
    full_clock_j: _Amount = 0.0
    energy_j: _Amount = 0.0


class CausesJson(Struct, frozen=True, kw_only=True):
    """As ``prediction.PhaseCauses``."""

    tokens: _Amount = 0.0
    steps: _Amount = 0.0
    flop: CauseJson = field(default_factory=CauseJson)
    weights: CauseJson = field(default_factory=CauseJson)
    data: CauseJson = field(default_factory=CauseJson)
    time: CauseJson = field(default_factory=CauseJson)
    gaps: CauseJson = field(default_factory=CauseJson)
    collective: CauseJson = field(default_factory=CauseJson)


class EnergyJson(Struct, frozen=True, kw_only=True):
    """A phase or a component; one that is a difference may round to just below 0."""

    energy_j: Annotated[float, Meta(ge=-1e30, le=1e30)]


class ProvenanceJson(Struct, frozen=True, kw_only=True):
    """Where the coefficients came from."""

    kind: _Name


class PredictionJson(Struct, frozen=True, kw_only=True):
    """The part of a prediction that an explanation needs."""

    schema_version: Literal[1]
    model: _Name
    gpu: _Name
    engine: _Name
    deployment: dict[str, Any]
    boundary: _Name
    requests: _Count
    input_tokens: _Count
    output_tokens: _Count
    energy_j: _Positive
    duration_s: _Positive
    phases: Annotated[dict[str, EnergyJson], Meta(max_length=_MOST)]
    components: Annotated[dict[str, EnergyJson], Meta(max_length=_MOST)]
    causes: Annotated[dict[str, CausesJson], Meta(max_length=_MOST)]
    provenance: ProvenanceJson
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A checked document and the file that it came from."""

    file: str
    json: PredictionJson


def read_document(path: str) -> Document:
    """Read a file that ``energymodel predict --json`` wrote.

    Raises:
        InputError: it is not one; the message names the file and the field.
    """
    value = read_json(path)
    if isinstance(value, dict) and "energy_j" in value and not value.get("causes"):
        raise InputError(
            f"{path}: causes is missing; predict again with this version: energymodel predict --json."
        )
    return Document(path, convert(value, PredictionJson, path))
