"""What the engine is fitted to goes the way of a prediction, whatever kind of model was run."""

import numpy as np
import pytest

from calibration.fit_engine import fit_engine, fit_host, log_errors, prepare, stacked, with_vllm
from energymodel import profile as profiles
from energymodel.costs import planned
from energymodel.deployment import Deployment
from energymodel.engines.vllm import engine_time
from energymodel.find_model import find_model
from energymodel.io import Run
from energymodel.model import ModelSpec
from energymodel.predict import predict
from energymodel.workload import Bin, Workload

PROFILE = profiles.load("h200")
TIGHT = Deployment(gpu_memory_utilization=0.25)

SHOWN = Bin(input_tokens=60, output_tokens=8, count=6, images=2, image_width=640, image_height=480)
HEARD = Bin(input_tokens=4, output_tokens=20, count=5, audio_s=12.0)
TOLD = Bin(input_tokens=300, output_tokens=30, count=40)
LONG = Bin(input_tokens=6000, output_tokens=300, count=60)

RUNS = {
    "images": ("Qwen/Qwen2.5-VL-7B-Instruct", Deployment(), SHOWN),
    "sound": ("openai/whisper-tiny", Deployment(), HEARD),
    "encoder-decoder": ("google/flan-t5-base", Deployment(max_num_batched_tokens=1000), TOLD),
    "recurrent": ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", TIGHT, LONG),
    "windows": ("google/gemma-2-9b-it", TIGHT, LONG),
}


def made_up(name: str) -> tuple[Run, ModelSpec]:
    """A run that took what is predicted of it."""
    model_name, deployment, only = RUNS[name]
    model, workload = find_model(model_name)[0], Workload(bins=(only,))
    predicted = predict(model, deployment, workload, PROFILE)
    served, schedule = planned(model, deployment, workload, PROFILE.gpu)
    added = engine_time(model, deployment, schedule.steps, PROFILE, served)
    run = Run(
        model=model_name,
        gpu="h200",
        deployment=deployment,
        workload=workload,
        energy_j=predicted.energy_j,
        duration_s=predicted.duration_s,
        extra={"step_us": [float(added.submit_s + added.launch_s[0]) * 1e6]},
    )
    return run, model


@pytest.mark.parametrize("name", RUNS)
def test_runs_are_prepared_as_they_are_predicted(name: str) -> None:
    cases = prepare([made_up(name)], PROFILE)
    errors = np.array(log_errors(stacked(cases), cases, PROFILE))
    assert errors == pytest.approx(0.0, abs=1e-9)


def test_runs_with_images_and_sound_are_fitted() -> None:
    cases = prepare([made_up("images"), made_up("sound")], PROFILE)
    assert cases[0].workload.bins[0].input_tokens > SHOWN.input_tokens
    assert cases[1].workload.bins[0].input_tokens == 1500
    fitted = with_vllm(PROFILE, {**PROFILE.engines["vllm"], **fit_host(cases)})
    for case in cases:
        deployment, steps = case.run.deployment, case.schedule.steps
        added = engine_time(case.model, deployment, steps, fitted, case.workload)
        first_us = float(added.submit_s + added.launch_s[0]) * 1e6
        assert [first_us] == pytest.approx(case.run.extra["step_us"], rel=0.2)
    assert fit_engine(cases, PROFILE).engine["step_s"].value > 0
