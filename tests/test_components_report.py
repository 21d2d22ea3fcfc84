"""From windows to the verdict and the table; no torch, no GPU."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from calibration.components.report import as_dict, render
from calibration.components.summary import ComponentReport, summarise
from calibration.components.windows import ComponentWindow, Setting

SETTING = Setting(
    model="org/name",
    architecture="decoder",
    batch=8,
    prompt=512,
    stack="transformers 5",
    gpu="Some GPU",
    board="abc",
    driver="1",
)
IDLE_W = 100.0


def window(component: str, mj: float, trial: int, **fields: object) -> ComponentWindow:
    """1,000 calls of a millisecond each."""
    common = ComponentWindow(
        setting=SETTING,
        phase="decode",
        mode="graph",
        component=component,
        trial=trial,
        energy_j=mj,
        duration_s=1.0,
        calls=1000.0,
        call_s=1e-3,
        ticks=10,
        sm_clock_hz=1.9e9,
        temperature_c=50.0,
        throttle_reasons=0,
        layers=4,
        flop=10**9,
    )
    return replace(common, **fields)  # type: ignore[arg-type]


def windows(**energies_mj: tuple[float, ...]) -> list[ComponentWindow]:
    found = [window(c, mj, t) for c, values in energies_mj.items() for t, mj in enumerate(values)]
    idle = {"phase": "", "mode": "idle", "energy_j": IDLE_W}
    return [*found, *(window("idle", 0.0, t, **idle) for t in range(3))]


def report(found: list[ComponentWindow], **options: object) -> ComponentReport:
    wanted = {"trials": 3, "max_cv": 0.095, "min_capture": 0.9, **options}
    return summarise(found, SETTING, **wanted)  # type: ignore[arg-type]


STEADY = {"mlp": (600.0,) * 3, "attention": (380.0,) * 3, "whole": (1000.0,) * 3}


def test_energies_by_hand() -> None:
    made = report(windows(**STEADY))
    assert made.ok
    assert [r.component for r in made.rows] == ["mlp", "attention", "whole"]
    mlp = made.rows[0]
    assert mlp.mj_per_call == pytest.approx(600.0)
    assert mlp.mj_per_layer == pytest.approx(150.0)
    assert mlp.j_per_gflop == pytest.approx(0.6)
    assert mlp.net_mj_per_call == pytest.approx(500.0)  # 100 W for a millisecond
    assert mlp.share == pytest.approx(0.6)
    assert mlp.power_w == pytest.approx(600.0)
    (capture,) = made.captures
    assert capture.gross == pytest.approx(0.98)
    assert capture.net == pytest.approx(780 / 900)
    assert capture.time == pytest.approx(2.0)
    assert capture.residual_j == pytest.approx(0.020)


def test_variation_by_hand_and_its_threshold() -> None:
    varied = STEADY | {"mlp": (540.0, 600.0, 660.0)}  # standard deviation 60
    made = report(windows(**varied))
    assert made.rows[0].cv == pytest.approx(0.1)
    assert made.failures == (
        "decode, graph, mlp: the coefficient of variation is 10.0 %, more than 9.5 %.",
    )
    assert report(windows(**varied), max_cv=0.11).ok


def test_capture_threshold() -> None:
    made = report(windows(**STEADY), min_capture=0.99)
    assert made.failures == (
        "decode, graph: components add up to 98.0 % of the whole, less than 99 %.",
    )


def test_a_sum_above_the_whole_is_named_so() -> None:
    (capture,) = report(windows(**STEADY | {"mlp": (700.0,) * 3})).captures
    assert capture.gross == pytest.approx(1.08)
    assert capture.residual_j == pytest.approx(-0.080)
    assert capture.residual_name.startswith("captured too much: ")


def test_missing_trials_and_a_missing_whole_fail() -> None:
    made = report(windows(**STEADY | {"mlp": (600.0, 600.0)}))
    assert made.failures == ("decode, graph, mlp: 2 of 3 trials were measured.",)
    made = report(windows(mlp=(600.0,) * 3))
    assert made.failures == ("decode, graph: the whole was not measured.",)
    assert report([]).failures == ("Nothing was measured.",)
    assert report(windows(**STEADY), missing=["encode: no."]).failures == ("encode: no.",)


def test_the_core_is_attention_less_its_projections() -> None:
    found = windows(**STEADY)
    found += [
        window(
            "attention_projections", 200.0, t,
            part_of="attention", flop=10**8, duration_s=0.5, calls=1000.0,
        )
        for t in range(3)
    ]  # fmt: skip
    made = report(found)
    core = next(r for r in made.rows if r.component == "attention_core")
    assert core.mj_per_call == pytest.approx(180.0)
    assert core.flop == 9 * 10**8
    assert core.j_per_gflop == pytest.approx(0.2)
    assert core.net_mj_per_call == pytest.approx(130.0)
    assert made.captures[0].gross == pytest.approx(0.98)
    # More than all of attention: the difference says nothing.
    found = [replace(w, energy_j=400.0) if w.part_of else w for w in found]
    assert "attention_core" not in {r.component for r in report(found).rows}


def test_without_idle_windows_there_is_no_net() -> None:
    made = report([w for w in windows(**STEADY) if w.component != "idle"])
    assert made.idle_power_w is None
    assert {r.net_mj_per_call for r in made.rows} == {None}
    assert made.captures[0].net is None


def text(made: ComponentReport) -> str:
    out = io.StringIO()
    Console(file=out, width=120, markup=False).print(render(made))
    return out.getvalue()


def test_the_table_shows_rows_capture_and_verdict() -> None:
    shown = text(report(windows(**STEADY), notes=["prefill, graph: no."]))
    assert "org/name (decoder) on Some GPU" in shown
    assert "components: 98.0 % of the whole, 86.7 % above idle power" in shown
    assert "not captured: " in shown
    assert "20.0 mJ" in shown
    assert "Note: prefill, graph: no." in shown
    assert "ok: every coefficient of variation is at most 9.5 %" in shown
    (mlp,) = [line for line in shown.splitlines() if line.startswith("mlp")]
    assert mlp.split()[1:4] == ["600", "150", "0.0"]
    failed = text(report(windows(**STEADY), min_capture=0.99))
    assert "Failed: decode, graph: components add up to 98.0 %" in failed
    assert "ok: every" not in failed


def test_text_from_outside_cannot_reach_the_terminal() -> None:
    made = report(windows(**STEADY), notes=["\x1b[31mred"])
    made = replace(made, setting=replace(SETTING, model="\x1b]0;title\x07"))
    assert "\x1b" not in text(made)
    assert "\x07" not in text(made)


def test_the_document_is_json_and_complete() -> None:
    made = report(windows(**STEADY))
    document = json.loads(json.dumps(as_dict(made), allow_nan=False))
    assert document["ok"] is True
    assert document["model"] == "org/name"
    assert document["boundary"] == "gpu"
    assert document["idle_power_w"] == IDLE_W
    assert {r["component"] for r in document["rows"]} == {"mlp", "attention", "whole"}
    assert document["rows"][0]["mj_per_layer"] == pytest.approx(150.0)
    assert document["capture"]["decode"]["graph"]["gross"] == pytest.approx(0.98)
    assert document["capture"]["decode"]["graph"]["residual_name"]
