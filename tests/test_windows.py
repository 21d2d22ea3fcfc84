"""Blocks behind a sliding window are free again: layouts and schedules worked out by hand."""

import numpy as np
import pytest

from energymodel import hardware
from energymodel.deployment import Deployment
from energymodel.engines.vllm import cache_room
from energymodel.errors import InputError
from energymodel.find_model import find_model
from energymodel.model import model_from_config
from energymodel.sequence_blocks import BlockGrowth, SequenceBlocks, TokenGroups
from energymodel.serving import schedule_offline
from energymodel.vllm_memory import CacheLayout, cache_layout
from energymodel.workload import Bin, Workload

H200 = hardware.load("h200")


def layout(name: str, kv_dtype: str = "bfloat16") -> CacheLayout:
    return cache_layout(find_model(name)[0], Deployment(), kv_dtype=kv_dtype, dtype="bfloat16")


def blocks_of(*groups: TokenGroups, size: int = 16, budget: int = 16384) -> SequenceBlocks:
    return SequenceBlocks(size=size, groups=groups, state_blocks=0, budget=budget)


def one_bin(input_tokens: int, output_tokens: int, count: int) -> Workload:
    only = Bin(input_tokens=input_tokens, output_tokens=output_tokens, count=count)
    return Workload(bins=(only,))


def full_and_windowed(found: CacheLayout) -> dict[int | None, int]:
    return {g.window: g.count for g in found.groups}


@pytest.mark.parametrize(
    ("name", "layers", "token_bytes", "groups"),
    [
        # Layers of a group; bytes that a layer caches of a token; groups of each window.
        ("google/gemma-2-9b-it", 21, 8192, {None: 1, 4096: 1}),
        # 5 full layers and 29 others: six groups of 5, one place of which stays empty.
        ("google/gemma-3-4b-it", 5, 4096, {None: 1, 1024: 6}),
        # 10 and 52: six groups of 10, eight places empty.
        ("google/gemma-3-27b-it", 10, 8192, {None: 1, 1024: 6}),
        ("openai/gpt-oss-20b", 12, 2048, {None: 1, 128: 1}),
        ("allenai/Olmo-3-7B-Instruct", 8, 16384, {None: 1, 4096: 3}),
        ("CohereLabs/c4ai-command-r7b-12-2024", 8, 4096, {None: 1, 4096: 3}),
        ("LGAI-EXAONE/EXAONE-4.0-32B", 16, 4096, {None: 1, 4096: 3}),
        # Windows alone are one group of all layers.
        ("microsoft/Phi-3-mini-4k-instruct", 32, 12288, {2047: 1}),
        ("mistralai/Ministral-8B-Instruct-2410", 36, 4096, {32768: 1}),
        # Pieces of 8192 tokens: everything is kept.
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 48, 4096, {None: 1}),
    ],
)
def test_layers_are_grouped_as_in_vllm(
    name: str, layers: int, token_bytes: int, groups: dict[int | None, int]
) -> None:
    found = layout(name)
    assert found.block_bytes == 16 * layers * token_bytes
    assert found.block_tokens == 16
    assert full_and_windowed(found) == groups
    assert all(g.ratio == 1 for g in found.groups)


GEMMA_4 = {
    "model_type": "gemma4_text",
    "hidden_size": 64,
    "intermediate_size": 64,
    "vocab_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 64,
    "hidden_size_per_layer_input": 0,
}


def test_layers_that_cache_less_keep_more_tokens_in_a_page() -> None:
    model = model_from_config(GEMMA_4, "test")[0]
    found = cache_layout(model, Deployment(), kv_dtype="bfloat16", dtype="bfloat16")
    # One full layer of 2 x 32 values, five with a window of 2 x 16 in 16 bits.
    assert found.block_bytes == 16 * 128
    assert sorted(found.groups, key=lambda g: g.count) == [
        TokenGroups(count=1),
        TokenGroups(count=5, window=64, ratio=2),
    ]


def test_a_page_that_is_no_multiple_is_padded() -> None:
    model = model_from_config({**GEMMA_4, "global_head_dim": 24}, "test")[0]
    found = cache_layout(model, Deployment(), kv_dtype="bfloat16", dtype="bfloat16")
    assert found.block_bytes == 16 * 96
    assert {g.ratio for g in found.groups} == {1}


def test_blocks_of_a_sequence_by_hand() -> None:
    blocks = blocks_of(TokenGroups(), TokenGroups(count=2, window=8), size=4, budget=16)
    assert blocks.held(0, 16) == 3 * 4
    # Token 17 sees 10 to 17: the first 9 are behind it, two blocks in each of two groups.
    assert blocks.held(16, 17) == 5 + 2 * (5 - 2)
    assert blocks.held(14, 15) == 4 + 2 * (4 - 1)
    # Of 100 tokens a window never holds more than those of 7 + 16, in blocks that begin anywhere.
    assert blocks.reserved(100) == 25 + 2 * (6 + 1)
    assert blocks.reserved(20) == 3 * 5


def test_a_prompt_longer_than_the_pool_runs_behind_a_window() -> None:
    deployment = Deployment(max_num_batched_tokens=64, max_num_seqs=4)
    window = (TokenGroups(window=32),)
    # 31 + 64 tokens are 6 blocks, and one more: 7 blocks are enough for any length.
    steps = schedule_offline(one_bin(1000, 20, 3), deployment, 7 * 16, groups=window).steps
    assert steps.sum_chunks(steps.chunks.tokens).sum() == 3000
    with pytest.raises(InputError, match="holds 96"):
        schedule_offline(one_bin(1000, 20, 3), deployment, 6 * 16, groups=window)
    with pytest.raises(InputError, match="holds 112"):
        schedule_offline(one_bin(1000, 20, 3), deployment, 7 * 16)


def test_a_request_is_admitted_when_another_passes_its_window() -> None:
    # Blocks of 4, a window of 8, a pool of 8. A prompt of 24 takes 6; its first decode step needs
    # the last 8 of 25 tokens: it frees 4 and takes 1. Then another prompt of 20 finds its 5.
    workload = Workload(
        bins=(
            Bin(input_tokens=24, output_tokens=9, count=1),
            Bin(input_tokens=20, output_tokens=1, count=1),
        )
    )
    deployment = Deployment(block_size=4, max_num_batched_tokens=64, max_num_seqs=4)
    windowed = schedule_offline(workload, deployment, 32, groups=(TokenGroups(window=8),)).steps
    assert windowed.chunks.step.tolist() == [0, 1]
    whole = schedule_offline(workload, deployment, 36).steps
    assert whole.weight[: whole.chunks.step[1]].sum() == 9


def test_long_decoding_of_many_needs_no_more_than_its_windows() -> None:
    # 50 sequences in windows of 64 hold 5 or 6 blocks each, 300 in all, for 5000 tokens.
    pool, window = 320 * 16, (TokenGroups(window=64),)
    steps = schedule_offline(one_bin(16, 5000, 50), Deployment(), pool, groups=window).steps
    assert steps.sum_chunks(steps.chunks.tokens).sum() == 50 * 16  # nobody was preempted
    assert steps.size < 20


@pytest.mark.parametrize("free", [0, 3, 40, 1000])
@pytest.mark.parametrize("enough", [6.0, 60.0, np.inf])
def test_a_run_of_iterations_is_that_of_single_ones(free: int, enough: float) -> None:
    groups = TokenGroups(count=2, window=10), TokenGroups(ratio=3), TokenGroups(window=33)
    growth = BlockGrowth(blocks_of(*groups, size=4))
    for offset, sequences, passed in ((40, 3, 2), (7, 2, 0), (30, 5, 1)):
        growth.add(offset, sequences, passed)
    for first in range(13):
        left, ran = free, 0
        for iteration in range(first, first + 100):
            taken, freed = growth.at(iteration)
            if taken > left or left - taken + freed >= enough:
                break
            left, ran = left - taken + freed, ran + 1
        assert growth.run(first, 100, free, enough) == (ran, left)


def test_windows_make_room_for_more_long_sequences() -> None:
    model = find_model("google/gemma-3-27b-it")[0]
    room = cache_room(model, Deployment(), H200)
    longer = blocks_of(*room.groups).reserved(100_000)
    # 6250 blocks of the full layers, 1088 + 1 of each of six groups with windows.
    assert longer == 6250 + 6 * 1089
    assert cache_room(model, Deployment(), H200).tokens_within_windows == room.tokens // 7
