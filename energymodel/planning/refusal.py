"""Why there is no fleet: what binds, and by how much it would have to give."""

from collections.abc import Sequence
from dataclasses import replace

from energymodel.planning.build import Option, problem
from energymodel.planning.candidates import Refused
from energymodel.planning.evaluate import Missed
from energymodel.planning.fleet import most_served
from energymodel.planning.request import Request

# Requests a second below which a replica serves nothing worth a simulation.
LITTLE = 1e-9


def without_choice(
    request: Request, refused: tuple[Refused, ...], missed: tuple[Missed, ...]
) -> tuple[str, str]:
    """(what binds, the sentence that says by how much it would have to give) without any choice."""
    late = [m for m in missed if m.what in ("itl_s", "ttft_s")]
    if late:
        nearest = min(late, key=lambda m: m.value / (getattr(request.objective, m.what) or 1.0))
        name = nearest.what.replace("_", "-")
        asked = getattr(request.objective, nearest.what)
        return nearest.what, (
            f"--{name} {asked:g} cannot be met: the fastest choice, {nearest.candidate.model.name} "
            f"on {nearest.candidate.gpus} x {nearest.candidate.profile.gpu.full_name}, takes "
            f"{nearest.value:.3g} s for a single request."
        )
    if any(m.what == "memory" for m in missed):
        return "memory", "the longest request does not fit the KV cache of any choice."
    if refused:
        return "memory", refused[-1].reason
    return "model", "no step of the models can be tabulated (images, encoders), so none is planned."


def without_fleet(request: Request, options: Sequence[Option]) -> tuple[str, str]:
    """(what binds, the sentence that says so) where there are choices and no fleet of them."""
    programme, spare = problem(request, options, request.site.budget_w), request.site.spare
    and_spare = f" with {spare:,} to spare" if spare else ""
    for name in ("gpus", "racks"):
        if name in programme.limits:
            alone = replace(programme, limits={name: programme.limits[name]})
            if most_served(alone, gap=request.gap).served.sum() <= LITTLE:
                limit = programme.limits[name]
                return name, f"--max-{name} {limit:,.0f} is too few for one replica{and_spare}."
    least_w = _least_budget_w(request, options)
    return "power_w", (
        f"--power-budget-w {request.site.budget_w:g} is too small for one replica{and_spare}, by the "
        f"rule of the site: one that is busy takes about {least_w:,.0f} W."
    )


def _least_budget_w(request: Request, options: Sequence[Option]) -> float:
    """Facility power of the most frugal replica that is busy: with its server, by the rule."""
    found = []
    programme = problem(request, options, request.site.budget_w)
    for option, choice in zip(options, programme.choices, strict=True):
        host = programme.hosts[choice.host]
        replicas = 1 + request.site.spare
        servers = -(-replicas * choice.places // host.places)
        each_w = choice.uses["power_w"].per_replica
        if request.site.rule in ("mean", "percentile"):  # there, that of an idle one
            each_w *= option.busy_w / option.operating.idle_w
        found.append(replicas * each_w + servers * host.uses["power_w"])
    return min(found)
