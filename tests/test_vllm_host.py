"""What vLLM's host does in a step, counted by hand; and that the fit gives its times back."""

from dataclasses import replace

import numpy as np
import pytest
from step_builders import decode, prefill, steps_of

from calibration.fit_engine import Case, prepare
from calibration.fit_host import fit_host, later_steps
from calibration.fit_served import fit_served, twins
from energymodel import profile as profiles
from energymodel.deployment import Deployment
from energymodel.engines.vllm import engine_time
from energymodel.engines.vllm_host import (
    idle_seconds,
    launches,
    more_norms,
    new_runner,
    serving,
    submissions,
)
from energymodel.find_model import find_model
from energymodel.io import Run
from energymodel.predict import predict
from energymodel.profile import Estimate, Profile
from energymodel.workload import Bin, Workload

PROFILE = profiles.load("h200")
DEFAULT = Deployment()
LLAMA, QWEN, GEMMA = (
    find_model(n)[0] for n in ("Llama-3.2-1B-Instruct", "Qwen2.5-7B-Instruct", "gemma-2-9b-it")
)


def requests(input_tokens: int, output_tokens: int, count: int) -> Workload:
    only = Bin(input_tokens=input_tokens, output_tokens=output_tokens, count=count)
    return Workload(bins=(only,))


def test_which_models_the_newer_runner_takes() -> None:
    # DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES of vLLM 0.24: Qwen3 and Qwen2-MoE, not Qwen3-MoE.
    newer = ("Llama-3.2-1B-Instruct", "Qwen3-8B", "Qwen1.5-MoE-A2.7B")
    older = ("Qwen2.5-7B-Instruct", "Qwen3-30B-A3B", "gemma-2-9b-it", "phi-4", "OLMoE-1B-7B-0924")
    for names, new in ((newer, True), (older, False)):
        for name in names:
            assert new_runner(find_model(name)[0], DEFAULT) == new, name
    drafting = Deployment(speculative_model="ngram", num_speculative_tokens=2)
    assert not new_runner(LLAMA, drafting)


def test_normalisations_beyond_two_a_layer() -> None:
    assert more_norms(LLAMA) == 0
    assert more_norms(GEMMA) == 2 * 42  # before and after each of two blocks
    assert more_norms(find_model("Qwen3-8B")[0]) == 2 * 36  # of queries and keys


def test_work_of_steps_by_hand() -> None:
    steps = steps_of(([(100, 0, 2, 1)], [(50.0, 7)]), ([], [(50.0, 3)]), ([(700, 0, 1, 1)], []))
    of = launches(LLAMA, DEFAULT, steps).counts
    assert of["host_step_s"].tolist() == [1, 1, 1]
    assert of["new_runner_step_s"].tolist() == [1, 1, 1]
    assert of["new_runner_sequence_s"].tolist() == [7, 3, 0]
    assert of["launch_graph_layer_s"].tolist() == [16, 0, 0]
    assert of["launch_layer_s"].tolist() == [0, 0, 16]
    assert "detokenize_s" not in of
    old = launches(QWEN, replace(DEFAULT, detokenize=True), steps).counts
    assert old["new_runner_step_s"].tolist() == [0, 0, 0]
    assert old["host_sequence_s"].tolist() == [7, 3, 0]
    assert old["detokenize_s"].tolist() == [9, 3, 1]


def test_eager_steps_are_launched_layer_by_layer() -> None:
    eager = launches(LLAMA, Deployment(enforce_eager=True), decode(100, count=4)).counts
    assert eager["launch_layer_s"].tolist() == [16]
    assert eager["launch_graph_layer_s"].tolist() == [0]


def test_places_without_a_graph_of_their_own_size_replay_pieces() -> None:
    deployment = Deployment(max_num_seqs=250)  # whole graphs end at 248 sequences
    of = launches(LLAMA, deployment, steps_of(([], [(50.0, 248)]), ([], [(50.0, 249)]))).counts
    assert of["launch_graph_layer_s"].tolist() == [0, 16]


def test_requests_are_taken_in_once() -> None:
    work = requests(100, 1, 3)
    assert submissions(work, DEFAULT) == {
        "submit_request_s": 3,
        "submit_token_s": 300,
        "submit_block_s": 0.0,
    }
    # Six whole blocks of 16 in each prompt get a hash.
    assert submissions(work, Deployment(enable_prefix_caching=True))["submit_block_s"] == 18
    engine = {"submit_request_s": 1.0, "submit_token_s": 0.01, "finish_s": 0.5}
    assert idle_seconds(work, DEFAULT, engine) == pytest.approx(3 + 3 + 0.5)
    assert idle_seconds(work, Deployment(server=True), {**engine, "server_latency_s": 2.0}) == 2.5


def test_a_step_waits_for_the_slower_of_two_processes() -> None:
    steps = steps_of(([(100, 0, 2, 1)], [(50.0, 7)]), ([], [(50.0, 3)]))
    counts = serving(steps).counts
    assert counts["server_request_s"].tolist() == [2, 0]
    assert counts["server_token_s"].tolist() == [9, 3]
    values = {"server_request_s": 10.0, "server_token_s": 1.0, "host_step_s": 5.0}
    profile = with_times(**values)
    served = engine_time(QWEN, Deployment(server=True), steps, profile, requests(100, 2, 2))
    assert served.launch_s.tolist() == [29.0, 5.0]
    alone = engine_time(QWEN, DEFAULT, steps, profile, requests(100, 2, 2))
    assert alone.launch_s.tolist() == [5.0, 5.0]


def test_the_first_step_finds_the_gpu_idle() -> None:
    steps = steps_of(([(100, 0, 1, 1)], []), ([], [(100.0, 1)]))
    added = engine_time(QWEN, DEFAULT, steps, with_times(host_step_s=3.0), requests(100, 2, 1))
    assert np.asarray(added.lead_s).tolist() == [3.0, 0.0]


def with_times(**values: float) -> Profile:
    """The shipped profile with times of its own: those named, all others 0."""
    names = {*PROFILE.engines["vllm"], *values}
    engine = {n: Estimate(value=values.get(n, 0.0), stderr=0.0, unit="s") for n in names}
    return replace(PROFILE, engines={**PROFILE.engines, "vllm": engine})


# --- the fit --------------------------------------------------------------------------------------

TRUTH = {
    "host_step_s": 0.8e-3,
    "new_runner_step_s": 0.2e-3,
    "host_sequence_s": 12e-6,
    "new_runner_sequence_s": 6e-6,
    "detokenize_s": 3e-6,
    "sampler_kernel_s": 20e-6,
    "filter_logit_s": 2e-9,
    "server_step_s": 0.4e-3,
    "server_request_s": 3e-3,
    "server_token_s": 60e-6,
    "server_latency_s": 20e-3,
}
SLOWER = 1.5


def truth() -> Profile:
    known = {n: Estimate(value=v, stderr=0.0, unit="s") for n, v in TRUTH.items()}
    return replace(PROFILE, engines={"vllm": {**PROFILE.engines["vllm"], **known}})


def simulated(name: str, workload: Workload, deployment: Deployment, slower: float = 1.0) -> Case:
    """A run that took what is predicted of it, on a host that is slower by so much."""
    model, known = find_model(name)[0], truth()
    predicted = predict(model, deployment, workload, known)
    run = Run(
        model=name,
        gpu="h200",
        deployment=deployment,
        workload=workload,
        energy_j=predicted.energy_j,
        duration_s=predicted.duration_s,
        extra={},
    )
    (case,) = prepare([(run, model)], known)
    added = engine_time(model, deployment, case.schedule.steps, known, workload)
    first_us = 1e6 * slower * (added.submit_s + added.launch_s[0])
    longest = np.argmax(case.schedule.steps.weight)
    later = [1e6 * slower * float(added.launch_s[longest])] * (workload.bins[0].output_tokens - 1)
    waits = [0.0, *(2.0 * us for us in later)]
    steps_us = [first_us, *(3.0 * us for us in later)]
    extra = {"step_us": steps_us, "waited_us": waits}
    return replace(case, run=replace(run, extra=extra))


def test_the_host_comes_back_whatever_the_speed_of_the_watched_one() -> None:
    without = PROFILE.engines["vllm"]["finish_s"].value
    usual = [
        simulated(name, requests(tokens, 1, count), DEFAULT)
        for name in ("Llama-3.2-1B-Instruct", "Qwen2.5-7B-Instruct", "Qwen3-8B", "phi-4")
        for tokens, count in ((128, 1), (700, 1), (512, 16), (128, 64))
    ]
    usual = [_less(case, without) for case in usual]
    watched = [
        _less(simulated(name, requests(128, 40, n), deployment, SLOWER), SLOWER * without)
        for name in ("Llama-3.2-1B-Instruct", "Qwen2.5-7B-Instruct")
        for n in (1, 32, 256)
        for deployment in (DEFAULT, Deployment(detokenize=True))
    ]
    found = fit_host(usual, watched)
    for name in ("host_step_s", "host_sequence_s", "new_runner_sequence_s", "detokenize_s"):
        assert found[name].value == pytest.approx(TRUTH[name], rel=0.15), name
    assert "host_sequence_s" not in fit_host(usual)


def _less(case: Case, seconds: float) -> Case:
    """What is over once the first step was launched is not in its time."""
    first, *rest = case.run.extra["step_us"]
    extra = {**case.run.extra, "step_us": [first - 1e6 * seconds, *rest]}
    return replace(case, run=replace(case.run, extra=extra))


def test_waiting_that_was_not_seen_is_not_taken_for_work() -> None:
    case = simulated("Qwen2.5-7B-Instruct", requests(128, 40, 8), DEFAULT)
    assert later_steps(case) is not None
    blind = {**case.run.extra, "waited_us": [0.0] * 40}
    assert later_steps(replace(case, run=replace(case.run, extra=blind))) is None
    assert later_steps(replace(case, run=replace(case.run, extra={}))) is None


def test_samplers_and_the_server_come_back() -> None:
    flags: tuple[dict[str, object], ...] = (
        {},
        {"sampling": "random"},
        {"sampling": "random", "penalties": True},
        {"sampling": "filtered"},
    )
    cases = [
        simulated("Qwen2.5-7B-Instruct", requests(128, 40, n), Deployment(**f))  # type: ignore[arg-type]
        for n in (1, 64, 256)
        for f in flags
    ]
    assert len(twins(cases)) == 9
    server = Deployment(server=True)
    shapes = ((128, 64, 1), (128, 64, 256), (128, 1, 200), (2048, 1, 1), (512, 64, 32))
    cases += [simulated("Llama-3.2-1B-Instruct", requests(*shape), server) for shape in shapes]
    start = replace(truth(), engines={"vllm": {**truth().engines["vllm"]}})
    found = fit_served(cases, start)
    for name, tolerance in (
        ("sampler_kernel_s", 0.2),
        ("filter_logit_s", 0.1),
        ("server_request_s", 0.1),
        ("server_token_s", 0.1),
        ("server_latency_s", 0.1),
    ):
        assert found[name].value == pytest.approx(TRUTH[name], rel=tolerance), name


def test_prompts_alone_need_no_sequences() -> None:
    assert launches(QWEN, DEFAULT, prefill(64)).counts["host_sequence_s"].tolist() == [0]
