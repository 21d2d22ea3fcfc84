"""What FLOP-only gets wrong: rankings by hand and against scipy, and on real predictions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prediction_builders import a_prediction
from test_predict import MODELS, PROFILE
from test_render import show
from test_validate import a_run

from energymodel import flop_gap, io, render_explain
from energymodel.cli import main
from energymodel.deployment import Deployment
from energymodel.errors import InputError, WorkError
from energymodel.flop_gap import FlopGap, measured, predicted
from energymodel.predict import predict
from energymodel.prediction import Baseline, Prediction
from energymodel.ranking import SAME, equal, rank
from energymodel.workload import Bin, Workload

RUNS = Path(__file__).parents[1] / "calibration" / "data" / "h200" / "held_out_runs.jsonl"


def by_model(name: str, workload: Workload) -> Prediction:
    return predict(MODELS[name], Deployment(), workload, PROFILE)


# --- orders ---------------------------------------------------------------------------------------


def test_an_order_by_hand() -> None:
    # True energies 1, 2, 4; the estimate says 1, 3, 2: one of three pairs is the wrong way round.
    r = rank(np.log([1.0, 2.0, 4.0]), np.log([1.0, 3.0, 2.0]))
    assert (r.pairs, r.inverted, r.blind, r.blind_ratio) == (3, pytest.approx(1 / 3), 0.0, 1.0)
    assert r.kendall_tau == pytest.approx(1 / 3)


def test_what_an_estimate_cannot_see() -> None:
    r = rank(np.log([1.0, 50.0, 50.1]), np.log([2.0, 2.0, 4.0]))
    # 50 and 50.1 are the same within the scatter of boards.
    assert r.blind == pytest.approx(1 / 2)
    assert r.blind_ratio == pytest.approx(50.0)
    assert r.inverted == 0.0
    # One pair in the right order, two differ in truth, two in the estimate.
    assert r.kendall_tau == pytest.approx(1 / 2)
    assert rank(np.zeros(3), np.arange(3.0)).kendall_tau is None
    assert rank(np.zeros(1), np.zeros(1)).pairs == 0


@settings(deadline=None)
@given(st.permutations(range(9)), st.lists(st.integers(0, 4), min_size=9, max_size=9))
def test_tau_is_that_of_scipy(order: list[int], ties: list[int]) -> None:
    stats = pytest.importorskip("scipy.stats")
    truth, simple = np.array(order, dtype=float), np.array(ties, dtype=float)
    found = rank(truth, simple).kendall_tau
    expected = stats.kendalltau(truth, simple).statistic
    assert (found is None) == np.isnan(expected)
    if found is not None:
        assert found == pytest.approx(expected)


def test_pairs_can_be_chosen() -> None:
    truth, simple = np.log([1.0, 2.0, 3.0, 4.0]), np.log([1.0, 2.0, 4.0, 3.0])
    assert rank(truth, simple, equal("aabb")).inverted == 0.5
    assert rank(truth, simple, equal("aabb")).pairs == 2
    assert rank(truth, simple, ~equal("aabb")).inverted == 0.0


# --- configurations -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gap() -> FlopGap:
    names = ("Llama-3.1-8B-Instruct", "Qwen3-32B", "Qwen3-30B-A3B")
    return predicted(by_model, names, (1, 64), (512, 4096), 32)


def test_every_combination_in_both_kinds_of_work(gap: FlopGap) -> None:
    assert gap.source == "predicted"
    assert gap.profiles == {"h200": "measured"}
    assert len(gap.configurations) == 3 * 2 * 2 * 2
    assert set(gap.work) == {"prefill", "decode"}
    for c in gap.configurations:
        assert c.ratio == pytest.approx(c.flop_only_per_token_j / c.energy_per_token_j)
        assert 0 < c.ratio < 1


def test_phases_add_up_to_the_baseline_and_the_energy() -> None:
    one = Workload(bins=(Bin(input_tokens=700, output_tokens=40, count=5),))
    p = by_model("Qwen3-32B", one)
    rows = predicted(by_model, ["Qwen3-32B"], [5], [700], 40).configurations
    tokens = {"prefill": 5 * 700, "decode": 5 * 39}
    assert sum(c.energy_per_token_j * tokens[c.work] for c in rows) == pytest.approx(
        p.energy_j - p.phases["idle"].energy_j
    )
    assert sum(c.flop_only_per_token_j * tokens[c.work] for c in rows) == pytest.approx(
        p.flop_only.energy_j
    )


def test_decode_is_where_it_fails_and_batches_it_cannot_see(gap: FlopGap) -> None:
    prefill, decode = gap.work["prefill"], gap.work["decode"]
    assert decode.ratio.highest < prefill.ratio.median
    assert decode.by_batch["1"].highest < decode.by_batch["64"].lowest
    assert decode.rankings["settings"].blind > 0
    assert decode.rankings["settings"].blind_ratio > 10
    assert decode.fitted_median_ape > prefill.fitted_median_ape
    assert set(decode.by_model) == {MODELS[n].name for n in MODELS if "Qwen3" in n} | {
        "meta-llama/Llama-3.1-8B-Instruct"
    }
    assert list(decode.by_context) == ["512", "4096"]


def test_inversions_are_what_they_say(gap: FlopGap) -> None:
    for work in gap.work.values():
        worst = [pair.energy_ratio for pair in work.inversions]
        assert worst == sorted(worst, reverse=True)
        assert len(
            {(p.chosen.model, p.chosen.batch, p.chosen.context) for p in work.inversions}
        ) == len(worst)
        for pair in work.inversions:
            says = pair.chosen.flop_only_per_token_j / pair.other.flop_only_per_token_j
            costs = pair.chosen.energy_per_token_j / pair.other.energy_per_token_j
            assert pair.flop_only_ratio == pytest.approx(says)
            assert pair.energy_ratio == pytest.approx(costs)
            assert says < np.exp(-SAME) < 1 < np.exp(SAME) < costs
    assert gap.work["decode"].inversions[0].energy_ratio > 2
    assert bool(gap.work["decode"].inversions) == (gap.work["decode"].rankings["all"].inverted > 0)


def test_what_cannot_be_predicted_is_named() -> None:
    g = predicted(by_model, ["Qwen3-32B"], [1], [512, 10_000_000], 1)
    assert len(g.configurations) == 1
    assert g.left_out[0].configuration == "Qwen3-32B, 1 x 10,000,000"
    assert "KV" in g.left_out[0].reason
    with pytest.raises(WorkError, match="No configuration can be compared; the first reason"):
        predicted(by_model, ["Qwen3-32B"], [1], [10_000_000], 1)
    with pytest.raises(InputError, match="at most 3,000 configurations to rank, got 3,001"):
        predicted(by_model, ["Qwen3-32B"], range(3001), [1], 1)


def test_measured_runs_are_marked_and_compared_by_hand() -> None:
    def flop_of(run: io.Run) -> Prediction:
        joules = {80.0: 8.0, 40.0: 10.0}[run.energy_j]
        return a_prediction(flop_only=Baseline(energy_j=joules, ratio=joules / 100))

    g = measured([a_run(80.0, model="m"), a_run(40.0, model="n")], flop_of)
    assert g.source == "measured"
    # 3 requests of 2 tokens each: 80 / 6 J a token, against 8 / 6 by FLOP.
    work = g.work["generation"]
    assert [c.energy_per_token_j for c in g.configurations] == pytest.approx([80 / 6, 40 / 6])
    assert work.ratio.lowest == pytest.approx(0.1)
    assert work.rankings["all"].kendall_tau == -1.0
    assert work.inversions[0].energy_ratio == pytest.approx(2.0)
    assert work.inversions[0].flop_only_ratio == pytest.approx(0.8)
    with pytest.raises(WorkError, match="there is none"):
        measured([], flop_of)


# --- the command ----------------------------------------------------------------------------------

SMALL = ("--model", "Qwen3-4B", "--model", "OLMoE-1B-7B-0924", "--batch", "1", "--batch", "64")
SMALL += ("--context", "512", "--output-tokens", "16")


@pytest.mark.parametrize("word", ["--flop-gap", "flop-gap"])
def test_the_command(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", word, *SMALL]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "predicted with profile h200 (measured)" in out
    assert all(len(row) <= 80 for row in out.splitlines())
    assert main(["explain", word, *SMALL, "--gpu", "h200", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {c["model"] for c in document["configurations"]} == {
        "Qwen/Qwen3-4B",
        "allenai/OLMoE-1B-7B-0924",
    }


def test_the_command_on_measured_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    figure = tmp_path / "gap.svg"
    assert main(["explain", "--flop-gap", "--runs", str(RUNS), "--plot", str(figure)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("FLOP-only against energies measured; FLOP counted with profile h200")
    assert "in truth" in out
    assert "<svg" in figure.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--runs", "r.jsonl", "--model", "x"], "no --model, --batch or --context"),
        (["--runs", "r.jsonl"], "r.jsonl cannot be read"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--gpu", "h1"], "h1"),
        (["--batch", "0"], "0"),
        (["--model", "bert-base-uncased"], "bert"),
    ],
)
def test_wrong_arguments(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--flop-gap", *args]) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_names_do_no_harm(gap: FlopGap, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from dataclasses import replace

    from energymodel.explain_plots import flop_gap as draw

    rows: tuple[Any, ...] = tuple(
        replace(c, model="\x1b[2J<script>$x_$", flags="\x07") for c in gap.configurations
    )
    evil = flop_gap._gap("predicted", rows, (), ("\x1b[2J",), gap.profiles)
    assert "\x1b" not in show(render_explain.flop_gap(evil))
    draw(evil, str(tmp_path / "gap.svg"))
    assert "<script" not in (tmp_path / "gap.svg").read_text(encoding="utf-8")
