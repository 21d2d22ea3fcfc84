"""Numbers that no deployment can have are refused in one sentence that names the field."""

from dataclasses import replace

import pytest

from energymodel import profile as profiles
from energymodel.arrivals import poisson
from energymodel.deployment import NGRAM, Deployment, check_values
from energymodel.errors import InputError
from energymodel.find_model import find_model
from energymodel.predict import predict
from energymodel.predict_online import predict_online
from energymodel.workload import Bin, Workload

PROFILE = profiles.load("h200")
MODEL = find_model("Qwen3-0.6B")[0]
WORK = Workload(bins=(Bin(input_tokens=64, output_tokens=8, count=4),))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be at least 1, got 0."),
        ({"pipeline_parallel_size": -1}, "pipeline_parallel_size must be at least 1, got -1."),
        ({"data_parallel_size": 0}, "data_parallel_size must be at least 1, got 0."),
        ({"gpus_per_node": 0}, "gpus_per_node must be at least 1, got 0."),
        ({"block_size": 0}, "block_size must be at least 1, got 0."),
        ({"node_link_bytes_per_s": -1.0}, "node_link_bytes_per_s must be .* got -1."),
        ({"node_link_bytes_per_s": float("nan")}, "node_link_bytes_per_s must be .* got nan."),
        ({"gpu_memory_utilization": 0.0}, "gpu_memory_utilization must be above 0 .* got 0."),
        ({"acceptance_rate": 1.5}, "acceptance_rate must be from 0 to 1, got 1.5."),
        ({"draft_rate": float("nan")}, "draft_rate must be from 0 to 1, got nan."),
        ({"prefix_cache_hit_rate": 2.0}, "prefix_cache_hit_rate must be from 0 to 1, got 2."),
        ({"num_speculative_tokens": -2}, "num_speculative_tokens must be from 0 to 64, got -2."),
        ({"sampling": "zzz"}, "sampling must be one of greedy, random, filtered, got 'zzz'."),
    ],
)
def test_what_is_no_deployment_is_refused(changes: dict[str, object], said: str) -> None:
    drafting = Deployment(speculative_model=NGRAM, num_speculative_tokens=2, acceptance_rate=0.5)
    with pytest.raises(InputError, match=f"^{said}$"):
        predict(MODEL, replace(drafting, **changes), WORK, PROFILE)  # type: ignore[arg-type]


def test_the_defaults_are_a_deployment() -> None:
    check_values(Deployment())


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_rates_that_are_none_are_refused(rate: float) -> None:
    bins = (
        Bin(input_tokens=64, output_tokens=8, requests_per_s=1.0),
        Bin(input_tokens=64, output_tokens=8, requests_per_s=rate),
    )
    said = r"^bins\[1\].requests_per_s must be a finite number above 0, got "
    with pytest.raises(InputError, match=said):
        poisson(Workload(bins=bins), 100, seed=0)
    with pytest.raises(InputError, match=said):
        predict_online(MODEL, Deployment(), Workload(bins=bins), PROFILE)


def test_bins_with_a_count_do_not_arrive() -> None:
    with pytest.raises(InputError, match=r"requests_per_s must be .* got none\."):
        poisson(WORK, 100, seed=0)


# Prefixes ------------------------------------------------------------------------------------

PREFIXED = Workload(bins=(Bin(input_tokens=64, output_tokens=8, count=4, prefix_tokens=32),))
UNUSED = "prefix_tokens are not used: every prompt is computed whole without"


def unused(warnings: tuple[str, ...]) -> list[str]:
    return [w for w in warnings if w.startswith("prefix_tokens")]


def test_prefixes_that_nothing_uses_are_told() -> None:
    caching = Deployment(enable_prefix_caching=True)
    found = predict(MODEL, Deployment(), PREFIXED, PROFILE)
    assert unused(found.warnings) == [f"{UNUSED} --enable-prefix-caching."]
    assert unused(predict(MODEL, Deployment(), WORK, PROFILE).warnings) == []
    assert unused(predict(MODEL, caching, PREFIXED, PROFILE).warnings) == []
    eager = predict(MODEL, Deployment(engine="transformers"), PREFIXED, PROFILE)
    assert unused(eager.warnings) == [f"{UNUSED} engine vllm and --enable-prefix-caching."]


def test_prefixes_of_requests_that_arrive_in_time_are_told() -> None:
    each = replace(PREFIXED.bins[0], count=None, requests_per_s=20.0)
    found = predict_online(MODEL, Deployment(), Workload(bins=(each,)), PROFILE)
    assert unused(found.warnings) == [f"{UNUSED} --enable-prefix-caching."]
