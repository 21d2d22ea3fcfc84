"""The shares of a model under tensor parallelism add up to the whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_builders import steps_of

from energymodel.blocks import Moe, SoftmaxAttention
from energymodel.deployment import Deployment
from energymodel.errors import InputError
from energymodel.find_model import find_model
from energymodel.model import ModelSpec
from energymodel.ops import lower
from energymodel.parallel import Parallel
from energymodel.sharding import shard, stage_layers, stages

NAMES = (
    "Llama-3.1-8B-Instruct",
    "Qwen3-30B-A3B",
    "gemma-2-9b-it",
    "DeepSeek-V3.1",
    "Mixtral-8x7B-Instruct-v0.1",
)
MODELS = {name: find_model(name)[0] for name in NAMES}
DIVIDED = ("gemm", "moe", "prefill_attention", "decode_attention", "mla_prefill", "mla_decode")
# What every GPU does in full: the router, and the projections down to a latent.
REPEATED = ("router", "q_a_proj", "kv_a_proj", "qkv_a_proj")


def tensor(size: int) -> Parallel:
    return Parallel(tensor=size)


def flop(model: ModelSpec, tokens: int, context: int) -> dict[str, float]:
    steps = steps_of(([(tokens, 0, 1, 1)], [(context, 4)]))
    found: dict[str, float] = {}
    for op in lower(model, Deployment(), steps):
        if op.kind in DIVIDED:
            found[op.name] = found.get(op.name, 0.0) + op.count * float(op.flop.sum())
    return found


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(NAMES), st.sampled_from([2, 4, 8]), st.integers(1, 500), st.integers(1, 5000)
)
def test_flop_of_the_shares_add_up(name: str, size: int, tokens: int, context: int) -> None:
    model = MODELS[name]
    whole, part = flop(model, tokens, context), flop(shard(model, tensor(size)), tokens, context)
    assert whole.keys() == part.keys()
    for op in whole:
        times = 1 if op in REPEATED else size
        most = 1.0
        if op == "lm_head":  # the vocabulary is padded
            most = 1 + 64 / model.vocab_size
        if op == "qkv_proj":  # KV heads that are fewer than GPUs are repeated
            a = model.layers[0].find(SoftmaxAttention)
            assert a is not None
            copies = max(1, size // a.num_key_value_heads)
            most = (a.q_size + 2 * a.kv_size * copies) / (a.q_size + 2 * a.kv_size)
        assert whole[op] <= times * part[op] * (1 + 1e-9), op
        assert times * part[op] <= whole[op] * most * (1 + 1e-9), op


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [2, 4])
def test_weights_of_the_shares_are_the_whole_and_what_is_repeated(name: str, size: int) -> None:
    model = MODELS[name]
    together = size * shard(model, tensor(size)).param_count
    plain = sum(
        n * w.params
        for layer, n in model.layer_groups()
        for w in layer.weights(model.hidden_size)
        if w.role == "plain" or w.name in REPEATED
    )
    padding = 2 * 64 * model.hidden_size
    norm = 2 * model.hidden_size
    assert (
        model.param_count <= together <= model.param_count + (size - 1) * (plain + norm) + padding
    )


def test_kv_heads_that_are_fewer_than_gpus_are_repeated() -> None:
    model = MODELS["Qwen3-30B-A3B"]  # 4 KV heads
    per_token = model.kv_bytes_per_token()
    assert shard(model, tensor(4)).kv_bytes_per_token() == per_token / 4
    assert shard(model, tensor(8)).kv_bytes_per_token() == per_token / 4


def test_one_gpu_holds_everything() -> None:
    model = MODELS["gemma-2-9b-it"]
    assert shard(model, tensor(1)) is model


@pytest.mark.parametrize(
    ("name", "size", "what"),
    [
        ("Llama-3.1-8B-Instruct", 3, r"tensor_parallel_size is 3; it must divide"),
        ("Qwen2.5-0.5B-Instruct", 4, r"heads of .*\(14\)"),
        ("rwkv-4-7b-pile", 2, "must be 1 .* TimeMix is not known to be divided"),
    ],
)
def test_what_cannot_be_divided_is_refused_by_name(name: str, size: int, what: str) -> None:
    with pytest.raises(InputError, match=what):
        shard(find_model(name)[0], tensor(size))


@pytest.mark.parametrize(
    "name", ["NVIDIA-Nemotron-Nano-9B-v2", "LFM2-1.2B", "Qwen3-Next-80B-A3B-Thinking"]
)
def test_states_of_recurrent_layers_are_divided(name: str) -> None:
    model = find_model(name)[0]
    part = shard(model, tensor(2))
    assert part.state_bytes() == pytest.approx(model.state_bytes() / 2, rel=0.02)


def test_spread_experts_are_whole_and_cut_experts_are_narrow() -> None:
    model = MODELS["Qwen3-30B-A3B"]
    whole = model.layers[0].find(Moe)
    assert whole is not None
    spread = shard(model, Parallel(tensor=2, data=2, experts=True)).layers[0].find(Moe)
    cut = shard(model, Parallel(tensor=2, data=2)).layers[0].find(Moe)
    assert spread is not None
    assert cut is not None
    assert (spread.most_experts, spread.moe_intermediate_size) == (32, 768)
    assert (cut.num_experts, cut.moe_intermediate_size) == (128, 192)
    # Both hold a fourth of the experts' weights.
    for part in (spread, cut):
        weights = {w.name: w.params for w in part.weights(model.hidden_size)}
        assert 4 * weights["experts"] == 128 * 3 * 768 * model.hidden_size


def test_experts_that_do_not_divide_are_held_by_some_gpus_more() -> None:
    model = MODELS["Mixtral-8x7B-Instruct-v0.1"]
    part = shard(model, Parallel(data=3, experts=True)).layers[0].find(Moe)
    assert part is not None
    assert part.most_experts == 3
    with pytest.raises(InputError, match="enable_expert_parallel spreads experts over 16 GPUs"):
        shard(model, Parallel(data=16, experts=True))


@pytest.mark.parametrize(
    ("layers", "count", "expected"),
    [(32, 2, (16, 16)), (35, 4, (9, 9, 9, 8)), (34, 4, (8, 9, 9, 8)), (33, 4, (8, 8, 9, 8))],
)
def test_layers_of_stages_as_vllm_divides_them(
    layers: int, count: int, expected: tuple[int, ...]
) -> None:
    assert stage_layers(layers, count) == expected


def test_stages_hold_all_layers() -> None:
    model = MODELS["Llama-3.1-8B-Instruct"]
    parts = stages(model, 3)
    assert [len(p.layers) for p in parts] == [11, 11, 10]
    assert sum((p.layers for p in parts), ()) == model.layers
    with pytest.raises(InputError, match="pipeline_parallel_size is 64"):
        stages(model, 64)
