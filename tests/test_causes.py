"""What energy was spent on: it adds up, and its amounts are those of the operations."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from test_predict import DENSE, MOE, PROFILE, a_deployment, a_name, a_workload, one_bin, run
from test_predict import MODELS as BY_NAME

from energymodel.causes import WEIGHT_KINDS
from energymodel.deployment import Deployment
from energymodel.diffusion.predict import predict as predict_pipeline
from energymodel.engines.vllm import cache_room
from energymodel.find_model import find_any
from energymodel.ops import lower
from energymodel.predict import predict
from energymodel.prediction import Cause, PhaseCauses, Prediction
from energymodel.serving import schedule_offline
from energymodel.workload import Bin, Workload

NAMES = ("flop", "weights", "data", "time", "gaps", "collective")


def each(causes: PhaseCauses) -> dict[str, Cause]:
    return {name: getattr(causes, name) for name in NAMES}


def check_sums(p: Prediction) -> None:
    assert set(p.causes) == {name for name, phase in p.phases.items() if phase.duration_s} | (
        set(p.phases) - {"idle"}
    )
    for name, causes in p.causes.items():
        phase, parts = p.phases[name], each(causes)
        spent_j = sum(cause.energy_j for cause in parts.values())
        assert spent_j == pytest.approx(phase.energy_j, rel=1e-9, abs=1e-9)
        assert all(
            c.amount >= 0 and c.full_clock_j >= 0 and c.energy_j >= 0 for c in parts.values()
        )
    flop = sum(causes.flop.amount for causes in p.causes.values())
    moved = sum(causes.weights.amount + causes.data.amount for causes in p.causes.values())
    assert flop == pytest.approx(sum(c.flop for c in p.components.values()))
    assert moved == pytest.approx(sum(c.hbm_bytes for c in p.components.values()))


@settings(max_examples=15, deadline=None)
@given(a_name, a_workload, a_deployment)
def test_causes_sum_to_the_phases(name: str, workload: Workload, deployment: Deployment) -> None:
    p = predict(BY_NAME[name], deployment, workload, PROFILE)
    check_sums(p)
    # The prompt's pass makes the first token; what a preemption took is computed again.
    asked = sum(b.amount * (b.input_tokens + max(b.output_tokens - 1, 0)) for b in workload.bins)
    assert p.causes["prefill"].tokens + p.causes["decode"].tokens >= asked
    assert p.causes["prefill"].tokens >= workload.input_tokens
    assert p.causes["idle"].tokens == workload.requests


def test_tokens_and_passes_by_hand() -> None:
    # 4 prompts of 100 in one pass, which makes the first of 11 tokens; then 10 passes for all 4.
    p = run(workload=one_bin(100, 11, 4))
    prefill, decode = p.causes["prefill"], p.causes["decode"]
    assert (prefill.tokens, prefill.steps) == (400, 1)
    assert (decode.tokens, decode.steps) == (40, 10)
    layers = 2 * sum(
        DENSE.num_hidden_layers * width * 4096
        for width in (4096 + 2 * 1024, 4096, 2 * 14336, 14336)
    )
    head = 2 * 4096 * DENSE.vocab_size
    assert prefill.weights.amount == pytest.approx(layers + head)
    assert decode.weights.amount == pytest.approx(10 * (layers + head))
    # At full clock nothing is saved or lost by the clock.
    assert decode.weights.energy_j == pytest.approx(decode.weights.full_clock_j, rel=1e-3)


def test_the_clock_saves_dynamic_energy_and_stretches_time() -> None:
    free, held = (run(workload=one_bin(2048, 1, 32), power_limit_w=w) for w in (700.0, 400.0))
    for p in (free, held):
        causes = p.causes["prefill"]
        assert causes.flop.energy_j < causes.flop.full_clock_j
        assert causes.time.energy_j > causes.time.full_clock_j * 0.8
    a, b = free.causes["prefill"], held.causes["prefill"]
    assert b.flop.full_clock_j == pytest.approx(a.flop.full_clock_j)
    assert b.time.amount == pytest.approx(a.time.amount)
    assert b.flop.energy_j < a.flop.energy_j
    assert b.time.energy_j > a.time.energy_j


def test_weights_are_shared_by_a_pass_and_caches_are_not() -> None:
    one, many = (run(MOE, one_bin(512, 64, n)).causes["decode"] for n in (1, 64))
    assert many.tokens == 64 * one.tokens
    assert many.steps == pytest.approx(one.steps, rel=0.1)
    assert many.data.amount == pytest.approx(64 * one.data.amount, rel=0.05)
    assert one.weights.amount < many.weights.amount < 20 * one.weights.amount


def test_only_products_and_experts_have_weights() -> None:
    steps = schedule_offline(
        one_bin(), Deployment(), cache_room(MOE, Deployment(), PROFILE.gpu).tokens_within_windows
    ).steps
    for op in lower(MOE, Deployment(), steps):
        if op.component == "attention":
            assert op.kind not in WEIGHT_KINDS


@pytest.mark.parametrize("flags", [{}, {"hbm_byte_j": 4.3e-11}, {"quantization": "fp8"}])
def test_other_boards_and_formats_add_up(flags: dict[str, Any]) -> None:
    check_sums(run(DENSE, one_bin(300, 40, 100), **flags))


def test_images_add_up_by_stage() -> None:
    pipeline, _ = find_any("stabilityai/stable-diffusion-xl-base-1.0")
    load = Workload(bins=(Bin(input_tokens=77, output_tokens=0, count=3),))
    p = predict_pipeline(pipeline, Deployment(max_num_seqs=2), load, PROFILE)
    check_sums(p)
    assert p.causes["vae"].tokens == 3
    assert p.causes["vae"].steps == 2
    steps = p.causes["denoise"].steps
    # Guidance doubles what a pass sees.
    assert p.causes["denoise"].tokens == pytest.approx(2 * 3 * steps / 2)
    assert np.isfinite([c.energy_j for c in each(p.causes["text_encoder"]).values()]).all()
