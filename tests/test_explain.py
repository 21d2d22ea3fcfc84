"""Factors between two predictions: exact, invertible, and what one would say by hand."""

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_predict import DENSE, MODELS, MOE, PROFILE, a_deployment, a_workload, one_bin, run
from test_render import show

from energymodel import io, render_explain
from energymodel.cli import main
from energymodel.errors import InputError
from energymodel.explain import FACTORS, Explanation, explain
from energymodel.explain_document import Document, PredictionJson, read_document
from energymodel.predict import predict
from energymodel.prediction import Prediction

Change = Callable[[dict[str, Any]], None]

a_prediction = st.builds(
    lambda name, workload, deployment: predict(MODELS[name], deployment, workload, PROFILE),
    st.sampled_from(sorted(MODELS)),
    a_workload,
    a_deployment,
)


def document(p: Prediction, file: str = "A.json", change: Change | None = None) -> Document:
    plain = json.loads(io.dumps(p))
    if change is not None:
        change(plain)
    return Document(file, io.convert(plain, PredictionJson, file))


def between(a: Prediction, b: Prediction) -> Explanation:
    return explain(document(a), document(b, "B.json"))


def ratios(e: Explanation) -> dict[str, float]:
    return {name: factor.ratio for name, factor in e.factors.items()}


def moved(e: Explanation, by: float = 1e-3) -> set[str]:
    return {name for name, ratio in ratios(e).items() if abs(math.log(ratio)) > by}


# --- what must hold of any two --------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(a_prediction, a_prediction)
def test_factors_multiply_back_and_turn_round(a: Prediction, b: Prediction) -> None:
    there, back = between(a, b), between(b, a)
    assert list(there.factors) == list(FACTORS)
    assert math.prod(ratios(there).values()) == pytest.approx(b.energy_j / a.energy_j, rel=1e-9)
    assert there.ratio == pytest.approx(b.energy_j / a.energy_j)
    for name, factor in there.factors.items():
        assert factor.ratio * back.factors[name].ratio == pytest.approx(1.0, rel=1e-9)
        assert sum(factor.by_phase_j.values()) == pytest.approx(factor.change_j, abs=1e-6)
    changes = sum(factor.change_j for factor in there.factors.values())
    scale = a.energy_j + b.energy_j
    assert changes == pytest.approx(b.energy_j - a.energy_j, abs=1e-9 * scale)
    for parts in (there.phases, there.components):
        total = sum(part.change_j for part in parts.values())
        assert total == pytest.approx(b.energy_j - a.energy_j, abs=1e-9 * scale)
    # What this program predicts, it explains.
    assert there.factors["unexplained"].ratio == 1.0
    assert there.factors["collectives"].ratio == 1.0


@settings(max_examples=10, deadline=None)
@given(a_prediction)
def test_identical_documents_give_ones(p: Prediction) -> None:
    e = between(p, p)
    assert set(ratios(e).values()) == {1.0}
    assert e.ratio == 1.0
    assert e.differs == {}
    assert "B takes 1 times the energy of A" in show(render_explain.explanation(e))


# --- what one would say ---------------------------------------------------------------------------


def test_twice_the_requests_one_by_one_are_twice_the_tokens() -> None:
    a, b = (run(workload=one_bin(512, 64, n), max_num_seqs=1) for n in (20, 40))
    e = between(a, b)
    assert e.factors["tokens"].ratio == pytest.approx(2.0, rel=1e-3)
    assert e.factors["batch_limit"].ratio == pytest.approx(1.0, rel=1e-3)
    assert moved(e, by=0.01) == {"tokens"}


def test_a_smaller_batch_costs_passes_and_not_tokens() -> None:
    a, b = (run(workload=one_bin(128, 256, 64), max_num_seqs=n) for n in (64, 8))
    e = between(a, b)
    assert e.differs == {"max_num_seqs": (64, 8)}
    assert e.ratio > 1.5
    assert e.factors["tokens"].ratio == pytest.approx(1.0)
    assert e.factors["flop_per_token"].ratio == pytest.approx(1.0, rel=1e-3)
    largest = max(ratios(e), key=lambda name: ratios(e)[name])
    assert largest == "batch_limit"
    assert e.factors["batch_limit"].by_phase_j["decode"] > 0.9 * e.factors["batch_limit"].change_j
    # A pass of fewer sequences is shorter, but not by as much as there are more of them.
    assert e.factors["batch_limit"].ratio * e.factors["time"].ratio > 1


def test_a_lower_power_limit_is_the_clock_and_cooler_silicon() -> None:
    a, b = (run(workload=one_bin(2048, 1, 64), power_limit_w=w) for w in (700.0, 450.0))
    e = between(a, b)
    assert moved(e) <= {"clock", "static_power"}
    assert "clock" in moved(e)


def test_narrower_weights_are_fewer_bytes() -> None:
    e = between(
        run(workload=one_bin(16, 200, 1)), run(workload=one_bin(16, 200, 1), quantization="fp8")
    )
    assert min(ratios(e), key=lambda name: ratios(e)[name]) == "bytes"
    assert 0.5 < e.factors["bytes"].ratio < 0.9
    assert e.differs == {"quantization": (None, "fp8")}


def test_no_decode_is_no_tokens_of_decode() -> None:
    e = between(run(workload=one_bin(512, 1, 8)), run(workload=one_bin(512, 33, 8)))
    decode_j = e.phases["decode"].b_j
    assert e.phases["decode"].a_j == 0.0
    assert e.factors["tokens"].by_phase_j["decode"] == pytest.approx(decode_j, rel=0.01)


def test_experts_instead_of_a_dense_layer() -> None:
    e = between(run(DENSE), run(MOE))
    assert min(ratios(e), key=lambda name: ratios(e)[name]) == "flop_per_token"
    assert e.components["mlp"].b_j == e.components["moe"].a_j == 0.0
    assert e.components["moe"].change_j == e.components["moe"].b_j > 0


def test_collectives_have_a_factor_of_their_own() -> None:
    def split(d: dict[str, Any]) -> None:
        for phase in ("prefill", "decode"):
            d["causes"][phase]["collective"] = {"amount": 0.1, "full_clock_j": 50, "energy_j": 50}
        d["energy_j"] += 100

    p = run()
    e = explain(document(p), document(p, "B.json", split))
    assert e.factors["collectives"].ratio == pytest.approx((p.energy_j + 100) / p.energy_j)
    assert moved(e, by=1e-9) == {"collectives"}
    assert e.factors["collectives"].change_j == pytest.approx(100)


def test_energy_outside_the_causes_is_unexplained_and_said() -> None:
    def more(d: dict[str, Any]) -> None:
        d["energy_j"] *= 1.25

    p = run()
    e = explain(document(p), document(p, "B.json", more))
    assert e.factors["unexplained"].ratio == pytest.approx(1.25)
    assert moved(e, by=1e-9) == {"unexplained"}
    assert any("B.json: the causes sum to 0.8 of energy_j" in text for text in e.warnings)
    assert "unexplained" in show(render_explain.explanation(e))


# --- documents ------------------------------------------------------------------------------------


def write(path: Path, p: Prediction, change: Change | None = None) -> str:
    plain = json.loads(io.dumps(p))
    if change is not None:
        change(plain)
    path.write_text(json.dumps(plain))
    return str(path)


def without(*path: str) -> Change:
    def change(d: dict[str, Any]) -> None:
        for name in path[:-1]:
            d = d[name]
        del d[path[-1]]

    return change


def setting(value: object, *path: str) -> Change:
    def change(d: dict[str, Any]) -> None:
        for name in path[:-1]:
            d = d[name]
        d[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("causes"), "causes is missing; predict again with this version"),
        (setting({}, "causes"), "causes is missing"),
        (without("components"), "components is missing; it must be an object"),
        (without("boundary"), "boundary is missing"),
        (without("provenance", "kind"), "provenance.kind is missing"),
        (setting(-1.0, "energy_j"), "energy_j must be a number from 1e-30"),
        (setting(1e-300, "causes", "decode", "tokens"), "tokens must be at least 1e-30"),
        (setting("x", "causes", "decode", "tokens"), "must be a number from 0"),
        (setting(2, "schema_version"), "schema_version must be 1, got 2"),
        (setting("server", "boundary"), "energies of different boundaries cannot be compared"),
        (setting(0, "causes", "decode", "tokens"), "causes.decode.tokens must be at least 1e-30"),
        (setting(0, "causes", "decode", "steps"), "causes.decode.steps must be at least 1e-30"),
        (
            setting(0, "causes", "prefill", "flop", "amount"),
            "causes.prefill.flop.amount must be at",
        ),
        (setting(0, "causes", "idle", "tokens"), "causes.idle.tokens must be at least 1e-30"),
        (setting({"vae": {}}, "causes"), "have no phase in common"),
        (setting({"prefill": {}}, "causes"), "causes must hold energy"),
        (setting(10**400, "energy_j"), "energy_j must be"),
    ],
)
def test_wrong_documents_are_refused_in_one_sentence(
    change: Change, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    p = run()
    good, bad = write(tmp_path / "good.json", p), write(tmp_path / "bad.json", p, change)
    for pair in ((good, bad), (bad, good)):
        assert main(["explain", *pair]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert said in err
        assert "bad.json" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must be JSON"),
        ("[]", "must be an object"),
        ('{"schema_version": 1, "bins": []}', "is missing"),
        ('{"energy_j": NaN}', "NaN is not a number"),
        ("[" * 10_000, "must be JSON"),
    ],
)
def test_what_is_no_prediction(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(text)
    assert main(["explain", str(bad), str(bad)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "explain needs two predictions, A.json and B.json, got 0"),
        (["a.json"], "got 1"),
        (["a.json", "b.json", "c.json"], "got 3"),
        (["a.json", "b.json"], "a.json cannot be read"),
        (["a.json", "b.json", "--model", "x"], "--model is for --flop-gap"),
        (["a.json", "b.json", "--profile", "x"], "--profile is for --flop-gap"),
        (["a.json", "b.json", "--plot", "x.txt"], "--plot must end in .svg, .png, .pdf"),
        (["a.json", "--flop-gap"], "--flop-gap takes no files"),
    ],
)
def test_wrong_arguments(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *args]) == 2
    assert said in capsys.readouterr().err


def test_simulated_against_measured_is_said() -> None:
    p = run()
    other = replace(p, provenance={**p.provenance, "kind": "simulated"}, warnings=("a caveat",))
    e = between(p, other)
    assert "A.json comes from a measured profile, B.json from a simulated one" in e.warnings[0]
    assert e.warnings[1] == "B.json: a caveat"
    assert between(other, other).warnings == ("A.json: a caveat", "B.json: a caveat")


# --- what is printed ------------------------------------------------------------------------------

EVIL = "\x1b[2J</text><script>$\\frac{$\n&"


def test_the_command_prints_a_table_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a.json", run())
    b = write(tmp_path / "b.json", run(workload=one_bin(512, 128, 8)))
    assert main(["explain", a, b]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(len(row) <= 80 or "a.json" in row or "b.json" in row for row in out.splitlines())
    assert "the energy of A" in out
    assert main(["explain", a, b, "--json"]) == 0
    e = json.loads(capsys.readouterr().out)
    product = math.prod(f["ratio"] for f in e["factors"].values())
    assert product == pytest.approx(e["ratio"], rel=1e-9)
    assert e["b"]["energy_j"] / e["a"]["energy_j"] == pytest.approx(e["ratio"])
    assert read_document(a).json.energy_j == e["a"]["energy_j"]


def test_names_from_documents_do_no_harm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    p = run()
    a = write(tmp_path / "a.json", replace(p, model=EVIL, warnings=(EVIL,)))
    b = write(
        tmp_path / "b.json", run(workload=one_bin(512, 128, 8)), setting(EVIL, "deployment", "x")
    )
    figure = tmp_path / "figure.svg"
    for args in ([], ["--json"]):
        assert main(["explain", a, b, "--plot", str(figure), *args]) == 0
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err
    drawn = ET.fromstring(figure.read_text(encoding="utf-8"))  # noqa: S314 (our own)
    assert not [e for e in drawn.iter() if e.tag.endswith("script")]
    assert any("script" in (e.text or "") for e in drawn.iter())


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf", "PNG"])
def test_figures(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    a, b = write(tmp_path / "a.json", run()), write(tmp_path / "b.json", run(MOE))
    figure = tmp_path / f"figure.{suffix}"
    assert main(["explain", a, b, "--plot", str(figure)]) == 0
    head = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[suffix.lower()]
    assert figure.read_bytes().startswith(head)


def test_the_same_documents_give_the_same_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from energymodel.explain_plots import waterfall

    e = between(run(), run(MOE))
    for name in ("1.svg", "2.svg"):
        waterfall(e, str(tmp_path / name))
    assert (tmp_path / "1.svg").read_bytes() == (tmp_path / "2.svg").read_bytes()
    # Nothing to show is no reason to fail.
    waterfall(between(run(), run()), str(tmp_path / "none.svg"))


def test_without_matplotlib_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    a = write(tmp_path / "a.json", run())
    assert main(["explain", a, a, "--plot", "x.svg"]) == 1
    err = capsys.readouterr().err
    assert "--plot needs matplotlib: pip install 'energymodel[plot]'." in err


def test_wrong_sides_are_named() -> None:
    def elsewhere(d: dict[str, Any]) -> None:
        d["boundary"] = "facility"

    p = run()
    with pytest.raises(InputError, match=r"A\.json has the boundary 'gpu' and B\.json 'facility'"):
        explain(document(p), document(p, "B.json", elsewhere))
