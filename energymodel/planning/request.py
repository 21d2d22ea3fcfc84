"""What is asked of a plan: who is to be served, with what, within which limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from energymodel.errors import InputError
from energymodel.model import ModelSpec
from energymodel.planning.candidates import Allowed
from energymodel.planning.carbon import Intensity
from energymodel.planning.evaluate import Objective
from energymodel.planning.server import Server
from energymodel.planning.sureness import Doubts
from energymodel.profile import Profile
from energymodel.workload import Workload

Rule = Literal["mean", "percentile", "worst", "nameplate"]
RULES: tuple[Rule, ...] = ("mean", "percentile", "worst", "nameplate")
Price = Literal["power", "cost", "carbon"]
PRICES: tuple[Price, ...] = ("power", "cost", "carbon")

MOST_WORKLOADS, MOST_BINS = 1000, 20_000
# Requests per second below which the solver does not tell a demand from none.
LEAST_RATE = 1e-3
# Bins beyond which a fleet is solved less exactly.
MANY_BINS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Requests at the rates of ``workload``, which any of ``models`` may serve."""

    name: str
    workload: Workload
    models: tuple[ModelSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where the fleet stands.

    ``rule`` says which power has to stay within ``budget_w`` of facility power: of the percentile, that
    which the fleet exceeds in 1 - ``time_share`` of the time, with probability ``sure``. ``spare``
    replicas of each kind in use stand by.
    """

    budget_w: float
    server: Server
    pue: float = 1.25
    rule: Rule = "percentile"
    time_share: float = 0.99
    sure: float = 0.95
    spare: int = 0
    max_gpus: int | None = None
    max_racks: int | None = None
    doubts: Doubts = field(default_factory=lambda: Doubts(demand=0.0, pue=0.02))


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """Carbon intensity and prices, the latter in one currency; None: not given."""

    intensity: Intensity
    price_per_kwh: float | None = None
    price_per_gpu_hour: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One plan. ``rounds`` is how often a fleet is put right after simulations of it."""

    demands: tuple[Demand, ...]
    profiles: tuple[Profile, ...]
    allowed: Allowed
    objective: Objective
    site: Site
    money: Money
    minimise: Price = "power"
    seed: int = 0
    rounds: int = 3

    @property
    def gap(self) -> float:
        """Relative gap at which the solver may stop: of many bins it would be long in closing it."""
        return 1e-4 if sum(len(d.workload.bins) for d in self.demands) <= MANY_BINS else 2e-3

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        """All that may serve a demand, each once."""
        return tuple({m.name: m for d in self.demands for m in d.models}.values())


def demands_of(
    models: tuple[ModelSpec, ...], workloads: Mapping[str, Workload], *, paired: bool
) -> tuple[Demand, ...]:
    """Each workload with the models that may serve it: all, or its own where they are paired.

    Raises:
        InputError: a workload is no stream of requests, or pairs do not come out even.
    """
    if paired and len(models) != len(workloads):
        raise InputError(
            f"--paired needs as many models as workloads, got {len(models)} and {len(workloads)}."
        )
    bins = sum(len(w.bins) for w in workloads.values())
    if len(workloads) > MOST_WORKLOADS or bins > MOST_BINS:
        raise InputError(
            f"a plan takes at most {MOST_WORKLOADS:,} workloads and {MOST_BINS:,} bins, got "
            f"{len(workloads):,} and {bins:,}: use fewer, larger bins."
        )
    for name, workload in workloads.items():
        _check(name, workload)
    return tuple(
        Demand(name=name, workload=workload, models=(models[i],) if paired else models)
        for i, (name, workload) in enumerate(workloads.items())
    )


def _check(name: str, workload: Workload) -> None:
    if not workload.online:
        raise InputError(
            f"{name}: bins must have requests_per_s, not count: a plan serves a stream of requests."
        )
    if workload.requests < LEAST_RATE:
        raise InputError(
            f"{name}: bins must ask for {LEAST_RATE:g} requests per second or more together, got "
            f"{workload.requests:g}."
        )
    for i, b in enumerate(workload.bins):
        if b.images or b.audio_s or b.num_frames or b.num_inference_steps:
            raise InputError(f"{name}: bins[{i}] must be of text alone to be planned.")
    if all(b.output_tokens < 2 for b in workload.bins):
        raise InputError(
            f"{name}: bins must generate, with output_tokens of 2 or more in one of them."
        )
