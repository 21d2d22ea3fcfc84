"""The HTML report holds what the prediction holds, loads nothing, and runs nothing."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from prediction_builders import a_bin, a_prediction

from energymodel import profile as profiles
from energymodel.cli import cli
from energymodel.deployment import Deployment
from energymodel.find_model import find_model
from energymodel.html_report import html_report
from energymodel.predict import predict
from energymodel.prediction import Prediction
from energymodel.workload import Bin, Workload

VOID = {"meta", "rect", "line", "br"}
EVIL = "<script>alert(1)</script>\" onload='x' \x1b[2J & more"


class Reader(HTMLParser):
    """Tags, attributes and text; every tag that opens must close."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def real() -> Prediction:
    load = Workload(bins=tuple(Bin(input_tokens=n, output_tokens=9, count=2) for n in (60, 700)))
    profile = profiles.load("h200")
    return predict(find_model("Qwen3-30B-A3B")[0], Deployment(), load, profile)


def test_a_real_prediction_is_all_there() -> None:
    p = real()
    read = Reader(html_report(p))
    text = "\n".join(read.text)
    for name in (p.model, *p.phases, *p.components, "Causes", "Provenance", "Deployment"):
        assert name in text
    for heading in ("input", "output tokens per second", "inter-token latency", "FLOP-only"):
        assert heading in text
    assert read.tags.count("svg") == 4
    assert read.tags.count("table") == 8


def test_nothing_comes_from_outside_and_nothing_runs() -> None:
    read = Reader(html_report(real()))
    assert not set(read.tags) & {"script", "link", "img", "iframe", "object", "embed", "form"}
    names = {name for name, _ in read.attributes}
    assert not {n for n in names if n.startswith("on")} | (names & {"href", "src", "style"})
    policies = [value or "" for name, value in read.attributes if name == "content"]
    assert any(policy.startswith("default-src 'none';") for policy in policies)


def test_hostile_text_stays_text() -> None:
    p = a_prediction(
        model=EVIL, gpu=EVIL, warnings=(EVIL,), provenance={EVIL: EVIL}, deployment={EVIL: EVIL}
    )
    document = html_report(p)
    read = Reader(document)
    assert "script" not in read.tags
    assert "\x1b" not in document
    assert sum("<script>alert(1)</script>" in text for text in read.text) >= 4


def test_many_bins_are_cut_and_that_is_said() -> None:
    document = html_report(a_prediction(bins=tuple(a_bin(float(i)) for i in range(1, 60))))
    assert "The 20 bins with the most energy; 39 more in --json." in document


@pytest.mark.parametrize("energy_j", [1e-9, 1e15])
def test_drawings_have_finite_sizes(energy_j: float) -> None:
    p = a_prediction(energy_j=energy_j, energy_interval_j=(0.9 * energy_j, 1.2 * energy_j))
    for name, value in Reader(html_report(p)).attributes:
        if name in ("x", "y", "x1", "x2", "width", "height"):
            assert math.isfinite(float(str(value)))
            assert -1 <= float(str(value)) <= 2000


def test_the_command_writes_the_file_and_still_prints(tmp_path: Path) -> None:
    bins = tmp_path / "bins.json"
    load = [{"input_tokens": 64, "output_tokens": 4, "count": 2}]
    bins.write_text(json.dumps({"schema_version": 1, "bins": load}), encoding="utf-8")
    target = tmp_path / "report.html"
    asked = ["predict", "--model", "Qwen3-8B", "--gpu", "h200", "--workload", str(bins), "--json"]
    done = CliRunner().invoke(cli, [*asked, "--html", str(target)])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["model"] == "Qwen/Qwen3-8B"
    assert "Qwen/Qwen3-8B on h200" in target.read_text(encoding="utf-8")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    bins = tmp_path / "bins.json"
    load = [{"input_tokens": 64, "output_tokens": 4, "count": 2}]
    bins.write_text(json.dumps({"schema_version": 1, "bins": load}), encoding="utf-8")
    target = tmp_path / "no" / "report.html"
    asked = ["predict", "--model", "Qwen3-8B", "--gpu", "h200", "--workload", str(bins)]
    done = CliRunner().invoke(cli, [*asked, "--html", str(target)])
    assert done.exception is not None
    assert "cannot be written" in str(done.exception) or "cannot be written" in done.output
