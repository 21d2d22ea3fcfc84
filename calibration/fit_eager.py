"""Kernels of whole eager passes, as torch's profiler times them -> rates of the expressions in them.

What transformers launches in place of one fused kernel (``energymodel.engines.eager``) is an operation
of its own. Where its bursts were not measured, its time is found from passes of many models: the
device time of all kernels of a pass that are neither products nor fused attention is

    sum over operations of calls x (kernels x launch_s + bytes / bytes_per_s)

with one ``launch_s`` for all and one rate for each expression; what bursts told of the other
operations is taken as known. Energy per byte and per second is that of the kind it is like.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from energymodel import io
from energymodel.costs import demand, planned
from energymodel.deployment import Deployment
from energymodel.engines.eager import KERNELS, biased, kernels
from energymodel.find_model import find_model
from energymodel.model import ModelSpec
from energymodel.profile import Covariance, Estimate, OperationProfile, Profile
from energymodel.workload import Bin, Workload

Array = NDArray[np.float64]

# Beside the observations or the runs: what the profiler saw.
FILE = "transformers_kernels.jsonl"
STACK = "torch kernels in whole passes, by torch.profiler"
# Whose energy coefficients are used.
EXPRESSIONS: Mapping[str, str] = {
    "rms_norm.eager": "elementwise",
    "rotary.eager": "elementwise",
    "silu_and_mul.eager": "elementwise",
    "elementwise.biased": "gemm.float32",
    "elementwise.experts": "elementwise",
    "copy.fill": "copy",
    "copy.append": "copy",
}
_PRODUCT = re.compile("nvjet|gemm|cutlass|splitK|gemv|dot_kernel", re.IGNORECASE)
_FLOAT32 = re.compile("sgemm|f32f32_f32")
_ATTENTION = re.compile("sdpa|flash|fmha", re.IGNORECASE)
FITTED = ("launch_s", "bytes_per_s")
# Parameters of the streaming law that nothing is said about here: no faster cache, no cost of a value.
_NONE: Mapping[str, float] = {"element_s": 1e-15, "rows_per_sm": 8.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiled:
    """One profiled run: ``kernels`` are (name, launches, microseconds in all)."""

    model: str
    gpu: str
    bins: tuple[Bin, ...]
    kernels: tuple[tuple[str, int, float], ...]
    board: str = ""
    software: Mapping[str, Any] = field(default_factory=dict)


def read(path: Path) -> list[Profiled]:
    """The lines of a file of profiled runs.

    Raises:
        InputError: a line is not one.
    """
    lines = [line for line in io.read_text(path).split("\n") if line.strip()]
    return [io.convert(io.parse_json(line, str(path)), Profiled, str(path)) for line in lines]


def with_expressions(profile: Profile, seen: Sequence[Profiled]) -> Profile:
    """The profile with the expressions that it lacks; as it is where nothing was profiled."""
    names = [name for name in EXPRESSIONS if name not in profile.operations]
    runs = [run for run in seen if run.gpu.lower() == profile.name]
    if not names or not runs:
        return profile
    table = _table(runs, names, profile)
    found, errors = _solve(table.design, table.target, table.total), []
    for model in sorted(set(table.models)):
        held = np.array([m == model for m in table.models])
        rest = ~held if not held.all() else held
        rates = _solve(table.design[rest], table.target[rest], table.total[rest])
        errors += np.log(
            table.total[held] / (table.known[held] + table.design[held] @ rates)
        ).tolist()
    operations = {
        name: _operation(
            profile,
            name,
            byte_s=byte_s,
            launch_s=float(found[-1]) * KERNELS.get(name, 1),
            errors=np.array(errors),
        )
        for name, byte_s in zip(names, found.tolist(), strict=False)
        if byte_s > 0
    }
    return replace(profile, operations={**profile.operations, **operations})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """A row for each run: ``target`` seconds are ``design`` @ (seconds per byte..., per launch).

    ``total`` is the target with what is ``known`` already, and ``models`` whose run each is.
    """

    models: list[str]
    design: Array
    target: Array
    known: Array
    total: Array


def _table(runs: Sequence[Profiled], names: Sequence[str], profile: Profile) -> _Table:
    models, design, known, total = [], [], [], []
    for run in runs:
        model = find_model(run.model)[0]
        row, other = _asked(model, run, names, profile)
        # Experts of a decoded token run as products, which are not told apart from the others.
        mixed = model.regime == "moe" and any(b.output_tokens for b in run.bins)
        if mixed or not any(row):
            continue
        models.append(model.name)
        design.append(row)
        known.append(other)
        total.append(sum(us for name, _, us in run.kernels if _by_row(name, model)) * 1e-6)
    told, whole = np.array(known), np.array(total)
    return _Table(
        models=models, design=np.array(design), target=whole - told, known=told, total=whole
    )


def _by_row(kernel: str, model: ModelSpec) -> bool:
    """Whether a kernel belongs to what is asked here; products in float32 are of biased attention."""
    if _PRODUCT.search(kernel):
        return biased(model) and _FLOAT32.search(kernel) is not None
    return _ATTENTION.search(kernel) is None


def _asked(
    model: ModelSpec, run: Profiled, names: Sequence[str], profile: Profile
) -> tuple[list[float], float]:
    """(bytes of each expression..., launches of all; seconds of the other row-by-row operations)."""
    deployment = Deployment(engine="transformers")
    workload = Workload(bins=run.bins)
    served, schedule = planned(model, deployment, workload, profile.gpu)
    wanted = demand(model, deployment, schedule.steps, profile, served.bins)
    weight = schedule.steps.weight
    moved, launched, known = dict.fromkeys(names, 0.0), 0.0, 0.0
    for op, time in zip(wanted.ops, wanted.times, strict=True):
        if op.kind in ("gemm", "moe") or op.kind.endswith("attention"):
            continue
        if op.law in moved:
            moved[op.law] += op.count * float(weight @ op.hbm_bytes)
            launched += op.count * kernels(op) * float(weight @ (op.hbm_bytes > 0))
        else:
            known += op.count * float(weight @ time.seconds)
    return [*moved.values(), launched if any(moved.values()) else 0.0], known


def _solve(design: Array, target: Array, total: Array) -> Array:
    """Seconds per byte of each expression, and per launch: least relative squares, none negative."""
    scale = np.abs(design).max(axis=0)
    scale[scale == 0] = 1.0
    found, _ = nnls(design / scale / total[:, None], target / total)
    return np.asarray(found / scale, dtype=np.float64)


def _operation(
    profile: Profile, name: str, *, byte_s: float, launch_s: float, errors: Array
) -> OperationProfile:
    """The streaming law at the rate found, with the energy of what it is like.

    ``errors``: logarithmic, of runs of models left out of the fit.
    """
    like = profile.operations[profile.calibrated_as(EXPRESSIONS[name])]
    spread = float(np.std(errors))
    values = {
        "launch_s": max(launch_s, 1e-7),
        "bytes_per_s": 1.0 / byte_s,
        "cache_bytes_per_s": 1.0 / byte_s,
        "cache_bytes": float(profile.gpu.l2_bytes),
        **_NONE,
    }
    units = {"launch_s": "s", "element_s": "s", "cache_bytes": "B", "rows_per_sm": "1"}
    law = {
        key: Estimate(
            value=value,
            stderr=spread * value if key in FITTED else 0.0,
            unit=units.get(key, "B/s"),
        )
        for key, value in values.items()
    }
    law["sm_count"] = Estimate(value=float(profile.gpu.sm_count), stderr=0.0, unit="1")
    diagonal = np.diag([spread**2 if key in FITTED else 0.0 for key in values])
    return replace(
        like,
        law=law,
        domain={},
        sizes={},
        residual=None,
        law_covariance=Covariance(
            names=tuple(values), matrix=tuple(tuple(map(float, row)) for row in diagonal)
        ),
        time_error=float(np.median(np.abs(errors))),
        stack=STACK,
    )
