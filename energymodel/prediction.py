"""What a prediction says: plain frozen records whose fields are the keys of ``predict --json``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEnergy:
    """Energy and time of one phase of the run; phases sum to the totals."""

    energy_j: float
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentEnergy:
    """Energy, work and time of one component over the run; components sum to the totals."""

    energy_j: float
    flop: float
    hbm_bytes: float
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BinEnergy:
    """Energy attributed to the requests of one bin; bins sum to the total.

    ``media_tokens`` are what the images and the sound of a request add to its ``input_tokens``.
    """

    input_tokens: int
    output_tokens: int
    count: int
    media_tokens: int = 0
    energy_j: float
    prefill_j: float
    decode_j: float
    energy_per_output_token_j: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Mean and percentiles over requests (TTFT) or over output tokens (ITL), seconds."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What a simpler method would say; ``ratio`` is its energy over the predicted one."""

    energy_j: float
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One cause of energy: how much of it there was, and what it cost.

    ``amount`` is in the unit of the cause; ``full_clock_j`` is what it would have cost at full clock.
    """

    amount: float
    full_clock_j: float
    energy_j: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseCauses:
    """What the energy of a phase was spent on; ``explain`` compares it between predictions.

    ``tokens`` computed in ``steps`` passes over the model (a pass that phases share counts to each
    by its tokens); of pipelines samples, of the idle phase requests. ``flop`` in FLOP; bytes of
    ``weights`` and of other ``data``; ``time`` of the kernels at full clock, ``gaps`` between them
    and ``collective`` operations in seconds. All ``energy_j`` sum to that of the phase.
    """

    tokens: float
    steps: float
    flop: Cause
    weights: Cause
    data: Cause
    time: Cause
    gaps: Cause
    collective: Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """SM clock over the busy time of the run, weighted by time."""

    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Online:
    """What became of requests that arrived in time, over the span of the prediction.

    ``requests_per_s`` arrived, ``capacity_requests_per_s`` is what the replica serves of the same
    requests when some always wait (None where that was not asked). ``utilisation``: share of the
    time in which a step ran. ``running`` and ``waiting``: requests at a time, in the mean.
    ``saturated``: the queue grew without end, so that latencies say how long it was looked at.
    ``queue_s`` until the first chunk of a prompt ran, ``e2e_s`` until the last token.
    """

    arrivals: str
    seed: int | None
    requests_per_s: float
    capacity_requests_per_s: float | None
    saturated: bool
    utilisation: float
    running: float
    waiting: float
    queue_s: Latency
    e2e_s: Latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Energy, time and latency of one workload on one replica.

    ``energy_j`` is gross over all GPUs of the replica and the whole run, idle included; boundary
    "gpu". ``energy_interval_j`` and ``duration_interval_s`` hold the energy and the duration of a
    measured run with probability ``interval_level``. ``power_limited_share`` is the share of time
    that the power limit held the clock below its maximum. Fields that make no sense for the workload (latency of an output
    that is never produced) are None.
    """

    schema_version: int = 1
    model: str
    gpu: str
    gpus: int = 1
    engine: str
    deployment: Mapping[str, Any]
    boundary: str = "gpu"
    requests: int
    input_tokens: int
    output_tokens: int
    duration_s: float
    energy_j: float
    energy_interval_j: tuple[float, float]
    duration_interval_s: tuple[float, float]
    interval_level: float
    mean_power_w: float
    energy_per_request_j: float
    energy_per_output_token_j: float | None
    output_tokens_per_s: float
    ttft_s: Latency | None
    itl_s: Latency | None
    phases: Mapping[str, PhaseEnergy]
    components: Mapping[str, ComponentEnergy]
    bins: tuple[BinEnergy, ...]
    flop_only: Baseline
    baselines: Mapping[str, Baseline]
    clock_hz: Clock
    power_limited: bool
    power_limited_share: float
    online: Online | None = None
    causes: Mapping[str, PhaseCauses] = field(default_factory=dict)
    attribution: str = "proportional"
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
