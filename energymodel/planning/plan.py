"""The straight line of a plan: candidates, their best batches, a fleet, simulations of it, sureness.

A fleet is solved, each kind of replica in it is simulated with its share of the requests, and what
the simulation found (slower, hungrier) goes back into the programme, a few rounds at most. Inside a
round the budget that the programme sees is lowered until the rule of the site holds for the real one.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from energymodel.errors import InputError
from energymodel.planning.build import Option, problem
from energymodel.planning.candidates import Candidate, Refused, candidates
from energymodel.planning.doubt import Doubt, doubt_of
from energymodel.planning.evaluate import Missed, Operating, evaluate, mix_of, pareto
from energymodel.planning.fleet import Fleet, Problem, most_served
from energymodel.planning.provision import Course, Provisioning, provisioning
from energymodel.planning.refusal import LITTLE, without_choice, without_fleet
from energymodel.planning.request import Demand, Request
from energymodel.planning.sureness import Load, Sureness, sureness
from energymodel.planning.verify import SLOT_S, Seen, server_of, watch
from energymodel.progress import tell
from energymodel.simulation import Replica
from energymodel.steps import Floats
from energymodel.workload import Workload

# What a simulation may miss the objective by.
TOLERANCE = 0.02
# Share of its rate that a choice which misses it is tried at first and at least, and how nearly the
# largest that meets it is found.
FIRST_KEPT, LEAST_KEPT, STEP_BACK = 0.93, 0.4, 0.02
# Difference of joules between programme and simulation that is put right, and the load from which on
# a replica tells them.
DEARER, BUSY = 0.01, 0.8
# How often the budget of the programme is moved until the rule of the site just holds, how far below
# the budget of the site it may end, and how often a guess in proportion may be too much.
BUDGET_ROUNDS, BELOW, TRUSTED = 12, 2e-3, 3
# Difference in load, summed over bins, below which replicas are not simulated again.
ALIKE = 0.1
# Requests that all kinds of replicas together are simulated with, each between the bounds of
# ``verify``.
REQUESTS = 30_000
# Threads that price candidates.
MOST_THREADS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Replicas of one option in the fleet, and what their simulation showed."""

    option: Option
    count: int
    rates: Floats
    seen: Seen
    doubt: Doubt


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A fleet with all that was found out about it; ``problem`` is the last that was solved.

    ``known`` is what was found on the way.
    """

    request: Request
    options: tuple[Option, ...]
    refused: tuple[Refused, ...]
    missed: tuple[Missed, ...]
    problem: Problem
    fleet: Fleet
    groups: tuple[Group, ...]
    power: Provisioning
    sure: Sureness
    known: "Known"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """No fleet, and the one sentence that says what would have to give; ``binding`` names it."""

    request: Request
    refused: tuple[Refused, ...]
    missed: tuple[Missed, ...]
    binding: str
    reason: str


def find(request: Request) -> Found | Nothing:
    """The best fleet for a request.

    Raises:
        InputError: the request cannot be planned at all; the message names the field.
        WorkError: the solver found nothing in its time.
    """
    options, refused, missed = operating_points(request)
    if not options:
        binding, reason = without_choice(request, refused, missed)
        return Nothing(
            request=request, refused=refused, missed=missed, binding=binding, reason=reason
        )
    known, budget_w = Known(seen={}, doubts={}, servers={}), request.site.budget_w
    for round_ in range(request.rounds + 1):
        tell("fleet", round_, request.rounds)
        found = _solve(request, (options, refused, missed), known, budget_w)
        if found is None:
            binding, reason = without_fleet(request, options)
            return Nothing(
                request=request, refused=refused, missed=missed, binding=binding, reason=reason
            )
        budget_w = found.problem.limits["power_w"]
        options = _corrected(request, found, known)
        if round_ == request.rounds or options == found.options:
            return found
    raise AssertionError("unreachable")


def operating_points(
    request: Request,
) -> tuple[tuple[Option, ...], tuple[Refused, ...], tuple[Missed, ...]]:
    """(what may be in a fleet, what does not fit, what misses the objective)."""
    fit, refused = candidates(request.models, request.profiles, request.allowed)
    mixes = [mix_of(demand.workload) for demand in request.demands]
    done: list[Operating] = []
    missed: list[Missed] = []

    def one(candidate: Candidate) -> tuple[list[Operating], list[Missed]] | Refused:
        mine = [
            (k, mixes[k])
            for k, demand in enumerate(request.demands)
            if _may_serve(candidate, demand)
        ]
        try:
            return evaluate(candidate, mine, request.objective)
        except InputError as error:
            return Refused(
                model=candidate.model.name, deployment=candidate.deployment, reason=str(error)
            )

    # Most of the time is spent inside numpy, which lets other threads run.
    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, MOST_THREADS)) as pool:
        for i, found in enumerate(pool.map(one, fit)):
            tell("candidates", i + 1, len(fit))
            if isinstance(found, Refused):
                refused.append(found)
            else:
                done += found[0]
                missed += found[1]
    return tuple(Option(operating=o) for o in pareto(done)), tuple(refused), tuple(missed)


def _may_serve(candidate: Candidate, demand: Demand) -> bool:
    return any(model.name == candidate.model.name for model in demand.models)


Points = tuple[tuple[Option, ...], tuple[Refused, ...], tuple[Missed, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What was found so far: simulations of an option by load, doubts by candidate and demand."""

    seen: dict[tuple[int, float], list[tuple[Floats, Seen]]]
    doubts: dict[tuple[int, int], Doubt]
    servers: dict[int, Replica]

    def unseen(self) -> "Known":
        """The same without simulations, which depend on the loads that came before."""
        return Known(seen={}, doubts=self.doubts, servers=self.servers)


def _solve(request: Request, points: Points, known: Known, budget_w: float) -> Found | None:
    """The fleet that serves most with the power of its rule within the budget; None where there is none.

    ``budget_w`` is what the programme is given at first: what it counts as used and what the rule of the
    site needs for the fleet differ, about in proportion. The largest budget of the programme whose
    fleet fits is enclosed from both sides.
    """
    site, best = request.site, None
    low, high, at_w, misses = 0.0, float("inf"), budget_w, 0
    for _ in range(BUDGET_ROUNDS):
        found = _fleet_within(request, points, known, at_w)
        guess_w = at_w
        if found is not None:
            used_w, share = found.fleet.used["power_w"], needed(found) / site.budget_w
            bound = used_w > (1.0 - request.gap - BELOW) * at_w
            if share <= 1.0 and (best is None or _served(found) > _served(best)):
                best = found
            if share <= 1.0 and (share >= 1.0 - BELOW or _served(found) >= _all(found)):
                break
            # Replicas are whole: what a budget leaves over may be too little for one more.
            guess_w = (used_w if bound or share > 1.0 else at_w) / share * (1.0 - 0.5 * BELOW)
            if share > 1.0:
                high, misses = min(high, used_w), misses + 1
        if found is None or share <= 1.0:
            low = max(low, at_w)
        if (high == float("inf") and found is None) or high - low <= BELOW * high < float("inf"):
            break
        # In small fleets what is needed hardly follows what is given: then the bracket is halved.
        inside = misses < TRUSTED and low * (1.0 + BELOW) < guess_w < high * (1.0 - BELOW)
        at_w = guess_w if inside or high == float("inf") else 0.5 * (low + high)
    return best


def at_budget(found: Found, budget_w: float) -> Found | None:
    """The fleet of the same options within another budget, by the rule of the site."""
    request = replace(found.request, site=replace(found.request.site, budget_w=budget_w))
    points = (found.options, found.refused, found.missed)
    return _solve(request, points, found.known.unseen(), budget_w)


def budget_for_all(found: Found) -> float | None:
    """Facility power that a fleet for all of the demand needs by the rule; None where there is none."""
    points = (found.options, found.refused, found.missed)
    everything = _fleet_within(found.request, points, found.known.unseen(), float("inf"))
    if everything is None or _served(everything) < _all(everything):
        return None
    return needed(everything)


def _all(found: Found) -> float:
    """Requests per second that are as good as the whole demand."""
    return (1.0 - found.request.gap) * float(found.problem.demand.sum())


def _served(found: Found) -> float:
    return float(found.fleet.served.sum())


def _fleet_within(request: Request, points: Points, known: Known, at_w: float) -> Found | None:
    """The fleet that the programme finds with a budget, simulated; None where it serves nothing."""
    options, refused, missed = points
    programme = problem(request, options, at_w)
    fleet = most_served(programme, gap=request.gap)
    if fleet.served.sum() <= LITTLE:
        return None
    groups = _groups(request, options, fleet, known)
    power, sure = _weighed(request, fleet, groups)
    return Found(
        request=request,
        options=options,
        refused=refused,
        missed=missed,
        problem=programme,
        fleet=fleet,
        groups=groups,
        power=power,
        sure=sure,
        known=known,
    )


def _groups(
    request: Request, options: tuple[Option, ...], fleet: Fleet, known: Known
) -> tuple[Group, ...]:
    used = [
        (i, option, int(count), rates)
        for i, (option, count, rates) in enumerate(
            zip(options, fleet.replicas, fleet.rates, strict=True)
        )
        if count and rates.sum() > LITTLE
    ]
    groups = []
    for i, option, count, rates in used:
        serving = max(count - request.site.spare, 1)
        load = option.seconds * rates / serving
        runs = known.seen.setdefault((i, option.slower), [])
        seen = next((s for was, s in runs if np.abs(load - was).sum() <= ALIKE), None)
        if seen is None:
            seen = _watched(request, option, rates / serving, REQUESTS // len(used), known)
            runs.append((load, seen))
        groups.append(
            Group(
                option=option,
                count=count,
                rates=rates,
                seen=seen,
                doubt=_doubt(request, option, known),
            )
        )
    return tuple(groups)


def _watched(request: Request, option: Option, rates: Floats, most: int, known: Known) -> Seen:
    o = option.operating
    if id(o.candidate) not in known.servers:
        known.servers[id(o.candidate)] = server_of(o.candidate)
    bins = request.demands[o.demand].workload.bins
    workload = Workload(
        bins=tuple(
            replace(b, requests_per_s=float(r))
            for b, r in zip(bins, rates, strict=True)
            if r > LITTLE
        )
    )
    server = known.servers[id(o.candidate)]
    return watch(o, server, workload, request.objective.percentile, (most, request.seed))


def _doubt(request: Request, option: Option, known: Known) -> Doubt:
    o = option.operating
    key = (id(o.candidate), o.demand)
    if key not in known.doubts:
        mix = mix_of(request.demands[o.demand].workload)
        known.doubts[key] = doubt_of(o.candidate.model, o.deployment, o.candidate.profile, mix)
    return known.doubts[key]


def _weighed(
    request: Request, fleet: Fleet, groups: tuple[Group, ...]
) -> tuple[Provisioning, Sureness]:
    """(GPU power by each rule; facility power and how sure it is) of a fleet."""
    site, courses, loads = request.site, [], []
    for group in groups:
        o, spare = group.option.operating, site.spare
        profile, gpus = o.candidate.profile, o.candidate.gpus
        nameplate_w = gpus * profile.gpu.power_limit_w
        idle_course = np.full(1, o.idle_w)
        for count, course_w, most_w in (
            (group.count - spare, group.seen.course_w, group.seen.most_w),
            (spare, idle_course, o.idle_w),
        ):
            courses.append(
                Course(
                    count=count,
                    slot_s=SLOT_S,
                    power_w=course_w,
                    most_w=max(most_w, float(course_w.max())),
                    nameplate_w=nameplate_w,
                )
            )
            loads.append(
                Load(
                    count=count,
                    gpus=gpus,
                    gpu_power_w=float(course_w.mean()),
                    idle_power_w=o.idle_w,
                    model_deviation=group.doubt.model,
                    board_deviation=group.doubt.board,
                    server_fixed_w=0.0,
                    server_per_gpu_w=site.server.per_gpu_w,
                )
            )
    hosts = int(fleet.hosts.sum())
    loads.append(_servers(request, hosts))
    power = provisioning(courses, percentile=site.time_share, seed=request.seed)
    above_w = site.pue * (1.0 + site.server.per_gpu_w) * (power.percentile - power.mean)
    sure = sureness(
        loads,
        pue=site.pue,
        budget_w=site.budget_w - (above_w if site.rule == "percentile" else 0.0),
        doubts=site.doubts,
        sure=site.sure,
        seed=request.seed,
    )
    return power, sure


def _servers(request: Request, hosts: int) -> Load:
    """What servers draw beside their GPUs and what goes with those."""
    return Load(
        count=hosts,
        gpus=1,
        gpu_power_w=0.0,
        idle_power_w=0.0,
        model_deviation=0.0,
        board_deviation=0.0,
        server_fixed_w=request.site.server.fixed_w,
        server_per_gpu_w=0.0,
    )


def facility_w(request: Request, gpu_w: float, hosts: int) -> float:
    """Power of the facility while all GPUs together draw ``gpu_w``."""
    site = request.site
    return site.pue * (hosts * site.server.fixed_w + (1.0 + site.server.per_gpu_w) * gpu_w)


def settings(found: Found) -> Mapping[str, float]:
    """Facility power to set aside by each rule."""
    request, power, hosts = found.request, found.power, int(found.fleet.hosts.sum())
    site = request.site
    return {
        "mean": facility_w(request, power.mean, hosts),
        "percentile": facility_w(request, power.percentile, hosts),
        "worst": facility_w(request, power.worst, hosts),
        "nameplate": site.pue * hosts * site.server.nameplate_w,
    }


def needed(found: Found) -> float:
    """Budget of facility power that the fleet needs for the rule of its site to hold."""
    site = found.request.site
    if site.rule != "percentile":
        return settings(found)[site.rule]
    rules = settings(found)
    return found.sure.sure_w + rules["percentile"] - rules["mean"]


def _corrected(request: Request, found: Found, known: Known) -> tuple[Option, ...]:
    """Options as their simulations showed them: slower where they miss the objective, hungrier."""
    better = list(found.options)
    index = {id(option): i for i, option in enumerate(found.options)}
    for group in found.groups:
        option, rates = group.option, group.rates / max(group.count - request.site.spare, 1)
        run = (request, option, rates, REQUESTS // len(found.groups), known)
        kept, seen = (1.0, group.seen) if meets(request, group.seen) else _kept(*run)
        load = float(option.seconds @ rates)
        slower = option.slower / (kept * min(load, 1.0)) if kept < 1.0 else option.slower
        dearer = option.dearer
        if load > BUSY:
            ratio = seen.power_w / (kept * float(option.joules @ rates))
            dearer *= ratio if abs(ratio - 1.0) > DEARER else 1.0
        i = index[id(option)]
        better[i] = replace(option, slower=slower, dearer=dearer)
        if kept < 1.0:  # it has been simulated at the load that it may have from now on
            told = (better[i].seconds * kept * rates, seen)
            known.seen.setdefault((i, slower), []).append(told)
    return tuple(better)


def _kept(
    request: Request, option: Option, rates: Floats, requests: int, known: Known
) -> tuple[float, Seen]:
    """(the share of its rates at which a replica meets the objective, its simulation there).

    The largest to ``STEP_BACK``, by halving; the least that is tried where none does.
    """
    low, high = LEAST_KEPT, 1.0
    kept, seen = low, None
    at = FIRST_KEPT
    while high - low > STEP_BACK:
        found = _watched(request, option, at * rates, requests, known)
        if meets(request, found):
            low, kept, seen = at, at, found
        else:
            high = at
        at = 0.5 * (low + high)
    return kept, seen or _watched(request, option, kept * rates, requests, known)


def meets(request: Request, seen: Seen) -> bool:
    """Whether a simulated replica kept up and met the objective, within ``TOLERANCE``."""
    objective = request.objective
    return seen.kept_up and all(
        limit is None or value <= limit * (1.0 + TOLERANCE)
        for limit, value in ((objective.ttft_s, seen.ttft_s), (objective.itl_s, seen.itl_s))
    )
