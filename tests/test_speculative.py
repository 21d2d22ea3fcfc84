"""Speculative decoding: how many steps, what a step computes, what is refused."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from step_builders import decode, prefill, steps_of

from calibration.engines import vllm_speculative as measured
from energymodel import io, speculative
from energymodel import profile as profiles
from energymodel.cli import main
from energymodel.deployment import Deployment
from energymodel.engines import vllm_graphs
from energymodel.engines.vllm import ENGINE, cache_room
from energymodel.errors import InputError
from energymodel.find_model import find_model
from energymodel.op_kinds import Op
from energymodel.ops import lower
from energymodel.predict import predict
from energymodel.prediction import Prediction
from energymodel.profile import Estimate
from energymodel.speculation import crossing, speculate
from energymodel.steps import Steps
from energymodel.workload import Bin, Workload

TARGET = find_model("Qwen3-8B")[0]
SHIPPED = profiles.load("h200")
# Host times of their own, so that no test depends on the fitted ones.
TIMES = {"sync_step_s": 1e-3, "sync_sequence_s": 1e-5, "launch_draft_layer_s": 2e-4}
HOST = {name: Estimate(value=s, stderr=0.0, unit="s") for name, s in TIMES.items()}
PROFILE = replace(SHIPPED, engines={"vllm": {**SHIPPED.engines["vllm"], **HOST}})
NGRAM = Deployment(speculative_model="ngram", num_speculative_tokens=4, acceptance_rate=0.6)
DRAFTS = replace(NGRAM, speculative_model="Qwen3-0.6B")
NO_PROMPTS = np.zeros(0, dtype=np.int64)


def of(count: int = 8, input_tokens: int = 300, output_tokens: int = 100) -> Workload:
    asked = Bin(input_tokens=input_tokens, output_tokens=output_tokens, count=count)
    return Workload(bins=(asked,))


def predicted(deployment: Deployment, workload: Workload) -> Prediction:
    return predict(TARGET, deployment, workload, PROFILE)


# Tokens and steps -----------------------------------------------------------------------------


def drafting(rate: float, drafted: int, found: float = 1.0) -> Deployment:
    return replace(NGRAM, acceptance_rate=rate, num_speculative_tokens=drafted, draft_rate=found)


def chances(rate: float, drafted: int) -> tuple[float, ...]:
    return speculative.yields(drafting(rate, drafted))


@pytest.mark.parametrize(("rate", "drafted"), [(0.7, 4), (0.0, 3), (0.25, 1), (0.99, 8)])
def test_tokens_of_a_step_are_those_of_leviathan(rate: float, drafted: int) -> None:
    expected = (1 - rate ** (drafted + 1)) / (1 - rate)
    assert speculative.tokens_per_step(drafting(rate, drafted)) == pytest.approx(expected)
    assert sum(chances(rate, drafted)) == pytest.approx(1)


def test_steps_without_a_draft_yield_one_token() -> None:
    half = speculative.yields(drafting(0.5, 2, found=0.5))
    assert half == pytest.approx((0.5 + 0.5 * 0.5, 0.5 * 0.25, 0.5 * 0.25))
    assert speculative.tokens_per_step(drafting(0.9, 4, found=0.0)) == 1


def test_all_accepted_yields_all_and_one_more() -> None:
    assert speculative.tokens_per_step(drafting(1.0, 4)) == 5
    assert speculative.step_groups(200, 127, chances(1.0, 4)) == [(200, math.ceil(127 / 5))]


def test_mean_steps_by_hand() -> None:
    """One draft, accepted half of the time: 2 tokens take 1 step or 2."""
    assert speculative.mean_steps(1, chances(0.5, 1)) == 1
    assert speculative.mean_steps(2, chances(0.5, 1)) == 1.5
    assert speculative.mean_steps(3, chances(0.5, 1)) == 0.5 * 2.5 + 0.5 * 2
    assert speculative.mean_steps(0, chances(0.5, 1)) == 0


def test_many_tokens_take_their_number_over_the_mean() -> None:
    tokens = 2 * speculative.EXACT_TOKENS
    each = tokens / speculative.tokens_per_step(drafting(0.7, 4))
    assert speculative.mean_steps(tokens, chances(0.7, 4)) == pytest.approx(each, rel=1e-3)


def test_the_last_of_a_batch_ends_when_simulated_ones_do() -> None:
    rng = np.random.default_rng(0)
    steps = rng.choice(np.arange(1, 6), p=chances(0.7, 4), size=(4000, 256))
    ends = (steps.cumsum(axis=1) < 255).sum(axis=1) + 1
    last = ends.reshape(-1, 50)[:80].max(axis=1).mean()
    groups = speculative.step_groups(50, 255, chances(0.7, 4))
    assert max(n for _, n in groups) == pytest.approx(last, abs=1.5)
    mean = sum(count * n for count, n in groups) / 50
    assert mean == pytest.approx(float(ends.mean()), abs=0.5)


@given(st.integers(1, 500), st.integers(0, 3000), st.floats(0, 1), st.integers(1, 8))
def test_groups_hold_every_request_and_possible_steps(
    requests: int, tokens: int, rate: float, drafted: int
) -> None:
    groups = speculative.step_groups(requests, tokens, chances(rate, drafted))
    assert sum(count for count, _ in groups) == requests
    least = math.ceil(tokens / (drafted + 1))
    assert all(least <= n <= tokens for _, n in groups)


@given(
    st.integers(1, 40), st.integers(1, 400), st.integers(0, 200), st.floats(0, 1), st.integers(1, 6)
)
def test_a_schedule_in_steps_yields_what_was_asked(
    count: int, input_tokens: int, output_tokens: int, rate: float, drafted: int
) -> None:
    deployment = drafting(rate, drafted, found=1 - rate / 2)
    asked = of(count, input_tokens, output_tokens)
    schedule = ENGINE.schedule(TARGET, deployment, asked, PROFILE.gpu)
    steps = schedule.steps
    assert float(steps.sum_chunks(steps.chunks.tokens) @ steps.weight) == count * input_tokens
    made = float(steps.weight @ steps.decoding) * schedule.tokens_per_step
    assert made == pytest.approx(count * max(output_tokens - 1, 0))
    assert set(steps.chunks.bin) <= {0}
    assert set(steps.decodes.bin) <= {0}
    assert int(schedule.milestones.count.sum()) == count
    if steps.decodes.context.size:
        assert steps.decodes.context.min() >= input_tokens
        assert steps.decodes.context.max() <= input_tokens + output_tokens


def test_a_draft_model_takes_a_place_of_each_sequence_from_the_budget() -> None:
    for deployment, most in ((NGRAM, 16384), (DRAFTS, 16384 - 256)):
        steps = ENGINE.schedule(TARGET, deployment, of(64, 1024, 8), PROFILE.gpu).steps
        assert float(steps.sum_chunks(steps.chunks.tokens).max()) == most


def test_without_drafts_nothing_changes() -> None:
    asked = of()
    counted = speculative.in_steps(asked, Deployment())
    assert counted.workload == asked
    schedule = ENGINE.schedule(TARGET, Deployment(), asked, PROFILE.gpu)
    again = counted.in_tokens(schedule)
    assert np.array_equal(again.steps.decodes.context, schedule.steps.decodes.context)
    assert again.tokens_per_step == 1.0


# What a step computes -------------------------------------------------------------------------


def verifying(context: float, count: int) -> Steps:
    steps = decode(context, count)
    return replace(steps, decodes=replace(steps.decodes, queries=5, samples=5))


def ops_of(deployment: Deployment, steps: Steps) -> dict[str, Op]:
    made = ENGINE.lower(TARGET, deployment, steps, NO_PROMPTS, ())
    assert len({op.name for op in made}) == len(made)
    return {op.name: op for op in made}


def flop(ops: dict[str, Op], prefix: str = "") -> float:
    return sum(float(op.count * op.flop[0]) for n, op in ops.items() if n.startswith(prefix))


def test_verifying_five_tokens_multiplies_as_a_chunk_of_five_does() -> None:
    """All five are sampled from, of a chunk only the last."""
    verified = {op.name: op for op in lower(TARGET, Deployment(), verifying(300.0, 3))}
    chunk = {op.name: op for op in lower(TARGET, Deployment(), prefill(5, 300, count=3))}
    head = 2.0 * TARGET.hidden_size * TARGET.vocab_size * 3
    assert flop(verified) == pytest.approx(flop(chunk) + 4 * head)


def test_the_queries_of_a_sequence_read_its_cache_once() -> None:
    one = ops_of(Deployment(), decode(304.0, 3))["attention_decode"]
    five = ops_of(NGRAM, verifying(300.0, 3))["attention_decode"]
    assert float(five.weight_bytes[0]) == float(one.weight_bytes[0])
    assert five.shape["heads"] == 5 * 32
    rows = 3 * 2 * 32 * 128 * 2  # queries and outputs of one token each, two bytes
    assert float((five.hbm_bytes - five.weight_bytes)[0]) == 5 * rows


def test_rejection_moves_the_logits_of_every_verified_token() -> None:
    added = ops_of(NGRAM, verifying(300.0, 3))["rejection"]
    assert float(added.hbm_bytes[0]) == 3 * 5 * TARGET.vocab_size * 12


def test_the_draft_model_reads_prompt_and_tokens_then_one_at_a_time() -> None:
    draft = find_model("Qwen3-0.6B")[0]
    steps = steps_of(([(64, 0, 2, 1)], [(300.0, 3)]))
    steps = replace(steps, decodes=replace(steps.decodes, queries=5, samples=5))
    made = ops_of(DRAFTS, steps)
    drafted = {n: op for n, op in made.items() if op.component == "draft"}
    first, later = made["draft_down_proj"], made["draft_down_proj_more"]
    assert float(first.shape["m"][0]) == 2 * 64 + 3 * 6
    assert float(later.shape["m"][0]) == 2 + 3
    assert later.count == 3 * first.count == 3 * len(draft.layers)
    assert float(made["draft_lm_head"].shape["m"][0]) == 5
    # Prompts draft after they are complete; the others ask for six tokens, then three.
    asked = later.asked
    assert asked is not None
    assert list(asked[0]) == [1.0]
    assert list(asked[1]) == [1.0]
    assert all(name.startswith("draft_") for name in drafted)
    assert flop(ops_of(NGRAM, steps)) == pytest.approx(flop(made) - flop(made, "draft_"))


def test_a_prompt_that_is_not_complete_drafts_nothing() -> None:
    steps = steps_of(([(64, 0, 1, 0)], [(300.0, 3)]))
    made = ops_of(DRAFTS, steps)
    assert float(made["draft_down_proj_more"].shape["m"][0]) == 3
    asked = made["draft_down_proj_more"].asked
    assert asked is not None
    assert list(asked[0]) == [0.0]


def test_graphs_are_captured_for_multiples_of_the_tokens_of_a_step() -> None:
    """1, 2, 4, 8, 16, 24, ... rounded up to multiples of 5, up to 512."""
    sizes = vllm_graphs.capture_sizes(DRAFTS)
    assert list(sizes[:5]) == [5, 10, 20, 25, 35]
    assert sizes[-1] == 500
    assert (sizes % 5 == 0).all()
    assert list(ENGINE.padded(np.array([5.0, 26.0, 496.0, 505.0]), DRAFTS)) == [5, 35, 500, 505]


def test_few_places_leave_few_graphs() -> None:
    assert vllm_graphs.largest(replace(DRAFTS, max_num_seqs=4)) == 40


def test_a_draft_model_is_launched_kernel_by_kernel() -> None:
    """Each pass of its 28 layers, though the target replays one graph."""
    steps = verifying(300.0, 3)
    asked = of()
    time = ENGINE.time(TARGET, DRAFTS, steps, PROFILE, asked)
    looked_up = ENGINE.time(TARGET, NGRAM, steps, PROFILE, asked)
    assert float(looked_up.launch_s[0]) == 0.0
    assert float(time.launch_s[0]) >= 4 * 28 * 2e-4
    assert float(np.asarray(time.gap_s)[0]) == pytest.approx(1e-3 + 3e-5)


def test_the_draft_model_takes_memory() -> None:
    alone = cache_room(TARGET, Deployment(), PROFILE.gpu)
    with_draft = cache_room(TARGET, DRAFTS, PROFILE.gpu)
    # 28 layers of 8 KV heads of 128 beside 36 of the same.
    assert with_draft.tokens == pytest.approx(alone.tokens * 36 / 64, rel=0.02)


# Whole predictions ----------------------------------------------------------------------------


@pytest.mark.parametrize("deployment", [NGRAM, DRAFTS])
def test_what_is_accepted_saves_energy_and_time(deployment: Deployment) -> None:
    found = [
        predicted(replace(deployment, acceptance_rate=rate), of()) for rate in (0, 0.4, 0.8, 1)
    ]
    for worse, better in pairwise(found):
        assert better.energy_j < worse.energy_j
        assert better.duration_s < worse.duration_s
        assert better.itl_s is not None
        assert worse.itl_s is not None
        assert better.itl_s.mean < worse.itl_s.mean


@pytest.mark.parametrize("deployment", [NGRAM, DRAFTS])
def test_parts_sum_to_the_run(deployment: Deployment) -> None:
    found = predicted(deployment, of())
    for parts in (found.phases.values(), found.components.values(), found.bins):
        assert sum(part.energy_j for part in parts) == pytest.approx(found.energy_j)
    assert ("draft" in found.components) == (deployment is DRAFTS)
    assert any("acceptance_rate 0.6" in said for said in found.warnings)


def test_where_no_draft_is_found_decoding_is_plain_but_for_the_host() -> None:
    """One token a step and a launch for each layer, as no whole graph fits sequences that differ."""
    steps = ENGINE.schedule(TARGET, drafting(0.6, 4, found=0.0), of(), PROFILE.gpu).steps
    assert steps.decodes.queries == 1
    found = predicted(drafting(0.6, 4, found=0.0), of())
    plain = predicted(Deployment(), of())
    assert found.components["mlp"].flop == plain.components["mlp"].flop
    assert found.duration_s > plain.duration_s
    one = replace(decode(300.0, 2), weight=np.ones(1))
    host = ENGINE.time(TARGET, drafting(0.6, 4, found=0.5), one, PROFILE, of()).launch_s
    layer_s = PROFILE.engines["vllm"]["launch_graph_layer_s"].value
    assert float(host[0]) == pytest.approx(0.75 * 36 * layer_s)


def test_rejected_drafts_cost_more_than_none() -> None:
    assert predicted(replace(NGRAM, acceptance_rate=0.0), of()).energy_j > (
        1.05 * predicted(Deployment(), of()).energy_j
    )


def test_a_model_that_drafts_costs_more_than_looking_up() -> None:
    assert predicted(DRAFTS, of()).energy_j > predicted(NGRAM, of()).energy_j


def test_mean_time_between_tokens_is_that_of_the_decode_steps() -> None:
    found = predicted(NGRAM, of(count=1))
    assert found.itl_s is not None
    decoding_s = found.phases["decode"].duration_s
    assert found.itl_s.mean * 99 == pytest.approx(decoding_s, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"speculative_model": None}, "num_speculative_tokens needs speculative_model"),
        ({"num_speculative_tokens": 0}, "num_speculative_tokens must be at least 1"),
        ({"acceptance_rate": None}, "acceptance_rate must be given"),
        ({"speculative_model": "Qwen2.5-7B-Instruct"}, "vocabulary of 152,064"),
        ({"speculative_model": "bert-base-uncased"}, "is none"),
        ({"speculative_model": "Qwen3-0.6B", "draft_rate": 0.5}, "draft_rate must be 1"),
        ({"sampling": "random"}, "sampling must be left out with speculative_model"),
        ({"server": True}, "server must be left out with speculative_model"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size must be 1"),
        ({"max_num_batched_tokens": 1000}, "must be at least 1,536"),
    ],
)
def test_what_cannot_be_served_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        predicted(replace(NGRAM, **changes), of())  # type: ignore[arg-type]


def test_a_target_without_softmax_attention_is_refused() -> None:
    recurrent = find_model("Falcon3-Mamba-7B-Instruct")[0]
    with pytest.raises(InputError, match="softmax attention"):
        predict(recurrent, NGRAM, of(), PROFILE)


def test_a_profile_without_host_times_is_refused() -> None:
    numbers = {n: v for n, v in PROFILE.engines["vllm"].items() if n not in TIMES}
    bare = replace(PROFILE, engines={"vllm": numbers})
    with pytest.raises(InputError, match="no host times of speculative decoding"):
        predict(TARGET, NGRAM, of(), bare)


# Where it stops paying ------------------------------------------------------------------------


def test_crossing_interpolates_and_says_never() -> None:
    assert crossing([0.0, 1.0, 2.0], [1.2, 1.1, 0.9], falling=True) == pytest.approx(1.5)
    assert crossing([0.0, 1.0], [0.9, 0.8], falling=True) == 0.0
    assert crossing([0.0, 1.0], [1.2, 1.1], falling=True) is None
    assert crossing([0.0, 1.0], [0.8, 1.2], falling=False) == pytest.approx(0.5)


def test_where_drafts_pay_is_named_though_they_do_not_at_first() -> None:
    """Launching a draft model takes longer than a small step without it."""
    slow = {**PROFILE.engines["vllm"]}
    slow["launch_draft_layer_s"] = Estimate(value=4.5e-4, stderr=0.0, unit="s")
    profile = replace(PROFILE, engines={"vllm": slow})
    model = find_model("Qwen3-32B")[0]
    drafts = replace(DRAFTS, acceptance_rate=0.7)
    found = speculate(
        model, drafts, profile, input_tokens=512, output_tokens=64, batches=(1, 64, 256)
    )
    ratios = [row.itl_ratio for row in found.rows]
    assert ratios[0] > 1 > ratios[1]
    even = found.break_even_batch.itl
    assert even is not None
    assert 64 < even < 256


def test_drafts_pay_up_to_the_batch_that_is_named() -> None:
    table = speculate(
        TARGET, NGRAM, PROFILE, input_tokens=200, output_tokens=50, batches=(128, 1, 16)
    )
    ratios = [row.energy_ratio for row in table.rows]
    assert [row.batch for row in table.rows] == [1, 16, 128]
    assert ratios == sorted(ratios)
    assert ratios[0] < 1 < ratios[-1]
    even = table.break_even_batch.energy
    assert even is not None
    asked = of(round(even), 200, 50)
    paid = predicted(NGRAM, asked).energy_j / predicted(Deployment(), asked).energy_j
    assert paid == pytest.approx(1.0, abs=0.1)
    for row in table.rows:
        rate = row.break_even_acceptance_energy
        assert rate is not None
        at_even = predicted(replace(NGRAM, acceptance_rate=rate), of(row.batch, 200, 50))
        plain = predicted(Deployment(), of(row.batch, 200, 50))
        assert at_even.energy_j == pytest.approx(plain.energy_j, rel=0.03)


# Measuring ------------------------------------------------------------------------------------


def test_acceptance_is_drawn_at_the_rate_asked_for(tmp_path: Path) -> None:
    config = measured.settings(DRAFTS, tmp_path / "draft")["speculative_config"]
    assert config["synthetic_acceptance_rates"] == pytest.approx([0.6, 0.36, 0.216, 0.1296])
    assert config["rejection_sample_method"] == "synthetic"
    assert config["method"] == "draft_model"
    assert (tmp_path / "draft" / "config.json").is_file()
    assert measured.settings(Deployment(), tmp_path / "none") == {}


def test_drafts_are_counted_as_the_scheduler_learns_of_them() -> None:
    scheduler = SimpleNamespace(make_spec_decoding_stats=lambda stats, **_: stats)
    core = SimpleNamespace(scheduler=scheduler)
    llm = SimpleNamespace(llm_engine=SimpleNamespace(engine_core=SimpleNamespace(engine_core=core)))
    counts = measured.DraftCounts()
    counts.watch(llm)
    assert counts.facts() == {}
    for accepted in (4, 0, 1):
        scheduler.make_spec_decoding_stats(
            None, num_draft_tokens=4, num_accepted_tokens=accepted, request_id="a"
        )
    assert counts.facts() == {"drafts": 3, "draft_tokens": 12, "accepted_tokens": 5}
    counts.reset()
    assert counts.facts() == {}


def test_the_command_prints_a_table_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "profile.json"
    file.write_text(io.dumps(PROFILE))
    args = ["speculate", "--model", "Qwen3-8B", "--profile", str(file), "--batch", "1"]
    args += ["--batch", "64", "--speculative-model", "ngram", "--num-speculative-tokens", "4"]
    args += ["--acceptance-rate", "0.5", "--output-tokens", "32"]
    assert main([*args, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["batch"] for row in document["rows"]] == [1, 64]
    assert document["tokens_per_step"] == pytest.approx((1 - 0.5**5) / 0.5)
    assert set(document["break_even_batch"]) == {"energy", "itl"}
    assert main(args) == 0
    assert "saves energy up to a batch of" in capsys.readouterr().out
    assert main([*args, "--max-num-seqs", "32"]) == 2
    assert "batch must be at most max_num_seqs" in capsys.readouterr().err
