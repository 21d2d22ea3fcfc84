"""Bins: each method by hand, what they conserve, what is said about them, and the command."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance
from trace_files import AZURE, BURSTGPT, CONVERSATION, MOONCAKE, OWN, json_lines, real

from energymodel import commands_bins, commands_common, io
from energymodel.cli import main
from energymodel.deployment import Deployment
from energymodel.errors import InputError
from energymodel.find_model import find_model
from energymodel.predict import predict
from energymodel.profile import load
from energymodel.traces import Limits, Trace, read_trace
from energymodel.traces.binning import METHODS, Binned, bin_lengths
from energymodel.traces.distortion import arrivals, distance, inflation
from energymodel.traces.formats import UNITS
from energymodel.traces.lengths import Lengths, Range, drawn, lengths_of, usable
from energymodel.traces.report import bins_document, report


def lengths(*rows: tuple[int, int, int]) -> Lengths:
    """Lengths of rows (input tokens, output tokens, count)."""
    i, o, n = np.array(sorted(rows), dtype=np.int64).T
    return Lengths(name="x", format="x", input_tokens=i, output_tokens=o, count=n)


def listed(binned: Binned) -> list[tuple[int, int, int]]:
    columns = (binned.input_tokens, binned.output_tokens, binned.count)
    return list(zip(*(column.tolist() for column in columns), strict=True))


ANY = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(0, 3000), st.integers(1, 50)),
    min_size=1,
    max_size=40,
    unique_by=lambda row: row[:2],
)


# Methods -------------------------------------------------------------------------------------


def test_powers_of_two_are_those_not_below() -> None:
    rows = ((1, 0, 1), (2, 1, 2), (3, 4, 3), (4, 3, 4), (5, 1024, 5), (8_388_609, 1025, 6))
    assert listed(bin_lengths(lengths(*rows), "powers-of-two")) == [
        (1, 0, 1),
        (2, 1, 2),
        (4, 4, 3 + 4),
        (8, 1024, 5),
        (10_000_000, 2048, 6),  # no more than bins.json may hold
    ]


def test_quantiles_have_equal_counts_and_mean_lengths() -> None:
    rows = [(i, 10 * i + o, 2) for i in (1, 2, 3, 4) for o in (1, 3)]
    assert listed(bin_lengths(lengths(*rows), "quantile", 4)) == [
        (1, 12, 4),  # of inputs 1 and 2 those with outputs 11 and 13
        (2, 22, 4),
        (3, 32, 4),
        (4, 42, 4),
    ]


def test_k_means_finds_what_is_apart() -> None:
    rows = ((10, 5, 7), (11, 5, 7), (10, 400, 3), (9000, 5, 2), (9100, 6, 1))
    assert listed(bin_lengths(lengths(*rows), "k-means", 3)) == [
        (10, 5, 14),
        (10, 400, 3),
        (9033, 5, 3),
    ]


def test_exact_bins_change_nothing() -> None:
    found = lengths((5, 6, 7), (5, 7, 1), (6, 0, 2))
    binned = bin_lengths(found, "exact")
    assert listed(binned) == [(5, 6, 7), (5, 7, 1), (6, 0, 2)]
    far = distance(found, binned)
    assert (far.input_tokens, far.output_tokens) == pytest.approx((0, 0), abs=1e-15)
    assert inflation(found, binned).decode_attention == 1


@given(rows=ANY, method=st.sampled_from(METHODS), bins=st.integers(1, 12))
def test_requests_are_kept_and_lengths_are_near(
    rows: list[tuple[int, int, int]], method: str, bins: int
) -> None:
    found = lengths(*rows)
    fixed = method in ("powers-of-two", "exact")
    binned = bin_lengths(found, method, None if fixed else bins)
    assert binned.count.sum() == found.requests
    assert (np.bincount(binned.bin, weights=found.count) == binned.count).all()
    assert sorted(listed(binned)) == listed(binned)
    assert len(set(listed(binned))) == len(binned.count)
    # Requests that generate stay apart from those that do not.
    assert ((binned.output_tokens == 0)[binned.bin] == (found.output_tokens == 0)).all()
    if method == "powers-of-two":
        for made, true in (
            (binned.input_tokens[binned.bin], found.input_tokens),
            (binned.output_tokens[binned.bin], found.output_tokens),
        ):
            assert (made >= true).all()
            assert (made <= np.maximum(2 * true - 1, true)).all()
    if not fixed:
        assert len(binned.count) <= 2 * bins
        # Means are rounded by a half at most, so sums stay.
        made_sum = binned.count @ binned.input_tokens
        assert abs(made_sum - found.count @ found.input_tokens) <= 0.5 * found.requests


@pytest.mark.parametrize("method", ["powers-of-two", "exact"])
def test_a_number_of_bins_goes_with_two_methods(method: str) -> None:
    with pytest.raises(InputError, match=f"--bins does not go with --method {method}"):
        bin_lengths(lengths((1, 1, 1)), method, 3)


def test_no_more_bins_than_a_file_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("energymodel.traces.binning.MAX_BINS", 2)
    with pytest.raises(InputError, match="x would have 3 bins, but there may be 2"):
        bin_lengths(lengths((1, 1, 1), (1, 2, 1), (1, 3, 1)), "exact")


def test_k_means_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.cluster", None)
    with pytest.raises(InputError, match=r"pip install 'energymodel\[traces\]'"):
        bin_lengths(lengths((1, 1, 1)), "k-means", 1)


# Distortion ----------------------------------------------------------------------------------


def test_inflation_by_hand() -> None:
    found = lengths((3, 3, 1), (5, 1, 2))
    changed = inflation(found, bin_lengths(found, "powers-of-two"))  # (4, 4), 2 x (8, 1)
    assert changed.input_tokens == 20 / 13
    assert changed.output_tokens == 6 / 5
    # Pairs in prompts: 3 x 4 / 2 and 2 x 5 x 6 / 2, against 4 x 5 / 2 and 2 x 8 x 9 / 2.
    assert changed.prefill_attention == (10 + 72) / (6 + 30)
    # Contexts: steps of 4 and 5 tokens, against 5, 6 and 7.
    assert changed.decode_attention == 18 / 9


def test_nothing_generated_has_no_inflation() -> None:
    found = lengths((3, 0, 1))
    changed = inflation(found, bin_lengths(found, "powers-of-two"))
    assert changed.output_tokens is changed.decode_attention is None
    found = lengths((3, 1, 1))
    assert inflation(found, bin_lengths(found, "exact")).decode_attention is None


@given(rows=ANY, method=st.sampled_from(("powers-of-two", "quantile")))
def test_distances_are_those_of_scipy(rows: list[tuple[int, int, int]], method: str) -> None:
    found = lengths(*rows)
    binned = bin_lengths(found, method)
    expected = wasserstein_distance(
        np.log2(found.input_tokens), np.log2(binned.input_tokens), found.count, binned.count
    )
    assert distance(found, binned).input_tokens == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "excluded", "tokens", "attention"),
    [
        ("azure_llm_2023_conv", 563, (1.429, 1.310), (1.967, 1.992)),
        ("azure_llm_2023_code", 27, (1.382, 1.407), (1.802, 1.952)),
    ],
)
def test_the_published_inflation(
    name: str, excluded: int, tokens: tuple[float, float], attention: tuple[float, float]
) -> None:
    """Powers of two inflate input 1.38 to 1.43 and output 1.31 to 1.41 times.

    Known of both Azure traces where prompts reach to 8,192 tokens and answers to 512.
    """
    whole = lengths_of(read_trace(real(name)))
    found = usable(whole, Limits(max_input_tokens=8192, max_output_tokens=512))
    assert found.left_out == {"too_long": excluded}
    changed = inflation(found, bin_lengths(found, "powers-of-two"))
    assert (changed.input_tokens, changed.output_tokens) == pytest.approx(tokens, abs=5e-4)
    assert (changed.prefill_attention, changed.decode_attention) == pytest.approx(
        attention, abs=5e-4
    )


@pytest.mark.parametrize("name", ["azure_llm_2023_conv", "azure_llm_2023_code"])
@pytest.mark.parametrize("method", ["quantile", "k-means"])
def test_methods_that_keep_tokens_distort_less(name: str, method: str) -> None:
    found = lengths_of(read_trace(real(name)))
    powers = bin_lengths(found, "powers-of-two")
    binned = bin_lengths(found, method)
    assert len(binned.count) < len(powers.count)
    changed, worse = inflation(found, binned), inflation(found, powers)
    assert changed.input_tokens == pytest.approx(1, abs=0.005)
    assert changed.output_tokens == pytest.approx(1, abs=0.005)
    assert abs(changed.prefill_attention - 1) < 0.1 < worse.prefill_attention - 1
    assert distance(found, binned).output_tokens < distance(found, powers).output_tokens


def test_energy_goes_with_the_distortion(tmp_path: Path) -> None:
    """Of the same requests, all submitted at once, against bins of their exact lengths."""
    found = lengths_of(read_trace(real("azure_llm_2023_conv")))
    spec, _ = find_model("meta-llama/Llama-3.1-8B-Instruct")
    energy_j = {}
    for method in METHODS:
        made = report(found, bin_lengths(found, method), online=False, seed=0)
        path = tmp_path / "bins.json"
        path.write_text(json.dumps(bins_document(made)))
        done = predict(spec, Deployment(), io.read_workload(path), load("h200"))
        energy_j[method] = done.energy_j
    assert energy_j["powers-of-two"] / energy_j["exact"] == pytest.approx(1.55, abs=0.05)
    assert energy_j["quantile"] / energy_j["exact"] == pytest.approx(1, abs=0.01)
    assert energy_j["k-means"] / energy_j["exact"] == pytest.approx(1, abs=0.01)


# Arrivals, range and sample ------------------------------------------------------------------


def trace(arrival_s: Any, tokens: int = 5) -> Trace:
    times = np.sort(np.asarray(arrival_s, dtype=np.float64))
    same = np.full(len(times), tokens, dtype=np.int64)
    return Trace(name="x", format="x", arrival_s=times, input_tokens=same, output_tokens=same)


def test_arrivals_by_hand() -> None:
    load = arrivals(lengths_of(trace([0, 10, 61, 150, 170, 190])))  # 2, 1 and 2, and 1 of a minute
    assert load is not None
    assert load.span_s == 190
    assert load.requests_per_s == 6 / 190
    assert load.peak == 2 / (5 / 3)
    assert load.dispersion == pytest.approx((1 / 3) / (5 / 3))
    short = arrivals(lengths_of(trace([0, 119])))
    assert short is not None
    assert short.dispersion is None
    assert arrivals(lengths((1, 1, 1))) is None


def test_a_poisson_process_has_dispersion_one() -> None:
    times = np.random.default_rng(0).uniform(0, 60 * 2000, 40_000)
    load = arrivals(lengths_of(trace(times - times.min())))
    assert load is not None
    assert load.dispersion == pytest.approx(1, abs=0.1)


def test_a_range_is_counted_from_its_start() -> None:
    part = lengths_of(trace([0, 59, 60, 100, 200]), Range(start_s=59, end_s=200))
    assert part.requests == 3
    assert part.span_s == 141
    assert part.per_minute is not None
    assert part.per_minute.tolist() == [3, 0]
    assert part.left_out == {"outside_range": 2}
    with pytest.raises(InputError, match=r"no request in the chosen range; its last .* 200.0 s"):
        lengths_of(trace([0, 200]), Range(start_s=201))


def test_a_sample_is_drawn_without_replacement() -> None:
    found = lengths((5, 6, 600), (7, 8, 300), (9, 1, 100))
    sample = drawn(found, 500, seed=1)
    assert sample.requests == 500
    assert sample.left_out == {"not_drawn": 500}
    assert (drawn(found, 500, seed=1).count == sample.count).all()
    assert (drawn(found, 500, seed=2).count != sample.count).any()
    assert abs(sample.count / sample.requests - found.count / found.requests).max() < 0.05
    assert drawn(found, 1000, seed=1) is found
    most = drawn(found, 999, seed=3)
    assert ((found.count - most.count) >= 0).all()


def test_nothing_left_is_refused() -> None:
    with pytest.raises(InputError, match="no request that is left: 2 no_output, 3 too_long"):
        usable(lengths((5, 0, 2), (50, 5, 3)), Limits(max_tokens=20))


# The command ---------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: Any, tmp_path: Path, monkeypatch: Any) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)

    def go(*args: str) -> tuple[int, str, str]:
        status = main(["bins", *args])
        out, err = capsys.readouterr()
        return status, out, err

    return go


def test_bins_can_be_predicted(run: Any) -> None:
    Path("t.csv").write_text(AZURE)
    status, out, _ = run("t.csv", "-o", "b.json")
    assert status == 0
    assert "3 in 3 bins (powers-of-two)" in out
    assert [
        (b.input_tokens, b.output_tokens, b.count) for b in io.read_workload("b.json").bins
    ] == [
        (128, 8, 1),
        (256, 8, 1),
        (512, 16, 1),
    ]


def test_json_is_one_document(run: Any) -> None:
    Path("t.csv").write_text(BURSTGPT + "80,d,1,GPT-4,300,0,300,API log\n")
    status, out, _ = run("t.csv", "--json", "--online", "--max-tokens", "250")
    assert status == 0
    document = json.loads(out)
    assert document["left_out"] == {"no_output": 1, "too_long": 1}
    assert document["excluded_share"] == 0.5
    rate = 1 / 70
    assert [b["requests_per_s"] for b in document["bins"]] == [rate, rate]
    assert document["arrivals"]["requests_per_s"] == 2 * rate
    assert document["inflation"]["input_tokens"] == 384 / 300
    assert document["distance_log2"]["input_tokens"] > 0
    workload = {"schema_version": 1, "bins": document["bins"]}
    jsonschema.validate(workload, io.schema("workload"))


def test_what_bins_lose_is_said(run: Any) -> None:
    busy = "".join(f"{t},5,6\n" for t in [*range(60)] * 5 + [600] * 3)
    Path("t.csv").write_text(OWN.partition("\n")[0] + "\n" + busy)
    assert "Requests arrive in bursts" in run("t.csv", "--online")[1]
    assert "bursts" not in run("t.csv")[1]
    Path("t.jsonl").write_text(json_lines(MOONCAKE))
    assert "50% of the prompt tokens repeat" in " ".join(run("t.jsonl")[1].split())
    Path("t.json").write_text(json.dumps([CONVERSATION]))
    status, _, err = run("t.json", "--json", "--chars-per-token", "4")
    assert status == 0
    assert err.startswith("Warning: Where it holds text, a token is taken to be 4.0 characters.")


def test_a_range_and_columns_and_a_sample(run: Any) -> None:
    Path("t.csv").write_text("ms,p,a\n" + "".join(f"{1000 * t},{t + 1},9\n" for t in range(100)))
    args = ["t.csv", "--arrival-column", "ms", "--input-column", "p", "--output-column", "a"]
    args += ["--time-unit", "ms", "--start-s", "10", "--end-s", "60", "--sample", "20", "--json"]
    document = json.loads(run(*args)[1])
    assert document["left_out"] == {"outside_range": 50, "not_drawn": 30}
    assert document["excluded_share"] == 0
    assert sum(b["count"] for b in document["bins"]) == 20
    assert {b["input_tokens"] for b in document["bins"]} <= {16, 32, 64}
    assert json.loads(run(*args, "--seed", "5")[1])["bins"] != document["bins"]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["none.csv"], "none.csv cannot be read: no such file."),
        (["t.csv", "-o", "t.csv"], "--out t.csv is the trace itself; it must be another file."),
        (
            ["t.csv", "--start-s", "5", "--end-s", "5"],
            "--end-s must be above --start-s (5), got 5.",
        ),
        (["t.csv", "--end-s", "nan"], "it must be a finite number above 0"),
        (["t.csv", "--method", "exact", "--bins", "4"], "--bins does not go with --method exact"),
        (["t.csv", "--method", "magic"], "'magic' is not one of"),
        (["t.csv", "--max-tokens", "20"], "t.csv has no request that is left: 3 too_long."),
        (["lengths.csv", "--online"], "lengths.csv gives no span of time, which --online needs."),
        (["lengths.csv", "--start-s", "5"], "lengths.csv gives no times"),
        (["once.csv", "--online"], "once.csv gives no span of time, which --online needs."),
        (["t.csv", "--online", "-o", "no/b.json"], "no such file or directory"),
    ],
)
def test_bad_usage_is_one_sentence(run: Any, args: list[str], sentence: str) -> None:
    Path("t.csv").write_text(OWN)
    Path("once.csv").write_text("arrival_s,input_tokens,output_tokens\n5,6,7\n")
    Path("lengths.csv").write_text("input_tokens,output_tokens\n1,2\n")
    status, out, err = run(*args)
    assert status == (1 if "no/b.json" in args else 2)
    assert out == ""
    assert err.count("\n") == 1
    assert sentence in err
    assert Path("t.csv").read_text() == OWN


def test_too_many_requests_of_one_length(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written can always be read."""
    Path("t.csv").write_text(OWN)
    huge = replace(lengths((5, 6, 20_000_000)), name="t.csv")
    monkeypatch.setattr(commands_bins, "_lengths", lambda *_: huge)
    status, _, err = run("t.csv", "-o", "b.json")
    assert status == 2
    assert "b.json: bins[0].count must be" in err
    assert not Path("b.json").exists()


def test_choices_are_those_of_the_library() -> None:
    assert commands_bins._METHODS == METHODS
    assert commands_common.TIME_UNITS == UNITS
