"""Predictions of replicas of several GPUs: closure, symmetry, memory, what is said."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fabric_builders import WAIT_W, with_fabric
from hypothesis import given, settings
from hypothesis import strategies as st

from energymodel import profile as profiles
from energymodel.cli import cli
from energymodel.deployment import Deployment
from energymodel.engines.vllm import cache_room
from energymodel.errors import InputError
from energymodel.find_model import find_model
from energymodel.model import ModelSpec
from energymodel.parallel import Parallel, parallel_of
from energymodel.pipeline import micro_batches
from energymodel.predict import predict
from energymodel.predict_online import predict_online
from energymodel.prediction import Prediction
from energymodel.replicas import split
from energymodel.workload import Bin, Workload

GPUS = with_fabric(profiles.load("h200"))
DENSE = find_model("Qwen3-8B")[0]
EXPERTS = find_model("Qwen3-30B-A3B")[0]
BIG = find_model("Llama-3.1-70B-Instruct")[0]


def bins(*rows: tuple[int, int, int]) -> Workload:
    return Workload(bins=tuple(Bin(input_tokens=i, output_tokens=o, count=n) for i, o, n in rows))


def run(model: ModelSpec, workload: Workload, **flags: Any) -> Prediction:
    return predict(model, Deployment(**flags), workload, GPUS)


SOME = bins((512, 64, 32))


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([DENSE, EXPERTS]),
    st.sampled_from([(1, 2, 1), (2, 1, 1), (1, 1, 2), (2, 2, 2), (4, 1, 1), (1, 3, 2)]),
    st.booleans(),
    st.lists(
        st.tuples(st.integers(1, 3000), st.integers(0, 40), st.integers(1, 70)),
        min_size=1,
        max_size=3,
    ),
)
def test_parts_add_up_to_the_whole(
    model: ModelSpec, sizes: tuple[int, int, int], spread: bool, rows: list[tuple[int, int, int]]
) -> None:
    tensor, pipeline, data = sizes
    p = run(
        model,
        bins(*rows),
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
        data_parallel_size=data,
        enable_expert_parallel=spread,
    )
    assert p.gpus == tensor * pipeline * data
    assert sum(c.energy_j for c in p.components.values()) == pytest.approx(p.energy_j)
    assert sum(x.energy_j for x in p.phases.values()) == pytest.approx(p.energy_j)
    assert sum(b.energy_j for b in p.bins) == pytest.approx(p.energy_j)
    assert sum(c.duration_s for c in p.components.values()) == pytest.approx(p.duration_s)
    assert sum(x.duration_s for x in p.phases.values()) == pytest.approx(p.duration_s)
    causes = [getattr(x, f).energy_j for x in p.causes.values() for f in CAUSES]
    assert sum(causes) == pytest.approx(p.energy_j)
    assert [b.count for b in p.bins] == [n for _, _, n in rows]
    # Each GPU stays within its own power limit.
    assert p.mean_power_w <= p.gpus * GPUS.gpu.power_limit_w


CAUSES = ("flop", "weights", "data", "time", "gaps", "collective")


def test_two_copies_of_a_model_cost_twice_as_much_for_twice_as_many_requests() -> None:
    one, two = run(DENSE, SOME), run(DENSE, bins((512, 64, 64)), data_parallel_size=2)
    # The host takes in twice as many requests before the first step.
    waited_s = two.phases["idle"].duration_s - one.phases["idle"].duration_s
    assert two.duration_s == pytest.approx(one.duration_s + waited_s, rel=1e-3)
    busy = [p.energy_j - p.phases["idle"].energy_j for p in (one, two)]
    assert busy[1] == pytest.approx(2 * busy[0], rel=1e-3)
    assert two.ttft_s is not None and one.ttft_s is not None  # noqa: PT018
    assert two.ttft_s.p99 == pytest.approx(one.ttft_s.p99 + waited_s, rel=1e-3)


def test_a_copy_without_requests_waits_at_static_power() -> None:
    one, two = run(DENSE, bins((512, 64, 1))), run(DENSE, bins((512, 64, 1)), data_parallel_size=2)
    assert two.duration_s == pytest.approx(one.duration_s)
    waiting_w = (two.energy_j - one.energy_j) / one.duration_s
    assert 70 < waiting_w < 130


def test_a_copy_without_requests_goes_on_where_others_need_its_experts() -> None:
    even, alone = (run(EXPERTS, bins((512, 64, n)), data_parallel_size=2) for n in (2, 1))
    dense = run(DENSE, bins((512, 64, 1)), data_parallel_size=2)
    # The copy that waits works as on steps of one token all the while, like the other copy at best.
    waiting_w, working_w = (
        joules / alone.duration_s
        for joules in (
            alone.phases["idle"].energy_j,
            alone.phases["decode"].energy_j,
        )
    )
    assert 0.7 * working_w < waiting_w < working_w
    assert dense.phases["idle"].energy_j / dense.duration_s < 0.6 * waiting_w
    said = "data_parallel_size: a copy without requests computes dummy tokens"
    for p, dummies in ((alone, True), (even, False), (dense, False)):
        assert any(w.startswith(said) for w in p.warnings) == dummies


def test_flop_of_a_replica_are_those_of_the_model() -> None:
    one, four = run(DENSE, SOME), run(DENSE, SOME, tensor_parallel_size=4)
    for name in ("attention_projections", "mlp", "attention", "lm_head"):
        assert four.components[name].flop == pytest.approx(one.components[name].flop, rel=1e-3)
    assert four.flop_only.energy_j == pytest.approx(one.flop_only.energy_j, rel=1e-3)
    assert four.baselines["tdp"].energy_j == pytest.approx(4 * 700 * four.duration_s)


def test_more_gpus_take_less_time_and_more_energy_for_the_same_batch() -> None:
    runs = [run(DENSE, SOME, tensor_parallel_size=n) for n in (1, 2, 4)]
    assert [r.duration_s for r in runs] == sorted((r.duration_s for r in runs), reverse=True)
    assert [r.energy_j for r in runs] == sorted(r.energy_j for r in runs)
    shares = [r.components["collective"].energy_j / r.energy_j for r in runs[1:]]
    assert 0 < shares[0] < shares[1]


def test_where_memory_limits_the_batch_more_gpus_cost_less() -> None:
    # Two GPUs are nearly filled by the weights: few of these requests fit at a time.
    work = bins((1000, 2000, 400))
    two, four = (run(BIG, work, tensor_parallel_size=n) for n in (2, 4))
    assert four.energy_j < two.energy_j


def test_each_gpu_has_its_own_power_limit() -> None:
    prompts = bins((2048, 1, 64))
    free = run(DENSE, prompts, tensor_parallel_size=2)
    held = run(DENSE, prompts, tensor_parallel_size=2, power_limit_w=400.0)
    assert held.mean_power_w < 2 * 400 < free.mean_power_w
    assert held.duration_s > free.duration_s


# --- pipelines ------------------------------------------------------------------------------------


def test_a_pipeline_with_one_batch_works_on_one_stage_at_a_time() -> None:
    one, two = run(DENSE, SOME), run(DENSE, SOME, pipeline_parallel_size=2)
    assert micro_batches(DENSE, Deployment(pipeline_parallel_size=2), SOME.bins) == 1
    assert two.duration_s == pytest.approx(one.duration_s, rel=0.02)
    # The GPU that waits draws static power and what waiting in a receive costs.
    waiting_w = (two.energy_j - one.energy_j) / two.duration_s
    assert 110 + 0.9 * WAIT_W < waiting_w < 140 + 1.1 * WAIT_W


def test_a_pipeline_with_a_batch_for_each_stage_has_no_bubbles() -> None:
    many = bins((512, 64, 128))
    assert micro_batches(DENSE, Deployment(pipeline_parallel_size=2), many.bins) == 2
    one, two = run(DENSE, many), run(DENSE, many, pipeline_parallel_size=2)
    assert two.duration_s < 0.65 * one.duration_s
    assert two.warnings[0].startswith("pipeline_parallel_size: bubbles follow")


@pytest.mark.parametrize("requests", [8, 128, 512])
def test_micro_batches_are_those_of_one_copy(requests: int) -> None:
    limits = {"pipeline_parallel_size": 4, "max_num_seqs": 64, "max_num_batched_tokens": 8192}
    for tokens in (512, 100):
        one = bins((tokens, 64, requests)).bins
        eight = bins((tokens, 64, 8 * requests)).bins
        alone = micro_batches(DENSE, Deployment(**limits), one)
        assert micro_batches(DENSE, Deployment(**limits, data_parallel_size=8), eight) == alone


def test_eight_pipelines_cost_eight_times_one() -> None:
    flags = {"pipeline_parallel_size": 2, "gpus_per_node": 16}
    one = run(DENSE, bins((512, 64, 16)), **flags)
    eight = run(DENSE, bins((512, 64, 128)), **flags, data_parallel_size=8)
    busy = [p.energy_j - p.phases["idle"].energy_j for p in (one, eight)]
    assert busy[1] == pytest.approx(8 * busy[0], rel=2e-3)
    spent = [p.duration_s - p.phases["idle"].duration_s for p in (one, eight)]
    assert spent[1] == pytest.approx(spent[0], rel=1e-3)


def test_the_v1_runner_keeps_one_batch_in_flight() -> None:
    gemma = find_model("gemma-2-9b-it")[0]
    assert (
        micro_batches(gemma, Deployment(pipeline_parallel_size=2), bins((512, 64, 128)).bins) == 1
    )


# --- memory ---------------------------------------------------------------------------------------


def test_what_does_not_fit_one_gpu_fits_two() -> None:
    with pytest.raises(InputError, match=r"does not fit one NVIDIA H200.*tensor_parallel_size"):
        run(BIG, SOME)
    assert run(BIG, SOME, tensor_parallel_size=2).gpus == 2
    assert run(BIG, SOME, pipeline_parallel_size=2).gpus == 2


def test_room_of_a_cache_that_is_divided() -> None:
    one, two, stages = (
        cache_room(DENSE, Deployment(**flags), GPUS.gpu)
        for flags in ({}, {"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2})
    )
    # Each GPU has half of the weights to hold, and half of the keys and values of a token.
    assert 2.0 * one.tokens < two.tokens < 2.4 * one.tokens
    assert 2.0 * one.tokens < stages.tokens < 2.4 * one.tokens


# --- what is said ---------------------------------------------------------------------------------


def test_eight_gpus_are_said_to_be_extrapolated_and_are_less_certain() -> None:
    four, eight = (run(DENSE, SOME, tensor_parallel_size=n) for n in (4, 8))
    assert "all_reduce of 8 GPUs was not measured: extrapolated from 2, 4." in eight.warnings
    width = [np.log(p.energy_interval_j[1] / p.energy_interval_j[0]) for p in (four, eight)]
    assert width[1] > width[0]
    assert (four.provenance["collectives"], eight.provenance["collectives"]) == (
        "measured",
        "extrapolated",
    )


def test_links_between_nodes_are_declared_and_assumed() -> None:
    flags = {"tensor_parallel_size": 4, "data_parallel_size": 1, "gpus_per_node": 2}
    with pytest.raises(
        InputError, match="declare the link between them with node_link_bytes_per_s"
    ):
        run(DENSE, SOME, **flags)
    near = run(DENSE, SOME, tensor_parallel_size=4)
    far = run(DENSE, SOME, **flags, node_link_bytes_per_s=5e10)
    assert far.provenance["collectives"] == "assumed"
    assert any("is assumed as declared, with 20 us more" in w for w in far.warnings)
    assert far.components["collective"].duration_s > 2 * near.components["collective"].duration_s


def test_copies_that_exchange_nothing_need_no_link_between_nodes() -> None:
    assert run(DENSE, bins((512, 64, 32)), data_parallel_size=16).gpus == 16
    flags = {"data_parallel_size": 16, "enable_expert_parallel": True}
    with pytest.raises(InputError, match="a replica of 16 GPUs spans nodes of 8: declare the link"):
        run(EXPERTS, bins((512, 64, 32)), **flags)
    far = run(EXPERTS, bins((512, 64, 32)), **flags, node_link_bytes_per_s=5e10)
    assert far.provenance["collectives"] == "assumed"
    with pytest.raises(InputError, match="a replica of 16 GPUs spans nodes of 8"):
        run(DENSE, SOME, tensor_parallel_size=4, pipeline_parallel_size=4)


def test_deployment_is_in_the_answer() -> None:
    p = run(EXPERTS, SOME, tensor_parallel_size=2, enable_expert_parallel=True)
    assert p.deployment["enable_expert_parallel"] is True
    assert p.gpus == 2
    assert parallel_of(Deployment()) == Parallel()
    assert asdict(Deployment())["data_parallel_size"] == 1


@given(st.lists(st.integers(0, 50), min_size=1, max_size=5).filter(any), st.integers(1, 6))
def test_requests_are_split_evenly(counts: list[int], lanes: int) -> None:
    work = bins(*[(10, 1, n) for n in counts])
    parts = split(work, lanes)
    sums = [int(part.requests) for part in parts]
    assert [sum(p.bins[i].count or 0 for p in parts) for i in range(len(counts))] == counts
    assert max(sums) - min(sums) <= 1
    assert sums == sorted(sums, reverse=True)
    assert replace(work, bins=parts[0].bins) == parts[0]


@pytest.mark.parametrize("flag", ["data_parallel_size", "pipeline_parallel_size"])
def test_requests_in_time_go_to_one_copy(flag: str) -> None:
    rate = Workload(bins=(Bin(input_tokens=100, output_tokens=20, requests_per_s=1.0),))
    with pytest.raises(InputError, match=f"{flag} must be 1 where requests arrive in time"):
        predict_online(DENSE, Deployment(**{flag: 2}), rate, GPUS)
    with pytest.raises(InputError, match="An offline run needs bins with count"):
        predict(DENSE, Deployment(**{flag: 2}), rate, GPUS)


def test_requests_in_time_on_two_gpus() -> None:
    rate = Workload(bins=(Bin(input_tokens=200, output_tokens=50, requests_per_s=5.0),))
    one, two = (
        predict_online(DENSE, Deployment(tensor_parallel_size=n), rate, GPUS) for n in (1, 2)
    )
    assert two.gpus == 2
    assert two.energy_j > one.energy_j
    assert sum(c.energy_j for c in two.components.values()) == pytest.approx(two.energy_j)
    assert two.components["collective"].energy_j > 0


def test_what_no_run_was_measured_of_is_said() -> None:
    spread = run(EXPERTS, SOME, tensor_parallel_size=2, enable_expert_parallel=True)
    assert any(w.startswith("enable_expert_parallel: no run") for w in spread.warnings)
    shared = run(EXPERTS, SOME, data_parallel_size=2)
    assert any(w.startswith("data_parallel_size: no run") for w in shared.warnings)
    assert not run(DENSE, SOME, data_parallel_size=2).warnings


def test_an_engine_of_one_gpu_is_refused_several() -> None:
    with pytest.raises(InputError, match="engine transformers serves on one GPU"):
        run(DENSE, SOME, engine="transformers", tensor_parallel_size=2)


def test_the_command_counts_gpus_and_collectives(tmp_path: Path) -> None:
    work = tmp_path / "bins.json"
    work.write_text(
        '{"schema_version": 1, "bins": [{"input_tokens": 64, "output_tokens": 8, "count": 4}]}'
    )
    flags = ["--model", "Qwen3-8B", "--gpu", "h200", "--workload", str(work)]
    result = CliRunner().invoke(cli, ["predict", *flags, "--tensor-parallel-size", "2", "--json"])
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["gpus"] == 2
    assert document["deployment"]["tensor_parallel_size"] == 2
    assert document["components"]["collective"]["energy_j"] > 0
    assert document["causes"]["decode"]["collective"]["amount"] > 0
    assert document["provenance"]["collectives"] == "measured"
