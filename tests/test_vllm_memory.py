"""Blocks and recurrent states: what vLLM said of itself, hand calculations, and what bites."""

from typing import Any

import pytest

from energymodel import hardware
from energymodel.deployment import Deployment
from energymodel.engines.vllm import cache_room
from energymodel.errors import InputError
from energymodel.model import ModelSpec, model_from_config
from energymodel.predict import predict
from energymodel.profile import load
from energymodel.sequence_blocks import TokenGroups
from energymodel.serving import schedule_offline
from energymodel.vllm_memory import BOUNDLESS_TOKENS, CacheLayout, cache_layout, room_in
from energymodel.workload import Bin, Workload

H200 = hardware.load("h200")

NEMOTRON = {
    "model_type": "nemotron_h",
    "hidden_size": 4480,
    "intermediate_size": 15680,
    "vocab_size": 131072,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "mamba_num_heads": 128,
    "mamba_head_dim": 80,
    "hybrid_override_pattern": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
}
QWEN = {
    "model_type": "qwen3_5_text",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "vocab_size": 248320,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "mamba_ssm_dtype": "float32",
}
MAMBA = {
    "model_type": "mamba2",
    "hidden_size": 2560,
    "vocab_size": 50288,
    "num_hidden_layers": 64,
    "num_heads": 80,
    "n_groups": 1,
}


def spec(config: dict[str, Any], **changes: Any) -> ModelSpec:
    return model_from_config({**config, **changes}, "test")[0]


def layout(model: ModelSpec, kv_dtype: str = "bfloat16") -> CacheLayout:
    return cache_layout(model, Deployment(), kv_dtype=kv_dtype, dtype="bfloat16")


@pytest.mark.parametrize(
    ("config", "kv_dtype", "tokens"),
    [
        # "Setting attention block size to N tokens", as logged: 672 for Nemotron Nano 9B v2, when
        # it kept states in 16 bits (vllm issue 24280); 528 for Qwen3.5 9B, 1056 with a cache in
        # fp8 (vllm pull request 37467 and others); 784 for Qwen3.5 27B.
        (NEMOTRON | {"mamba_ssm_cache_dtype": "bfloat16"}, "bfloat16", 672),
        (QWEN, "bfloat16", 528),
        (QWEN, "fp8", 1056),
        (QWEN | {"linear_num_value_heads": 48}, "bfloat16", 784),
    ],
)
def test_tokens_of_a_block_are_those_that_vllm_logs(
    config: dict[str, Any], kv_dtype: str, tokens: int
) -> None:
    assert layout(spec(config), kv_dtype).block_tokens == tokens


def test_blocks_of_nemotron_nano_by_hand() -> None:
    found = layout(spec(NEMOTRON))
    # States of 5,316,608 bytes; 8 heads of 128 keys and values are 4096 bytes a token: 1298 tokens,
    # rounded up to 82 x 16.
    assert found.block_tokens == 1312
    # Four attention layers and 27 others: groups of four, seven of them for states.
    assert found.block_bytes == 1312 * 4096 * 4
    assert found.state_blocks == 7


def test_nearly_as_many_layers_of_each_kind_make_one_group_each() -> None:
    config = {
        "model_type": "lfm2",
        "hidden_size": 64,
        "intermediate_size": 64,
        "vocab_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 5,
        "layer_types": ["conv"] * 3 + ["full_attention"] * 2,
    }
    # 3 < 1.5 x 2 does not hold: groups of two, two of them for the convolutions.
    assert layout(spec(config)).state_blocks == 2
    config["num_hidden_layers"] = 7
    config["layer_types"] = ["conv"] * 4 + ["full_attention"] * 3
    found = layout(spec(config))
    # 4 < 1.5 x 3: groups of four. A token is 2 x 32 values in 16 bits, a page 16 of them.
    assert found.state_blocks == 1
    assert found.block_bytes == 4 * 16 * 128


def test_more_attention_than_state_makes_several_groups_of_it() -> None:
    config = {
        "model_type": "qwen3_5_text",
        "hidden_size": 64,
        "intermediate_size": 64,
        "vocab_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 5,
        "layer_types": ["full_attention"] * 4 + ["linear_attention"],
    }
    found = layout(spec(config))
    assert found.state_blocks == 1
    # Four groups of one layer each: keys and values of 256 in 16 bits.
    assert found.block_bytes == found.block_tokens * 1024
    assert found.groups == (TokenGroups(count=4),)


def test_attention_alone_keeps_the_blocks_that_were_asked_for() -> None:
    llama = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 64,
        "vocab_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
    }
    found = cache_layout(
        spec(llama), Deployment(block_size=32), kv_dtype="bfloat16", dtype="bfloat16"
    )
    assert found == CacheLayout(block_bytes=32 * 3 * 2 * 64 * 2, block_tokens=32)


def test_states_alone_bound_the_sequences_and_not_the_tokens() -> None:
    model = spec(MAMBA)
    room = cache_room(model, Deployment(), H200)
    # 80 heads of 64 x 128 and 3 x (80 x 64 + 2 x 128) in 16 bits, in 64 layers.
    each = 64 * (80 * 64 * 128 + 3 * 5376) * 2
    assert layout(model).block_bytes == model.state_bytes() == each
    left = room_in(layout(model), 10.5 * each)
    assert (left.sequences, left.tokens, left.state_blocks) == (10, BOUNDLESS_TOKENS, 0)
    assert room.limits(Deployment(max_num_seqs=8)).max_num_seqs == 8
    assert left.limits(Deployment(max_num_seqs=256)).max_num_seqs == 10
    assert cache_room(model, Deployment(), H200).tokens_within_windows == BOUNDLESS_TOKENS


@pytest.mark.parametrize("config", [MAMBA, NEMOTRON])
def test_what_does_not_fit_is_refused_with_the_states(config: dict[str, Any]) -> None:
    big = {"mamba_head_dim": 40_000} if config is NEMOTRON else {"state_size": 100_000}
    with pytest.raises(InputError, match=r"states of one sequence \d+ GB"):
        cache_room(spec(config, **big), Deployment(), H200)
    assert not cache_room(spec(config), Deployment(), H200).empty


def test_states_are_taken_from_the_room_for_tokens() -> None:
    # 10 blocks of 16, 3 for the states of each: of requests of 16 tokens two run at a time.
    room = room_in(CacheLayout(block_bytes=100, block_tokens=16, state_blocks=3), 1050)
    assert room.tokens == 160
    workload = Workload(bins=(Bin(input_tokens=16, output_tokens=1, count=4),))
    schedule = schedule_offline(
        workload, room.limits(Deployment()), room.tokens, state_blocks=room.state_blocks
    )
    assert schedule.steps.chunks.count.tolist() == [2, 2]
    too_long = Workload(bins=(Bin(input_tokens=113, output_tokens=1, count=1),))
    with pytest.raises(InputError, match="holds 112"):
        schedule_offline(too_long, room.limits(Deployment()), room.tokens, state_blocks=3)


@pytest.mark.parametrize("config", [MAMBA, NEMOTRON, QWEN])
def test_a_whole_prediction_conserves_energy_and_says_what_it_assumes(
    config: dict[str, Any],
) -> None:
    bins = (
        Bin(input_tokens=700, output_tokens=40, count=30),
        Bin(input_tokens=90, output_tokens=200, count=20),
    )
    found = predict(spec(config), Deployment(), Workload(bins=bins), load("h200"))
    parts = sum(c.energy_j for c in found.components.values())
    phases = sum(p.energy_j for p in found.phases.values())
    assert parts == pytest.approx(found.energy_j, rel=1e-9)
    assert phases == pytest.approx(found.energy_j, rel=1e-9)
    assert sum(b.energy_j for b in found.bins) == pytest.approx(found.energy_j, rel=1e-9)
    assert found.components["recurrence"].energy_j > 0
    assert any("recurrent layers" in w for w in found.warnings)
