"""The calibration report: what it says, what it never lets through, and that it says the bad too."""

import builtins
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from report_builders import SPEC, components, observation, world

from calibration.report import FitEvidence, build_report, plots, write_report
from calibration.report import facts as report_facts
from calibration.report.cells import estimate, plus_minus
from calibration.report.contents import Report
from calibration.report.render_html import render_html
from calibration.report.text import WIDTH, render_text
from energymodel import io
from energymodel.profile import Estimate, Profile

HOSTILE = "<script>alert('x')</script>&\"\x1b[31m[bold]$x_1$"
ESCAPED = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;&quot;\\x1b[31m[bold]$x_1$"


def built(**fields: object) -> Report:
    extra = {"boards": {"board-a": 0.0, "board-b": 0.02}, "trials": 3}
    seen = world(**(extra | fields))  # type: ignore[arg-type]
    odd = observation(
        op="unheard_of", time_s=1.8e9, **{k: v for k, v in fields.items() if k == "gpu"}
    )
    found = components((*seen, odd), left_out={"moe": "0 timed shapes, 5 are needed"})
    return build_report(FitEvidence(spec=SPEC, components=found))


@pytest.fixture(scope="module")
def report() -> Report:
    return built()


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    return render_html(report)


# --- what it says ---------------------------------------------------------------------------------


def test_targets_are_met_in_a_world_where_the_law_holds(report: Report) -> None:
    words = {(t.what, t.component): t.word for t in report.targets}
    assert words == {
        ("variation of energy, median", "all"): "met",
        ("variation of energy, 95th percentile", "all"): "met",
        ("energy, held out", "gemm"): "met",
        ("time, held out", "gemm"): "met",
    }


def test_the_figures_are_those_of_the_world(report: Report) -> None:
    (gemm,) = report.components
    assert (gemm.shapes, gemm.windows, gemm.window_families) == (30, 180, 6)
    assert gemm.families_held_out
    assert gemm.energy is not None
    assert gemm.energy.median < 0.02
    assert gemm.energy_variation.points == 60
    assert gemm.energy_variation.median == pytest.approx(0.002, rel=0.5)
    energy = report.board_spreads[0]
    assert energy.deviation == pytest.approx(0.02 / 2**0.5, rel=0.2)
    assert report.temperature_c == (35.0, 60.0)
    (left,) = report.left_out
    assert (left.what, left.observations) == ("unheard_of", 1)
    assert left.reason == "no law describes this operation"


def test_text_says_it(report: Report) -> None:
    text = render_text(report)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "Energy (given the time at full clock): 1 of 1 components predict shape" in text
    gemm = report.components[0]
    assert gemm.energy is not None
    assert f"{100 * gemm.energy.median:.1f} %" in text
    assert "over 60 points: as wanted" in text
    assert "no law describes this operation" in text
    assert re.search(r"gemm +180 +6 ", text)
    assert "pJ in the HBM by its own sensor" in text


def test_html_says_the_same(report: Report, html: str) -> None:
    text = re.sub(r"<[^>]+>", "\n", html)
    gemm = report.components[0]
    assert gemm.energy is not None
    assert f"{100 * gemm.energy.median:.1f} %" in text
    assert "Energy (given the time at full clock): 1 of 1 components predict shape" in text
    assert '<td class="met">met</td>' in html
    assert html.count("<svg") == len(plots.render(report.plots)) > 8
    for figure in ("energy", "time", "static", "memory", "intensity"):
        assert plots.FIGURES[figure].title in text


def test_missed_targets_are_said() -> None:
    # Shapes of each width cost what no law knows: held out, they miss.
    seen = world(twist=lambda s: 0.4 if s["n"] in (4096, 28672) else -0.4)
    r = build_report(FitEvidence(spec=SPEC, components=components(seen)))
    assert {t.word for t in r.targets if t.what == "energy, held out"} == {"missed"}
    assert {t.word for t in r.targets if t.component == "all"} == {"not known"}
    text = render_text(r)
    assert "Energy (given the time at full clock): 0 of 1" in text
    assert "missed by gemm (" in text
    assert "one trial of each point: no variation can be told" in text
    assert "one board was measured: a spread needs two" in text
    assert '<td class="missed">missed</td>' in render_html(r)


def test_variation_beyond_the_target_is_said() -> None:
    text = render_text(built(noise=0.05))
    assert "the median should be 1.0 % and the 95th percentile should be 3.0 %" in text


def test_gpu_time_comes_from_times_of_day(report: Report) -> None:
    # 8 idle windows and 90 products on each board, 2 s apart.
    assert report.gpu_time.total_s == pytest.approx(2 * 97 * 2.0, rel=0.02)
    assert "minutes in all, on 2 boards" in render_text(report)
    coarse = [replace(o, time_s=1.8e9) for o in world()]
    told = report_facts.gpu_time(coarse)
    assert told.total_s is None
    assert told.windows_s == pytest.approx(38.0)
    assert "too coarse on 1 of 1 boards" in told.note


def test_rests_between_sweeps_are_not_gpu_time() -> None:
    seen = [observation(time_s=t) for t in (0.0, 2.0, 4.0, 1e5, 1e5 + 2.0)]
    assert report_facts.gpu_time(seen).total_s == pytest.approx(6.0)


def test_warm_and_foreign_observations_are_left_out_with_the_reason() -> None:
    extra = (
        observation(cache="warm"),
        observation(library="torch"),
        observation(op="moe_routing", shape={"tokens": 1, "num_experts": 8, "top_k": 2}),
    )
    found = components((*world(), *extra), left_out={"moe_routing": "1 timed shapes"})
    reasons = {x.what: x.reason for x in report_facts.left_out(found)}
    assert reasons["moe_routing"] == "1 timed shapes"
    warm = [x.reason for x in report_facts.left_out(found) if x.what == "gemm"]
    assert any("warm in the cache" in reason for reason in warm)
    assert any("kernels of torch" in reason for reason in warm)


# --- simulated ------------------------------------------------------------------------------------


def test_simulated_is_marked_loudly(report: Report) -> None:
    assert not report.simulated
    assert "SIMULATED" not in render_text(report)
    fake = built(stack="simulated")
    assert fake.simulated
    assert "*** SIMULATED" in render_text(fake)
    assert '<p class="banner" role="alert">SIMULATED' in render_html(fake)


def test_origin_and_software_come_from_the_profile() -> None:
    facts = {"software": {"vllm": "0.24", "torch": "2.11"}, "energymodel": "0.1"}
    profile = cast("Profile", SimpleNamespace(kind="simulated", provenance=facts))
    assert report_facts.origin(world(), None) == "measured"
    assert report_facts.origin(world(), profile) == "simulated"
    assert report_facts.software(profile) == {"vllm": "0.24", "torch": "2.11", "energymodel": "0.1"}
    assert report_facts.software(None) == {}


# --- what it never lets through -------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile() -> Report:
    boards = {HOSTILE: 0.0, "board-b": 0.01}
    return built(boards=boards, gpu=f"NVIDIA H200 {HOSTILE}", stack=HOSTILE, driver=HOSTILE)


def test_hostile_names_are_escaped(hostile: Report) -> None:
    html, text = render_html(hostile), render_text(hostile)
    assert ESCAPED in html
    assert "<script" not in html
    assert "\x1b" not in html + text
    assert "[bold]" in text


class _Checker(HTMLParser):
    """Collects elements that run or load something."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "iframe", "object", "embed", "link", "base", "form"}:
            self.bad.append(tag)
        for name, value in attrs:
            loads = name in {"src", "href", "xlink:href", "data", "action"}
            if name.startswith("on") or (
                loads and not (value or "").startswith(("#", "data:image"))
            ):
                self.bad.append(f"{tag} {name}={value}")


def test_nothing_runs_and_nothing_is_loaded(hostile: Report) -> None:
    html = render_html(hostile)
    checker = _Checker()
    checker.feed(html)
    assert checker.bad == []
    assert "http" not in html.replace("http-equiv", "")
    assert "default-src 'none'" in html
    assert "@import" not in html
    assert "url(" not in html.replace("url(#", "")


def test_identifiers_of_figures_do_not_collide(html: str) -> None:
    found = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    names = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in found]
    assert sum(map(len, names)) == len(set().union(*names))
    for svg, own in zip(found, names, strict=True):
        assert set(re.findall(r'href="#([^"]+)"', svg)) <= own
        assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= own


def test_figures_take_the_ink_of_the_page(html: str) -> None:
    assert plots.INK not in html
    assert "currentColor" in html
    assert "prefers-color-scheme: dark" in html


def test_the_file_stays_small(html: str) -> None:
    assert len(html.encode()) < 2_000_000


def test_many_points_become_pictures() -> None:
    count = 5000
    series = plots.Series(
        name="gemm", x=tuple(range(1, count + 1)), y=tuple(float(i % 7) for i in range(count))
    )
    _, svg = plots.render({"memory": (series,)})["memory"]
    assert "data:image/png;base64" in svg
    assert len(svg) < 200_000


# --- files ----------------------------------------------------------------------------------------


def test_both_files_are_written_whole(tmp_path: Path) -> None:
    found = components(world())
    folder = tmp_path / "new" / "folder"
    text, html = write_report(FitEvidence(spec=SPEC, components=found), folder)
    assert sorted(p.name for p in folder.iterdir()) == ["report.html", "report.txt"]
    assert text.read_text(encoding="utf-8").startswith("Calibration of NVIDIA H200")
    assert html.read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_without_matplotlib_the_tables_remain(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    html = render_html(report)
    assert "matplotlib is not installed" in html
    assert "<svg" not in html
    assert "<table>" in html


def test_a_report_is_plain_data(report: Report) -> None:
    text = io.dumps(report)
    assert '"explained"' in text
    assert io.dumps(built()) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (98.857, 0.5951, "98.86 ± 0.60"),
        (171.2, 155.4, "171 ± 155"),
        (0.99343, 0.000497, "0.99343 ± 0.00050"),
        (16.0, 0.0, "16.0"),
        (1e-9, 1e-12, "1.00e-09 ± 1e-12"),
    ],
)
def test_values_are_printed_to_the_second_digit_of_their_error(
    value: float, error: float, text: str
) -> None:
    assert plus_minus(value, error) == text


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        ("J/FLOP", 9.06e-13, "0.906 ± 0.018 pJ/FLOP"),
        ("s", 3.37e-6, "3.37 us ± 2.0 %"),
        ("B/s", 4.51e12, "4.51 TB/s ± 2.0 %"),
    ],
)
def test_units_are_those_that_a_person_would_use(unit: str, value: float, text: str) -> None:
    assert estimate(Estimate(value=value, stderr=0.02 * value, unit=unit)) == text
