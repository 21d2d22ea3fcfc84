"""Work that can wait: what the GPUs of a plan could do of it when the online demand is low.

A plan is made for the peak hour of the online demand. In other hours its GPUs have time and its budget
has watts left; replicas may be started anew on the same GPUs every hour. For each level of the online
demand over a day the programme is solved again with the GPUs of the plan, online requests first, and
what is left is offered to the requests that can wait. Without deferral they come at a constant rate,
in the peak hour, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from energymodel.errors import InputError
from energymodel.planning.build import Option, problem
from energymodel.planning.evaluate import Objective
from energymodel.planning.fleet import most_served
from energymodel.planning.plan import Found, operating_points
from energymodel.planning.request import Demand, Request
from energymodel.workload import Workload

HOURS = 24
# Serving an online request counts for as many that can wait.
FIRST = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferral:
    """Requests a day that can wait, and how many of them the fleet serves in either way.

    ``hours`` maps each level of the online demand to the requests per second that could be served
    beside it.
    """

    requests_per_day: float
    served_without_per_day: float
    served_with_per_day: float
    hours: Mapping[float, float]


def deferral(found: Found, waiting: Sequence[Demand], hourly: Sequence[float]) -> Deferral:
    """What the GPUs of a plan serve of work that can wait.

    Args:
        found: The plan for the peak hour.
        waiting: Work that can wait; its rates are means over the day.
        hourly: Online demand in each hour of a day, as a share of the peak.

    Raises:
        InputError: the shares are none, or nothing of the plan can serve that work.
    """
    check_hours(hourly)
    request = found.request
    both = replace(request, demands=(*request.demands, *waiting))
    options = (*found.options, *_options(both, len(request.demands)))
    asked = sum(b.amount for demand in waiting for b in demand.workload.bins)
    all_day = {level: _beside(found, both, options, level) for level in sorted(set(hourly))}
    least = min(all_day[max(hourly)], asked)
    could = sum(all_day[level] for level in hourly) * 3600.0
    return Deferral(
        requests_per_day=asked * HOURS * 3600.0,
        served_without_per_day=least * HOURS * 3600.0,
        served_with_per_day=min(could, asked * HOURS * 3600.0),
        hours=all_day,
    )


def check_hours(hourly: Sequence[float]) -> None:
    """Refuse what is no day.

    Raises:
        InputError: not 24 shares of the peak.
    """
    if len(hourly) != HOURS or not all(0.0 <= share <= 1.0 for share in hourly):
        raise InputError(
            f"--hourly must hold {HOURS} shares of the peak, each from 0 to 1, got {len(hourly)} "
            "numbers."
        )
    if max(hourly) < 1.0:
        raise InputError(f"--hourly must hold 1 in the peak hour; its largest is {max(hourly):g}.")


def _options(both: Request, first: int) -> tuple[Option, ...]:
    """Operating points for the work that can wait, which has no objective."""
    waiting = replace(both, demands=both.demands[first:], objective=Objective())
    found, _, _ = operating_points(waiting)
    if not found:
        raise InputError("--defer: no choice of the plan can serve that work.")
    return tuple(
        replace(o, operating=replace(o.operating, demand=o.operating.demand + first)) for o in found
    )


def _beside(found: Found, both: Request, options: tuple[Option, ...], level: float) -> float:
    """Requests per second that can wait, served beside a share of the online peak."""
    online = len(found.request.demands)
    demands = [_scaled(d, level) for d in both.demands[:online]]
    # In one hour all the work of a day could be done, if there were room for it.
    demands += [_scaled(d, float(HOURS)) for d in both.demands[online:]]
    gpus = int(
        sum(
            n * o.operating.candidate.gpus
            for n, o in zip(found.fleet.replicas, found.options, strict=True)
        )
    )
    site = replace(both.site, max_gpus=gpus)
    scaled = replace(both, demands=tuple(demands), site=site)
    programme = problem(scaled, options, found.problem.limits["power_w"])
    bins = sum(len(d.workload.bins) for d in found.request.demands)
    worth = np.where(np.arange(programme.demand.size) < bins, FIRST, 1.0)
    fleet = most_served(replace(programme, worth=worth), gap=both.gap / FIRST)
    return float(fleet.served[bins:].sum())


def _scaled(demand: Demand, factor: float) -> Demand:
    bins = tuple(
        replace(b, requests_per_s=factor * (b.requests_per_s or 0.0)) for b in demand.workload.bins
    )
    return replace(demand, workload=Workload(bins=bins))
