"""What samplers do to the logits, in bytes, and what that costs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from step_builders import decode, prefill

from energymodel import io
from energymodel import profile as profiles
from energymodel.deployment import Deployment
from energymodel.engines.vllm import ENGINE, engine_time
from energymodel.engines.vllm_sampling import kernels, sampler_seconds
from energymodel.errors import InputError
from energymodel.find_model import find_model
from energymodel.model import ModelSpec
from energymodel.ops import Op
from energymodel.predict import predict
from energymodel.steps import Floats, Steps
from energymodel.workload import Bin, Workload

PROFILE = profiles.load("h200")
DATA = Path(__file__).resolve().parent.parent / "calibration" / "data" / "h200"
NEW, OLD = (find_model(name)[0] for name in ("Qwen3-8B", "Qwen2.5-7B-Instruct"))
NO_PROMPTS = np.zeros(0, dtype=np.int64)
DRAWN = Deployment(sampling="random")
PENALISED = Deployment(sampling="random", penalties=True)
FILTERED = Deployment(sampling="filtered")


def sampling_of(deployment: Deployment, rows: int, old: bool = True) -> list[Op]:
    model = OLD if old else NEW
    made = ENGINE.lower(model, deployment, decode(100, count=rows), NO_PROMPTS, ())
    return [op for op in made if op.component == "sampling"]


def moved(deployment: Deployment, rows: int, old: bool = True) -> float:
    return sum(op.count * op.hbm_bytes.item() for op in sampling_of(deployment, rows, old))


def test_bytes_of_a_logit_by_hand() -> None:
    rows = 64
    greedy, drawn, penalised = (
        moved(d, rows) / (rows * OLD.vocab_size) for d in (Deployment(), DRAWN, PENALISED)
    )
    # Over the temperature, softmax, noise, and noise under it: 8 + 8 + 4 + 12.
    assert drawn - greedy == pytest.approx(32)
    # Two counts of 64-bit integers (17 each), then three penalties (10, 24, 17).
    assert penalised - drawn == pytest.approx(85)
    greedy, drawn, penalised = (
        moved(d, rows, old=False) / (rows * NEW.vocab_size)
        for d in (Deployment(), DRAWN, PENALISED)
    )
    assert drawn - greedy == pytest.approx(8)
    assert penalised - drawn == pytest.approx(12.125)


def test_greedy_has_one_call_and_prompts_that_sample_nothing_none() -> None:
    assert [op.name for op in sampling_of(Deployment(), 8)] == ["sampling"]
    assert kernels(OLD, Deployment()) == kernels(NEW, Deployment()) == ()
    made = ENGINE.lower(OLD, PENALISED, prefill(64, last=0), NO_PROMPTS, ())
    assert all(op.hbm_bytes == 0.0 for op in made if op.component == "sampling")


def test_what_is_in_no_call() -> None:
    engine = {"sampler_kernel_s": 10.0, "filter_logit_s": 1.0}

    def seconds(
        model: ModelSpec, deployment: Deployment, steps: Steps, sm_count: int = 132
    ) -> tuple[Floats, Floats]:
        return sampler_seconds(model, deployment, steps, engine, sm_count=sm_count)

    four, nine = (seconds(OLD, d, decode(9, count=3)) for d in (DRAWN, PENALISED))
    assert four[0].tolist() == [40.0]
    assert nine[0].tolist() == [90.0]
    assert seconds(NEW, PENALISED, decode(9, count=3))[0].tolist() == [0.0]
    assert seconds(OLD, DRAWN, prefill(64, last=0))[0].tolist() == [0.0]
    # One wave of rows up to as many as there are multiprocessors; half of them are idle at half.
    for rows, waves, busy in ((1, 1.0, 1 / 132), (66, 1.0, 0.5), (264, 2.0, 1.0)):
        at_work, idle = seconds(NEW, FILTERED, decode(9, count=rows))
        assert at_work.item() == pytest.approx(NEW.vocab_size * waves * busy)
        assert idle.item() == pytest.approx(NEW.vocab_size * waves * (1.0 - busy))
    # Half as many multiprocessors take twice as many waves.
    at_work, idle = seconds(NEW, FILTERED, decode(9, count=264), sm_count=66)
    assert (at_work.item(), idle.item()) == (4.0 * NEW.vocab_size, 0.0)


def test_rows_in_a_wave_are_the_multiprocessors_of_the_profile() -> None:
    halved = replace(PROFILE, gpu=replace(PROFILE.gpu, sm_count=66))
    many = decode(9, count=264)
    asked = Workload(bins=(Bin(input_tokens=8, output_tokens=8, count=264),))
    whole, half = (engine_time(NEW, FILTERED, many, p, asked) for p in (PROFILE, halved))
    greedy = engine_time(NEW, Deployment(), many, PROFILE, asked)
    added = half.outside_s - greedy.outside_s
    assert added == pytest.approx(2.0 * (whole.outside_s - greedy.outside_s))


def test_a_sampler_costs_more_than_the_likeliest_token() -> None:
    work = Workload(bins=(Bin(input_tokens=128, output_tokens=64, count=256),))
    joules = [
        predict(OLD, deployment, work, PROFILE).energy_j
        for deployment in (Deployment(), DRAWN, PENALISED)
    ]
    # Measured on this model and batch: 2.4 % more, and 7.2 % more.
    assert joules[1] / joules[0] == pytest.approx(1.024, abs=0.015)
    assert joules[2] / joules[0] == pytest.approx(1.072, abs=0.03)


def test_measured_runs_of_samplers_and_penalties() -> None:
    errors = []
    for run in io.read_runs(DATA / "served_runs.jsonl"):
        if run.model == "Qwen/Qwen2.5-7B-Instruct":
            p = predict(OLD, run.deployment, run.workload, PROFILE)
            errors.append((run.energy_j / p.energy_j - 1, run.duration_s / p.duration_s - 1))
    assert len(errors) == 20
    energy, duration = np.abs(errors).T
    assert np.median(energy) < 0.025
    assert np.median(duration) < 0.02
    assert energy.max() < 0.08
    assert duration.max() < 0.05


def test_components_still_sum_to_the_total() -> None:
    work = Workload(bins=(Bin(input_tokens=128, output_tokens=64, count=64),))
    for deployment in (PENALISED, FILTERED, Deployment(server=True)):
        p = predict(OLD, deployment, work, PROFILE)
        assert sum(c.energy_j for c in p.components.values()) == pytest.approx(p.energy_j)
        assert sum(b.energy_j for b in p.bins) == pytest.approx(p.energy_j)
        assert sum(c.duration_s for c in p.components.values()) == pytest.approx(p.duration_s)


def test_what_was_measured_little_says_so() -> None:
    work = Workload(bins=(Bin(input_tokens=128, output_tokens=64, count=8),))

    def said(**flags: object) -> str:
        return " ".join(predict(OLD, Deployment(**flags), work, PROFILE).warnings)  # type: ignore[arg-type]

    assert "FlashInfer" in said(sampling="filtered")
    assert "HTTP server" in said(server=True)
    assert "enforce_eager was not measured" in said(enforce_eager=True)
    assert "FlashInfer" not in said(sampling="random")


def test_a_server_that_was_not_measured_is_refused() -> None:
    kept = {n: e for n, e in PROFILE.engines["vllm"].items() if not n.startswith("server")}
    without = replace(PROFILE, engines={**PROFILE.engines, "vllm": kept})
    work = Workload(bins=(Bin(input_tokens=8, output_tokens=1, count=1),))
    with pytest.raises(InputError, match="no times of the HTTP server"):
        engine_time(OLD, Deployment(server=True), prefill(8), without, work)
