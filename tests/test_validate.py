import json
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prediction_builders import a_prediction
from test_render import show

from energymodel import io, render
from energymodel import validate as module
from energymodel.deployment import Deployment
from energymodel.errors import InputError, WorkError
from energymodel.io import Run
from energymodel.prediction import Baseline, Prediction
from energymodel.validate import Validation, validate
from energymodel.workload import Bin, Workload


def a_run(energy_j: float, duration_s: float = 1.0, model: str = "m", **flags: Any) -> Run:
    return Run(
        model=model,
        gpu="h200",
        deployment=Deployment(**flags),
        workload=Workload(bins=(Bin(input_tokens=8, output_tokens=2, count=3),)),
        energy_j=energy_j,
        duration_s=duration_s,
        extra={},
    )


def always(**changes: Any) -> Any:
    return lambda _: a_prediction(**changes)


def test_errors_by_hand() -> None:
    # Predicted 100 J and 1 s against 80, 100, 125 and 200 J: errors +0.25, 0, -0.2, -0.5.
    runs = [a_run(80.0, 0.5), a_run(100.0), a_run(125.0, 2.0), a_run(200.0, 1.0, model="n")]
    v = validate(runs, always(energy_j=100.0, duration_s=1.0, energy_interval_j=(90.0, 130.0)))
    assert v.rows == 4
    assert v.median_ape == pytest.approx(0.225)
    assert v.p90_ape == pytest.approx(0.25 + 0.7 * 0.25)  # between the 3rd and the 4th of 4
    assert v.mape == pytest.approx(0.2375)
    assert v.bias == pytest.approx(-0.1125)
    assert v.duration_median_ape == pytest.approx(0.25)  # 1, 0, 0.5, 0
    assert v.interval_coverage == 0.5
    assert v.interval_level == pytest.approx(0.9)
    assert {name: score.rows for name, score in v.by_model.items()} == {"m": 3, "n": 1}
    assert v.by_model["n"].bias == pytest.approx(-0.5)
    assert [r.error for r in v.worst] == pytest.approx([-0.5, 0.25, -0.2, 0.0])
    assert v.worst[0].workload == "3 x 8+2"
    # FLOP-only says 41 J for each: -0.4875, -0.59, -0.672, -0.795.
    assert v.baselines["flop_only"].mape == pytest.approx(0.636125)
    assert v.baselines["flop_only"].median_ape == pytest.approx(0.631)
    assert list(v.baselines) == ["flop_only", "tdp"]


def test_runs_that_cannot_be_predicted_are_counted_by_reason() -> None:
    def predict(run: Run) -> Prediction:
        if run.model == "bad":
            raise InputError("Model 'bad' is unknown.")
        if run.model == "worse":
            raise WorkError("It did not work.")
        return a_prediction()

    runs = [a_run(1.0, model=m) for m in ("bad", "m", "worse", "bad")]
    v = validate(runs, predict)
    assert v.rows == 1
    assert [(s.rows, s.reason) for s in v.skipped] == [
        (2, "Model 'bad' is unknown."),
        (1, "It did not work."),
    ]
    with pytest.raises(WorkError, match=r"No run can be predicted; .* Model 'bad' is unknown\.$"):
        validate([runs[0]], predict)
    with pytest.raises(WorkError, match="No run can be predicted"):
        validate([], predict)


def test_a_baseline_that_some_predictions_lack() -> None:
    def predict(run: Run) -> Prediction:
        return a_prediction(
            baselines={"roofline": Baseline(energy_j=10.0, ratio=0.1)} if run.energy_j < 50 else {}
        )

    v = validate([a_run(20.0), a_run(100.0)], predict)
    assert v.baselines["roofline"].rows == 1
    assert v.baselines["roofline"].mape == pytest.approx(0.5)


@given(
    st.lists(
        st.tuples(
            st.floats(min_value=1e-3, max_value=1e6), st.floats(min_value=1e-3, max_value=1e6)
        ),
        min_size=1,
        max_size=30,
    )
)
def test_bounds_and_the_table(pairs: list[tuple[float, float]]) -> None:
    energies = iter([predicted for _, predicted in pairs])
    v = validate(
        [a_run(measured) for measured, _ in pairs],
        lambda _: a_prediction(energy_j=next(energies)),
    )
    assert v.median_ape <= v.p90_ape + 1e-12
    assert abs(v.bias) <= v.mape + 1e-12
    assert 0 <= v.interval_coverage <= 1
    assert len(v.worst) == min(10, len(pairs))
    assert all(len(line.rstrip()) <= 80 for line in show(render.validation(v)).splitlines())


def test_json_of_a_validation_has_the_keys_of_the_contract() -> None:
    document = json.loads(io.dumps(validate([a_run(90.0)], always())))
    assert {
        "rows",
        "median_ape",
        "p90_ape",
        "mape",
        "bias",
        "duration_median_ape",
        "interval_coverage",
        "baselines",
        "by_model",
        "worst",
    } <= set(document)
    jsonschema.validate(document, msgspec.json.schema(Validation))


def test_the_table_escapes_what_came_with_the_runs() -> None:
    def predict(run: Run) -> Prediction:
        if run.energy_j > 50:
            raise InputError("no \x1b[2J such model")
        return a_prediction()

    text = show(render.validation(validate([a_run(90.0), a_run(9.0, model="\x1b[1m")], predict)))
    assert "\x1b" not in text
    assert "1 x no \\x1b[2J such model" in text


def test_predictor_refuses_other_engines_and_other_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    import energymodel.find_model
    import energymodel.predict
    import energymodel.profile

    calls = []

    def find(name: str) -> Any:
        calls.append(name)
        if name == "bad":
            raise InputError("unknown")
        return name, []

    loaded = SimpleNamespace(gpu=SimpleNamespace(name="h200"))
    monkeypatch.setattr(energymodel.profile, "load", lambda *_: loaded)
    monkeypatch.setattr(energymodel.find_model, "find_model", find)
    monkeypatch.setattr(energymodel.predict, "predict", lambda *_: a_prediction())
    predict = module.predictor(None, None)
    assert predict(a_run(1.0)).energy_j == predict(a_run(2.0)).energy_j == 100.0
    for _ in range(2):
        with pytest.raises(InputError, match="unknown"):
            predict(a_run(1.0, model="bad"))
    assert calls == ["m", "bad"]  # each is looked for once
    with pytest.raises(InputError, match="engine 'sglang' is not supported"):
        predict(a_run(1.0, engine="sglang"))
    only = module.predictor("h200", None)
    assert only(a_run(1.0)).energy_j == 100.0
    loaded.gpu.name = "h100"
    with pytest.raises(InputError, match="gpu 'h200' is not that of the profile, h100"):
        only(a_run(1.0))
