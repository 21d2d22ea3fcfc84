"""Steady states and replayed traces as predictions, bins against replays, and the commands."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner

from energymodel.binned_estimate import compare
from energymodel.cli import cli, main
from energymodel.deployment import Deployment
from energymodel.errors import InputError
from energymodel.find_model import find_model
from energymodel.power import static_power_w
from energymodel.predict import predict
from energymodel.predict_online import predict_online, predict_trace
from energymodel.prediction import Prediction
from energymodel.profile import load
from energymodel.traces import Trace
from energymodel.traces.binning import bin_lengths
from energymodel.traces.lengths import lengths_of
from energymodel.workload import Bin, Workload

MODEL, PROFILE = find_model("Qwen3-0.6B")[0], load("h200")
MIX = ((400, 40, 0.75), (100, 160, 0.25))


def at_rate(requests_per_s: float, **flags: Any) -> Prediction:
    bins = tuple(
        Bin(input_tokens=i, output_tokens=o, requests_per_s=share * requests_per_s)
        for i, o, share in MIX
    )
    return predict_online(MODEL, Deployment(**flags), Workload(bins=bins), PROFILE)


def a_trace(requests: int = 60, gap_s: float = 0.05, **changes: Any) -> Trace:
    random = np.random.default_rng(3)
    trace = Trace(
        name="trace.csv",
        format="energymodel",
        arrival_s=np.arange(requests) * gap_s,
        input_tokens=random.integers(50, 500, requests),
        output_tokens=random.integers(5, 60, requests),
    )
    return replace(trace, **changes)


def of_trace(trace: Trace, **flags: Any) -> Prediction:
    return predict_trace(MODEL, Deployment(**flags), trace, PROFILE)


def assert_sums(p: Prediction) -> None:
    for parts in (p.phases, p.components):
        assert sum(x.energy_j for x in parts.values()) == pytest.approx(p.energy_j)
        assert sum(x.duration_s for x in parts.values()) == pytest.approx(p.duration_s)
    assert sum(b.energy_j for b in p.bins) == pytest.approx(p.energy_j)
    assert sum(b.count for b in p.bins) == p.requests
    assert p.energy_per_request_j == pytest.approx(p.energy_j / p.requests)


# Steady states -----------------------------------------------------------------------------------


def test_a_steady_state_serves_what_arrives_and_adds_up() -> None:
    p = at_rate(20.0)
    assert p.online is not None
    assert_sums(p)
    assert p.requests / p.duration_s == pytest.approx(20.0, rel=0.02)
    tokens = sum(share * o for _, o, share in MIX)
    assert p.output_tokens_per_s == pytest.approx(20.0 * tokens, rel=0.03)
    assert not p.online.saturated
    # Little: requests in service are the rate times the time from admission to the end.
    served_s = p.online.e2e_s.mean - p.online.queue_s.mean
    assert p.online.running == pytest.approx(20.0 * served_s, rel=0.05)
    assert p.ttft_s is not None
    assert p.online.queue_s.mean < p.ttft_s.mean < p.online.e2e_s.mean


def test_the_same_seed_gives_the_same_prediction() -> None:
    assert at_rate(5.0).energy_j == at_rate(5.0).energy_j


def test_a_replica_with_little_to_do_idles_at_static_power() -> None:
    p = at_rate(0.5)
    assert p.online is not None
    idle = p.phases["idle"]
    assert idle.duration_s / p.duration_s == pytest.approx(1 - p.online.utilisation, abs=1e-3)
    assert 0.5 < idle.duration_s / p.duration_s < 1
    static_w = static_power_w(PROFILE.power, p.mean_power_w)
    assert idle.energy_j / idle.duration_s == pytest.approx(static_w, rel=0.02)


def test_energy_per_token_falls_with_the_load_until_the_replica_is_full() -> None:
    per_token = [at_rate(rate).energy_per_output_token_j for rate in (1.0, 10.0, 100.0)]
    assert per_token == sorted(per_token, reverse=True)


def test_a_replica_that_cannot_keep_up_says_so() -> None:
    flags = {"max_num_seqs": 8}
    below = at_rate(1.0, **flags)
    assert below.online is not None
    capacity = below.online.capacity_requests_per_s
    assert capacity is not None
    assert not any("keep up" in w for w in below.warnings)
    above = at_rate(1.5 * capacity, **flags)
    assert above.online is not None
    assert above.online.saturated
    assert above.requests / above.duration_s == pytest.approx(capacity, rel=0.05)
    assert sum("cannot keep up" in w for w in above.warnings) == 1
    near = at_rate(0.9 * capacity, **flags)
    assert near.online is not None
    assert not near.online.saturated


def test_a_server_adds_its_latency_to_each_request() -> None:
    bare, through = at_rate(1.0), at_rate(1.0, server=True)
    assert bare.ttft_s is not None
    assert through.ttft_s is not None
    latency_s = PROFILE.engines["vllm"]["server_latency_s"].value
    assert through.ttft_s.p50 > bare.ttft_s.p50 + 0.99 * latency_s


def test_images_are_served_as_they_come() -> None:
    model = find_model("Qwen2.5-VL-7B-Instruct")[0]
    trace = Workload(
        bins=(
            Bin(
                input_tokens=50,
                output_tokens=4,
                requests_per_s=2.0,
                images=1,
                image_width=640,
                image_height=480,
            ),
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("energymodel.predict_online.REQUESTS", 30)
        patch.setattr("energymodel.predict_online.MOST_REQUESTS", 30)
        patch.setattr("energymodel.predict_online.QUEUED_LEAST", 10)
        patch.setattr("energymodel.predict_online.QUEUED_MOST", 10)
        p = predict_online(model, Deployment(), trace, PROFILE)
    assert p.components["vision"].energy_j > 0
    assert_sums(p)


# Traces ------------------------------------------------------------------------------------------


def test_a_replayed_trace_is_the_whole_of_it() -> None:
    trace = a_trace()
    p = of_trace(trace)
    assert p.online is not None
    assert_sums(p)
    assert p.requests == 60
    assert p.output_tokens == trace.output_tokens.sum()
    assert p.duration_s >= 59 * 0.05
    assert len(p.bins) <= 32
    assert p.online.capacity_requests_per_s is None


def test_a_trace_of_one_moment_is_an_offline_run() -> None:
    trace = a_trace(gap_s=0.0)
    p = of_trace(trace)
    bins = tuple(
        Bin(input_tokens=i, output_tokens=o, count=1)
        for i, o in zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True)
    )
    offline = predict(MODEL, Deployment(), Workload(bins=bins), PROFILE)
    working_s = offline.duration_s - offline.phases["idle"].duration_s
    assert p.phases["decode"].energy_j == pytest.approx(offline.phases["decode"].energy_j, rel=0.01)
    assert p.duration_s == pytest.approx(working_s, rel=0.02)


def test_what_the_model_cannot_serve_is_left_out_and_counted() -> None:
    trace = a_trace(input_tokens=np.array([100] * 59 + [10**6]))
    p = of_trace(trace)
    assert p.requests == 59
    assert any("1 too long" in w for w in p.warnings)


def test_prefixes_of_a_trace_spare_prefill_with_prefix_caching() -> None:
    trace = a_trace(input_tokens=np.full(60, 4000), prefix_tokens=np.array([0] + [3200] * 59))
    whole, cached = (of_trace(trace, enable_prefix_caching=on) for on in (False, True))
    prefill, spared = (p.phases["prefill"].energy_j for p in (whole, cached))
    assert 0.15 < spared / prefill < 0.5
    told = [[w for w in p.warnings if "prefix" in w] for p in (whole, cached)]
    assert told[0] == [
        "prefix_tokens are not used: every prompt is computed whole without --enable-prefix-caching."
    ]
    assert told[1] == ["prefixes of the trace are found as in a prefix cache without limit."]


# Bins against replays ----------------------------------------------------------------------------


def test_bins_are_compared_with_the_replay() -> None:
    trace = a_trace(200)
    lengths = lengths_of(trace)
    found = compare(
        trace,
        lengths,
        bin_lengths(lengths, "quantile"),
        model=MODEL,
        deployment=Deployment(),
        profile=PROFILE,
    )
    assert found.replay is not None
    assert found.rates is not None
    assert found.replay.error == 0
    assert found.replay.energy_j == pytest.approx(of_trace(trace).energy_j)
    assert found.rates.error == pytest.approx(found.rates.energy_j / found.replay.energy_j - 1)
    assert abs(found.binning_error) < 0.02
    # All at once they share more steps than they did as they came.
    assert found.at_once.error < -0.2


def test_a_trace_without_times_is_compared_all_at_once() -> None:
    trace = a_trace(50, arrival_s=None)
    lengths = lengths_of(trace)
    found = compare(
        trace,
        lengths,
        bin_lengths(lengths, "powers-of-two"),
        model=MODEL,
        deployment=Deployment(),
        profile=PROFILE,
    )
    assert found.replay is None
    assert found.at_once.error == 0
    assert found.counts.error == pytest.approx(found.binning_error)
    assert found.binning_error > 0


def test_requests_that_the_model_does_not_know_are_named() -> None:
    trace = a_trace(input_tokens=np.full(60, 10**6))
    lengths = lengths_of(trace)
    with pytest.raises(InputError, match="--max-tokens"):
        compare(
            trace,
            lengths,
            bin_lengths(lengths, "exact"),
            model=MODEL,
            deployment=Deployment(),
            profile=PROFILE,
        )


# Commands ----------------------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]
WANTED = ("predict", "--model", "Qwen3-0.6B", "--gpu", "h200")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(list(arguments))
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status or 0, captured.out, captured.err

    return call


@pytest.fixture
def trace_file(tmp_path: Path) -> str:
    path = tmp_path / "trace.csv"
    rows = "".join(f"{i / 20},{100 + i},{5 + i % 7}\n" for i in range(40))
    path.write_text("arrival_s,input_tokens,output_tokens\n" + rows, encoding="utf-8")
    return str(path)


def rates(tmp_path: Path) -> str:
    path = tmp_path / "bins.json"
    bins = [{"input_tokens": 128, "output_tokens": 8, "requests_per_s": 3.0}]
    path.write_text(json.dumps({"schema_version": 1, "bins": bins}), encoding="utf-8")
    return str(path)


def test_predict_takes_a_trace_or_rates(run: Run, trace_file: str, tmp_path: Path) -> None:
    schema = json.loads(run("schema", "prediction")[1])
    for arguments in (("--trace", trace_file), ("--workload", rates(tmp_path))):
        status, out, err = run(*WANTED, *arguments, "--json")
        assert status == 0, err
        found = json.loads(out)
        jsonschema.validate(found, schema)
        assert found["online"]["requests_per_s"] > 0
        status, out, _ = run(*WANTED, *arguments)
        assert status == 0
        assert "time in the queue" in out


def test_predict_wants_one_of_workload_and_trace(run: Run, trace_file: str, tmp_path: Path) -> None:
    both = ("--trace", trace_file, "--workload", rates(tmp_path))
    for arguments in ((), both):
        status, _, err = run(*WANTED, *arguments)
        assert status == 2
        assert "one of --workload and --trace" in err


def test_requests_in_time_share_steps_in_proportion(
    run: Run, trace_file: str, tmp_path: Path
) -> None:
    for arguments in (("--trace", trace_file), ("--workload", rates(tmp_path))):
        status, _, err = run(*WANTED, *arguments, "--attribution", "marginal")
        assert status == 2
        assert "--attribution must be proportional" in err


def test_bins_prints_both_estimates(run: Run, trace_file: str) -> None:
    arguments = ("bins", trace_file, "--model", "Qwen3-0.6B", "--gpu", "h200")
    status, out, err = run(*arguments, "--json")
    assert status == 0, err
    found = json.loads(out)["estimate"]
    assert found["replay"]["error"] == 0
    assert found["rates"]["energy_j"] > 0
    status, out, _ = run(*arguments)
    assert "replay as it arrived" in out
    status, _, err = run(*arguments, "--sample", "5")
    assert status == 2
    assert "--sample" in err


def test_a_trace_is_replayed_with_columns_and_units_as_told(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("when,asked,said\n0,100,8\n500,200,8\n1500,50,8\n")
    command = ("predict", "--model", "Llama-3.2-1B-Instruct", "--gpu", "h200", "--trace", str(file))
    untold = CliRunner().invoke(cli, command)
    assert isinstance(untold.exception, InputError)
    assert "--arrival-column" in str(untold.exception)
    told = (
        *("--arrival-column", "when", "--input-column", "asked", "--output-column", "said"),
        *("--time-unit", "ms"),
    )
    result = CliRunner().invoke(cli, (*command, *told, "--json"))
    assert result.exit_code == 0, result.output
    prediction = json.loads(result.stdout)
    assert prediction["input_tokens"] == 350
    assert 1.5 < prediction["duration_s"] < 2.0
