"""Operations -> seconds at full clock, and the part of them that stretches as the clock falls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from energymodel import laws
from energymodel.laws import Shapes, Timed
from energymodel.ops import Op
from energymodel.profile import OperationProfile, Profile
from energymodel.steps import Floats

# Beyond this many different shapes of one operation, its time is interpolated over a grid.
MAX_DISTINCT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class OpTime:
    """Of one call, shape [n_steps]: seconds at full clock, and those that stretch like 1/f."""

    seconds: Floats
    clocked: Floats


def op_times(
    ops: Sequence[Op], profile: Profile, padded: Callable[[Floats], Floats]
) -> list[OpTime]:
    """Time of one call of each operation; ``padded`` maps rows to what the engine really runs."""
    return [_op_time(op, profile.operations[op.kind], padded) for op in ops]


def _op_time(op: Op, calibrated: OperationProfile, padded: Callable[[Floats], Floats]) -> OpTime:
    work = op.hbm_bytes
    active = work > 0
    seconds, clocked = np.zeros_like(work), np.zeros_like(work)
    if active.any():
        shapes = law_shapes(op, padded)
        s, c = _evaluate(op.kind, {k: v[active] for k, v in shapes.items()}, calibrated)
        seconds[active], clocked[active] = s, c
    return OpTime(seconds=seconds, clocked=clocked)


def law_shapes(op: Op, padded: Callable[[Floats], Floats]) -> dict[str, Floats]:
    """What the law of ``op.kind`` reads, as arrays over steps."""
    shapes = {k: v + np.zeros_like(op.hbm_bytes) for k, v in op.shape.items()}
    if op.kind == "gemm":
        shapes["m"] = padded(shapes["m"])
        shapes["weight_bytes"] = shapes["n"] * shapes["k"] * shapes["weight_element_bytes"]
    elif op.kind == "moe":
        shapes["tokens"] = padded(shapes["tokens"])
    else:
        shapes["bytes"] = op.hbm_bytes
    return shapes


def _evaluate(kind: str, shapes: Shapes, calibrated: OperationProfile) -> tuple[Floats, Floats]:
    """Law times residual, evaluated once for each distinct shape."""
    table = np.stack(list(shapes.values()))
    distinct, inverse = np.unique(table, axis=1, return_inverse=True)
    one = dict(zip(shapes, distinct, strict=True))
    law = {name: estimate.value for name, estimate in calibrated.law.items()}
    timed = laws.LAWS[kind](one, law)
    seconds = timed.seconds
    if calibrated.residual is not None:
        seconds = seconds * np.exp(_residual(kind, one, calibrated))
    clocked = clocked_seconds(kind, timed, seconds) * calibrated.clock_share.value
    return seconds[inverse], clocked[inverse]


def clocked_seconds(kind: str, timed: Timed, seconds: Floats) -> Floats:
    """Part of ``seconds`` (law times residual) that waits for the SMs.

    The memory part of a decode attention is a stream at full rate, whatever the residual says;
    elsewhere it is a share of the time.
    """
    if kind == "decode_attention":
        return np.maximum(seconds - timed.memory_s, 0.0)
    return seconds * (1.0 - timed.memory_s / timed.seconds)


def _residual(kind: str, shapes: Mapping[str, Floats], calibrated: OperationProfile) -> Floats:
    """Interpolated residual; over many shapes of one varying axis, from a grid on that axis."""
    assert calibrated.residual is not None  # noqa: S101 (checked by the caller)
    kriging = calibrated.residual.unpack()
    features = laws.features(kind, shapes)
    if len(features) <= MAX_DISTINCT:
        return kriging.mean(features)
    varying = [i for i in range(features.shape[1]) if np.ptp(features[:, i]) > 0]
    if len(varying) != 1:
        return kriging.mean(features)
    axis = features[:, varying[0]]
    grid = np.linspace(axis.min(), axis.max(), MAX_DISTINCT)
    nodes = np.repeat(features[:1], MAX_DISTINCT, axis=0)
    nodes[:, varying[0]] = grid
    return np.interp(axis, grid, kriging.mean(nodes))
