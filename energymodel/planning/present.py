"""From what was found to the document: sums, shares, the frontier, what binds, what to measure."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from energymodel.deployment import Deployment
from energymodel.planning import carbon
from energymodel.planning.build import Option
from energymodel.planning.document import Cost, Frontier, Plan, Replicas, Setting
from energymodel.planning.fleet import Fleet, most_served
from energymodel.planning.plan import (
    Found,
    Group,
    Nothing,
    at_budget,
    budget_for_all,
    facility_w,
    meets,
    needed,
    settings,
)
from energymodel.planning.provision import Course, together
from energymodel.planning.request import Request
from energymodel.planning.verify import SLOT_S
from energymodel.steps import Floats

# Share of a demand or a limit that is as good as all of it.
ALL = 1.0 - 1e-4
# Kinds of replicas up to which the fleet that serves all is simulated, too.
FEW_KINDS = 20
# Length of the power over time that is shown.
SHOWN_S = 60.0
NEXT: Mapping[str, str] = {
    "power model": "whole runs of these models on this GPU (`energymodel measure`), to refit with",
    "boards": "the memory of the boards that were delivered (`energymodel doctor`)",
    "demand": "a longer trace of the demand (`energymodel bins --online`)",
    "pue": "the power usage effectiveness of the site over a year",
}


def document(found: Found | Nothing) -> Plan:
    """The plan as it is shown."""
    request = found.request
    demand = [b.amount for d in request.demands for b in d.workload.bins]
    if isinstance(found, Nothing):
        return Plan(
            feasible=False,
            reason=found.reason,
            demand_requests_per_s=sum(demand),
            unserved=_unserved(request, np.array(demand), np.zeros(len(demand))),
            budget_w=request.site.budget_w,
            provisioning_rule=request.site.rule,
            pue=request.site.pue,
            binding_constraint=found.binding,
            provenance=_provenance(request),
        )
    fleet, site = found.fleet, request.site
    hosts, gpu_w = int(fleet.hosts.sum()), found.power.mean
    mean_w = facility_w(request, gpu_w, hosts)
    tokens_per_s = _output_tokens(request, fleet.served)
    requests_per_s = float(fleet.served.sum())
    binding, for_all_w = _binding(found)
    replicas = tuple(_replicas(request, group) for group in found.groups)
    gpus = dict.fromkeys(sorted({r.gpu for r in replicas}), 0)
    for r in replicas:
        gpus[r.gpu] += r.count * r.gpus
    hungriest = max(found.sure.sensitivity_w, key=lambda s: found.sure.sensitivity_w[s])
    over_time = _over_time(found)
    return Plan(
        feasible=True,
        served_requests_per_s=requests_per_s,
        demand_requests_per_s=sum(demand),
        unserved=_unserved(request, np.array(demand), fleet.served),
        facility_power_w=mean_w,
        facility_power_interval_w=found.sure.interval_w,
        probability_within_budget=found.sure.probability,
        budget_w=site.budget_w,
        provisioning_rule=site.rule,
        it_power_w=mean_w / site.pue,
        gpu_power_w=gpu_w,
        pue=site.pue,
        replicas=replicas,
        gpus=gpus,
        servers={
            host.name: int(n) for host, n in zip(found.problem.hosts, fleet.hosts, strict=True)
        },
        racks=math.ceil(hosts / site.server.servers_per_rack),
        energy_per_1000_output_tokens_j=1000.0 * mean_w / tokens_per_s if tokens_per_s else None,
        energy_per_request_j=mean_w / requests_per_s,
        provisioning=Setting(**settings(found), ramp_w_per_s=_ramp(found)),
        sensitivity_w=found.sure.sensitivity_w,
        measure_next=NEXT[hungriest],
        frontier=_frontier(found),
        binding_constraint=binding,
        budget_for_all_w=for_all_w,
        mip_gap=fleet.gap,
        sci=carbon.software_carbon_intensity(
            facility_w=mean_w,
            units_per_s=tokens_per_s / carbon.UNIT,
            unit=f"{carbon.UNIT:,} output tokens",
            servers=hosts,
            server=site.server,
            i=request.money.intensity,
        ),
        cost=_cost(request, mean_w, sum(gpus.values()), tokens_per_s),
        slot_s=SLOT_S,
        power_over_time_w=over_time,
        replica_power_over_time_w=tuple(
            round(float(w), 1) for w in found.groups[0].seen.course_w[: len(over_time)]
        ),
        server=asdict(site.server),
        warnings=_warnings(found),
        provenance=_provenance(request),
    )


def _provenance(request: Request) -> Mapping[str, Any]:
    return {
        "profiles": [p.name for p in request.profiles],
        "kinds": sorted({p.kind for p in request.profiles}),
        "seed": request.seed,
        "carbon_intensity": request.money.intensity.source,
    }


def _unserved(request: Request, demand: Floats, served: Floats) -> Mapping[str, float]:
    names = [f"{d.name}[{i}]" for d in request.demands for i in range(len(d.workload.bins))]
    left = np.maximum(demand - served, 0.0)
    return {
        name: float(rate)
        for name, rate, asked in zip(names, left, demand, strict=True)
        if rate > (1.0 - ALL) * asked
    }


def _output_tokens(request: Request, served: Floats) -> float:
    tokens = [b.output_tokens for d in request.demands for b in d.workload.bins]
    return float(served @ np.array(tokens, dtype=np.float64))


def _replicas(request: Request, group: Group) -> Replicas:
    o, seen = group.option.operating, group.seen
    serving = max(group.count - request.site.spare, 1)
    rate = float(group.rates.sum()) / serving
    tokens = request.demands[o.demand].workload.bins
    per_request = float(
        group.rates @ np.array([b.output_tokens for b in tokens], dtype=np.float64)
    ) / float(group.rates.sum())
    return Replicas(
        model=o.candidate.model.name,
        gpu=o.candidate.profile.gpu.name,
        demand=request.demands[o.demand].name,
        deployment=shown(o.deployment),
        count=group.count,
        spare=request.site.spare,
        gpus=o.candidate.gpus,
        requests_per_s=float(group.rates.sum()),
        power_w=seen.power_w,
        idle_power_w=o.idle_w,
        utilisation=seen.utilisation,
        ttft_s=seen.ttft,
        itl_s=seen.itl,
        energy_per_request_j=seen.power_w / rate,
        energy_per_output_token_j=seen.power_w / rate / per_request,
        meets_objective=meets(request, seen),
    )


def shown(deployment: Deployment) -> Mapping[str, Any]:
    """The flags that a plan chooses, and those that are not the defaults."""
    chosen = ("tensor_parallel_size", "max_num_seqs", "quantization", "power_limit_w")
    default = asdict(Deployment())
    return {
        name: value
        for name, value in asdict(deployment).items()
        if name in chosen or (value != default[name] and name != "hbm_byte_j")
    }


def _frontier(found: Found) -> tuple[Frontier, ...]:
    chosen = {id(group.option.operating) for group in found.groups}
    return tuple(_on_frontier(found.request, option, chosen) for option in found.options)


def _on_frontier(request: Request, option: Option, chosen: set[int]) -> Frontier:
    o = option.operating
    rate, power_w = o.point.rate / option.slower, option.busy_w
    bins = request.demands[o.demand].workload.bins
    amounts = np.array([b.amount for b in bins])
    tokens = float(amounts @ [b.output_tokens for b in bins] / amounts.sum())
    return Frontier(
        model=o.candidate.model.name,
        gpu=o.candidate.profile.gpu.name,
        demand=request.demands[o.demand].name,
        deployment=shown(o.deployment),
        gpus=o.candidate.gpus,
        requests_per_s=rate,
        requests_per_j=rate / power_w,
        output_tokens_per_s_per_w=rate * tokens / power_w,
        ttft_s=o.point.ttft_s,
        itl_s=o.point.itl_s,
        power_w=power_w,
        chosen=id(o) in chosen,
    )


def _binding(found: Found) -> tuple[str, float | None]:
    """(what keeps the fleet from serving all, facility power that would be enough to).

    The limit without which the most more is served; with the fleet that serves all and draws least.
    """
    programme = found.problem
    demand = float(programme.demand.sum())
    if found.fleet.served.sum() >= ALL * demand:
        return "demand", None
    more: dict[str, Fleet] = {}
    for name in programme.limits:
        freed = {k: v for k, v in programme.limits.items() if k != name}
        more[name] = most_served(replace(programme, limits=freed), gap=found.request.gap)
    binding = max(more, key=lambda name: float(more[name].served.sum()))
    if more[binding].served.sum() <= found.fleet.served.sum() * (2.0 - ALL):
        return "several", None
    if binding != "power_w" or more[binding].served.sum() < ALL * demand:
        return binding, None
    if len(found.groups) > FEW_KINDS:  # of many, what is needed goes as what the programme counts
        return binding, more[binding].used["power_w"] * needed(found) / found.fleet.used["power_w"]
    return binding, budget_for_all(found)


def _cost(request: Request, mean_w: float, gpus: int, tokens_per_s: float) -> Cost:
    money = request.money
    if money.price_per_kwh is None and money.price_per_gpu_hour is None:
        return Cost(per_hour=None, per_million_output_tokens=None)
    per_s = carbon.cost_per_s(
        facility_w=mean_w,
        gpus=gpus,
        price_per_kwh=money.price_per_kwh or 0.0,
        price_per_gpu_hour=money.price_per_gpu_hour or 0.0,
    )
    return Cost(
        per_hour=3600.0 * per_s,
        per_million_output_tokens=1e6 * per_s / tokens_per_s if tokens_per_s else None,
    )


def _ramp(found: Found) -> float:
    site = found.request.site
    return site.pue * (1.0 + site.server.per_gpu_w) * found.power.ramp_w_per_s


def _over_time(found: Found) -> tuple[float, ...]:
    """Facility power of the fleet in slots of ``SLOT_S``, over a minute at most."""
    request, hosts = found.request, int(found.fleet.hosts.sum())
    slots = min(round(SHOWN_S / SLOT_S), *(g.seen.course_w.size for g in found.groups))
    total = np.zeros(slots)
    for i, group in enumerate(found.groups):
        course = Course(
            count=max(group.count - request.site.spare, 1),
            slot_s=SLOT_S,
            power_w=group.seen.course_w,
            most_w=group.seen.most_w,
            nameplate_w=0.0,
        )
        idle_w = request.site.spare * group.option.operating.idle_w
        total += idle_w + together(course, slots * SLOT_S, request.seed + i)[:slots]
    return tuple(round(facility_w(request, float(w), hosts), 1) for w in total)


def _warnings(found: Found) -> tuple[str, ...]:
    request = found.request
    notes = []
    if any(p.kind == "simulated" for p in request.profiles):
        notes.append("a profile is of a simulated GPU: these figures say nothing of a real one.")
    limits = sorted(
        {
            g.option.operating.deployment.power_limit_w
            for g in found.groups
            if g.option.operating.deployment.power_limit_w is not None
        }
    )
    if limits:
        listed = ", ".join(f"{w:g} W" for w in limits)
        notes.append(f"power limits of {listed}: extrapolated from the clock law of the default.")
    notes += [
        f"{_kind(group)} does not keep up with its share."
        for group in found.groups
        if not group.seen.kept_up
    ]
    notes += [
        f"{_kind(group)} misses the objective in its simulation: TTFT {group.seen.ttft_s:.3g} s, ITL "
        f"{group.seen.itl_s:.3g} s."
        for group in found.groups
        if group.seen.kept_up and not meets(request, group.seen)
    ]
    if request.site.rule == "percentile" and found.sure.probability < request.site.sure - 0.01:
        notes.append("the budget is not kept with the probability asked for.")
    assumed = [
        name for name, source in request.site.server.sources.items() if source.startswith("assumed")
    ]
    if assumed:
        notes.append(
            f"server {request.site.server.name}: {', '.join(assumed)} are assumed, not measured."
        )
    return tuple(notes)


def _kind(group: Group) -> str:
    o = group.option.operating
    return f"{o.candidate.model.name} on {o.candidate.gpus} x {o.candidate.profile.gpu.name}"


def what_if(found: Found, budgets_w: tuple[float, ...]) -> dict[float, dict[str, float]]:
    """Requests per second of each bin that other budgets would serve, and the plan's own.

    The options are those that the plan ended with, the rule that of its site.
    """
    names = [f"{d.name}[{i}]" for d in found.request.demands for i in range(len(d.workload.bins))]
    if not budgets_w:
        return {}
    result = {found.request.site.budget_w: _rates(names, found)}
    for budget_w in budgets_w:
        result[budget_w] = _rates(names, at_budget(found, budget_w))
    return result


def _rates(names: list[str], found: Found | None) -> dict[str, float]:
    served = np.zeros(len(names)) if found is None else found.fleet.served
    return {name: float(rate) for name, rate in zip(names, served, strict=True)}
