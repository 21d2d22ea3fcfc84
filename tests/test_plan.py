"""Plans on the shipped profile: invariants, sums, infeasible requests, the command line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from energymodel import profile as profiles
from energymodel.cli import cli, main
from energymodel.commands_plan import _PRICES, _RULES
from energymodel.errors import InputError
from energymodel.find_model import find_model
from energymodel.planning import carbon, server
from energymodel.planning.candidates import Allowed
from energymodel.planning.defer import check_hours, deferral
from energymodel.planning.document import Plan
from energymodel.planning.evaluate import Objective, idle_power_w
from energymodel.planning.plan import Found, Nothing, find, needed, settings
from energymodel.planning.present import document, what_if
from energymodel.planning.request import PRICES, RULES, Money, Request, Site, demands_of
from energymodel.workload import Bin, Workload

PROFILE = profiles.load("h200")
MODEL = find_model("Llama-3.2-3B-Instruct")[0]
CHAT = Workload(
    bins=(
        Bin(input_tokens=300, output_tokens=100, requests_per_s=120.0),
        Bin(input_tokens=1500, output_tokens=250, requests_per_s=30.0),
    )
)


def a_request(budget_w: float = 8e3, **changes: Any) -> Request:
    site = Site(budget_w=budget_w, server=server.load())
    base = Request(
        demands=demands_of((MODEL,), {"chat": CHAT}, paired=False),
        profiles=(PROFILE,),
        allowed=Allowed(tensor_parallel_sizes=(1,)),
        objective=Objective(itl_s=0.05, ttft_s=1.0),
        site=site,
        money=Money(intensity=carbon.intensity("world"), price_per_kwh=0.1),
        rounds=1,
    )
    return replace(base, **changes)


def a_plan(request: Request) -> tuple[Found, Plan]:
    found = find(request)
    assert isinstance(found, Found)
    return found, document(found)


def test_a_larger_budget_never_serves_less() -> None:
    served = [a_plan(a_request(w))[1].served_requests_per_s for w in (3500.0, 4500.0, 6500.0)]
    assert served == sorted(served)
    assert served[0] < served[-1] <= 150.0 * (1 + 1e-6)


def test_a_tighter_objective_never_serves_more() -> None:
    site = Site(budget_w=4500.0, server=server.load())
    served = [
        a_plan(a_request(site=site, objective=Objective(itl_s=itl_s)))[1].served_requests_per_s
        for itl_s in (0.004, 0.008, 0.05)
    ]
    assert served == sorted(served)


@pytest.mark.parametrize("rule", RULES)
def test_the_chosen_rule_keeps_within_the_budget_and_power_closes(rule: Any) -> None:
    site = Site(
        budget_w=14_000.0 if rule == "nameplate" else 6000.0, server=server.load(), rule=rule
    )
    found, plan = a_plan(a_request(site=site))
    assert needed(found) <= site.budget_w * 1.001
    assert plan.provisioning is not None
    if rule != "percentile":
        assert getattr(plan.provisioning, rule) <= site.budget_w * 1.001
    else:
        assert plan.probability_within_budget >= site.sure - 0.01
    servers = sum(plan.servers.values())
    box = site.server
    assert plan.it_power_w == pytest.approx(
        servers * box.fixed_w + (1 + box.per_gpu_w) * plan.gpu_power_w
    )
    assert plan.facility_power_w == pytest.approx(site.pue * plan.it_power_w)
    assert plan.gpu_power_w == pytest.approx(sum(r.count * r.power_w for r in plan.replicas))
    assert plan.served_requests_per_s + sum(plan.unserved.values()) == pytest.approx(
        plan.demand_requests_per_s, rel=1e-3
    )
    assert plan.facility_power_interval_w[0] < plan.facility_power_w
    assert plan.facility_power_w < plan.facility_power_interval_w[1]


def test_energy_per_request_is_power_over_rate() -> None:
    _, plan = a_plan(a_request())
    (replicas,) = plan.replicas
    each = replicas.count * replicas.power_w / replicas.requests_per_s
    assert replicas.energy_per_request_j == pytest.approx(each)
    assert plan.energy_per_request_j == pytest.approx(
        plan.facility_power_w / plan.served_requests_per_s
    )
    assert plan.cost.per_hour == pytest.approx(0.1 * plan.facility_power_w / 1000)


def test_plans_are_the_same_again() -> None:
    assert a_plan(a_request())[1] == a_plan(a_request())[1]


def test_spares_stand_by() -> None:
    without, with_one = (
        a_plan(a_request(9e3, site=Site(budget_w=9e3, server=server.load(), spare=n)))[1]
        for n in (0, 1)
    )
    assert with_one.replicas[0].count == without.replicas[0].count + 1
    assert with_one.facility_power_w > without.facility_power_w


def test_what_binds_and_what_would_be_enough() -> None:
    found, plan = a_plan(a_request(3500.0))
    assert plan.binding_constraint == "power_w"
    assert plan.budget_for_all_w is not None
    enough = a_plan(a_request(plan.budget_for_all_w * 1.05))[1]
    assert not enough.unserved
    assert enough.binding_constraint == "demand"
    less = what_if(found, (2800.0, 3500.0))
    assert sum(less[2800.0].values()) < sum(less[3500.0].values())
    few_gpus = Site(budget_w=1e6, server=server.load(), max_gpus=1)
    assert a_plan(a_request(site=few_gpus))[1].binding_constraint == "gpus"


@pytest.mark.parametrize(
    ("changes", "binding", "sentence"),
    [
        (
            {"site": Site(budget_w=900.0, server=server.load())},
            "power_w",
            "one that is busy takes about 3,0",
        ),
        ({"objective": Objective(itl_s=1e-4)}, "itl_s", "for a single request"),
        ({"objective": Objective(ttft_s=1e-4)}, "ttft_s", "--ttft-s 0.0001 cannot be met"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(
    changes: dict[str, Any], binding: str, sentence: str
) -> None:
    found = find(a_request(**changes))
    assert isinstance(found, Nothing)
    assert found.binding == binding
    assert sentence in found.reason
    assert not document(found).feasible


def test_settings_are_in_order() -> None:
    found, _ = a_plan(a_request())
    rules = settings(found)
    assert rules["mean"] <= rules["percentile"] * (1 + 1e-9)
    assert rules["percentile"] <= rules["worst"] * (1 + 1e-9) < rules["nameplate"]


@settings_of_hypothesis(max_examples=3, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    tight_s=st.floats(0.006, 0.02),
    loose_s=st.floats(0.02, 0.2),
    small_w=st.floats(3200.0, 5000.0),
    more=st.floats(1.05, 1.6),
)
def test_less_is_never_served_with_more_power_or_time(
    seed: int, tight_s: float, loose_s: float, small_w: float, more: float
) -> None:
    rng = np.random.default_rng(seed)
    bins = tuple(
        Bin(
            input_tokens=int(rng.integers(20, 3000)),
            output_tokens=int(rng.integers(1, 300)) if k else 120,
            requests_per_s=float(rng.uniform(20.0, 90.0)),
        )
        for k in range(3)
    )

    def served(itl_s: float, budget_w: float) -> float:
        request = a_request(
            demands=demands_of((MODEL,), {"any": Workload(bins=bins)}, paired=False),
            objective=Objective(itl_s=itl_s),
            site=Site(budget_w=budget_w, server=server.load()),
        )
        found = find(request)
        return float(found.fleet.served.sum()) if isinstance(found, Found) else 0.0

    # Loads that differ little share a simulation, and percentiles of few requests scatter.
    base = served(loose_s, small_w)
    assert served(tight_s, small_w) <= base * 1.05
    assert served(loose_s, more * small_w) >= base * 0.98


def test_prompts_alone_are_served_beside_others() -> None:
    bins = (*CHAT.bins, Bin(input_tokens=800, output_tokens=0, requests_per_s=20.0))
    request = a_request(demands=demands_of((MODEL,), {"mix": Workload(bins=bins)}, paired=False))
    with_prompts = a_plan(request)[1]
    assert not with_prompts.unserved
    assert with_prompts.facility_power_w > a_plan(a_request())[1].facility_power_w


def test_a_plan_on_two_gpus_draws_the_power_of_both() -> None:
    _, plan = a_plan(a_request(allowed=Allowed(tensor_parallel_sizes=(2,))))
    (replicas,) = plan.replicas
    assert replicas.gpus == 2
    assert plan.gpus == {"h200": 2 * replicas.count}
    assert 1.2 * PROFILE.gpu.power_limit_w < replicas.power_w < 2 * PROFILE.gpu.power_limit_w
    assert replicas.idle_power_w == pytest.approx(2 * idle_power_w(PROFILE))


# --- the command ------------------------------------------------------------------------------


def bins_file(folder: Path, document: Any = None) -> str:
    file = folder / "chat.json"
    bins = [
        {
            "input_tokens": b.input_tokens,
            "output_tokens": b.output_tokens,
            "requests_per_s": b.amount,
        }
        for b in CHAT.bins
    ]
    file.write_text(json.dumps(document or {"schema_version": 1, "bins": bins}))
    return str(file)


def command(folder: Path, *more: str) -> list[str]:
    return [
        *("plan", "--model", "Llama-3.2-3B-Instruct", "--workload", bins_file(folder)),
        *("--gpu", "h200", "--tensor-parallel-size", "1", *more),
    ]


def test_choices_of_the_command_are_those_of_the_planner() -> None:
    assert (_RULES, _PRICES) == (RULES, PRICES)


def test_json_has_the_keys_of_the_contract(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        cli, command(tmp_path, "--power-budget-w", "5000", "--json"), catch_exceptions=False
    )
    plan = json.loads(result.stdout)
    for key in (
        *("feasible", "served_requests_per_s", "demand_requests_per_s", "unserved"),
        *("facility_power_w", "facility_power_interval_w", "probability_within_budget"),
        *("budget_w", "it_power_w", "gpu_power_w", "pue", "replicas", "gpus"),
        *("energy_per_1000_output_tokens_j", "provisioning", "frontier", "binding_constraint"),
        *("mip_gap", "sci", "warnings", "provenance"),
    ):
        assert key in plan, key
    assert set(plan["provisioning"]) >= {"mean", "percentile", "worst", "nameplate"}
    assert set(plan["replicas"][0]) >= {
        *("model", "gpu", "deployment", "count", "requests_per_s", "power_w"),
        *("ttft_s", "itl_s", "energy_per_request_j"),
    }


def test_the_table_says_what_is_served_and_drawn(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, command(tmp_path, "--power-budget-w", "5000"))
    assert result.exit_code == 0, result.output
    assert "requests per second served" in result.stdout
    assert "nameplate" in result.stdout


@pytest.mark.parametrize(
    ("more", "status", "sentence"),
    [
        (("--power-budget-w", "100"), 1, "too small for one replica"),
        (("--power-budget-w", "5e3", "--max-gpus", "1", "--spare", "2"), 1, "--max-gpus 1"),
        (("--power-budget-w", "5e3", "--power-limit-w", "3"), 1, "--power-limit-w must be from"),
        (("--power-budget-w", "5e3", "--pipeline-parallel-size", "2"), 1, "must be 1"),
        (("--power-budget-w", "nan"), 2, "finite"),
        (("--power-budget-w", "-5"), 2, "--power-budget-w"),
        (("--power-budget-w", "5e3", "--pue", "nan"), 2, "--pue"),
        (("--power-budget-w", "5e3", "--slo-percentile", "nan"), 2, "--slo-percentile"),
        (("--power-budget-w", "5e3", "--pue-uncertainty", "nan"), 2, "--pue-uncertainty"),
        (("--power-budget-w", "5e3", "--pue", "0.5"), 2, "--pue"),
        (("--power-budget-w", "5e3", "--itl-s", "1e-5"), 1, "cannot be met"),
        (("--power-budget-w", "5e3", "--server-type", "mainframe"), 2, "hgx-8"),
        (("--power-budget-w", "5e3", "--carbon-intensity", "mars"), 2, "world"),
        (("--power-budget-w", "5e3", "--gpu", "h9000"), 2, "h9000"),
    ],
)
def test_absurd_requests_fail_in_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    status: int,
    sentence: str,
) -> None:
    assert main(command(tmp_path, *more)) == status
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


def test_offline_bins_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command(tmp_path, "--power-budget-w", "5e3")
    bins_file(
        tmp_path,
        {"schema_version": 1, "bins": [{"input_tokens": 1, "output_tokens": 9, "count": 2}]},
    )
    assert main(arguments) == 2
    assert "must have requests_per_s" in capsys.readouterr().err


def test_the_report_is_one_file_without_scripts(tmp_path: Path) -> None:
    report = tmp_path / "plan.html"
    result = CliRunner().invoke(
        cli, command(tmp_path, "--power-budget-w", "5000", "--html", str(report))
    )
    assert result.exit_code == 0, result.output
    text = report.read_text()
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    for section in ("Fleet", "Candidates", "over time", "Power to set aside", "doubt"):
        assert section in text


def test_names_cannot_write_markup_into_the_report() -> None:
    from energymodel.html_plan import page

    _, plan = a_plan(a_request())
    evil = replace(plan.replicas[0], model="<script>alert(1)</script>", demand="<b>")
    text = page(replace(plan, replicas=(evil,), warnings=("<img src=x>",)))
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text


# --- work that can wait -----------------------------------------------------------------------


def test_off_peak_hours_serve_more_of_what_can_wait() -> None:
    found, _ = a_plan(a_request(4500.0))
    batch = Workload(bins=(Bin(input_tokens=2000, output_tokens=200, requests_per_s=20.0),))
    waiting = demands_of((MODEL,), {"batch": batch}, paired=False)
    day = [1.0] * 8 + [0.5] * 8 + [0.1] * 8
    out = deferral(found, waiting, day)
    assert out.requests_per_day == pytest.approx(20.0 * 86_400)
    assert out.hours[0.1] > out.hours[0.5] > out.hours[1.0] >= 0.0
    assert out.served_without_per_day < out.served_with_per_day <= out.requests_per_day * (1 + 1e-9)
    always = deferral(found, waiting, [1.0] * 24)
    assert always.served_with_per_day == pytest.approx(
        min(always.hours[1.0], 20.0) * 86_400, abs=1.0
    )


@pytest.mark.parametrize("hours", [[1.0] * 23, [0.5] * 24, [1.0] * 23 + [1.5]])
def test_a_day_has_24_shares_of_its_peak(hours: list[float]) -> None:
    with pytest.raises(InputError, match="--hourly must hold"):
        check_hours(hours)
