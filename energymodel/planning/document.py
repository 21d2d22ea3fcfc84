"""What a plan says: plain frozen records whose fields are the keys of ``plan --json``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from energymodel.planning.carbon import Sci
from energymodel.planning.defer import Deferral
from energymodel.prediction import Latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """``count`` like replicas, ``spare`` of them standing by; figures are of one that serves.

    ``power_w`` and ``energy_per_request_j`` are of its GPUs (boundary "gpu"). ``ttft_s`` and
    ``itl_s`` are simulated. ``requests_per_s`` is what all of them serve.
    """

    model: str
    gpu: str
    demand: str
    deployment: Mapping[str, Any]
    count: int
    spare: int
    gpus: int
    requests_per_s: float
    power_w: float
    idle_power_w: float
    utilisation: float
    ttft_s: Latency
    itl_s: Latency
    energy_per_request_j: float
    energy_per_output_token_j: float
    meets_objective: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """One candidate at its best batch: what it serves and at which latency; boundary "gpu"."""

    model: str
    gpu: str
    demand: str
    deployment: Mapping[str, Any]
    gpus: int
    requests_per_s: float
    requests_per_j: float
    output_tokens_per_s_per_w: float
    ttft_s: float
    itl_s: float
    power_w: float
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Facility power to set aside by each rule, and how fast it changes (99 % of the time)."""

    mean: float
    percentile: float
    worst: float
    nameplate: float
    ramp_w_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """In the currency of the prices; None where they were not given."""

    per_hour: float | None
    per_million_output_tokens: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A fleet and what it serves, draws and costs.

    ``facility_power_w`` is the mean; the rule of ``provisioning_rule`` keeps within ``budget_w``.
    ``unserved`` maps "demand[bin]" to requests per second. ``power_over_time_w`` is the facility's,
    in slots of ``slot_s``, simulated. ``what_if`` maps other budgets in watts to the requests per
    second of each bin that they would serve. Without a fleet ``feasible`` is False, and ``reason`` says what
    would have to give.
    """

    schema_version: int = 1
    boundary: str = "facility"
    feasible: bool
    reason: str | None = None
    served_requests_per_s: float = 0.0
    demand_requests_per_s: float
    unserved: Mapping[str, float] = field(default_factory=dict)
    facility_power_w: float = 0.0
    facility_power_interval_w: tuple[float, float] = (0.0, 0.0)
    probability_within_budget: float = 1.0
    budget_w: float
    provisioning_rule: str
    it_power_w: float = 0.0
    gpu_power_w: float = 0.0
    pue: float
    replicas: tuple[Replicas, ...] = ()
    gpus: Mapping[str, int] = field(default_factory=dict)
    servers: Mapping[str, int] = field(default_factory=dict)
    racks: int = 0
    energy_per_1000_output_tokens_j: float | None = None
    energy_per_request_j: float | None = None
    provisioning: Setting | None = None
    sensitivity_w: Mapping[str, float] = field(default_factory=dict)
    measure_next: str | None = None
    frontier: tuple[Frontier, ...] = ()
    binding_constraint: str = ""
    budget_for_all_w: float | None = None
    mip_gap: float = 0.0
    sci: Sci | None = None
    cost: Cost = Cost(per_hour=None, per_million_output_tokens=None)
    slot_s: float = 0.1
    power_over_time_w: tuple[float, ...] = ()
    replica_power_over_time_w: tuple[float, ...] = ()
    what_if: Mapping[float, Mapping[str, float]] = field(default_factory=dict)
    deferral: Deferral | None = None
    server: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
