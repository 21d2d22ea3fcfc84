"""The straight line from a workload to joules: schedule, lower, time, power, sum."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from energymodel import attribution, baselines, domain, latency, power
from energymodel.causes import PhaseShare, by_phase, serving_shares
from energymodel.deployment import LEAST_BYTE_J, MOST_BYTE_J, Deployment
from energymodel.engines import EngineTime, engine_of
from energymodel.errors import InputError
from energymodel.hardware import GpuSpec
from energymodel.laws import traffic
from energymodel.model import ModelSpec
from energymodel.ops import Op
from energymodel.power import StepLoad
from energymodel.prediction import (
    BinEnergy,
    Clock,
    ComponentEnergy,
    Latency,
    PhaseEnergy,
    Prediction,
)
from energymodel.profile import Profile
from energymodel.reading import served_workload
from energymodel.serving import Schedule
from energymodel.settling import on_other_boards, settle
from energymodel.steps import Floats, Steps
from energymodel.timing import OpTime, op_times
from energymodel.workload import Bin, Workload

INTERVAL_LEVEL = 0.9
# A step counts as power limited when its clock is this far below the maximum.
LIMITED_BELOW = 0.995


@dataclass(frozen=True, slots=True, kw_only=True)
class OpCost:
    """One operation of every step, all of its calls: seconds and joules at the step's clock."""

    op: Op
    seconds: Floats
    energy_j: Floats
    full_clock_s: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCosts:
    """Time and energy of each step (one iteration), shape [n_steps], static power included.

    ``overhead_*`` are inside ``step_*``: GPU time outside the layers and waiting for the host,
    whose launches take ``launch_s``. ``other_boards``: energy of the run on the boards whose memory
    costs least and most, over that on the board asked for.
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
    other_boards: tuple[float, float] = (1.0, 1.0)


def predict(
    model: ModelSpec, deployment: Deployment, workload: Workload, profile: Profile
) -> Prediction:
    """Energy, time and latency of ``workload`` on one replica of ``model``.

    Raises:
        InputError: the deployment, model or workload is outside what can be predicted; the
            message names the field.
    """
    check(deployment, profile)
    served, schedule = planned(model, deployment, workload, profile.gpu)
    costs = step_costs(model, deployment, served, schedule, profile)
    return _prediction(model, deployment, workload, profile, schedule=schedule, costs=costs)


def planned(
    model: ModelSpec, deployment: Deployment, workload: Workload, gpu: GpuSpec
) -> tuple[Workload, Schedule]:
    """The requests as the model sees them, and the steps in which they are served.

    Raises:
        InputError: the model cannot do what a bin asks for, or a request does not fit.
    """
    served = served_workload(model, workload)
    return served, engine_of(deployment).schedule(model, deployment, served, gpu)


def check(deployment: Deployment, profile: Profile) -> None:
    """Refuse what the profile cannot answer."""
    engine_of(deployment)
    if deployment.engine not in profile.engines:
        raise InputError(
            f"profile '{profile.name}' has no calibration of engine {deployment.engine}; it has: "
            f"{', '.join(profile.engines)}."
        )
    byte_j = deployment.hbm_byte_j
    if byte_j is not None and not (profile.memory and profile.memory[0].byte_j.value):
        raise InputError(
            f"hbm_byte_j must be left out: profile '{profile.name}' was calibrated without a sensor "
            "of the memory's power."
        )
    if byte_j is not None and not LEAST_BYTE_J <= byte_j <= MOST_BYTE_J:
        raise InputError(
            f"hbm_byte_j must be from {LEAST_BYTE_J:g} to {MOST_BYTE_J:g} joules per byte, "
            f"got {byte_j:g}."
        )
    gpu, limit_w = profile.gpu, deployment.power_limit_w
    if limit_w is not None and not gpu.min_power_limit_w <= limit_w <= gpu.power_limit_w:
        raise InputError(
            f"power_limit_w must be from {gpu.min_power_limit_w:g} to {gpu.power_limit_w:g} on "
            f"{gpu.full_name}, got {limit_w:g}."
        )


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
    return priced(ops, deployment, profile, lambda rows: engine.padded(rows, deployment))


def priced(
    ops: tuple[Op, ...],
    deployment: Deployment,
    profile: Profile,
    padded: Callable[[Floats], Floats],
) -> Demand:
    """Time each operation and find its energy at full clock; ``padded`` as in ``op_times``."""
    memory = profile.memory_over_usual(deployment.hbm_byte_j)
    times = op_times(ops, profile, padded)
    core, hbm = [], []
    for op, time in zip(ops, times, strict=True):
        estimates = profile.operation(op.law).energy
        energy = {name: estimate.value for name, estimate in estimates.items()}
        row_bytes, l2_bytes = op.hbm_bytes - op.weight_bytes, profile.gpu.l2_bytes
        weights, rows, hbm_bytes = traffic(op.kind, op.shape, op.weight_bytes, row_bytes, l2_bytes)
        core_j = power.core_energy_j(energy, op.flop, weights, rows, time.seconds)
        core.append(op.count * core_j)
        hbm.append(op.count * memory * energy["hbm_byte_j"] * hbm_bytes)
    return Demand(ops=ops, times=times, core_j=core, hbm_j=hbm)


def with_engine(load: StepLoad, engine: EngineTime) -> tuple[StepLoad, Floats]:
    """(load with what the engine adds, seconds that the GPU waits for the host); [n_steps].

    A step lasts as long as the GPU's work or the host's launches, whichever is longer.
    """
    gpu_s = load.fixed_s + load.clocked_s + engine.outside_s
    waiting_s = np.maximum(engine.launch_s - gpu_s, 0.0)
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


def settled(
    wanted: Demand, engine: EngineTime, weight: Floats, deployment: Deployment, profile: Profile
) -> StepCosts:
    """Costs at the clock and the temperature of the run; ``weight`` is how often each step runs."""
    load, waiting_s = with_engine(wanted.load(), engine)
    run = (load, weight, engine.submit_s, deployment, profile)
    clock, static_w = settle(*run)
    scale = clock**profile.power.exponent.value
    costs = []
    for op, time, core_j, hbm_j in zip(
        wanted.ops, wanted.times, wanted.core_j, wanted.hbm_j, strict=True
    ):
        seconds = op.count * (time.seconds + time.clocked * (1.0 / clock - 1.0))
        energy_j = static_w * seconds + core_j * scale + hbm_j
        full_clock_s = op.count * time.seconds
        cost = OpCost(op=op, seconds=seconds, energy_j=energy_j, full_clock_s=full_clock_s)
        costs.append(cost)
    overhead_s = engine.outside_s + waiting_s
    overhead_j = static_w * overhead_s + engine.outside_w * engine.outside_s * scale
    return StepCosts(
        ops=tuple(costs),
        step_s=np.asarray(sum((c.seconds for c in costs), overhead_s)),
        step_j=np.asarray(sum((c.energy_j for c in costs), overhead_j)),
        overhead_s=overhead_s,
        overhead_j=overhead_j,
        relative_clock=clock,
        launch_s=engine.launch_s,
        submit_s=engine.submit_s,
        submit_j=static_w * engine.submit_s,
        static_w=static_w,
        other_boards=on_other_boards(*run),
    )


def _prediction(
    model: ModelSpec,
    deployment: Deployment,
    workload: Workload,
    profile: Profile,
    *,
    schedule: Schedule,
    costs: StepCosts,
) -> Prediction:
    weight = schedule.steps.weight
    parts = attribution.shares(schedule, costs)
    return summary(
        model.name,
        deployment,
        workload,
        profile,
        costs=costs,
        weight=weight,
        verdict=domain.examine(model, deployment, workload, profile, costs=costs, weight=weight),
        phases=attribution.phases(schedule, costs, parts),
        bins=tuple(
            replace(energy, media_tokens=sum(tower.tokens(b) for tower in model.towers))
            for energy, b in zip(
                attribution.bins(workload, schedule, costs, parts), workload.bins, strict=True
            )
        ),
        latencies=latency.latencies(workload, schedule, costs.step_s, costs.submit_s),
        shares=serving_shares(schedule.steps, parts),
    )


def summary(
    model: str,
    deployment: Deployment,
    workload: Workload,
    profile: Profile,
    *,
    costs: StepCosts,
    weight: Floats,
    verdict: domain.Verdict,
    phases: Mapping[str, PhaseEnergy],
    bins: tuple[BinEnergy, ...],
    shares: Mapping[str, PhaseShare],
    latencies: tuple[Latency | None, Latency | None] = (None, None),
) -> Prediction:
    """What the costs of a run amount to; ``weight`` is how often each step runs.

    ``shares``: of each phase in the operations, for the causes of its energy.
    """
    duration_s = float(weight @ costs.step_s) + costs.submit_s
    energy_j = float(weight @ costs.step_j) + costs.submit_j
    busy_s = weight * costs.step_s
    limited_s = float(busy_s[costs.relative_clock < LIMITED_BELOW].sum())
    spread = float(np.exp(verdict.half_width))
    requests, output_tokens = int(workload.requests), int(workload.output_tokens)
    simpler = baselines.estimate(costs, weight, profile, duration_s, energy_j)
    return Prediction(
        model=model,
        gpu=profile.gpu.name,
        engine=deployment.engine,
        deployment=asdict(deployment),
        requests=requests,
        input_tokens=int(workload.input_tokens),
        output_tokens=output_tokens,
        duration_s=duration_s,
        energy_j=energy_j,
        energy_interval_j=(
            energy_j * costs.other_boards[0] / spread,
            energy_j * costs.other_boards[1] * spread,
        ),
        interval_level=INTERVAL_LEVEL,
        mean_power_w=energy_j / duration_s,
        energy_per_request_j=energy_j / requests,
        energy_per_output_token_j=energy_j / output_tokens if output_tokens else None,
        output_tokens_per_s=output_tokens / duration_s,
        ttft_s=latencies[0],
        itl_s=latencies[1],
        phases=phases,
        components=components(costs, weight),
        bins=bins,
        flop_only=simpler["flop_only"],
        baselines=simpler,
        clock_hz=Clock(
            mean=profile.gpu.max_sm_clock_hz * float(busy_s @ costs.relative_clock / busy_s.sum())
        ),
        power_limited=limited_s > 0,
        power_limited_share=limited_s / duration_s,
        causes=by_phase(costs, weight, profile, deployment, shares=shares, requests=requests),
        warnings=(*_of_origin(profile), *verdict.warnings),
        provenance={
            "profile": profile.name,
            "kind": profile.kind,
            "boundary": "gpu",
            **profile.provenance,
        },
    )


def _of_origin(profile: Profile) -> tuple[str, ...]:
    if profile.kind != "simulated":
        return ()
    return ("The profile is of a simulated GPU: these figures say nothing of a real one.",)


def components(costs: StepCosts, weight: Floats) -> dict[str, ComponentEnergy]:
    """Totals of the run by component; "overhead" and "idle" are what is no operation."""
    found: dict[str, ComponentEnergy] = {}

    def add(name: str, energy_j: float, flop: float, hbm_bytes: float, duration_s: float) -> None:
        old = found.get(name, ComponentEnergy(energy_j=0, flop=0, hbm_bytes=0, duration_s=0))
        found[name] = ComponentEnergy(
            energy_j=old.energy_j + energy_j,
            flop=old.flop + flop,
            hbm_bytes=old.hbm_bytes + hbm_bytes,
            duration_s=old.duration_s + duration_s,
        )

    for cost in costs.ops:
        op = cost.op
        add(
            op.component,
            float(weight @ cost.energy_j),
            op.count * float(weight @ op.flop),
            op.count * float(weight @ op.hbm_bytes),
            float(weight @ cost.seconds),
        )
    add("overhead", float(weight @ costs.overhead_j), 0, 0, float(weight @ costs.overhead_s))
    add("idle", costs.submit_j, 0, 0, costs.submit_s)
    return found
