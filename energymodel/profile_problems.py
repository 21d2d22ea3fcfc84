"""What is wrong with the numbers of a profile, though its fields are all there: said by the field."""

from collections.abc import Iterator, Mapping
from itertools import pairwise

from energymodel.collectives import KINDS
from energymodel.engines.vllm_workers import WORKERS
from energymodel.laws import LAWS, PARAMETERS, REQUIRED, kind_of
from energymodel.profile import (
    ENERGY,
    ENGINE,
    CollectiveProfile,
    Estimate,
    FabricProfile,
    OperationProfile,
    Profile,
    Spread,
)

# Firmware holds power near the limit; far above it there is no limit.
MOST_LIMIT_SHARE = 1.2
LIBRARIES = ("nccl", "vllm")
LEAST_GPUS = 2
# A standard deviation of the logarithm, and deviations to a quantile, beyond which an interval says
# nothing.
MOST_DEVIATION, MOST_SCALES = 3.0, 20.0


def problems(profile: Profile) -> Iterator[tuple[str, str]]:
    """What a prediction would stumble over: (field, what is wrong with it)."""
    yield from _engine_problems(profile.engines)
    for engine in profile.engines:
        if engine not in profile.accuracy.regimes:
            yield f"accuracy.regimes.{engine}", "is missing"
    for engine, regime in profile.accuracy.regimes.items():
        yield from _spread_problems(f"accuracy.regimes.{engine}.energy", regime.energy)
        yield from _spread_problems(f"accuracy.regimes.{engine}.duration", regime.duration)
    if profile.fabric is not None:
        yield from _fabric_problems(profile.fabric)
    if not 0 < profile.power.limit_share.value <= MOST_LIMIT_SHARE:
        yield "power.limit_share.value", f"must be above 0 and at most {MOST_LIMIT_SHARE:g}"
    for kind in REQUIRED:
        if kind not in profile.operations:
            yield f"operations.{kind}", "is missing"
    for name, operation in profile.operations.items():
        where, kind = f"operations.{name}", kind_of(name)
        if kind not in LAWS:
            yield where, "is of a kind that has no law"
        else:
            yield from _operation_problems(where, operation, PARAMETERS[kind])


def _engine_problems(
    engines: Mapping[str, Mapping[str, Estimate]],
) -> Iterator[tuple[str, str]]:
    if "vllm" not in engines:
        yield "engines.vllm", "is missing"
    for engine, estimates in engines.items():
        if engine not in ENGINE:
            yield f"engines.{engine}", f"must be one of: {', '.join(ENGINE)}"
        for name in ENGINE.get(engine, ()):
            if name not in estimates:
                yield f"engines.{engine}.{name}", "is missing"


def _spread_problems(where: str, spread: Spread) -> Iterator[tuple[str, str]]:
    """Numbers that no interval can be made of."""
    for name in ("inner", "outer"):
        if not 0 < getattr(spread, name) <= MOST_SCALES:
            yield f"{where}.{name}", f"must be above 0 and at most {MOST_SCALES:g}"
    for name in ("model", "outside"):
        if not 0 <= getattr(spread, name) <= MOST_DEVIATION:
            yield f"{where}.{name}", f"must be from 0 to {MOST_DEVIATION:g}"
    if spread.inner > spread.outer:
        yield f"{where}.inner", "must be at most outer"


def _fabric_problems(fabric: FabricProfile) -> Iterator[tuple[str, str]]:
    for i, law in enumerate(fabric.collectives):
        yield from _collective_problems(f"fabric.collectives[{i}]", law)
    for name, value in (("skew", fabric.skew.value), ("wait_w", fabric.wait_w.value)):
        if value < 0:
            yield f"fabric.{name}.value", "must not be negative"
    for name in WORKERS:
        if fabric.workers and name not in fabric.workers:
            yield f"fabric.workers.{name}", "is missing"
        elif fabric.workers and fabric.workers[name].value < 0:
            yield f"fabric.workers.{name}.value", "must not be negative"


def _collective_problems(where: str, law: CollectiveProfile) -> Iterator[tuple[str, str]]:
    if law.kind not in KINDS:
        yield f"{where}.kind", f"must be one of: {', '.join(KINDS)}"
    if law.library not in LIBRARIES:
        yield f"{where}.library", f"must be one of: {', '.join(LIBRARIES)}"
    if law.gpus < LEAST_GPUS:
        yield f"{where}.gpus", f"must be at least {LEAST_GPUS}"
    if law.bus_bytes_per_s.value <= 0:
        yield f"{where}.bus_bytes_per_s.value", "must be positive"
    for name in ("latency_s", "wire_byte_j", "busy_w"):
        if getattr(law, name).value < 0:
            yield f"{where}.{name}.value", "must not be negative"
    for name in ("time_error", "energy_error"):
        if getattr(law, name) < 0:
            yield f"{where}.{name}", "must not be negative"
    sizes = [size for size, _ in law.left_over]
    if sizes and (sizes[0] <= 0 or any(b <= a for a, b in pairwise(sizes))):
        yield f"{where}.left_over", "must have message bytes above 0, each above the one before"


def _operation_problems(
    where: str, operation: OperationProfile, names: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    for name in names:
        if name not in operation.law:
            yield f"{where}.law.{name}", "is missing"
        elif operation.law[name].value <= 0:
            yield f"{where}.law.{name}.value", "must be positive"
    for name in ENERGY:
        if name not in operation.energy:
            yield f"{where}.energy.{name}", "is missing"
        elif operation.energy[name].value < 0:
            yield f"{where}.energy.{name}.value", "must not be negative"
    if not 0 <= operation.clock_share.value <= 1:
        yield f"{where}.clock_share.value", "must be from 0 to 1"
    yield from _table_problems(where, operation)


def _table_problems(where: str, operation: OperationProfile) -> Iterator[tuple[str, str]]:
    """Matrices and points whose sizes do not agree."""
    for field_name in ("law_covariance", "energy_covariance"):
        covariance = getattr(operation, field_name)
        if covariance is not None:
            sizes = {len(covariance.matrix), *map(len, covariance.matrix)}
            if sizes != {len(covariance.names)}:
                yield f"{where}.{field_name}", "must have a row and a column for each name"
    residual = operation.residual
    if residual is not None:
        widths = {len(residual.length_scales), *map(len, residual.points)}
        if len(widths) != 1 or len(residual.points) != len(residual.weights):
            yield f"{where}.residual", "must have one weight a point and one length scale an axis"
