import json
from dataclasses import replace
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prediction_builders import a_prediction
from test_render import show

from energymodel import io
from energymodel import validate as module
from energymodel.deployment import Deployment
from energymodel.errors import InputError, WorkError
from energymodel.io import Run
from energymodel.prediction import Baseline, ComponentEnergy, PhaseEnergy, Prediction
from energymodel.render_validation import validation
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
    v = validate(
        runs,
        always(
            energy_j=100.0,
            duration_s=1.0,
            energy_interval_j=(90.0, 130.0),
            duration_interval_s=(0.9, 1.1),
        ),
    )
    assert v.rows == 4
    assert v.median_ape == pytest.approx(0.225)
    assert v.p90_ape == pytest.approx(0.25 + 0.7 * 0.25)  # between the 3rd and the 4th of 4
    assert v.mape == pytest.approx(0.2375)
    assert v.bias == pytest.approx(-0.1125)
    assert v.duration_median_ape == pytest.approx(0.25)  # 1, 0, 0.5, 0
    assert v.interval_coverage == 0.5
    assert v.duration_interval_coverage == 0.5  # of 0.5, 1, 2 and 1 s
    assert v.interval_level == pytest.approx(0.9)
    assert {name: score.rows for name, score in v.by_model.items()} == {"m": 3, "n": 1}
    assert v.by_model["n"].bias == pytest.approx(-0.5)
    assert [r.error for r in v.worst] == pytest.approx([-0.5, 0.25, -0.2, 0.0])
    assert v.worst[0].workload == "3 x 8+2"
    # FLOP-only says 41 J for each: -0.4875, -0.59, -0.672, -0.795.
    assert v.baselines["flop_only"].mape == pytest.approx(0.636125)
    assert v.baselines["flop_only"].median_ape == pytest.approx(0.631)
    # The best factor on the runs of m makes 100 J exact: 100 / 41. Then n is predicted as 100 J.
    assert list(v.baselines) == ["flop_only", "tdp", "flop_only_fitted", "load_scaled_tdp"]
    assert v.baselines["flop_only"].interval_95 is None
    assert v.interval_95 is None  # of four runs nothing can be said


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


def test_a_baseline_is_fitted_on_the_other_models() -> None:
    # FLOP-only says 41 J for all. On m it needs a factor of 2, on n of 4.
    runs = [a_run(82.0), a_run(82.0), a_run(164.0, model="n")]
    v = validate(runs, always())
    errors = [2 * (4 / 2 - 1) / 3, 1 / 3 * (1 - 2 / 4)]  # twice +100 % on m, -50 % on n
    assert v.baselines["flop_only_fitted"].mape == pytest.approx(sum(errors))
    assert v.baselines["flop_only_fitted"].median_ape == pytest.approx(1.0)
    # One model only: each run by the others. One run only: nothing to fit on.
    alone = validate(runs[:2], always())
    assert alone.baselines["flop_only_fitted"].mape == pytest.approx(0.0)
    assert "flop_only_fitted" not in validate(runs[:1], always()).baselines


def test_classes_of_runs() -> None:
    def predict(run: Run) -> Prediction:
        decode_j = {80.0: 0.0, 90.0: 50.0, 100.0: 70.0}[run.energy_j]
        split = {"prefill": 100.0 - decode_j, "decode": decode_j}
        return a_prediction(
            phases={name: PhaseEnergy(energy_j=j, duration_s=1.0) for name, j in split.items()}
        )

    def load(count: int, tokens: int) -> Workload:
        return Workload(bins=(Bin(input_tokens=tokens, output_tokens=1, count=count),))

    loads = [load(1, 511), load(9, 512), load(65, 9000)]
    runs = [
        replace(a_run(energy), workload=workload)
        for energy, workload in zip((80.0, 90.0, 100.0), loads, strict=True)
    ]
    v = validate(runs, predict)
    assert {name: s.mape for name, s in v.by_phase.items()} == pytest.approx(
        {"prefill": 0.25, "mixed": 1 / 9, "decode": 0.0}
    )
    assert list(v.by_batch) == ["1", "9 to 64", "above 64"]
    assert list(v.by_context) == ["1 to 512", "513 to 2,048", "above 8,192"]
    assert [r.phase for r in v.worst] == ["prefill", "mixed", "decode"]


def test_a_wrong_component_is_suspected() -> None:
    """Predictions are right but for attention, which really takes 1.5 times as much."""
    random = np.random.default_rng(3)
    parts = random.uniform(10, 100, (20, 3))
    names = ("attention", "mlp", "overhead")
    at = iter(parts)

    def predict(run: Run) -> Prediction:
        own = dict(zip(names, next(at), strict=True))
        return a_prediction(
            energy_j=sum(own.values()),
            components={
                name: ComponentEnergy(energy_j=j, flop=0.0, hbm_bytes=0.0, duration_s=0.1)
                for name, j in own.items()
            },
        )

    v = validate([a_run(float(p.sum() + 0.5 * p[0])) for p in parts], predict)
    assert all(r.error < 0 for r in v.worst)
    for row in v.worst:
        assert row.suspect is not None
        assert row.suspect.component == "attention"
        assert row.suspect.scale == pytest.approx(1.5)
        assert row.suspect.explains == pytest.approx(1.0)
        assert row.suspect.rows == 8
    assert "attention x 1.50" in show(validation(v))


def test_intervals_hold_the_error_and_shrink_with_runs() -> None:
    random = np.random.default_rng(1)
    widths = []
    for n in (20, 500):
        energies = 100 * np.exp(random.normal(0, 0.05, n))
        v = validate([a_run(float(e)) for e in energies], always(energy_j=100.0))
        assert v.interval_95 is not None
        for name, (low, high) in v.interval_95.items():
            assert low <= getattr(v, name) <= high
        low, high = v.interval_95["mape"]
        widths.append(high - low)
        assert v.by_model["m"].interval_95 == v.interval_95
        interval = v.baselines["flop_only"].interval_95
        assert interval is not None
        assert interval["mape"][0] < v.baselines["flop_only"].mape < interval["mape"][1]
    assert widths[1] < widths[0] / 2
    # Nothing in it is left to chance.
    again = validate([a_run(float(e)) for e in energies], always(energy_j=100.0))
    assert again == v


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
    assert all(len(line.rstrip()) <= 80 for line in show(validation(v)).splitlines())


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
        "duration_interval_coverage",
        "baselines",
        "by_model",
        "worst",
        "by_phase",
        "by_batch",
        "by_context",
        "interval_95",
    } <= set(document)
    jsonschema.validate(document, msgspec.json.schema(Validation))


def test_the_table_escapes_what_came_with_the_runs() -> None:
    def predict(run: Run) -> Prediction:
        if run.energy_j > 50:
            raise InputError("no \x1b[2J such model")
        return a_prediction()

    text = show(validation(validate([a_run(90.0), a_run(9.0, model="\x1b[1m")], predict)))
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
