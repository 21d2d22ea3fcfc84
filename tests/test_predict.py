"""What must hold of every prediction, whatever the fitted numbers of the day."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energymodel import io
from energymodel import profile as profiles
from energymodel.deployment import Deployment
from energymodel.domain import WIDER
from energymodel.engines.vllm import cache_room
from energymodel.errors import InputError
from energymodel.find_model import find_model
from energymodel.model import ModelSpec
from energymodel.ops import lower
from energymodel.predict import predict
from energymodel.prediction import Prediction
from energymodel.profile import Estimate, MemoryKind, Profile
from energymodel.serving import schedule_offline
from energymodel.workload import Bin, Workload

PROFILE = profiles.load("h200")
NAMES = ("Qwen2.5-0.5B-Instruct", "Llama-3.1-8B-Instruct", "gemma-2-9b-it", "Qwen3-32B")
NAMES += ("Qwen3-30B-A3B", "OLMoE-1B-7B-0924", "Mixtral-8x7B-Instruct-v0.1")
MODELS = {name: find_model(name)[0] for name in NAMES}
DENSE, MOE = MODELS["Llama-3.1-8B-Instruct"], MODELS["Qwen3-30B-A3B"]
MOST = 1.98e9
CLOSE = 1e-9

models = pytest.mark.parametrize("model", MODELS.values(), ids=NAMES)
a_name = st.sampled_from(NAMES)
a_bin = st.builds(
    Bin,
    input_tokens=st.integers(1, 3000),
    output_tokens=st.integers(0, 200),
    count=st.integers(1, 100),
)
a_workload = st.lists(a_bin, min_size=1, max_size=3).map(lambda bins: Workload(bins=tuple(bins)))
a_deployment = st.builds(
    Deployment,
    max_num_seqs=st.sampled_from([1, 16, 256, 1024]),
    max_num_batched_tokens=st.sampled_from([1024, 2048, 8192, 16384]),
    power_limit_w=st.none() | st.floats(200, 700),
)


def one_bin(input_tokens: int = 512, output_tokens: int = 128, count: int = 64) -> Workload:
    return Workload(
        bins=(Bin(input_tokens=input_tokens, output_tokens=output_tokens, count=count),)
    )


def run(
    model: ModelSpec = DENSE,
    workload: Workload | None = None,
    profile: Profile = PROFILE,
    **flags: Any,
) -> Prediction:
    return predict(model, Deployment(**flags), workload or one_bin(), profile)


def numbers(value: object) -> Iterator[float]:
    """Every number in plain data."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


# --- accounts -------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(a_name, a_workload, a_deployment)
def test_the_books_balance(name: str, workload: Workload, deployment: Deployment) -> None:
    p = predict(MODELS[name], deployment, workload, PROFILE)
    for parts in (p.phases, p.components):
        assert sum(x.energy_j for x in parts.values()) == pytest.approx(p.energy_j)
        assert sum(x.duration_s for x in parts.values()) == pytest.approx(p.duration_s)
        assert all(x.energy_j >= -CLOSE * p.energy_j for x in parts.values())
        assert all(x.duration_s >= -CLOSE * p.duration_s for x in parts.values())
    assert sum(b.energy_j for b in p.bins) == pytest.approx(p.energy_j)
    assert sum(b.prefill_j + b.decode_j for b in p.bins) == pytest.approx(p.energy_j)
    assert p.energy_j == pytest.approx(p.mean_power_w * p.duration_s)
    assert p.energy_j == pytest.approx(p.energy_per_request_j * p.requests)
    assert p.output_tokens == pytest.approx(p.output_tokens_per_s * p.duration_s)
    if p.output_tokens:
        assert p.energy_per_output_token_j is not None
        assert p.energy_j == pytest.approx(p.energy_per_output_token_j * p.output_tokens)
    else:
        assert p.energy_per_output_token_j is None

    assert (p.requests, p.input_tokens, p.output_tokens) == (
        workload.requests,
        workload.input_tokens,
        workload.output_tokens,
    )
    asked = [(b.input_tokens, b.output_tokens, b.count) for b in workload.bins]
    assert [(b.input_tokens, b.output_tokens, b.count) for b in p.bins] == asked


@settings(max_examples=15, deadline=None)
@given(a_name, a_workload, a_deployment)
def test_every_number_is_possible(name: str, workload: Workload, deployment: Deployment) -> None:
    p = predict(MODELS[name], deployment, workload, PROFILE)
    plain = io.parse_json(io.dumps(p), "prediction")  # refuses what is not finite
    assert all(math.isfinite(x) for x in numbers(plain))
    assert min(p.energy_j, p.duration_s) > 0
    low, high = p.energy_interval_j
    assert low < p.energy_j < high
    assert 0 < p.interval_level < 1
    # A GPU cannot draw less than nothing to do costs, nor run faster than it can.
    assert 50 < p.mean_power_w <= PROFILE.gpu.power_limit_w * 1.02
    assert 0.2 * MOST * (1 - CLOSE) <= p.clock_hz.mean <= MOST * (1 + CLOSE)
    assert 0 <= p.power_limited_share <= 1
    assert p.power_limited == (p.power_limited_share > 0)
    # Physics: no faster than the arithmetic at the datasheet's peak.
    flop = sum(c.flop for c in p.components.values())
    assert p.duration_s > flop / PROFILE.gpu.peak_flop_per_s["bfloat16"]
    for latency in (p.ttft_s, p.itl_s):
        if latency is not None:
            assert 0 < latency.p50 <= latency.p90 <= latency.p99 <= p.duration_s * (1 + CLOSE)
            assert 0 < latency.mean <= p.duration_s


@models
def test_components_are_those_of_the_operations(model: ModelSpec) -> None:
    workload = one_bin()
    p = run(model, workload)
    capacity = cache_room(model, Deployment(), PROFILE.gpu).tokens_within_windows
    steps = schedule_offline(workload, Deployment(), capacity).steps
    for name in ("flop", "hbm_bytes"):
        expected: dict[str, float] = {"overhead": 0.0, "idle": 0.0}
        for op in lower(model, Deployment(), steps):
            total = op.count * float(steps.weight @ getattr(op, name))
            expected[op.component] = expected.get(op.component, 0.0) + total
        assert {k: getattr(c, name) for k, c in p.components.items()} == pytest.approx(expected)
    assert ("moe" in p.components) == (model.regime == "moe")


def test_baselines_by_hand() -> None:
    p = run()
    gpu = PROFILE.gpu
    flop = sum(c.flop for c in p.components.values())
    by_flop = flop / gpu.peak_flop_per_s["bfloat16"] * gpu.power_limit_w
    assert p.flop_only.energy_j == pytest.approx(by_flop)
    assert p.flop_only == p.baselines["flop_only"]
    assert p.baselines["tdp"].energy_j == pytest.approx(p.duration_s * gpu.power_limit_w)
    assert set(p.baselines) == {"flop_only", "roofline", "tdp", "mfu_power_law"}
    for baseline in p.baselines.values():
        assert baseline.ratio == pytest.approx(baseline.energy_j / p.energy_j)
    # 8.03e9 parameters less the embedding, twice, for each prompt token and each decoded one.
    matrices = DENSE.param_count - DENSE.vocab_size * DENSE.hidden_size
    assert flop == pytest.approx(2 * matrices * 64 * 639, rel=0.15)
    assert p.flop_only.energy_j <= p.baselines["roofline"].energy_j


def test_the_result_says_what_was_predicted() -> None:
    p = run(max_num_seqs=64)
    assert (p.model, p.gpu, p.engine) == (DENSE.name, "h200", "vllm")
    assert p.boundary == "gpu"
    assert p.deployment["max_num_seqs"] == 64
    assert p.provenance["profile"] == "h200"
    assert p.provenance["kind"] == "measured"


# --- order ----------------------------------------------------------------------------------------


def energies(name: str, workloads: list[Workload], **flags: Any) -> list[float]:
    return [run(MODELS[name], workload, **flags).energy_j for workload in workloads]


def rises(values: list[float]) -> bool:
    return all(b > a for a, b in pairwise(values))


@settings(max_examples=6, deadline=None)
@given(a_name, st.integers(1, 400), st.integers(1, 128))
def test_longer_prompts_cost_more(name: str, output_tokens: int, count: int) -> None:
    lengths = (16, 64, 200, 512, 1000, 2048, 5000)
    assert rises(energies(name, [one_bin(n, output_tokens, count) for n in lengths]))


@settings(max_examples=6, deadline=None)
@given(a_name, st.integers(1, 4000), st.integers(1, 128))
def test_longer_outputs_cost_more(name: str, input_tokens: int, count: int) -> None:
    lengths = (0, 1, 2, 10, 50, 128, 400, 1000)
    assert rises(energies(name, [one_bin(input_tokens, n, count) for n in lengths]))


@settings(max_examples=6, deadline=None)
@given(a_name, st.integers(1, 2000), st.integers(1, 300))
def test_more_requests_cost_more_and_less_each(
    name: str, input_tokens: int, output_tokens: int
) -> None:
    counts = (1, 2, 5, 16, 60, 128, 256, 700)
    total = energies(name, [one_bin(input_tokens, output_tokens, n) for n in counts])
    assert rises(total)
    # A batch shares the weights: far fewer joules a request than one after the other.
    assert total[-1] / 700 < total[0]


@models
def test_twice_the_requests_beyond_a_full_batch_cost_about_twice(model: ModelSpec) -> None:
    once, twice = (run(model, one_bin(256, 64, n), max_num_seqs=64) for n in (640, 1280))
    assert twice.energy_j == pytest.approx(2 * once.energy_j, rel=0.05)
    assert twice.duration_s == pytest.approx(2 * once.duration_s, rel=0.05)


@models
def test_a_bin_split_in_two_is_the_same_run(model: ModelSpec) -> None:
    whole = run(model, one_bin(300, 100, 90))
    split = run(model, Workload(bins=(*one_bin(300, 100, 30).bins, *one_bin(300, 100, 60).bins)))
    assert split.energy_j == pytest.approx(whole.energy_j, rel=1e-6)
    assert split.duration_s == pytest.approx(whole.duration_s, rel=1e-6)
    first, second = split.bins
    assert first.energy_j == pytest.approx(second.energy_j / 2, rel=0.2)


def test_a_prediction_repeats_itself() -> None:
    assert run(MOE) == run(MOE)


# --- the power limit ------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    a_name,
    st.integers(16, 4000),
    st.integers(1, 200),
    st.integers(1, 256),
    st.tuples(st.floats(350, 700), st.floats(350, 700)),
)
def test_a_lower_limit_is_slower_and_kept(
    name: str, input_tokens: int, output_tokens: int, count: int, two: tuple[float, float]
) -> None:
    workload = one_bin(input_tokens, output_tokens, count)
    low, high = (run(MODELS[name], workload, power_limit_w=limit) for limit in sorted(two))
    assert low.duration_s >= high.duration_s * (1 - 1e-6)
    assert low.clock_hz.mean <= high.clock_hz.mean * (1 + 1e-6)
    for p, limit in ((low, min(two)), (high, max(two))):
        # At these limits no step is at the lowest clock, below which nothing can be promised.
        assert p.mean_power_w <= limit * max(PROFILE.power.limit_share.value, 1.0) * (1 + 1e-6)


def test_the_default_limit_is_that_of_the_board() -> None:
    assert run(power_limit_w=700.0).energy_j == run().energy_j
    assert run(power_limit_w=700.0).warnings == ()


def test_prefill_meets_the_limit_and_single_decode_does_not() -> None:
    heavy = run(MODELS["Qwen3-32B"], one_bin(4096, 1, 64))
    assert heavy.power_limited
    assert heavy.power_limited_share > 0.8
    assert heavy.clock_hz.mean < 0.95 * MOST
    cap_w = PROFILE.power.limit_share.value * 700
    assert heavy.mean_power_w == pytest.approx(cap_w, rel=0.05)
    light = run(DENSE, one_bin(16, 256, 1))
    assert not light.power_limited
    assert light.clock_hz.mean == pytest.approx(MOST)
    assert light.mean_power_w < 600


# --- the interval ---------------------------------------------------------------------------------


def half_width(p: Prediction) -> float:
    """Of the lower side: the upper one reaches to boards whose memory costs more."""
    low, high = p.energy_interval_j
    assert math.log(high / p.energy_j) > (1 - CLOSE) * math.log(p.energy_j / low)
    return math.log(p.energy_j / low)


ONE_MEMORY = replace(PROFILE, memory=PROFILE.memory[:1])


def with_outer(outer: float) -> Profile:
    """All errors in proportion to ``outer``, on boards of one kind."""
    regime = PROFILE.accuracy.regimes["vllm"]
    spread = replace(regime.energy, inner=0.7 * outer, outer=outer)
    regimes = {"vllm": replace(regime, energy=spread, duration=spread)}
    return replace(ONE_MEMORY, accuracy=replace(PROFILE.accuracy, regimes=regimes))


@models
def test_the_interval_follows_the_errors_of_the_engine(model: ModelSpec) -> None:
    one, two = (run(model, profile=with_outer(outer)) for outer in (1.5, 3.0))
    # A step of the smallest model takes little longer than its launch.
    assert all("at which the host launches kernels" in text for text in one.warnings)
    assert half_width(two) == pytest.approx(2.0 * half_width(one))
    low, high = one.duration_interval_s
    assert two.duration_interval_s[0] == pytest.approx(low**2 / one.duration_s)
    assert low * high == pytest.approx(one.duration_s**2)


def test_what_the_host_decides_is_less_certain() -> None:
    short, long = (run(MODELS["Qwen2.5-0.5B-Instruct"], one_bin(n, 1, 1)) for n in (64, 16_000))
    assert half_width(short) > 1.5 * half_width(long)


def test_formats_that_were_measured_less_are_less_certain() -> None:
    assert half_width(run(quantization="fp8")) > 1.2 * half_width(run())


def test_another_power_limit_widens_and_says_so() -> None:
    inside, outside = (run(profile=ONE_MEMORY, power_limit_w=limit) for limit in (None, 400.0))
    assert any("power limit 400 W" in warning for warning in outside.warnings)
    # Shares of the sources change with the clock; the factor is there all the same.
    assert half_width(outside) == pytest.approx(WIDER * half_width(inside), rel=0.2)


def test_a_limit_that_cannot_be_held_is_not_passed_over() -> None:
    p = run(MODELS["Qwen3-32B"], one_bin(4096, 1, 64), power_limit_w=200.0)
    assert p.mean_power_w <= 200 or any("not held" in warning for warning in p.warnings)


def test_the_other_half_precision_is_noted() -> None:
    assert any("float16" in warning for warning in run(dtype="float16").warnings)


def test_a_shape_that_was_never_measured_is_named() -> None:
    gemm = PROFILE.operations["gemm"]
    narrow = replace(gemm, domain={**gemm.domain, "k": (1000.0, 2000.0)})
    profile = replace(ONE_MEMORY, operations={**PROFILE.operations, "gemm": narrow})
    p = run(profile=profile)
    assert len(p.warnings) == 1
    assert "k of" in p.warnings[0]
    assert "1,000 to 2,000" in p.warnings[0]
    assert half_width(p) == pytest.approx(WIDER * half_width(run(profile=ONE_MEMORY)))


def test_more_tokens_than_the_model_has_positions() -> None:
    short = find_model("OLMo-2-1124-7B")[0]
    assert short.max_position_embeddings == 4096
    assert run(short, one_bin(3000, 1000, 4)).warnings == ()
    for workload in (one_bin(6000, 1000, 4), one_bin(3900, 400, 1), one_bin(5000, 0, 1)):
        p = run(short, workload)
        assert any("max_position_embeddings of 4,096" in w for w in p.warnings)


# --- edges ----------------------------------------------------------------------------------------


@models
def test_scoring_has_no_decode(model: ModelSpec) -> None:
    p = run(model, one_bin(500, 0, 20))
    assert p.ttft_s is None
    assert p.itl_s is None
    assert p.energy_per_output_token_j is None
    assert p.output_tokens_per_s == 0
    assert p.phases["decode"].energy_j == pytest.approx(0, abs=1e-9 * p.energy_j)
    assert p.bins[0].decode_j == 0
    assert p.components["lm_head"].flop == 0


@models
def test_one_token_is_no_interval(model: ModelSpec) -> None:
    p = run(model, one_bin(500, 1, 20))
    assert p.ttft_s is not None
    assert p.itl_s is None
    assert p.bins[0].decode_j == 0


@models
def test_one_request(model: ModelSpec) -> None:
    p = run(model, one_bin(200, 50, 1))
    assert p.ttft_s is not None
    assert p.itl_s is not None
    assert p.ttft_s.p50 == p.ttft_s.p99 == pytest.approx(p.ttft_s.mean)
    # First the prompt, then 49 more tokens, and nothing else.
    assert p.duration_s == pytest.approx(p.ttft_s.mean + 49 * p.itl_s.mean)
    # Weights pass once for each token: no faster than the memory.
    read = 2 * model.active_param_count * 0.5 / PROFILE.gpu.hbm_bytes_per_s
    assert p.itl_s.p50 > read


def test_one_token_in_and_none_out() -> None:
    assert run(DENSE, one_bin(1, 0, 1)).energy_j > 0


def test_chunked_prompts_and_preemption_are_predicted() -> None:
    tight = Deployment(gpu_memory_utilization=0.13, max_num_batched_tokens=512)
    p = predict(DENSE, tight, one_bin(3000, 400, 40), PROFILE)
    roomy = predict(
        DENSE, replace(tight, gpu_memory_utilization=0.9), one_bin(3000, 400, 40), PROFILE
    )
    assert p.energy_j > roomy.energy_j
    assert p.duration_s > roomy.duration_s


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"engine": "tgi"}, "engine 'tgi' is not one of: vllm"),
        ({"quantization": "mxfp4"}, "quantization 'mxfp4' is not supported for this model"),
        ({"kv_cache_dtype": "int8"}, "kv_cache_dtype"),
        ({"power_limit_w": 100.0}, "power_limit_w must be from 200 to 700"),
        ({"power_limit_w": 1000.0}, "power_limit_w must be from 200 to 700.*got 1000"),
        ({"power_limit_w": math.nan}, "power_limit_w must be from 200 to 700"),
        ({"power_limit_w": -700.0}, "power_limit_w must be from 200 to 700"),
        ({"power_limit_w": 0.0}, "power_limit_w must be from 200 to 700"),
        ({"tensor_parallel_size": 3}, "tensor_parallel_size is 3; it must divide"),
        ({"pipeline_parallel_size": 16}, "node_link_bytes_per_s"),
        ({"dtype": "float32"}, "dtype.*bfloat16 or float16"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1"),
        ({"max_num_seqs": 300, "max_num_batched_tokens": 200}, "max_num_batched_tokens"),
        ({"gpu_memory_utilization": 0.05}, "gpu_memory_utilization .0.05"),
    ],
)
def test_what_cannot_be_predicted_is_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        run(**flags)
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 300


def test_a_model_that_does_not_fit_is_refused() -> None:
    large = find_model("Llama-3.1-405B-Instruct")[0]
    with pytest.raises(InputError, match=r"405B-Instruct' does not fit one NVIDIA H200.*811"):
        run(large)


def test_a_request_that_never_fits_is_refused() -> None:
    with pytest.raises(InputError, match=r"bins\[0\].*KV cache"):
        run(MODELS["Qwen3-32B"], one_bin(2_000_000, 10, 1))


def test_rates_are_refused() -> None:
    online = Workload(bins=(Bin(input_tokens=10, output_tokens=10, requests_per_s=2.0),))
    with pytest.raises(InputError, match="requests_per_s"):
        run(workload=online)


def test_weights_of_another_width_are_not_passed_off_as_calibrated() -> None:
    # gpt-oss ships its experts in four bits; the profile has seen 16.
    p = run(find_model("gpt-oss-20b")[0])
    assert any("moe.mxfp4" in warning for warning in p.warnings)
    assert half_width(p) > half_width(run(MOE))


def with_memories(*byte_j: float) -> Profile:
    kinds = (
        MemoryKind(byte_j=Estimate(value=v, stderr=0.0, unit="J/B"), boards=(f"board-{i}",))
        for i, v in enumerate(byte_j)
    )
    return replace(PROFILE, memory=tuple(kinds))


USUAL = PROFILE.operations["gemm"].energy["hbm_byte_j"].value


def test_the_interval_reaches_to_boards_with_another_memory() -> None:
    alike, mixed = with_memories(USUAL), with_memories(USUAL, 1.7 * USUAL)
    one, other = run(profile=alike), run(profile=mixed)
    assert other.energy_j == one.energy_j
    there = run(profile=mixed, hbm_byte_j=1.7 * USUAL)
    ratio = there.energy_j / one.energy_j
    assert 1.02 < ratio < 1.25
    # Told what a byte costs, there is no other board to reach to.
    assert there.energy_interval_j == pytest.approx(
        [ratio * end for end in one.energy_interval_j], rel=0.01
    )
    # Of boards of both kinds, either end leaves out twice as much of the kind that is next to it.
    assert one.energy_interval_j[0] < other.energy_interval_j[0] < one.energy_j
    assert there.energy_j < other.energy_interval_j[1] < there.energy_interval_j[1]


def test_a_memory_is_refused_where_the_profile_knows_none() -> None:
    with pytest.raises(InputError, match="hbm_byte_j must be left out: profile 'h200'"):
        run(profile=replace(PROFILE, memory=()), hbm_byte_j=3e-11)


def test_an_impossible_memory_is_refused() -> None:
    for byte_j in (0.0, -1e-11, 2.5e-14, 1.0, math.nan):
        with pytest.raises(InputError, match="hbm_byte_j must be from 1e-12 to 1e-09"):
            run(hbm_byte_j=byte_j)
