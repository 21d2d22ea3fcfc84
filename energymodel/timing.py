"""Operations -> seconds at full clock, and the part of them that stretches as the clock falls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from energymodel import fabric, laws
from energymodel.laws import Shapes, Timed
from energymodel.ops import Op
from energymodel.profile import OperationProfile, Profile, StoredKriging
from energymodel.steps import Floats

# Kinds whose residual, for given widths, is a curve over one axis: it is tabulated where it
# is needed, with this many nodes to a doubling (finer than the correlation length by a factor of 16
# and more).
CURVE_AXIS: Mapping[str, str] = {"gemm": "m", "moe": "tokens"}
NODES_PER_DOUBLING = 8
CURVE_DOUBLINGS = 20
_NODES = np.arange(CURVE_DOUBLINGS * NODES_PER_DOUBLING + 1.0)
# Activations leave a product in bfloat16 or float16, whatever it was multiplied in.
OUTPUT_BYTES = 2.0
# Rows of features that are interpolated at a time: bounds memory at any number of steps.
BLOCK_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class OpTime:
    """Of one call, shape [n_steps]: seconds at full clock, and those that stretch like 1/f."""

    seconds: Floats
    clocked: Floats


def op_times(
    ops: Sequence[Op], profile: Profile, padded: Callable[[Floats], Floats]
) -> list[OpTime]:
    """Time of one call of each operation; ``padded`` maps rows to what the engine really runs."""
    return [op_time(op, profile, padded) for op in ops]


def op_time(op: Op, profile: Profile, padded: Callable[[Floats], Floats]) -> OpTime:
    """Time of one call of an operation."""
    if fabric.is_collective(op):
        seconds = fabric.seconds_of(op, profile, padded)
        return OpTime(seconds=seconds, clocked=np.zeros_like(seconds))
    return _op_time(op, profile.operation(op.law), padded)


def _op_time(op: Op, calibrated: OperationProfile, padded: Callable[[Floats], Floats]) -> OpTime:
    work = op.hbm_bytes
    active = work > 0
    if active.all():
        seconds, clocked = _evaluate(op.kind, law_shapes(op, padded), calibrated)
        return OpTime(seconds=seconds, clocked=clocked)
    seconds, clocked = np.zeros_like(work), np.zeros_like(work)
    if active.any():
        shapes = law_shapes(op, padded)
        chosen = {k: v[active] if v.ndim else v for k, v in shapes.items()}
        s, c = _evaluate(op.kind, chosen, calibrated)
        seconds[active], clocked[active] = s, c
    return OpTime(seconds=seconds, clocked=clocked)


def law_shapes(op: Op, padded: Callable[[Floats], Floats]) -> dict[str, Floats]:
    """What the law of ``op.kind`` reads: arrays over steps, or scalars [] that all steps share."""
    shapes = {k: np.asarray(v, dtype=np.float64) for k, v in op.shape.items()}
    if op.kind == "gemm":
        if op.captured:
            shapes["m"] = padded(shapes["m"])
        shapes["weight_bytes"] = shapes["n"] * shapes["k"] * shapes["weight_element_bytes"]
        shapes["output_element_bytes"] = np.asarray(OUTPUT_BYTES)
    elif op.kind == "moe":
        if op.captured:
            shapes["tokens"] = padded(shapes["tokens"])
    else:
        shapes["bytes"] = op.hbm_bytes
    return shapes


def _evaluate(kind: str, shapes: Shapes, calibrated: OperationProfile) -> tuple[Floats, Floats]:
    """Law times residual: (seconds, seconds that stretch) of one call."""
    law = {name: estimate.value for name, estimate in calibrated.law.items()}
    timed = laws.LAWS[kind](shapes, law)
    seconds = timed.seconds
    if calibrated.residual is not None:
        seconds = seconds * np.exp(_residual(kind, shapes, calibrated.residual))
    clocked = clocked_seconds(kind, timed, seconds) * calibrated.clock_share.value
    return seconds, clocked


def clocked_seconds(kind: str, timed: Timed, seconds: Floats) -> Floats:
    """Part of ``seconds`` (law times residual) that waits for the SMs.

    The memory part of a decode attention is a stream at full rate, whatever the residual says;
    elsewhere it is a share of the time.
    """
    if kind == "decode_attention":
        return np.maximum(seconds - timed.memory_s, 0.0)
    return seconds * (1.0 - timed.memory_s / timed.seconds)


def _residual(kind: str, shapes: Shapes, residual: StoredKriging) -> Floats:
    axis = CURVE_AXIS.get(kind)
    if axis is not None:
        widths = tuple((n, float(shapes[n].flat[0])) for n in laws.WIDTHS[kind])
        places = NODES_PER_DOUBLING * np.log2(shapes[axis])
        return np.asarray(np.interp(places, _NODES, _curve_near(places, residual, kind, widths)))
    features = laws.features(kind, shapes)
    kriging = residual.unpack()
    blocks = [
        kriging.mean(features[i : i + BLOCK_ROWS]) for i in range(0, len(features), BLOCK_ROWS)
    ]
    return np.concatenate(blocks)


def _curve_near(
    places: Floats, residual: StoredKriging, kind: str, widths: tuple[tuple[str, float], ...]
) -> Floats:
    """The curve of one set of widths at every node, nan where no value of ``places`` is near.

    A few rows need a few nodes, and those are found once: what a prediction gives does not depend
    on what was predicted before it.
    """
    curve = _curve(residual, kind, widths)
    low = np.clip(places, 0, len(_NODES) - 2).astype(np.int64)
    near = np.zeros(len(_NODES), dtype=np.bool_)
    near[low] = near[low + 1] = True
    lacking = np.flatnonzero(near & np.isnan(curve))
    if len(lacking):
        shapes = {name: np.full(len(lacking), value) for name, value in widths}
        shapes[CURVE_AXIS[kind]] = np.exp2(_NODES[lacking] / NODES_PER_DOUBLING)
        curve[lacking] = residual.unpack().mean(laws.features(kind, shapes))
    return curve


@lru_cache(maxsize=1024)
def _curve(
    residual: StoredKriging,  # noqa: ARG001 (the arguments say whose curve it is)
    kind: str,  # noqa: ARG001
    widths: tuple[tuple[str, float], ...],  # noqa: ARG001
) -> Floats:
    """What is known of a curve; ``_curve_near`` fills it in."""
    return np.full(len(_NODES), np.nan)
