"""What long work tells of itself, and who listens."""

import pytest

from energymodel import serving
from energymodel.arrivals import poisson
from energymodel.commands_progress import bar
from energymodel.deployment import Deployment
from energymodel.find_model import find_model
from energymodel.profile import load
from energymodel.progress import listening, tell
from energymodel.serving import schedule_offline
from energymodel.simulation import replica, simulate
from energymodel.workload import Bin, Workload


def test_nobody_needs_to_listen() -> None:
    tell("work", 1, 2)


def test_a_listener_hears_what_is_told_inside_alone() -> None:
    heard: list[tuple[str, int, int]] = []
    with listening(lambda *told: heard.append(told)):
        tell("work", 1, 2)
    tell("work", 2, 2)
    assert heard == [("work", 1, 2)]


def test_schedules_and_simulations_tell_how_far_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "TELL_EVERY", 1)
    heard: list[tuple[str, int, int]] = []
    bins = tuple(Bin(input_tokens=10 * i, output_tokens=5, count=3) for i in range(1, 6))
    with listening(lambda *told: heard.append(told)):
        schedule_offline(Workload(bins=bins), Deployment(max_num_seqs=4), 10_000)
    done = [n for _, n, _ in heard]
    assert done == sorted(done)
    assert {what for what, _, _ in heard} == {"scheduling"}
    assert {total for _, _, total in heard} == {15}
    heard.clear()
    rate = Workload(bins=(Bin(input_tokens=10, output_tokens=5, requests_per_s=50.0),))
    one = replica(find_model("Qwen3-0.6B")[0], Deployment(), load("h200"))
    with listening(lambda *told: heard.append(told)):
        simulate(one, poisson(rate, 200, seed=0))
    assert {(what, total) for what, _, total in heard} == {("serving", 200)}


def test_a_bar_shows_nothing_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with bar():
        tell("work", 1, 2)
    assert capsys.readouterr() == ("", "")
