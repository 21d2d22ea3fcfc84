"""Prefix caching: what is found, what is computed, and whose blocks are whose."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energymodel import io
from energymodel import profile as profiles
from energymodel.deployment import Deployment
from energymodel.errors import InputError
from energymodel.find_model import find_model
from energymodel.predict import predict
from energymodel.prefix_cache import SharedPrefixes, cached_tokens, check
from energymodel.sequence_blocks import SequenceBlocks, TokenGroups
from energymodel.serving import Schedule, schedule_offline
from energymodel.workload import Bin, Workload

CACHING = Deployment(enable_prefix_caching=True)


def one(input_tokens: int, output_tokens: int = 1, count: int = 1, prefix: int = 0) -> Workload:
    wanted = Bin(
        input_tokens=input_tokens, output_tokens=output_tokens, count=count, prefix_tokens=prefix
    )
    return Workload(bins=(wanted,))


@pytest.mark.parametrize(
    ("input_tokens", "rate", "cached"),
    [
        (1024, 0.5, 512),
        (1000, 0.5, 496),  # 500 tokens are 31 whole blocks of 16
        (1024, 1.0, 1008),  # the last token is computed, and so its block
        (16, 1.0, 0),
        (17, 1.0, 16),
        (1024, 0.0, 0),
    ],
)
def test_whole_blocks_are_found_but_never_the_last_token(
    input_tokens: int, rate: float, cached: int
) -> None:
    deployment = replace(CACHING, prefix_cache_hit_rate=rate)
    b = one(input_tokens).bins[0]
    assert cached_tokens(b, deployment) == cached
    assert cached_tokens(b, replace(deployment, enable_prefix_caching=False)) == 0


def test_what_a_bin_says_stands_above_the_rate() -> None:
    deployment = replace(CACHING, prefix_cache_hit_rate=0.9)
    assert cached_tokens(one(1024, prefix=100).bins[0], deployment) == 96


def test_found_tokens_are_context_and_not_computed() -> None:
    schedule = schedule_offline(one(1024, 4, count=3, prefix=512), CACHING, 10**6)
    chunks = schedule.steps.chunks
    assert chunks.tokens.tolist() == [512]
    assert chunks.context.tolist() == [512]
    assert chunks.count.tolist() == [3]
    assert schedule.steps.decodes.context.tolist() == [1025]  # the mean of three steps from 1024


def test_the_budget_counts_what_is_computed() -> None:
    deployment = replace(CACHING, max_num_batched_tokens=1024)
    schedule = schedule_offline(one(1024, 1, count=2, prefix=512), deployment, 10**6)
    assert schedule.iterations == 1
    uncached = schedule_offline(one(1024, 1, count=2), deployment, 10**6)
    assert uncached.iterations == 2


def computed(schedule: Schedule, shift: int) -> list[list[int]]:
    """Tokens, context less ``shift``, and count of every chunk in order."""
    chunks = schedule.steps.chunks
    return np.stack([chunks.tokens, chunks.context - shift, chunks.count]).tolist()


@settings(max_examples=60, deadline=None)
@given(
    own=st.integers(1, 80),
    output=st.integers(1, 60),
    count=st.integers(1, 12),
    blocks=st.integers(0, 6),
    pool=st.integers(10, 60),
    seqs=st.integers(1, 8),
    overlap=st.booleans(),
)
def test_sharing_is_as_if_the_prefix_took_its_blocks_once(
    *, own: int, output: int, count: int, blocks: int, pool: int, seqs: int, overlap: bool
) -> None:
    # Whoever shares `blocks` runs as if the prompt were that much shorter and the pool as much
    # smaller: only contexts differ. Preemptions included.
    deployment = replace(CACHING, max_num_seqs=seqs, max_num_batched_tokens=64)
    prefix = 16 * blocks
    shared = schedule_offline(
        one(prefix + own, output, count, prefix),
        deployment,
        16 * (pool + blocks),
        async_scheduling=overlap,
    )
    alone = schedule_offline(
        one(own, output, count), deployment, 16 * pool, async_scheduling=overlap
    )
    assert shared.iterations == alone.iterations
    assert computed(shared, prefix) == computed(alone, 0)


def test_windows_share_nothing() -> None:
    groups = (TokenGroups(window=64), TokenGroups(count=2))
    blocks = SequenceBlocks(size=16, groups=groups, state_blocks=0, budget=1024)
    prefixes = SharedPrefixes(one(1024, prefix=512).bins, CACHING, blocks)
    # Two groups keep all 32 blocks of the prefix: the second of two requests takes none of them.
    assert prefixes.join(0, 2) == 64
    assert prefixes.needed(0, 200) == 136
    assert prefixes.leave(0, 1) == 64
    assert prefixes.leave(0, 1) == 0
    assert prefixes.needed(0, 200) == 200
    assert prefixes.fitting(0, 200, 64 + 3 * 136) == 3


def test_flags_that_contradict_each_other_are_refused() -> None:
    model, recurrent = (find_model(n)[0] for n in ("Qwen3-8B", "NVIDIA-Nemotron-Nano-9B-v2"))
    with pytest.raises(InputError, match="needs enable_prefix_caching"):
        check(model, Deployment(prefix_cache_hit_rate=0.5))
    with pytest.raises(InputError, match="must be off for nvidia/NVIDIA-Nemotron"):
        check(recurrent, CACHING)
    check(model, CACHING)
    check(recurrent, Deployment())


def test_a_prefix_in_a_file_is_no_longer_than_its_prompt(tmp_path: Path) -> None:
    file = tmp_path / "bins.json"
    bins = [{"input_tokens": 64, "output_tokens": 1, "count": 1, "prefix_tokens": 48}]
    file.write_text(json.dumps({"schema_version": 1, "bins": bins}), encoding="utf-8")
    assert io.read_workload(file).bins[0].prefix_tokens == 48
    bins[0]["prefix_tokens"] = 65
    file.write_text(json.dumps({"schema_version": 1, "bins": bins}), encoding="utf-8")
    with pytest.raises(InputError, match=r"prefix_tokens must be at most input_tokens \(64\)"):
        io.read_workload(file)


def test_what_is_found_costs_no_energy_again() -> None:
    model, profile = find_model("Qwen2.5-7B-Instruct")[0], profiles.load("h200")
    work = one(4096, 1, count=8)
    whole = predict(model, CACHING, work, profile)
    for rate in (0.5, 0.75):
        part = predict(model, replace(CACHING, prefix_cache_hit_rate=rate), work, profile)
        # What is left attends to what was found, so that it costs a little more than its share.
        share = part.energy_j / whole.energy_j
        assert 1.0 - rate < share < 1.15 * (1.0 - rate) + 0.02
