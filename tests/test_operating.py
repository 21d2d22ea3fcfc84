"""A replica in steady state, against Little's law, sums worked out by hand and a queue played out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energymodel.planning.operating import Mix, best_point, points
from energymodel.steps import Floats

WATTS = 500.0


def price(n: Floats, context: Floats, prompts: Floats, tokens: Floats) -> tuple[Floats, Floats]:
    """A step of 5 ms, and more by sequences, their contexts, and prompt tokens."""
    seconds = 5e-3 + 2e-5 * n + 1e-8 * n * context + 3e-5 * prompts * tokens
    return seconds, WATTS * seconds


def a_mix(*bins: tuple[float, int, int]) -> Mix:
    share, inputs, outputs = np.array(bins, dtype=np.float64).T
    return Mix(share=share / share.sum(), input_tokens=inputs, output_tokens=outputs)


MIXES = st.lists(
    st.tuples(st.floats(0.1, 1.0), st.integers(1, 8000), st.integers(2, 2000)),
    min_size=1,
    max_size=4,
).map(lambda bins: a_mix(*bins))


@given(MIXES, st.floats(1.0, 512.0))
def test_what_requests_take_adds_up_to_the_replica(mix: Mix, n: float) -> None:
    (point,) = points(price, mix, np.array([n]), 0.9)
    assert point.rate * float(mix.share @ point.seconds) == pytest.approx(1.0)
    # Every step draws the same power here, so joules go like seconds.
    assert point.power_w == pytest.approx(WATTS)
    assert point.joules == pytest.approx(WATTS * point.seconds)


@given(MIXES, st.floats(1.0, 512.0))
def test_littles_law(mix: Mix, n: float) -> None:
    (point,) = points(price, mix, np.array([n]), 0.9)
    none = np.zeros(1)
    decode_s = float(price(np.array([n]), np.array([mix.mean_context]), none, none)[0][0])
    prompt_s = 3e-5 * float(mix.share @ mix.input_tokens)
    kappa = n / mix.mean_steps
    step_s = decode_s + kappa * prompt_s
    assert point.rate == pytest.approx(n / (step_s * mix.mean_steps))


def test_more_sequences_serve_more_and_wait_longer() -> None:
    mix = a_mix((0.7, 200, 100), (0.3, 3000, 400))
    found = points(price, mix, np.array([1.0, 8.0, 64.0, 256.0]), 0.9)
    assert np.all(np.diff([p.rate for p in found]) > 0)
    assert np.all(np.diff([p.itl_s for p in found]) >= 0)
    served = points(price, mix, np.geomspace(1.0, 256.0, 33), 0.9)
    loose, _ = best_point(served, itl_s=1.0, ttft_s=None)
    tight, _ = best_point(served, itl_s=0.012, ttft_s=None)
    assert loose is served[-1]
    assert tight is not None
    assert tight.sequences == max(p.sequences for p in served if p.itl_s <= 0.012)
    assert best_point(served, itl_s=1e-4, ttft_s=None) == (None, "itl_s")
    assert best_point(served, itl_s=None, ttft_s=1e-4) == (None, "ttft_s")


def played_out(mix: Mix, rate: float, seconds: float) -> tuple[float, float]:
    """(mean sequences that decode, 90th percentile of the time between tokens), step by step."""
    rng = np.random.default_rng(3)
    now, arrival, running = 0.0, rng.exponential(1 / rate), np.zeros((0, 2))
    area, spans, counts = 0.0, [], []
    while now < seconds:
        tokens = 0.0
        fresh = []
        while arrival <= now:
            b = rng.choice(mix.share.size, p=mix.share)
            tokens += mix.input_tokens[b]
            fresh.append([mix.decode_steps[b], mix.input_tokens[b]])
            arrival += rng.exponential(1 / rate)
        n = len(running)
        step_s = 5e-3 + 2e-5 * n + 1e-8 * running[:, 1].sum() + 3e-5 * tokens
        now, area = now + step_s, area + n * step_s
        spans.append(step_s)
        counts.append(n)
        running = np.concatenate([running + np.array([-1.0, 1.0]), np.array(fresh).reshape(-1, 2)])
        running = running[running[:, 0] > 0]
    order = np.argsort(spans)
    reached = np.cumsum(np.array(counts)[order]) / sum(counts)
    return area / now, float(np.array(spans)[order][np.searchsorted(reached, 0.9)])


def test_a_queue_played_out_step_by_step_agrees() -> None:
    mix = a_mix((0.7, 200, 100), (0.3, 1500, 300))
    (point,) = points(price, mix, np.array([24.0]), 0.9)
    sequences, itl_s = played_out(mix, point.rate, 400.0)
    assert sequences == pytest.approx(24.0, rel=0.1)
    assert itl_s == pytest.approx(point.itl_s, rel=0.15)


def test_requests_that_do_not_decode_take_their_prompt_and_nothing_else() -> None:
    mix = a_mix((0.5, 500, 100), (0.5, 2000, 1), (0.2, 2000, 0))
    (point,) = points(price, mix, np.array([16.0]), 0.9)
    assert point.seconds[1:] == pytest.approx([3e-5 * 2000] * 2)
    assert point.seconds[0] > 3e-5 * 500
