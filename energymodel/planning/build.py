"""From operating points to the programme that ``fleet`` solves: uses of what is shared."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from energymodel.planning import carbon
from energymodel.planning.evaluate import Operating
from energymodel.planning.fleet import Choice, Host, Problem, Use
from energymodel.planning.request import Money, Request, Site
from energymodel.steps import Floats

PRICE_OF = {"power": "mean_w", "cost": "cost_per_s", "carbon": "g_per_s"}
WITHOUT = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An operating point, and how far simulations of it have been from it so far.

    ``slower`` and ``dearer`` multiply what a request takes of a replica in seconds and joules.
    """

    operating: Operating
    slower: float = 1.0
    dearer: float = 1.0

    @property
    def seconds(self) -> Floats:
        """Of a replica, by a request of each bin."""
        return self.operating.point.seconds * self.slower

    @property
    def joules(self) -> Floats:
        """Of all GPUs of a replica, by a request of each bin, while it is busy; gross."""
        return self.operating.point.joules * self.dearer

    @property
    def busy_w(self) -> float:
        """Mean power of the GPUs of a replica that serves as much as it can."""
        o = self.operating
        return o.point.power_w * self.dearer / self.slower


def first_bins(request: Request) -> list[int]:
    """Where the bins of each demand begin in the list of all bins."""
    sizes = [len(d.workload.bins) for d in request.demands]
    return [sum(sizes[:i]) for i in range(len(sizes))]


def problem(request: Request, options: Sequence[Option], budget_w: float) -> Problem:
    """The programme of a request with a budget of facility power."""
    site, first = request.site, first_bins(request)
    rates = [b.amount for demand in request.demands for b in demand.workload.bins]
    hosts = sorted({o.operating.candidate.profile.gpu.name for o in options})
    limits = {"power_w": budget_w}
    if site.max_gpus is not None:
        limits["gpus"] = float(site.max_gpus)
    if site.max_racks is not None:
        limits["racks"] = float(site.max_racks)
    return Problem(
        demand=np.array(rates),
        worth=np.ones(len(rates)),
        choices=tuple(_choice(request, o, first, hosts) for o in options),
        hosts=tuple(_host(request, name) for name in hosts),
        limits=limits,
        price=PRICE_OF[request.minimise],
        spare=site.spare,
    )


def _choice(request: Request, option: Option, first: list[int], hosts: list[str]) -> Choice:
    o = option.operating
    bins = first[o.demand] + np.arange(len(o.point.seconds))
    gpus, gpu = o.candidate.gpus, o.candidate.profile.gpu
    # What a request adds to an idle replica: its joules less what the replica draws anyway.
    above_j = np.maximum(option.joules - o.idle_w * option.seconds, 0.0)
    per_gpu_w = 1.0 + request.site.server.per_gpu_w
    facility = request.site.pue * per_gpu_w
    mean = Use(per_replica=facility * o.idle_w, per_request=facility * above_j)
    return Choice(
        name=f"{o.candidate.model.name} on {gpus} x {gpu.name}",
        bins=bins,
        seconds=option.seconds,
        uses={
            "power_w": _provisioned(request.site, o, mean),
            "mean_w": mean,
            "gpus": _only(gpus, above_j),
            "racks": _only(0.0, above_j),
            **_priced(request.money, mean, gpus),
        },
        host=hosts.index(gpu.name),
        places=gpus,
    )


def _only(per_replica: float, like: Floats) -> Use:
    return Use(per_replica=float(per_replica), per_request=np.zeros_like(like))


def _provisioned(site: Site, o: Operating, mean: Use) -> Use:
    """Facility power that a replica has to be given by the rule of the site."""
    if site.rule == "worst":
        return _only(site.pue * (1.0 + site.server.per_gpu_w) * o.most_w, mean.per_request)
    if site.rule == "nameplate":
        return _only(0.0, mean.per_request)  # it is the server's
    return mean


def _priced(money: Money, mean: Use, gpus: int) -> dict[str, Use]:
    per_j = (money.price_per_kwh or 0.0) / carbon.J_PER_KWH
    per_gpu_s = (money.price_per_gpu_hour or 0.0) / 3600.0
    grams = money.intensity.g_per_kwh / carbon.J_PER_KWH
    return {
        "cost_per_s": Use(
            per_replica=per_j * mean.per_replica + per_gpu_s * gpus,
            per_request=per_j * mean.per_request,
        ),
        "g_per_s": Use(per_replica=grams * mean.per_replica, per_request=grams * mean.per_request),
    }


def _host(request: Request, name: str) -> Host:
    site, server, money = request.site, request.site.server, request.money
    mean_w = site.pue * server.fixed_w
    power_w = site.pue * server.nameplate_w if site.rule == "nameplate" else mean_w
    embodied_g = 1000.0 * server.embodied_kg / (server.lifetime_years * carbon.YEAR_S)
    return Host(
        name=name,
        places=server.gpus,
        uses={
            "power_w": power_w,
            "mean_w": mean_w,
            "gpus": 0.0,
            "racks": 1.0 / server.servers_per_rack,
            "cost_per_s": (money.price_per_kwh or 0.0) / carbon.J_PER_KWH * mean_w,
            "g_per_s": money.intensity.g_per_kwh / carbon.J_PER_KWH * mean_w + embodied_g,
        },
    )
