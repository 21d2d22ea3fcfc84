from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from step_builders import decode, prefill, steps_of

from energymodel import hardware
from energymodel import profile as profiles
from energymodel.deployment import Deployment
from energymodel.engines.vllm import cache_room, engine_time
from energymodel.engines.vllm_graphs import largest, padded
from energymodel.engines.vllm_host import idle_seconds
from energymodel.errors import InputError
from energymodel.find_model import find_model
from energymodel.model import ModelSpec
from energymodel.profile import Estimate, Profile
from energymodel.steps import Steps
from energymodel.workload import Bin, Workload

H200 = hardware.load("h200")
DENSE = find_model("Qwen3-8B")[0]
MOE = find_model("Qwen3-30B-A3B")[0]
SHARED = find_model("Qwen1.5-MoE-A2.7B")[0]
DEFAULT = Deployment()


def with_engine(**values: float) -> Profile:
    """The shipped profile with engine numbers of its own: those named, all others 0."""
    profile = profiles.load("h200")
    engine = {
        name: Estimate(value=values.get(name, 0.0), stderr=0.0, unit=estimate.unit)
        for name, estimate in profile.engines["vllm"].items()
    }
    return replace(profile, engines={"vllm": engine})


# --- padding --------------------------------------------------------------------------------------

CAPTURED = [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)]


def test_padded_to_the_next_captured_size() -> None:
    # vLLM 0.24: 1, 2, 4, then multiples of 8 to 256, then of 16 to 512; larger steps as they are.
    tokens = np.arange(1, 513)
    expected = [min(size for size in CAPTURED if size >= n) for n in tokens]
    assert padded(tokens.astype(float), DEFAULT).tolist() == expected
    larger = np.array([513.0, 1000.0, 16384.0])
    assert padded(larger, DEFAULT).tolist() == larger.tolist()


@given(st.integers(0, 20_000), st.sampled_from([1, 2, 4, 8, 64, 128, 256, 512, 1024]))
def test_padding_adds_rows_but_little_and_once(tokens: int, max_num_seqs: int) -> None:
    deployment = Deployment(max_num_seqs=max_num_seqs)
    rows = padded(np.array([float(tokens)]), deployment)
    assert tokens <= rows[0] <= max(tokens + 15, 0)
    assert padded(rows, deployment) == rows
    if tokens <= largest(deployment):
        assert rows[0] <= largest(deployment)
    else:
        assert rows[0] == tokens


def test_graphs_reach_to_twice_the_sequences_or_512() -> None:
    assert largest(DEFAULT) == 512
    assert largest(Deployment(max_num_seqs=16)) == 32
    assert largest(Deployment(max_num_seqs=1024)) == 512


# --- time -----------------------------------------------------------------------------------------


def workload(*bins: tuple[int, int]) -> Workload:
    """Bins of (input tokens, count)."""
    return Workload(
        bins=tuple(Bin(input_tokens=n, output_tokens=10, count=count) for n, count in bins)
    )


def launch_s(
    model: ModelSpec, steps: Steps, deployment: Deployment = DEFAULT, **values: float
) -> np.ndarray:
    return engine_time(model, deployment, steps, with_engine(**values), workload((8, 1))).launch_s


def test_time_outside_the_layers_by_hand() -> None:
    profile = with_engine(step_s=1e-4, sequence_s=1e-6)
    steps = steps_of(([(100, 0, 3, 1)], [(50.0, 7)]), ([], [(50.0, 2)]))
    added = engine_time(DENSE, DEFAULT, steps, profile, workload((8, 1)))
    assert added.outside_s == pytest.approx([1e-4 + 10e-6, 1e-4 + 2e-6])


def test_time_to_take_requests_in_by_hand() -> None:
    engine = {"finish_s": 2e-3, "submit_request_s": 1e-5, "submit_token_s": 1e-8}
    asked = workload((100, 30), (1000, 10))
    assert idle_seconds(asked, DEFAULT, engine) == pytest.approx(2e-3 + 40e-5 + 13_000e-8)
    added = engine_time(DENSE, DEFAULT, prefill(8), with_engine(**engine), asked)
    assert added.submit_s == pytest.approx(2e-3 + 40e-5 + 13_000e-8)


def test_launches_layer_by_layer_where_no_graph_is_replayed() -> None:
    values = {"launch_layer_s": 1e-4, "launch_experts_s": 3e-4}
    assert launch_s(DENSE, prefill(512), **values) == [0.0]
    assert launch_s(DENSE, prefill(513), **values) == pytest.approx([36 * 1e-4])
    assert launch_s(MOE, prefill(513), **values) == pytest.approx([48 * (1e-4 + 3e-4)])
    few = Deployment(max_num_seqs=16)
    assert launch_s(DENSE, prefill(33), few, **values) == pytest.approx([36 * 1e-4])
    assert launch_s(SHARED, prefill(513), launch_shared_expert_s=2e-4) == pytest.approx([24 * 2e-4])
    assert launch_s(MOE, prefill(513), launch_shared_expert_s=2e-4) == [0.0]


def test_prompts_within_the_captured_sizes_replay_a_graph_for_each_layer() -> None:
    assert launch_s(DENSE, prefill(512), launch_graph_layer_s=1e-4) == pytest.approx([36 * 1e-4])
    assert launch_s(DENSE, prefill(513), launch_graph_layer_s=1e-4) == [0.0]
    assert launch_s(DENSE, prefill(300, count=3), launch_token_s=1e-7) == pytest.approx([900e-7])


def test_pure_decode_replays_one_graph() -> None:
    for count in (1, 256):
        launched = launch_s(
            DENSE,
            decode(1000, count=count),
            launch_layer_s=1.0,
            launch_graph_layer_s=1.0,
            launch_token_s=1.0,
        )
        assert launched == [0.0]


@pytest.mark.parametrize("model", [DENSE, MOE, SHARED], ids=lambda m: m.name)
def test_shipped_times_are_short_and_not_negative(model: ModelSpec) -> None:
    steps = steps_of(
        ([(16384, 0, 1, 1)], []), ([(16, 0, 1, 1)], [(100.0, 3)]), ([], [(100.0, 256)])
    )
    added = engine_time(model, DEFAULT, steps, profiles.load("h200"), workload((16, 4)))
    assert (added.launch_s >= 0).all()
    assert (added.launch_s < 0.5).all()
    assert (added.outside_s > 0).all()
    assert (added.outside_s < 0.01).all()
    assert 0 < added.submit_s < 0.1


# --- memory ---------------------------------------------------------------------------------------


def test_the_cache_fills_what_weights_leave() -> None:
    tokens = cache_room(DENSE, DEFAULT, H200).tokens_within_windows
    per_token = DENSE.kv_bytes_per_token(dtype="bfloat16")
    weights = DENSE.weight_bytes(dtype="bfloat16", quantization=None)
    left = 0.9 * H200.hbm_bytes - weights
    assert 0 < left - tokens * per_token < 6e9  # activations and what is outside the allocator
    # 36 layers x 8 heads x 128 x (key and value) x 2 bytes.
    assert per_token == 36 * 8 * 128 * 2 * 2


def test_more_memory_holds_more_tokens() -> None:
    shares = [0.3, 0.5, 0.7, 0.9, 0.95]
    tokens = [
        cache_room(DENSE, Deployment(gpu_memory_utilization=share), H200).tokens_within_windows
        for share in shares
    ]
    assert tokens == sorted(set(tokens))
    # A tenth of the memory more is a tenth of the memory more in tokens.
    per_token = DENSE.kv_bytes_per_token(dtype="bfloat16")
    gained = (tokens[3] - tokens[2]) * per_token
    assert gained == pytest.approx(0.2 * H200.hbm_bytes, rel=1e-4)


def test_smaller_values_and_larger_steps_change_the_cache() -> None:
    tokens = cache_room(DENSE, DEFAULT, H200).tokens_within_windows
    narrow = cache_room(DENSE, Deployment(kv_cache_dtype="fp8"), H200).tokens_within_windows
    assert narrow == pytest.approx(2 * tokens, abs=2)
    wide = cache_room(DENSE, Deployment(max_num_batched_tokens=65536), H200).tokens_within_windows
    assert wide < tokens


@pytest.mark.parametrize("name", ["Llama-3.1-405B-Instruct", "Qwen3-235B-A22B-Instruct-2507"])
def test_a_model_that_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}' does not fit one NVIDIA H200.*GB usable"):
        cache_room(find_model(name)[0], DEFAULT, H200)


def test_a_model_fits_a_larger_share_of_the_memory() -> None:
    with pytest.raises(InputError, match=r"gpu_memory_utilization .0\.05"):
        cache_room(DENSE, Deployment(gpu_memory_utilization=0.05), H200)
