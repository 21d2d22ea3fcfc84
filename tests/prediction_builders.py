"""Predictions by hand, for tests of what is done with them."""

from dataclasses import asdict, replace
from typing import Any

from energymodel.deployment import Deployment
from energymodel.prediction import (
    Baseline,
    BinEnergy,
    Clock,
    ComponentEnergy,
    Latency,
    PhaseEnergy,
    Prediction,
)


def a_bin(energy_j: float = 100.0, count: int = 4) -> BinEnergy:
    return BinEnergy(
        input_tokens=512,
        output_tokens=128,
        count=count,
        energy_j=energy_j,
        prefill_j=energy_j / 4,
        decode_j=3 * energy_j / 4,
        energy_per_output_token_j=energy_j / count / 128,
    )


PREDICTION = Prediction(
    model="Qwen/Qwen3-8B",
    gpu="h200",
    engine="vllm",
    deployment=asdict(Deployment()),
    requests=4,
    input_tokens=2048,
    output_tokens=512,
    duration_s=0.5,
    energy_j=100.0,
    energy_interval_j=(95.0, 105.0),
    duration_interval_s=(0.48, 0.52),
    interval_level=0.9,
    mean_power_w=200.0,
    energy_per_request_j=25.0,
    energy_per_output_token_j=100 / 512,
    output_tokens_per_s=1024.0,
    ttft_s=Latency(mean=0.02, p50=0.02, p90=0.03, p99=0.04),
    itl_s=Latency(mean=0.004, p50=0.004, p90=0.005, p99=0.006),
    phases={
        "prefill": PhaseEnergy(energy_j=25.0, duration_s=0.1),
        "decode": PhaseEnergy(energy_j=75.0, duration_s=0.4),
        "idle": PhaseEnergy(energy_j=0.0, duration_s=0.0),
    },
    components={
        "attention_projections": ComponentEnergy(
            energy_j=40.0, flop=2e13, hbm_bytes=4e11, duration_s=0.2
        ),
        "mlp": ComponentEnergy(energy_j=50.0, flop=5e13, hbm_bytes=8e11, duration_s=0.25),
        "overhead": ComponentEnergy(energy_j=10.0, flop=0.0, hbm_bytes=0.0, duration_s=0.05),
    },
    bins=(a_bin(),),
    flop_only=Baseline(energy_j=41.0, ratio=0.41),
    baselines={"tdp": Baseline(energy_j=350.0, ratio=3.5)},
    clock_hz=Clock(mean=1.758e9),
    power_limited=False,
    power_limited_share=0.0,
    provenance={"profile": "h200", "kind": "measured"},
)


def a_prediction(**changes: Any) -> Prediction:
    return replace(PREDICTION, **changes)
