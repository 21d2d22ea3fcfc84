"""The CLEAR protocol on a simulated GPU: what is declared comes back, what fails is said."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from component_builders import BATCH, PROMPT, ComponentsOnSimulatedGpu, quiet_gpu, written

from calibration import components
from calibration.components import measure_components
from calibration.components import windows as window_file
from calibration.components.summary import ComponentReport
from calibration.simulation.gpu import SimulatedGpu, SimulatedSensor
from energymodel.errors import InputError, WorkError

if TYPE_CHECKING:
    from collections.abc import Callable

    from calibration.components.find import Piece
    from calibration.window import Work

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

COSTS = {
    "embedding": 30e-6,
    "attention": 900e-6,
    "attention_projections": 500e-6,
    "mlp": 1500e-6,
    "norm": 200e-6,
    "residual": 100e-6,
    "other": 8e-6,
    "head": 300e-6,
}
WHOLE_S = sum(COSTS.values()) - COSTS["attention_projections"]
STATIC_W = SimulatedGpu().static_power_w
POWER_W = ComponentsOnSimulatedGpu.POWER_W


def measured(
    folder: Path, bench: ComponentsOnSimulatedGpu, model: str = "llama", **options: object
) -> ComponentReport:
    return measure_components(
        written(folder, model),
        sensor=bench.sensor,
        out=folder / "components.jsonl",
        **{
            "batch": BATCH, "prompt": PROMPT, "modes": ("eager",), "device": "cpu",
            "bench": bench, **options,
        },  # type: ignore[arg-type]
    )  # fmt: skip


def simulated(**options: object) -> ComponentsOnSimulatedGpu:
    return ComponentsOnSimulatedGpu(quiet_gpu(), costs=COSTS, **options)  # type: ignore[arg-type]


def test_declared_energies_come_back_and_close(tmp_path: Path) -> None:
    report = measured(tmp_path, simulated(), modes=("eager", "graph"))
    assert report.ok
    assert report.failures == report.notes == ()
    assert report.idle_power_w == pytest.approx(STATIC_W, rel=1e-3)
    assert {(r.phase, r.mode) for r in report.rows} == {
        (phase, mode) for phase in ("prefill", "decode") for mode in ("eager", "graph")
    }
    for row in report.rows:
        if row.component == "attention_core":
            continue
        time_s = COSTS.get(row.component, WHOLE_S)
        assert row.trials == 3
        assert row.duration_s == pytest.approx(time_s, rel=0.01)
        assert row.mj_per_call == pytest.approx(1e3 * time_s * (POWER_W + STATIC_W), rel=0.01)
        assert row.net_mj_per_call == pytest.approx(1e3 * time_s * POWER_W, rel=0.02)
        assert row.power_w == pytest.approx(POWER_W + STATIC_W, rel=0.01)
        assert row.cv is not None
        assert row.cv < 0.01
        if row.flop:
            expected = 1e-3 * row.mj_per_call / (row.flop * 1e-9)
            assert row.j_per_gflop == pytest.approx(expected)
    for capture in report.captures:
        assert capture.gross == pytest.approx(1.0, abs=0.01)
        assert capture.net == pytest.approx(1.0, abs=0.02)
        assert capture.time == pytest.approx(1.0, abs=0.01)
        assert capture.flop == 1.0


def test_the_sum_counts_no_part_twice_and_the_core_is_the_rest(tmp_path: Path) -> None:
    report = measured(tmp_path, simulated())
    rows = {r.component: r for r in report.rows if r.phase == "prefill"}
    assert {c for c, r in rows.items() if not r.counted} == {
        "whole", "attention_projections", "attention_core",
    }  # fmt: skip
    core, attention = rows["attention_core"], rows["attention"]
    assert core.duration_s == pytest.approx(400e-6, rel=0.02)
    assert core.mj_per_call + rows["attention_projections"].mj_per_call == pytest.approx(
        attention.mj_per_call
    )
    assert core.flop + rows["attention_projections"].flop == attention.flop
    assert attention.mj_per_layer == pytest.approx(attention.mj_per_call / 3)


def test_what_components_leave_out_fails_and_is_named(tmp_path: Path) -> None:
    report = measured(tmp_path, simulated(overhead=1.25))
    assert not report.ok
    assert len(report.failures) == 2
    assert "prefill, eager: components add up to 80." in report.failures[0]
    assert "less than 90 %" in report.failures[0]
    for capture in report.captures:
        assert capture.gross == pytest.approx(0.8, abs=0.01)
        lost_j = 0.25 * WHOLE_S * (POWER_W + STATIC_W)
        assert capture.residual_j == pytest.approx(lost_j, rel=0.05)
        assert capture.residual_s == pytest.approx(0.25 * WHOLE_S, rel=0.05)
        assert capture.residual_name.startswith("not captured: ")
    # The windows are there: another threshold costs no measurement.
    again = simulated(overhead=1.25)
    assert measured(tmp_path, again, min_capture=0.75).ok
    assert again.prepared == []


def test_a_phase_that_no_graph_holds_is_measured_eagerly_and_noted(tmp_path: Path) -> None:
    bench = simulated(cannot={("whole", "graph"): "operation not permitted\nwhen capturing"})
    report = measured(tmp_path, bench, modes=("eager", "graph"))
    assert report.ok
    assert {r.mode for r in report.rows} == {"eager"}
    assert report.notes == (
        "prefill, graph: not measured from a CUDA graph: operation not permitted.",
        "decode, graph: not measured from a CUDA graph: operation not permitted.",
    )
    assert {mode for _, mode, _ in bench.prepared} == {"eager"}
    again = measured(tmp_path, bench, modes=("eager", "graph"))
    assert (again.ok, again.notes) == (True, report.notes)
    report = measured(tmp_path, bench, modes=("graph",))
    assert not report.ok
    assert len(report.failures) == 2


def test_an_obstacle_seen_in_the_pass_spares_the_capture(tmp_path: Path) -> None:
    bench = simulated()
    report = measured(tmp_path, bench, "bart", modes=("eager", "graph"))
    assert [n for n in report.notes if n.startswith("decode, graph") and "reads back" in n]
    assert ("decode", "graph", "whole") not in bench.prepared
    assert ("encode", "graph", "whole") in bench.prepared


def test_a_component_that_cannot_run_fails(tmp_path: Path) -> None:
    report = measured(tmp_path, simulated(cannot={("mlp", "eager"): "out of memory"}))
    assert "prefill, eager, mlp: it cannot run: out of memory." in report.failures
    assert any("components add up to" in f for f in report.failures)


def test_a_finished_run_measures_nothing_again_and_another_size_everything(
    tmp_path: Path,
) -> None:
    first = measured(tmp_path, simulated())
    content = (tmp_path / "components.jsonl").read_bytes()
    again = simulated()
    second = measured(tmp_path, again)
    assert again.prepared == []
    assert (tmp_path / "components.jsonl").read_bytes() == content
    assert [r.component for r in second.rows] == [r.component for r in first.rows]
    for a, b in zip(first.rows, second.rows, strict=True):
        assert b.mj_per_call == pytest.approx(a.mj_per_call, rel=1e-5)
    other = simulated()
    measured(tmp_path, other, prompt=PROMPT - 1)
    assert len(other.prepared) == 2 * (len(COSTS) + 1)
    # Windows of another board are none of ours.
    bench = ComponentsOnSimulatedGpu(SimulatedSensor(SimulatedGpu(board="other")), costs=COSTS)
    measured(tmp_path, bench)
    assert len(bench.prepared) == 2 * (len(COSTS) + 1)


@pytest.mark.parametrize("kept", [0.07, 0.4, 0.83])
def test_a_killed_run_is_completed(tmp_path: Path, kept: float) -> None:
    out = tmp_path / "components.jsonl"
    measured(tmp_path, simulated())
    whole = {w.key for w in window_file.read(out)}
    content = out.read_bytes()
    out.write_bytes(content[: int(kept * len(content))])
    finished = content[: int(kept * len(content))].count(b"\n")
    assert measured(tmp_path, simulated()).ok
    keys = [w.key for w in window_file.read(out)]
    assert set(keys) == whole
    assert len(keys) == len(whole)
    assert out.read_bytes().startswith(b"\n".join(content.split(b"\n")[:finished]))


def test_every_window_holds_ten_updates_of_the_counter(tmp_path: Path) -> None:
    measured(tmp_path, simulated())
    windows = list(window_file.read(tmp_path / "components.jsonl"))
    assert min(w.ticks for w in windows) >= 10


def test_trials_are_in_random_order_and_the_idle_gpu_among_them(tmp_path: Path) -> None:
    measured(tmp_path, simulated())
    windows = list(window_file.read(tmp_path / "components.jsonl"))
    assert [w.trial for w in windows] == sorted(w.trial for w in windows)
    orders = [[w.key[:3] for w in windows if w.trial == t] for t in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert set(orders[0]) == set(orders[1]) == set(orders[2])
    assert ("", "idle", "idle") in orders[0]


def test_progress_is_reported(tmp_path: Path) -> None:
    lines: list[str] = []
    measured(tmp_path, simulated(), report=lines.append)
    assert lines[0].startswith("57 windows to measure")  # 2 phases x 9 x 3, and 3 idle
    assert lines[-1].endswith("; 0 left")
    assert len(lines) == 58


def test_window_after_window_refused_ends_the_run(tmp_path: Path) -> None:
    bench = ComponentsOnSimulatedGpu(
        SimulatedSensor(SimulatedGpu(counter_works=False)), costs=COSTS
    )
    lines: list[str] = []
    with pytest.raises(WorkError, match="3 windows one after the other: The energy counter"):
        measured(tmp_path, bench, report=lines.append)
    assert list(window_file.read(tmp_path / "components.jsonl")) == []
    assert sum("refused: The energy counter" in line for line in lines) == 6


def test_a_component_whose_windows_are_refused_fails(tmp_path: Path) -> None:
    class Hot(ComponentsOnSimulatedGpu):
        """The GPU is too hot whenever the head runs."""

        def work(self, piece: "Piece", mode: str) -> "Work":
            work = super().work(piece, mode)

            def submit() -> "Callable[[], float]":
                reasons = 0x40 if piece.component == "head" else 0
                self.sensor.gpu = replace(self.sensor.gpu, thermal_reasons=reasons)
                return work.submit()

            return replace(work, submit=submit)

    lines: list[str] = []
    report = measured(tmp_path, Hot(quiet_gpu(), costs=COSTS), report=lines.append)
    assert "head" not in {r.component for r in report.rows}
    assert any("prefill, eager, head: refused: " in line and "thermal" in line for line in lines)
    assert "prefill, eager, head: 0 of 3 trials were measured." in report.failures


def test_a_lost_sensor_keeps_what_was_measured(tmp_path: Path) -> None:
    class Lost(SimulatedSensor):
        def energy_j(self) -> float:
            if self.clock.now() > 20.0:
                raise OSError("GPU is lost")
            return super().energy_j()

    with pytest.raises(WorkError, match="GPU is lost"):
        measured(tmp_path, ComponentsOnSimulatedGpu(Lost(), costs=COSTS))
    finished = len(list(window_file.read(tmp_path / "components.jsonl")))
    assert 5 < finished < 57
    assert measured(tmp_path, simulated()).ok


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be at least 1"),
        ({"prompt": 0}, "prompt must be at least 1"),
        ({"trials": 1}, "trials must be at least 2"),
        ({"modes": ("compiled",)}, "modes must be of eager, graph, got compiled"),
        ({"modes": ()}, "modes must be of eager, graph, got none"),
        ({"prompt": 64}, "prompt must leave room"),
    ],
)
def test_unusable_input_is_refused(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        measured(tmp_path, simulated(), **options)


def test_a_file_of_something_else_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "components.jsonl").write_text('{"op": "gemm"}\n', encoding="utf-8")
    bench = simulated()
    with pytest.raises(InputError, match=r"components.jsonl line 1"):
        measured(tmp_path, bench)
    assert bench.prepared == []


def test_defaults_are_those_of_the_published_protocol() -> None:
    defaults = measure_components.__kwdefaults__
    assert defaults is not None
    assert (defaults["max_cv"], defaults["min_capture"]) == (0.095, 0.9)
    assert defaults["modes"] == components.MODES == ("eager", "graph")
