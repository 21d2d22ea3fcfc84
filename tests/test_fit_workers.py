"""What worker processes add comes back from runs that were made with it."""

from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np
import pytest
from fabric_builders import estimate, with_fabric

from calibration.fit_workers import byte_j_of, with_whole_runs
from energymodel import profile as profiles
from energymodel.costs import planned, step_costs
from energymodel.deployment import Deployment
from energymodel.find_model import find_model
from energymodel.io import Run, read_runs
from energymodel.model import ModelSpec
from energymodel.predict import predict
from energymodel.profile import Profile
from energymodel.workload import Bin, Workload

TRUTH = {
    "launch_layer_s": 4e-4,
    "launch_graph_layer_s": 1e-4,
    "step_s": 2e-4,
    "sequence_s": 3e-6,
    "submit_request_s": 1e-4,
}
SKEW = 0.2
PLAIN = with_fabric(profiles.load("h200"))
assert PLAIN.fabric is not None
TRUE = replace(
    PLAIN,
    fabric=replace(
        PLAIN.fabric,
        skew=estimate(SKEW),
        workers={name: estimate(value) for name, value in TRUTH.items()},
    ),
)
MODELS = [find_model(name)[0] for name in ("Qwen3-8B", "Qwen2.5-7B-Instruct", "Qwen3-32B")]


def a_run(model: ModelSpec, rows: tuple[int, int, int], profile: Profile, **extra: Any) -> Run:
    """What ``profile`` says, as if measured."""
    work = Workload(bins=(Bin(input_tokens=rows[0], output_tokens=rows[1], count=rows[2]),))
    deployment = Deployment(tensor_parallel_size=2)
    served, schedule = planned(model, deployment, work, profile.gpu)
    costs = step_costs(model, deployment, served, schedule, profile)
    each = np.repeat(costs.step_s, schedule.steps.weight.astype(int))
    whole = predict(model, deployment, work, profile)
    return Run(
        model=model.name,
        gpu="h200",
        deployment=deployment,
        workload=work,
        energy_j=whole.energy_j,
        duration_s=whole.duration_s,
        extra={"step_us": [1e6 * costs.submit_s, *(1e6 * each)]} | extra,
    )


def test_declared_numbers_come_back() -> None:
    work = ((700, 1, 1), (128, 64, 1), (512, 64, 16), (1024, 64, 64), (2048, 1, 8))
    measured = [(a_run(m, rows, TRUE), m) for m in MODELS for rows in work]
    found = with_whole_runs(PLAIN, measured)
    assert found is not None
    # The gaps between steps let the GPU cool, which the fit of the skew does not know of.
    assert found.skew.value == pytest.approx(SKEW, rel=0.15)
    for name, value in TRUTH.items():
        assert found.workers[name].value == pytest.approx(value, rel=0.15), name


def test_runs_on_one_gpu_say_nothing() -> None:
    run = a_run(MODELS[0], (128, 16, 1), PLAIN)
    alone = replace(run, deployment=Deployment())
    assert with_whole_runs(PLAIN, [(alone, MODELS[0])]) == PLAIN.fabric


def test_memory_of_a_run_is_the_mean_of_its_boards() -> None:
    first, second = PLAIN.memory[:2]
    known = replace(PLAIN, memory=(replace(first, boards=("a",)), replace(second, boards=("b",))))
    run = a_run(MODELS[0], (128, 16, 1), PLAIN, gpus=[{"board": "a"}, {"board": "b"}])
    usual, dear = first.byte_j.value, second.byte_j.value
    assert byte_j_of(run, known) == pytest.approx((usual + dear) / 2)
    assert byte_j_of(run, PLAIN) is None


def test_measured_runs_on_several_gpus_are_predicted() -> None:
    file = resources.files("calibration").joinpath("data", "h200", "parallel_runs.jsonl")
    shipped = profiles.load("h200")
    errors = []
    for run in read_runs(str(file)):
        p = predict(find_model(run.model)[0], run.deployment, run.workload, shipped)
        assert p.gpus == run.deployment.tensor_parallel_size
        errors.append((p.energy_j / run.energy_j - 1.0, p.duration_s / run.duration_s - 1.0))
    energy, duration = np.median(np.abs(errors), axis=0)
    assert energy < 0.05
    assert duration < 0.05
