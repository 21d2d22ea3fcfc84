"""The only place that validates JSON from outside, and the only one that emits JSON.

Files are read with a size limit, parsed without surprises (no NaN, no duplicate keys, no number
that a double cannot hold), converted to typed structs by msgspec, and turned into the project's
own types. Whatever is wrong becomes one InputError sentence with the file, the field and the
remedy. Nothing here is ever unpickled or executed.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType, inspect

from energymodel.deployment import MOST_DRAFTED, MOST_LINK_BYTES_PER_S, Deployment, Sampling
from energymodel.errors import InputError, WorkError
from energymodel.workload import Bin, Workload

T = TypeVar("T")

MAX_FILE_BYTES = 64 * 1024 * 1024

# Bounds of the contract. They only keep nonsense out; what a replica can hold is checked later.
_Name = Annotated[str, Meta(min_length=1, max_length=256)]
_Tokens = Annotated[int, Meta(ge=1, le=10_000_000)]
_Size = Annotated[int, Meta(ge=1, le=1_000_000)]
_Pixels = Annotated[int, Meta(ge=1, le=100_000)]


class BinJson(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of ``bins``; exactly one of ``count`` and ``requests_per_s``."""

    input_tokens: _Tokens
    output_tokens: Annotated[int, Meta(ge=0, le=10_000_000)]
    count: Annotated[int, Meta(ge=1, le=10_000_000)] | UnsetType = UNSET
    requests_per_s: Annotated[float, Meta(ge=1e-6, le=1_000_000)] | UnsetType = UNSET
    images: Annotated[int, Meta(ge=0, le=10_000)] = 0
    image_width: _Pixels | UnsetType = UNSET
    image_height: _Pixels | UnsetType = UNSET
    audio_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    num_frames: Annotated[int, Meta(ge=1, le=100_000)] | UnsetType = UNSET
    num_inference_steps: Annotated[int, Meta(ge=1, le=10_000)] | UnsetType = UNSET
    guidance_scale: Annotated[float, Meta(ge=0, le=1_000)] | UnsetType = UNSET
    prefix_tokens: Annotated[int, Meta(ge=0, le=10_000_000)] = 0


_ONE_LOAD = Meta(
    extra_json_schema={"oneOf": [{"required": ["count"]}, {"required": ["requests_per_s"]}]}
)
_Bins = Annotated[tuple[Annotated[BinJson, _ONE_LOAD], ...], Meta(min_length=1, max_length=100_000)]


class WorkloadJson(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """bins.json."""

    schema_version: Literal[1]
    bins: _Bins


class RunJson(Struct, frozen=True, kw_only=True):
    """One line of runs.jsonl: what was run, its deployment where not the default, what it took."""

    model: _Name
    gpu: _Name
    bins: _Bins
    energy_j: Annotated[float, Meta(gt=0)]
    duration_s: Annotated[float, Meta(gt=0)]
    engine: _Name
    tensor_parallel_size: _Size | UnsetType = UNSET
    pipeline_parallel_size: _Size | UnsetType = UNSET
    data_parallel_size: _Size | UnsetType = UNSET
    enable_expert_parallel: bool | UnsetType = UNSET
    gpus_per_node: _Size | UnsetType = UNSET
    node_link_bytes_per_s: (
        Annotated[float, Meta(gt=0, le=MOST_LINK_BYTES_PER_S)] | UnsetType | None
    ) = UNSET
    dtype: _Name | UnsetType = UNSET
    quantization: _Name | UnsetType | None = UNSET
    kv_cache_dtype: _Name | UnsetType = UNSET
    max_num_seqs: _Size | UnsetType = UNSET
    max_num_batched_tokens: _Tokens | UnsetType = UNSET
    gpu_memory_utilization: Annotated[float, Meta(gt=0, le=1)] | UnsetType = UNSET
    block_size: _Size | UnsetType = UNSET
    power_limit_w: Annotated[float, Meta(gt=0, le=100_000)] | UnsetType | None = UNSET
    hbm_byte_j: Annotated[float, Meta(gt=0, le=1)] | UnsetType | None = UNSET
    enforce_eager: bool | UnsetType = UNSET
    enable_prefix_caching: bool | UnsetType = UNSET
    prefix_cache_hit_rate: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    sampling: Sampling | UnsetType = UNSET
    penalties: bool | UnsetType = UNSET
    detokenize: bool | UnsetType = UNSET
    server: bool | UnsetType = UNSET
    speculative_model: _Name | UnsetType | None = UNSET
    num_speculative_tokens: Annotated[int, Meta(ge=0, le=MOST_DRAFTED)] | UnsetType = UNSET
    acceptance_rate: Annotated[float, Meta(ge=0, le=1)] | UnsetType | None = UNSET
    draft_rate: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A measured whole-model run. ``extra`` holds what else was recorded, as it was."""

    model: str
    gpu: str
    deployment: Deployment
    workload: Workload
    energy_j: float
    duration_s: float
    extra: Mapping[str, object]


_DOCUMENTS: dict[str, type[Struct]] = {"workload": WorkloadJson, "runs": RunJson}


def read_workload(path: str | Path) -> Workload:
    """Read and check bins.json."""
    document = convert(read_json(path), WorkloadJson, str(path))
    return _workload(document.bins, str(path))


def read_runs(path: str | Path) -> tuple[Run, ...]:
    """Read and check runs.jsonl; empty lines are skipped."""
    runs = tuple(
        _run(parse_json(line, f"{path} line {number}"), f"{path} line {number}")
        for number, line in enumerate(read_text(path).split("\n"), start=1)
        if line.strip()
    )
    if not runs:
        raise InputError(f"{path} holds no runs: it must have one JSON object a line.")
    return runs


def _run(value: object, where: str) -> Run:
    if isinstance(value, dict) and isinstance(value.get("deployment"), dict):
        value = value.pop("deployment") | value  # nested as in a prediction; keys mean the same
    run = convert(value, RunJson, where)
    known = msgspec.structs.asdict(run)
    flags = {k: known[k] for k in Deployment.__dataclass_fields__ if known[k] is not UNSET}
    assert isinstance(value, dict)  # noqa: S101 (convert has checked it)
    return Run(
        model=run.model,
        gpu=run.gpu,
        deployment=Deployment(**flags),
        workload=_workload(run.bins, where),
        energy_j=run.energy_j,
        duration_s=run.duration_s,
        extra={k: v for k, v in value.items() if k not in known},
    )


def _workload(bins: tuple[BinJson, ...], where: str) -> Workload:
    for i, b in enumerate(bins):
        if (b.count is UNSET) == (b.requests_per_s is UNSET):
            raise InputError(f"{where}: bins[{i}] must have one of count and requests_per_s.")
        if (b.count is UNSET) != (bins[0].count is UNSET):
            key = "requests_per_s" if bins[0].count is UNSET else "count"
            raise InputError(f"{where}: bins[{i}] must have {key}, as bins[0] has.")
        if b.prefix_tokens > b.input_tokens:
            raise InputError(
                f"{where}: bins[{i}].prefix_tokens must be at most input_tokens "
                f"({b.input_tokens:,}), got {b.prefix_tokens:,}."
            )
        if b.images and UNSET in (b.image_width, b.image_height):
            raise InputError(
                f"{where}: bins[{i}] has images and must have image_width and image_height, "
                "in pixels."
            )
    return Workload(
        bins=tuple(
            Bin(
                input_tokens=b.input_tokens,
                output_tokens=b.output_tokens,
                count=None if b.count is UNSET else b.count,
                requests_per_s=None if b.requests_per_s is UNSET else b.requests_per_s,
                images=b.images,
                image_width=None if b.image_width is UNSET else b.image_width,
                image_height=None if b.image_height is UNSET else b.image_height,
                audio_s=b.audio_s,
                num_frames=None if b.num_frames is UNSET else b.num_frames,
                num_inference_steps=(
                    None if b.num_inference_steps is UNSET else b.num_inference_steps
                ),
                guidance_scale=None if b.guidance_scale is UNSET else b.guidance_scale,
                prefix_tokens=b.prefix_tokens,
            )
            for b in bins
        )
    )


# Reading -------------------------------------------------------------------------------------


def read_text(path: str | Path, limit_bytes: int = MAX_FILE_BYTES) -> str:
    """Text of a UTF-8 file of at most ``limit_bytes``."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(limit_bytes + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} cannot be read: {reason[:1].lower()}{reason[1:]}.") from error
    if len(data) > limit_bytes:
        raise InputError(f"{path} must be at most {limit_bytes:,} bytes long.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be UTF-8 text; byte {error.start:,} is not.") from error


def read_json(path: str | Path, limit_bytes: int = MAX_FILE_BYTES) -> object:
    """The JSON document in a file, as plain lists and dicts."""
    return parse_json(read_text(path, limit_bytes), str(path))


def parse_json(text: str, where: str) -> object:
    """Parse JSON strictly; ``where`` names the text in errors."""
    try:
        value: object = DECODER.decode(text)
        if "\\u" in text:
            # An escaped half of a surrogate pair is a string that cannot be printed again.
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{where} must be JSON: {error.msg.lower()} at {place}.") from error
    except RecursionError as error:
        raise InputError(f"{where} must be JSON that is nested less deeply.") from error
    except UnicodeEncodeError as error:
        raise InputError(f"{where} must hold valid Unicode, not half a surrogate pair.") from error
    except ValueError as error:
        raise InputError(f"{where} must be JSON: {error}.") from error
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in value if keys.count(key) > 1)
        raise ValueError(f"the key {_quote(twice)} appears twice in one object")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
"""JSON without NaN, duplicate keys, or numbers that a double cannot hold."""


# Converting ----------------------------------------------------------------------------------


def convert(value: object, kind: type[T], where: str) -> T:
    """Turn plain JSON data into a msgspec struct or dataclass.

    Raises:
        InputError: One sentence with ``where``, the path of the field, what it must be and what
            it is.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InputError(_sentence(str(error), value, kind, where)) from error
    except RecursionError as error:
        raise InputError(f"{where} must be JSON that is nested less deeply.") from error


def _sentence(message: str, value: object, kind: type, where: str) -> str:
    """Say in our words what msgspec says in "Expected `int` >= 1 - at `$.bins[0].count`"."""
    problem, _, path = message.partition(" - at `$")
    path = path.rstrip("`")
    schema, found = _follow(path, value, inspect.type_info(kind))
    field = path.removeprefix(".") or "the document"
    name = re.search(r"`(.*)`", problem)
    if isinstance(schema, inspect.StructType | inspect.DataclassType) and name:
        if problem.startswith("Object missing"):
            wanted = next(f for f in schema.fields if f.encode_name == name[1])
            lacking = f"{path}.{name[1]}".removeprefix(".")
            return f"{where}: {lacking} is missing; it must be {_describe(wanted.type)}."
        if problem.startswith("Object contains unknown"):
            fields = ", ".join(f.encode_name for f in schema.fields)
            unknown = _quote(name[1])
            return f"{where}: {field} has an unknown field {unknown}; it may have {fields}."
    return f"{where}: {field} must be {_describe(schema)}, got {_show(found)}."


def _follow(path: str, value: Any, schema: inspect.Type) -> tuple[inspect.Type, object]:
    """The type and the value at a path like ``.bins[0].input_tokens``."""
    for name, index in re.findall(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]", path):
        schema = _bare(schema)
        if isinstance(schema, inspect.StructType | inspect.DataclassType):
            schema = next(f.type for f in schema.fields if f.encode_name == name)
            value = UNSET if value is UNSET else value[name]
        elif isinstance(schema, inspect.DictType):
            schema, value = schema.value_type, UNSET  # msgspec does not say which key
        else:
            if isinstance(schema, inspect.TupleType):
                schema = schema.item_types[int(index)]
            else:
                schema = getattr(schema, "item_type", schema)
            value = UNSET if value is UNSET else value[int(index)]
    return _bare(schema), value


def _bare(schema: inspect.Type) -> inspect.Type:
    return schema.type if isinstance(schema, inspect.Metadata) else schema


def _describe(schema: inspect.Type) -> str:
    """What a value of this type looks like, in words."""
    schema = _bare(schema)
    match schema:
        case inspect.UnionType(types=types):
            text = " or ".join(_describe(t) for t in types)
        case inspect.IntType():
            text = "an integer" + _range(schema.ge, schema.gt, schema.le)
        case inspect.FloatType():
            text = "a number" + _range(schema.ge, schema.gt, schema.le)
        case inspect.StrType():
            text = "a string" + _length(schema.min_length, schema.max_length, "characters")
        case inspect.LiteralType(values=values):
            text = " or ".join(json.dumps(v) for v in values)
        case inspect.VarTupleType() | inspect.ListType():
            text = "a list" + _length(schema.min_length, schema.max_length, "entries")
        case inspect.TupleType(item_types=types):
            text = f"a list of {len(types):,} entries"
        case inspect.NoneType():
            text = "null"
        case inspect.BoolType():
            text = "true or false"
        case _:
            text = "an object"
    return text


def _range(ge: float | None, gt: float | None, le: float | None) -> str:
    if ge is not None and le is not None:
        return f" from {ge:,} to {le:,}"
    low = "" if ge is None and gt is None else f" above {gt:,}" if ge is None else f" from {ge:,}"
    return low + ("" if le is None else f" up to {le:,}")


def _length(least: int | None, most: int | None, unit: str) -> str:
    if least is None and most is None:
        return ""
    return f" of {least or 0:,} " + (f"to {most:,} {unit}" if most else f"{unit} or more")


def _show(value: object) -> str:
    match value:
        case dict():
            return "an object"
        case list():
            return f"a list of {len(value):,}"
        case str():
            return _quote(value)
        case _ if value is UNSET:
            return "something else"
        case _:
            return json.dumps(value)[:40]


def _quote(text: str) -> str:
    return json.dumps(text if len(text) <= 40 else text[:37] + "...")


# Writing -------------------------------------------------------------------------------------


def schema(kind: str) -> dict[str, Any]:
    """JSON Schema of a document of the contract (of one line, for ``runs``)."""
    if kind not in _DOCUMENTS:
        raise InputError(f"schema must be one of {', '.join(_DOCUMENTS)}, got {_quote(kind)}.")
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return draft | msgspec.json.schema(_DOCUMENTS[kind])


def dumps(value: object, indent: int | None = 2) -> str:
    """JSON text of dataclasses, structs, numpy values and plain data.

    Raises:
        WorkError: A number is not finite; JSON has no word for it, and a result must not hide it.
    """
    plain = msgspec.to_builtins(value, str_keys=True, enc_hook=_plain)
    try:
        return json.dumps(plain, allow_nan=False, ensure_ascii=False, indent=indent)
    except ValueError as error:
        raise WorkError(f"The result is not finite: {_not_finite(plain, '')}.") from error


def _plain(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _not_finite(value: object, path: str) -> str:
    """Where the first number that is not finite stands, such as ``bins[0].energy_j``."""
    match value:
        case dict():
            found = (_not_finite(v, f"{path}.{k}") for k, v in value.items())
        case list() | tuple():
            found = (_not_finite(v, f"{path}[{i}]") for i, v in enumerate(value))
        case float() if not math.isfinite(value):
            return f"{path.removeprefix('.')} is {value}"
        case _:
            return ""
    return next((place for place in found if place), "")
