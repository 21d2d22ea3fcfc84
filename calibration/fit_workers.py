"""Whole runs on several GPUs -> what vLLM's worker processes add (``engines/vllm_workers.py``).

From the durations of the engine's iterations: the skew of collectives from what first steps take longer;
launches from first steps, too, ahead of which the host could not work, so that they take the longer of
the GPUs' work and the launches; seconds a step and a sequence from what decode steps take beyond the
prediction, relative to what they take; seconds a request from the time before the first step. Models
are left out one at a time, which gives the standard errors (jackknife).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from energymodel.costs import planned, step_costs
from energymodel.engines.vllm_host import launches
from energymodel.engines.vllm_workers import WORKERS, launched_layers
from energymodel.io import Run
from energymodel.model import ModelSpec
from energymodel.profile import Estimate, FabricProfile, Profile

Array = NDArray[np.float64]

# Seconds a layer that are tried for launches.
TRIED_S = np.linspace(0.0, 1e-3, 501)
# A step that takes so many times its launches is not held up by them.
HELD_UP = 4.0
# Skew at which the slope of a step's time is taken.
PROBE = 0.2
# Decode steps of a run that are worth a median.
LEAST_STEPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Steps of one run, as predicted without workers and as measured.

    ``first``: seconds of the first step, of its launches, measured; ``layers`` that are launched in it,
    kernel by kernel and as graphs. ``decode``: (sequences, seconds
    beyond the prediction, seconds) of a typical decode step, or None. ``submit``: (requests, seconds
    beyond the prediction). ``skewed_s``: the first step, were the skew ``PROBE``.
    """

    model: str
    first: tuple[float, float, float]
    layers: tuple[float, float]
    decode: tuple[float, float, float] | None
    submit: tuple[float, float]
    skewed_s: float = 0.0


def with_whole_runs(
    profile: Profile, measured: Sequence[tuple[Run, ModelSpec]]
) -> FabricProfile | None:
    """The links of a profile with their skew and what workers add, where runs tell it.

    Of ``measured``, runs on several GPUs without a pipeline count.
    """
    fabric = profile.fabric
    chosen = [(run, model) for run, model in measured if _tells(run)]
    if fabric is None or not chosen:
        return fabric
    models = sorted({run.model for run, _ in chosen})
    plain = replace(fabric, skew=_one(0.0), workers={})
    probe = replace(plain, skew=_one(PROBE))
    of_plain, of_probe = (
        [_seen(run, model, replace(profile, fabric=links)) for run, model in chosen]
        for links in (plain, probe)
    )
    pairs = [replace(s, skewed_s=p.first[0]) for s, p in zip(of_plain, of_probe, strict=True)]
    skewed = replace(plain, skew=_estimate(_skew, pairs, models, "1"))
    seen = [_seen(run, model, replace(profile, fabric=skewed)) for run, model in chosen]
    return replace(
        skewed,
        workers={name: _estimate(partial(_value, name), seen, models, "s") for name in WORKERS},
    )


def _estimate(
    value: Callable[[Sequence[Seen]], float], seen: Sequence[Seen], models: Sequence[str], unit: str
) -> Estimate:
    """A value of all runs, with the standard error that leaving out each model gives (jackknife)."""
    left_out = [value([s for s in seen if s.model != m]) for m in models if len(models) > 1]
    n = len(left_out)
    stderr = float(np.sqrt((n - 1) * np.var(left_out))) if n else 0.0
    return Estimate(value=value(seen), stderr=stderr, unit=unit)


def _skew(seen: Sequence[Seen]) -> float:
    """By least squares in relative time, from first steps that the host does not hold up.

    A collective that takes longer lets the power limit give the rest a higher clock, so what a skew
    does to a step is asked of the prediction.
    """
    step_s, launch_s, measured_s = np.array([s.first for s in seen]).T
    free = launch_s * HELD_UP < step_s
    slope = (np.array([s.skewed_s for s in seen]) / step_s - 1.0)[free] / PROBE
    longer = (measured_s / step_s - 1.0)[free]
    return max(float(slope @ longer / (slope @ slope)), 0.0) if free.any() else 0.0


def _one(value: float) -> Estimate:
    return Estimate(value=value, stderr=0.0, unit="1")


def _tells(run: Run) -> bool:
    d = run.deployment
    several = d.tensor_parallel_size > 1 and d.pipeline_parallel_size == d.data_parallel_size == 1
    return several and bool(run.extra.get("step_us"))


def _seen(run: Run, model: ModelSpec, profile: Profile) -> Seen:
    deployment = replace(run.deployment, hbm_byte_j=byte_j_of(run, profile))
    served, schedule = planned(model, deployment, run.workload, profile.gpu)
    costs = step_costs(model, deployment, served, schedule, profile)
    steps = schedule.steps
    layers = launched_layers(launches(model, deployment, steps, served.bins))
    # The first duration is from submission to the first step, the others are of one step each.
    before, *rest = [1e-6 * float(us) for us in run.extra["step_us"]]  # type: ignore[attr-defined]
    row = np.repeat(np.arange(steps.size), steps.weight.astype(np.int64))[: len(rest)]
    measured_s = np.array(rest[: row.size])
    decode = None
    chosen = np.flatnonzero(steps.sum_chunks(steps.chunks.tokens)[row] == 0)[1:]
    if chosen.size >= LEAST_STEPS:
        beyond = np.median(measured_s[chosen] - costs.step_s[row][chosen])
        seqs, usual = (np.median(x[row][chosen]) for x in (steps.sequences, costs.step_s))
        decode = float(seqs), float(beyond), float(usual)
    return Seen(
        model=run.model,
        first=(float(costs.step_s[0]), float(costs.launch_s[0]), float(measured_s[0])),
        layers=(float(layers[0][0]), float(layers[1][0])),
        decode=decode,
        submit=(run.workload.requests, before - costs.submit_s),
    )


def byte_j_of(run: Run, profile: Profile) -> float | None:
    """Joules per byte in the memory of the boards of a run, mean over its GPUs; None if unknown."""
    gpus = run.extra.get("gpus")
    boards = [g.get("board") for g in gpus] if isinstance(gpus, list) else [run.extra.get("board")]
    known = [j for board in boards if (j := profile.memory_of(board)) is not None]
    return float(np.mean(known)) if known else run.deployment.hbm_byte_j


def _launch(seen: Sequence[Seen], kind: int) -> float:
    """Seconds more a layer, of the kinds of ``Seen.layers``: the least mean error of first steps."""
    told = [s for s in seen if s.layers[kind]]
    if not told:
        return 0.0
    step_s, launch_s, measured_s = np.array([s.first for s in told]).T
    layers = np.array([s.layers[kind] for s in told])
    longer_s = launch_s + TRIED_S[:, None] * layers
    misses = np.abs(np.log(np.maximum(step_s, longer_s) / measured_s)).mean(axis=1)
    return float(TRIED_S[int(np.argmin(misses))])


def _value(name: str, seen: Sequence[Seen]) -> float:
    return _values(seen)[name]


def _values(seen: Sequence[Seen]) -> dict[str, float]:
    """The numbers, each from what tells it."""
    decodes = np.array([s.decode for s in seen if s.decode is not None]).reshape(-1, 3)
    seqs, longer_s, usual_s = decodes.T
    submits = np.array([s.submit for s in seen])
    design = np.stack([1.0 / usual_s, seqs / usual_s], axis=1)
    each = nnls(design, longer_s / usual_s)[0] if len(decodes) else np.zeros(2)
    requests, beyond = submits.T
    return {
        "launch_layer_s": _launch(seen, 0),
        "launch_graph_layer_s": _launch(seen, 1),
        "step_s": float(each[0]),
        "sequence_s": float(each[1]),
        "submit_request_s": max(float(requests @ beyond / (requests @ requests)), 0.0),
    }
