"""The straight line from a workload to joules: schedule, lower, time, power, sum."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np

from energymodel import (
    attribution,
    baselines,
    domain,
    fabric,
    latency,
    marginal,
    power,
    uncertainty,
)
from energymodel.causes import PhaseShare, by_phase, serving_shares
from energymodel.costs import StepCosts, demand, dummy_w, planned, step_costs, with_engine
from energymodel.deployment import LEAST_BYTE_J, MOST_BYTE_J, Deployment, check_values
from energymodel.engines import engine_of
from energymodel.errors import InputError
from energymodel.model import ModelSpec
from energymodel.ops import Op
from energymodel.parallel import parallel_of
from energymodel.prediction import (
    BinEnergy,
    Clock,
    ComponentEnergy,
    Latency,
    PhaseEnergy,
    Prediction,
)
from energymodel.profile import Profile
from energymodel.replicas import kept_in_step, side_by_side
from energymodel.serving import Schedule
from energymodel.steps import Floats, Steps
from energymodel.workload import Workload

INTERVAL_LEVEL = 0.9
DUMMIES = (
    "data_parallel_size: a copy without requests computes dummy tokens while others need its experts; "
    "priced as steps of one token, for no run was measured."
)


def predict(
    model: ModelSpec,
    deployment: Deployment,
    workload: Workload,
    profile: Profile,
    *,
    sharing: attribution.Sharing = "proportional",
) -> Prediction:
    """Energy, time and latency of ``workload`` on one replica of ``model``.

    ``sharing``: how the energy of a step goes to its requests, for the energy of the bins.

    Raises:
        InputError: the deployment, model or workload is outside what can be predicted; the
            message names the field.
    """
    check(deployment, profile)
    served, schedule = planned(model, deployment, workload, profile.gpu)
    costs = step_costs(model, deployment, served, schedule, profile)
    price = None
    if sharing == "marginal":
        price = _step_price(model, deployment, served, profile, costs.static_w)
    found = composed(
        model, deployment, workload, profile, schedule=schedule, costs=costs, price=price
    )
    return replace(found, attribution=sharing)


def check(deployment: Deployment, profile: Profile) -> None:
    """Refuse what the profile cannot answer."""
    check_values(deployment)
    engine = engine_of(deployment)
    if parallel_of(deployment).gpus > 1 and not engine.several_gpus:
        raise InputError(
            f"engine {deployment.engine} serves on one GPU: tensor_parallel_size, "
            "pipeline_parallel_size and data_parallel_size must be 1."
        )
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


def _step_price(
    model: ModelSpec,
    deployment: Deployment,
    served: Workload,
    profile: Profile,
    static_w: float,
) -> Callable[[Steps], Floats]:
    """Energy of any steps, each at the clock that it would settle at; nothing runs no step."""

    def price(steps: Steps) -> Floats:
        wanted = demand(model, deployment, steps, profile, served.bins).load()
        engine = engine_of(deployment).time(model, deployment, steps, profile, served)
        load, _ = with_engine(wanted, engine)
        cap_w = profile.held_w(deployment.power_limit_w)
        _, energy_j = power.limited(load, static_w, profile.power.exponent.value, cap_w)
        return np.where(steps.tokens > 0, energy_j, 0.0)

    return price


def composed(
    model: ModelSpec,
    deployment: Deployment,
    workload: Workload,
    profile: Profile,
    *,
    schedule: Schedule,
    costs: StepCosts,
    price: Callable[[Steps], Floats] | None = None,
    latencies: tuple[Latency | None, Latency | None] | None = None,
) -> Prediction:
    """What the steps of a schedule and their costs amount to.

    ``price``: of steps, for a marginal attribution. ``latencies``: to the first token and between
    tokens, where requests were not all there at the start.
    """
    weight = schedule.steps.weight
    dummies = kept_in_step(costs, schedule)
    verdict = domain.examine(
        model,
        deployment,
        workload,
        profile,
        costs=costs,
        weight=weight,
        scheduled=[DUMMIES] if dummies else [],
    )
    if latencies is None:
        latencies = latency.latencies(workload, schedule, costs.step_s, costs.submit_s)
    waiting_w = dummy_w(model, deployment, workload, profile, costs.static_w) if dummies else None
    costs = side_by_side(costs, schedule, parallel_of(deployment), waiting_w)
    parts = attribution.shares(schedule, costs)
    if price is None:
        each_j = attribution.by_request(schedule.steps, parts)
    else:
        each_j = marginal.by_request(schedule.steps, costs.step_j, price)
    return summary(
        model.name,
        deployment,
        workload,
        profile,
        costs=costs,
        weight=weight,
        verdict=verdict,
        phases=attribution.phases(schedule, costs, parts),
        bins=tuple(
            replace(energy, media_tokens=sum(tower.tokens(b) for tower in model.towers))
            for energy, b in zip(
                attribution.by_bin(workload, schedule, costs, each_j), workload.bins, strict=True
            )
        ),
        latencies=latencies,
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
    limited_s = float(busy_s[costs.relative_clock < uncertainty.LIMITED_BELOW].sum())
    lower, upper = uncertainty.ends(
        verdict.half_width,
        verdict.inner * verdict.half_width,
        uncertainty.boards(costs.other_boards, profile),
    )
    widest = float(np.exp(verdict.duration_half_width))
    requests, output_tokens = int(workload.requests), int(workload.output_tokens)
    gpus = parallel_of(deployment).gpus
    simpler = baselines.estimate(
        costs, weight, profile, duration_s=duration_s, energy_j=energy_j, gpus=gpus
    )
    return Prediction(
        model=model,
        gpu=profile.gpu.name,
        gpus=gpus,
        engine=deployment.engine,
        deployment=asdict(deployment),
        requests=requests,
        input_tokens=int(workload.input_tokens),
        output_tokens=output_tokens,
        duration_s=duration_s,
        energy_j=energy_j,
        energy_interval_j=(energy_j * float(np.exp(lower)), energy_j * float(np.exp(upper))),
        duration_interval_s=(duration_s / widest, duration_s * widest),
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
            **_links([cost.op for cost in costs.ops], profile),
        },
    )


def _links(ops: Sequence[Op], profile: Profile) -> dict[str, str]:
    """Where what is known of the links comes from, if they are used."""
    origin = fabric.origin(ops, profile)
    return {} if origin is None else {"collectives": origin}


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
