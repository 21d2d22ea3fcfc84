"""The host's numbers of drafting come back from runs that were made with known ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration.fit_speculative import START, fit_speculative
from energymodel import profile as profiles
from energymodel.costs import planned, step_costs
from energymodel.deployment import Deployment
from energymodel.find_model import find_model
from energymodel.io import Run, read_runs
from energymodel.model import ModelSpec
from energymodel.predict import predict
from energymodel.profile import Estimate
from energymodel.speculative import tokens_per_step
from energymodel.workload import Bin, Workload

DATA = Path(__file__).parents[1] / "calibration" / "data" / "h200" / "speculative_runs.jsonl"
TRUTH = {"sync_step_s": 2.2e-3, "sync_sequence_s": 25e-6, "launch_draft_layer_s": 120e-6}
SHIPPED = profiles.load("h200")
NUMBERS = {n: Estimate(value=v, stderr=0.0, unit="s") for n, v in TRUTH.items()}
PROFILE = replace(SHIPPED, engines={"vllm": {**SHIPPED.engines["vllm"], **NUMBERS}})
NGRAM = Deployment(speculative_model="ngram", num_speculative_tokens=4, acceptance_rate=0.7)
DRAFTS = replace(NGRAM, speculative_model="Qwen3-0.6B")


def made(
    name: str, deployment: Deployment, batch: int, *, disturbed: bool = False
) -> tuple[Run, ModelSpec]:
    """A run that takes what is predicted with the true numbers; a third of its steps longer, or none."""
    model = find_model(name)[0]
    workload = Workload(bins=(Bin(input_tokens=512, output_tokens=128, count=batch),))
    served, schedule = planned(model, deployment, workload, PROFILE.gpu)
    costs = step_costs(model, deployment, served, schedule, PROFILE)
    weight = schedule.steps.weight
    step_s = np.repeat(costs.step_s, weight.astype(int))
    if disturbed:
        step_s[::3] *= 1.7
    run = Run(
        model=model.name,
        gpu="h200",
        deployment=deployment,
        workload=workload,
        energy_j=float(weight @ costs.step_j) + costs.submit_j,
        duration_s=float(step_s.sum()) + costs.submit_s,
        extra={"step_us": [float(s) for s in step_s * 1e6]},
    )
    return run, model


@pytest.mark.parametrize("disturbed", [False, True])
def test_numbers_come_back_though_the_host_was_disturbed(disturbed: bool) -> None:
    runs = [
        made(name, deployment, batch, disturbed=disturbed)
        for name in ("Qwen3-8B", "Qwen3-4B")
        for deployment in (DRAFTS, NGRAM)
        for batch in (1, 8, 64)
    ]
    fit = fit_speculative(runs, SHIPPED)
    assert set(fit.engine) == set(TRUTH) == set(START)
    for name, value in TRUTH.items():
        assert fit.engine[name].value == pytest.approx(value, rel=0.1)
    assert abs(fit.step_error).max() < 0.02
    assert (abs(fit.duration_error).max() < 0.03) != disturbed


def test_measured_runs_are_met_and_yield_the_tokens_that_are_expected() -> None:
    runs = read_runs(DATA)
    energy, duration = [], []
    for run in runs:
        found = predict(find_model(run.model)[0], run.deployment, run.workload, SHIPPED)
        energy.append(abs(found.energy_j / run.energy_j - 1))
        duration.append(abs(found.duration_s / run.duration_s - 1))
        counts = run.extra["speculative"]
        assert isinstance(counts, dict)
        if counts["drafts"] > 500:
            made = 1 + counts["accepted_tokens"] / counts["drafts"]
            assert made == pytest.approx(tokens_per_step(run.deployment), rel=0.02)
    assert len(runs) == 10
    assert float(np.median(energy)) < 0.1
    assert float(np.median(duration)) < 0.1
