"""Steps to costs: operations, their time, their energy, and the clock that the power limit allows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from energymodel import fabric, pipeline, power
from energymodel.collectives import BUBBLE
from energymodel.deployment import Deployment
from energymodel.engines import EngineTime, engine_of
from energymodel.hardware import GpuSpec
from energymodel.laws import traffic
from energymodel.model import ModelSpec
from energymodel.ops import Op
from energymodel.parallel import parallel_of
from energymodel.power import StepLoad
from energymodel.profile import Profile
from energymodel.reading import served_workload
from energymodel.serving import Schedule
from energymodel.settling import on_other_boards, settle
from energymodel.step_parts import decode_steps
from energymodel.steps import Floats, Steps
from energymodel.timing import OpTime, op_times
from energymodel.workload import Bin, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class OpCost:
    """One operation of every step, all of its calls: seconds and joules at the step's clock.

    It runs on ``gpus`` at a time; ``energy_j``, of which ``core_j`` is above static power in the SMs,
    and the count of ``op`` are of all of them.
    """

    op: Op
    seconds: Floats
    energy_j: Floats
    core_j: Floats
    full_clock_s: Floats
    gpus: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCosts:
    """Time and energy of each step (one iteration), shape [n_steps], static power included.

    ``overhead_*`` are inside ``step_*``: GPU time outside the layers and waiting for the host,
    whose launches take ``launch_s``. ``other_boards``: energy of the run with each kind of memory
    (``Profile.memory``), over that on the board asked for. ``idle_s`` is the part of ``submit_s``
    in which nothing was asked for.
    """

    ops: tuple[OpCost, ...]
    step_s: Floats
    step_j: Floats
    overhead_s: Floats
    overhead_j: Floats
    relative_clock: Floats
    launch_s: Floats
    submit_s: float
    submit_j: float
    static_w: float
    other_boards: tuple[float, ...] = (1.0,)
    idle_s: float = 0.0


def planned(
    model: ModelSpec, deployment: Deployment, workload: Workload, gpu: GpuSpec
) -> tuple[Workload, Schedule]:
    """The requests as the model sees them, and the steps in which they are served.

    Raises:
        InputError: the model cannot do what a bin asks for, or a request does not fit.
    """
    served = served_workload(model, workload)
    return served, engine_of(deployment).schedule(model, deployment, served, gpu)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The operations of every step at full clock, without what the engine adds.

    Lists run over operations; ``core_j`` and ``hbm_j`` are of all calls of a step, above static
    power, in the SMs and in the memory. Arrays have shape [n_steps].
    """

    ops: tuple[Op, ...]
    times: list[OpTime]
    core_j: list[Floats]
    hbm_j: list[Floats]

    def load(self) -> StepLoad:
        """Sums over operations."""
        seconds = sum(t.seconds * o.count for o, t in zip(self.ops, self.times, strict=True))
        clocked_s = sum(t.clocked * o.count for o, t in zip(self.ops, self.times, strict=True))
        return StepLoad(
            fixed_s=np.asarray(seconds - clocked_s),
            clocked_s=np.asarray(clocked_s),
            core_j=np.asarray(sum(self.core_j)),
            hbm_j=np.asarray(sum(self.hbm_j)),
        )


def demand(
    model: ModelSpec,
    deployment: Deployment,
    steps: Steps,
    profile: Profile,
    bins: Sequence[Bin] = (),
) -> Demand:
    """Lower the steps to operations, time each and find its energy at full clock.

    ``bins``: what is asked for, as the model sees it.
    """
    engine = engine_of(deployment)
    prompt_tokens = np.array([b.input_tokens for b in bins], dtype=np.int64)
    ops = engine.lower(model, deployment, steps, prompt_tokens, bins)
    found = priced(ops, deployment, profile, lambda rows: engine.padded(rows, deployment))
    if deployment.pipeline_parallel_size == 1:
        return found
    op, time = pipeline.bubble(model, deployment, bins, found.ops, found.times)
    nothing = np.zeros_like(time.seconds)
    return Demand(
        ops=(*found.ops, op),
        times=[*found.times, time],
        core_j=[*found.core_j, nothing],
        hbm_j=[*found.hbm_j, nothing],
    )


def priced(
    ops: tuple[Op, ...],
    deployment: Deployment,
    profile: Profile,
    padded: Callable[[Floats], Floats],
) -> Demand:
    """Time each operation and find its energy at full clock; ``padded`` as in ``op_times``."""
    return with_energy(ops, op_times(ops, profile, padded), deployment, profile, padded)


def with_energy(
    ops: tuple[Op, ...],
    times: list[OpTime],
    deployment: Deployment,
    profile: Profile,
    padded: Callable[[Floats], Floats],
) -> Demand:
    """The operations with their energy at full clock; ``padded`` as in ``op_times``."""
    memory = profile.memory_over_usual(deployment.hbm_byte_j)
    core, hbm = [], []
    for op, time in zip(ops, times, strict=True):
        if fabric.is_collective(op):
            core_j, wire_j = fabric.energy_j(op, time.seconds, profile, padded)
            core.append(op.count * core_j)
            hbm.append(op.count * wire_j)
            continue
        estimates = profile.operation(op.law).energy
        energy = {name: estimate.value for name, estimate in estimates.items()}
        row_bytes, l2_bytes = op.hbm_bytes - op.weight_bytes, profile.gpu.l2_bytes
        weights, rows, hbm_bytes = traffic(op.kind, op.shape, op.weight_bytes, row_bytes, l2_bytes)
        core_j = power.core_energy_j(energy, op.core_flop, weights, rows, time.seconds)
        core.append(op.count * core_j)
        hbm.append(op.count * memory * energy["hbm_byte_j"] * hbm_bytes)
    return Demand(ops=ops, times=times, core_j=core, hbm_j=hbm)


def with_engine(load: StepLoad, engine: EngineTime) -> tuple[StepLoad, Floats]:
    """(load with what the engine adds, seconds that the GPU waits for the host); [n_steps].

    A step lasts as long as the GPU's work or the host's launches, whichever is longer; where it
    finds the GPU idle, the GPU's work begins with the first launch.
    """
    gpu_s = load.fixed_s + load.clocked_s + engine.outside_s
    waiting_s = np.maximum(engine.launch_s - gpu_s, engine.lead_s) + engine.gap_s
    whole = StepLoad(
        fixed_s=load.fixed_s + engine.outside_s + waiting_s,
        clocked_s=load.clocked_s,
        core_j=load.core_j + engine.outside_w * engine.outside_s,
        hbm_j=load.hbm_j,
    )
    return whole, waiting_s


def step_costs(
    model: ModelSpec,
    deployment: Deployment,
    workload: Workload,
    schedule: Schedule,
    profile: Profile,
) -> StepCosts:
    """Time and energy of every step and of every operation in it."""
    steps = schedule.steps
    wanted = demand(model, deployment, steps, profile, workload.bins)
    engine = engine_of(deployment).time(model, deployment, steps, profile, workload)
    return settled(wanted, engine, steps.weight, deployment, profile)


def dummy_w(
    model: ModelSpec,
    deployment: Deployment,
    workload: Workload,
    profile: Profile,
    static_w: float,
) -> float:
    """Mean power of a GPU of a copy that computes one dummy token after the other, static included.

    They are decoded without context (``execute_dummy_batch`` in ``vllm/v1/worker/gpu_worker.py``).
    """
    steps = decode_steps(np.ones(1), np.zeros(1))
    wanted = demand(model, deployment, steps, profile, workload.bins)
    engine = engine_of(deployment).time(model, deployment, steps, profile, workload)
    found = settled(wanted, engine, steps.weight, deployment, profile, at=(np.ones(1), static_w))
    last = found.ops[-1]
    gpus = last.gpus * float(last.op.shape["gpus_each"] if last.op.kind == BUBBLE else 1.0)
    return float((found.step_j / found.step_s).item()) / gpus


def settled(
    wanted: Demand,
    engine: EngineTime,
    weight: Floats,
    deployment: Deployment,
    profile: Profile,
    *,
    at: tuple[Floats, float] | None = None,
) -> StepCosts:
    """Costs at the clock and the temperature of the run; ``weight`` is how often each step runs.

    ``at``: the relative clock of each step and the static power, where they are known.
    """
    load, waiting_s = with_engine(wanted.load(), engine)
    run = (load, weight, engine.submit_s, deployment, profile)
    clock, static_w = settle(*run) if at is None else at
    scale = clock**profile.power.exponent.value
    groups = parallel_of(deployment)
    tensor = groups.tensor  # GPUs that do the same at the same time
    costs = []
    for op, time, core_j, hbm_j in zip(
        wanted.ops, wanted.times, wanted.core_j, wanted.hbm_j, strict=True
    ):
        seconds = op.count * (time.seconds + time.clocked * (1.0 / clock - 1.0))
        energy_j = static_w * seconds + core_j * scale + hbm_j
        cost = OpCost(
            op=op if tensor == 1 else replace(op, count=op.count * tensor),
            seconds=seconds,
            energy_j=energy_j * tensor,
            core_j=core_j * scale * tensor,
            full_clock_s=op.count * time.seconds,
            gpus=tensor,
        )
        costs.append(cost)
    overhead_s = engine.outside_s + waiting_s
    overhead_j = static_w * overhead_s + engine.outside_w * engine.outside_s * scale
    overhead_j = overhead_j * tensor
    if costs[-1].op.kind == BUBBLE:
        step_s = np.asarray(sum((c.seconds for c in costs), overhead_s))
        costs[-1] = _waiting(costs[-1], step_s, scale, static_w, profile)
    return StepCosts(
        ops=tuple(costs),
        step_s=np.asarray(sum((c.seconds for c in costs), overhead_s)),
        step_j=np.asarray(sum((c.energy_j for c in costs), overhead_j)),
        overhead_s=overhead_s,
        overhead_j=overhead_j,
        relative_clock=clock,
        launch_s=engine.launch_s,
        submit_s=engine.submit_s,
        submit_j=static_w * engine.submit_s * groups.gpus,
        static_w=static_w,
        other_boards=on_other_boards(*run),
        idle_s=0.0 if at is None else engine.submit_s,
    )


def _waiting(
    bubble: OpCost, step_s: Floats, scale: Floats, static_w: float, profile: Profile
) -> OpCost:
    """The bubble of a pipeline, and all GPUs that wait in it while others work."""
    each = float(bubble.op.shape["gpus_each"])
    waiting_s = each * step_s - (step_s - bubble.seconds)
    wait_w = fabric.fabric_of(profile).wait_w.value
    # Static power of the bubble itself is in it already.
    more_j = static_w * (waiting_s - bubble.seconds) + wait_w * scale * waiting_s
    return replace(bubble, energy_j=bubble.energy_j + more_j * bubble.gpus)
