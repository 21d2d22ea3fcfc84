"""What is fitted to runs and kernels on transformers comes back from runs that were made with it."""

from dataclasses import replace

import numpy as np
import pytest

from calibration import fit_eager
from calibration.fit_eager import Profiled, with_expressions
from calibration.fit_engine import prepare
from calibration.fit_transformers import START, fit_transformers
from energymodel import profile as profiles
from energymodel.deployment import Deployment
from energymodel.find_model import find_model
from energymodel.io import Run
from energymodel.predict import predict
from energymodel.profile import Estimate, Profile
from energymodel.workload import Bin, Workload

DEPLOYMENT = Deployment(engine="transformers")
DECLARED = {
    "launch_product_s": 20e-6, "launch_row_s": 9e-6, "launch_attention_s": 30e-6,
    "launch_layer_s": 40e-6, "pass_s": 500e-6, "token_s": 1e-3, "generate_s": 4e-3,
}  # fmt: skip
MODELS = (
    "Qwen2.5-7B-Instruct", "Llama-3.2-1B-Instruct", "opt-1.3b", "bert-base-uncased",
    "flan-t5-base", "gpt2", "bart-large", "Qwen3-0.6B",
)  # fmt: skip


def without_expressions() -> Profile:
    profile = profiles.load("h200")
    kept = {n: o for n, o in profile.operations.items() if n not in fit_eager.EXPRESSIONS}
    return replace(profile, operations=kept)


def a_run(model: str, input_tokens: int, output_tokens: int, count: int) -> Profiled:
    b = Bin(input_tokens=input_tokens, output_tokens=output_tokens, count=count)
    return Profiled(model=model, gpu="h200", bins=(b,), kernels=())


def test_rates_of_expressions_come_back() -> None:
    profile = without_expressions()
    names = [*fit_eager.EXPRESSIONS]
    rates = dict(zip(names, (3e12, 1.2e12, 3.5e12, 1e12, 1.4e12, 0.6e12, 2e12), strict=False))
    launch_s, seen = 1.5e-6, []
    for model in (*MODELS, "OLMoE-1B-7B-0924"):
        encodes = model == "bert-base-uncased"
        for tokens, output in ((500, 0), (300, 0 if encodes or "OLMoE" in model else 6)):
            run = a_run(model, tokens, output, 4)
            asked = fit_eager._asked(find_model(model)[0], run, names, profile)
            row, known = asked
            seconds = known + row[-1] * launch_s
            seconds += sum(moved / rates[n] for n, moved in zip(names, row, strict=False))
            kernels = (("row", 1, seconds * 1e6), ("nvjet_product", 9, 1e4), ("sdpa", 1, 1e3))
            seen.append(replace(run, kernels=kernels))
    found = with_expressions(profile, seen)
    for name in names:
        law = found.operations[name].law
        assert law["bytes_per_s"].value == pytest.approx(rates[name], rel=1e-3)
        assert found.operations[name].time_error < 1e-3
    assert found.operations["rms_norm.eager"].law["launch_s"].value == pytest.approx(8 * launch_s)


def test_what_was_measured_is_not_fitted_again() -> None:
    profile = profiles.load("h200")
    measured = {
        **profile.operations,
        **dict.fromkeys(fit_eager.EXPRESSIONS, profile.operations["copy"]),
    }
    profile = replace(profile, operations=measured)
    assert with_expressions(profile, [a_run("gpt2", 100, 0, 1)]) is profile
    assert with_expressions(without_expressions(), []) == without_expressions()


def declared() -> Profile:
    """The shipped profile with host times of its own, and expressions like those they stand for."""
    profile = without_expressions()
    like = {
        n: replace(profile.operations[profile.calibrated_as(parent)], stack=fit_eager.STACK)
        for n, parent in fit_eager.EXPRESSIONS.items()
        if not parent.startswith("gemm")
    }
    host = {n: Estimate(value=v, stderr=0.0, unit="s") for n, v in DECLARED.items()}
    regimes = {"transformers": profile.accuracy.regimes["vllm"], **profile.accuracy.regimes}
    return replace(
        profile,
        operations={**profile.operations, **like},
        engines={**profile.engines, "transformers": host},
        accuracy=replace(profile.accuracy, regimes=regimes),
    )


def test_host_times_come_back() -> None:
    profile, runs = declared(), []
    for name in MODELS:
        model = find_model(name)[0]
        output = 0 if model.kind == "encoder" else 8
        for tokens, generated, count in ((16, 0, 1), (128, output, 2), (512, output, 8)):
            b = Bin(input_tokens=tokens, output_tokens=generated, count=count)
            workload = Workload(bins=(b,))
            found = predict(model, DEPLOYMENT, workload, profile)
            run = Run(
                model=model.name,
                gpu="h200",
                deployment=DEPLOYMENT,
                workload=workload,
                energy_j=found.energy_j,
                duration_s=found.duration_s,
                extra={},
            )
            runs.append((run, model))
    fitted, after = fit_transformers(prepare(runs, profile), profile)
    # Priors pull by a few per cent what runs tell apart least; their sum, the durations, is right.
    assert np.abs(fitted.duration_error).max() < 0.04
    for name in ("launch_product_s", "launch_row_s"):
        assert fitted.engine[name].value == pytest.approx(DECLARED[name], rel=0.1)
    # What comes once a pass and what comes once a layer are hardly told apart by so few models.
    each_pass = fitted.engine["pass_s"].value + fitted.engine["token_s"].value
    assert each_pass == pytest.approx(DECLARED["pass_s"] + DECLARED["token_s"], rel=0.25)
    assert set(after.engines["transformers"]) == set(START) == set(profiles.ENGINE["transformers"])
