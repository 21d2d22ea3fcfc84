"""Marginal attribution: by hand, conserving every step, and on real predictions."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_builders import steps_of

from energymodel import marginal
from energymodel import profile as profiles
from energymodel.attribution import Sharing
from energymodel.deployment import Deployment
from energymodel.find_model import find_model
from energymodel.predict import predict
from energymodel.steps import Floats, Steps
from energymodel.workload import Bin, Workload

PROFILE = profiles.load("h200")
MODEL = find_model("Qwen2.5-0.5B-Instruct")[0]
# A prompt of 6 tokens with two sequences that decode, then one of 4 tokens alone.
STEPS = steps_of(([(6, 0, 1, 1)], [(14.0, 2)]), ([(4, 0, 1, 1)], []))


def of_tokens(fixed_j: float, token_j: float, power: float = 1.0) -> Callable[[Steps], Floats]:
    """A step takes ``fixed_j`` and ``token_j`` for each token to a power; none takes nothing."""

    def price(steps: Steps) -> Floats:
        n = steps.tokens
        return np.where(n > 0, fixed_j + token_j * n**power, 0.0)

    return price


def test_each_pays_what_it_adds_and_an_equal_share_of_the_constant() -> None:
    price = of_tokens(9.0, 2.0)
    chunk_j, decode_j = marginal.by_request(STEPS, price(STEPS), price)
    # Three requests share 9 J; the last step has one, which pays all 17 J.
    assert chunk_j == pytest.approx([6 * 2 + 3, 17])
    assert decode_j == pytest.approx([2 + 3])


def test_a_price_in_another_unit_gives_the_same_shares() -> None:
    price = of_tokens(9.0, 2.0)
    one = marginal.by_request(STEPS, price(STEPS), price)
    other = marginal.by_request(STEPS, price(STEPS), lambda steps: price(steps) / 4.0)
    assert one[0] == pytest.approx(other[0])
    assert one[1] == pytest.approx(other[1])


def test_what_sums_to_more_than_the_step_took_is_scaled_down() -> None:
    price = of_tokens(0.0, 1.0, power=2.0)
    chunk_j, decode_j = marginal.by_request(STEPS, price(STEPS), price)
    # 8 tokens: 64 J. Without the prompt 4 J remain, without a decoding sequence 49 J.
    added = np.array([64.0 - 4.0, 64.0 - 49.0, 64.0 - 49.0])
    assert [chunk_j[0], decode_j[0]] == pytest.approx(list(64.0 * added[:2] / added.sum()))


chunks = st.tuples(st.integers(1, 50), st.integers(0, 50), st.integers(0, 3), st.integers(0, 1))
decodes = st.tuples(st.floats(1, 500), st.integers(0, 4))
rows = st.tuples(st.lists(chunks, max_size=3), st.lists(decodes, max_size=3))


@given(
    st.lists(rows, min_size=1, max_size=5),
    st.floats(0, 100),
    st.floats(0.01, 5),
    st.floats(0.2, 3),
)
def test_every_step_is_given_out_whole_and_nobody_is_paid(
    loads: list[tuple[list[tuple[int, int, int, int]], list[tuple[float, int]]]],
    fixed_j: float,
    token_j: float,
    exponent: float,
) -> None:
    steps = steps_of(*loads)
    step_j = of_tokens(fixed_j, token_j, exponent)(steps)
    chunk_j, decode_j = marginal.by_request(steps, step_j, of_tokens(fixed_j, token_j, exponent))
    given_out = steps.sum_chunks(chunk_j) + steps.sum_decodes(decode_j)
    assert given_out == pytest.approx(step_j, rel=1e-9, abs=1e-9)
    assert (chunk_j >= 0).all()
    assert (decode_j >= 0).all()


def test_runs_that_are_priced_in_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    price = of_tokens(9.0, 2.0, 0.7)
    steps = steps_of(*[([(i + 1, 0, 1, 1)], [(9.0, 2), (3.0, i)]) for i in range(20)])
    whole = marginal.by_request(steps, price(steps), price)
    monkeypatch.setattr(marginal, "BLOCK_ROWS", 7)
    pieces = marginal.by_request(steps, price(steps), price)
    assert np.array_equal(whole[0], pieces[0])
    assert np.array_equal(whole[1], pieces[1])


a_bin = st.builds(
    Bin,
    input_tokens=st.integers(1, 2000),
    output_tokens=st.integers(0, 60),
    count=st.integers(1, 40),
)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(a_bin, min_size=1, max_size=3),
    st.sampled_from(("proportional", "marginal")),
    st.sampled_from((None, 300.0)),
)
def test_bins_sum_to_the_run(bins: list[Bin], sharing: Sharing, limit_w: float | None) -> None:
    deployment = Deployment(max_num_seqs=16, power_limit_w=limit_w)
    found = predict(MODEL, deployment, Workload(bins=tuple(bins)), PROFILE, sharing=sharing)
    assert sum(b.energy_j for b in found.bins) == pytest.approx(found.energy_j, rel=1e-9)
    assert sum(b.prefill_j + b.decode_j for b in found.bins) == pytest.approx(found.energy_j)
    assert found.attribution == sharing


def test_short_and_long_requests_share_the_weights_evenly() -> None:
    """Streaming weights is most of a decode step; the long context pays its attention on top."""
    bins = (
        Bin(input_tokens=64, output_tokens=64, count=1),
        Bin(input_tokens=8192, output_tokens=64, count=1),
    )
    found = predict(MODEL, Deployment(), Workload(bins=bins), PROFILE, sharing="marginal")
    short, long = found.bins
    alone = predict(MODEL, Deployment(), Workload(bins=bins[:1]), PROFILE).bins[0]
    assert 0.45 * alone.decode_j < short.decode_j < 0.7 * alone.decode_j
    assert short.decode_j < long.decode_j
    assert replace(found, bins=()) == replace(
        predict(MODEL, Deployment(), Workload(bins=bins), PROFILE), bins=(), attribution="marginal"
    )
