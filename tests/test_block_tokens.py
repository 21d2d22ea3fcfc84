"""Keys in the whole blocks that decode attention walks, against counting them one by one."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energymodel.blocks.softmax import SoftmaxAttention

FULL = SoftmaxAttention(num_attention_heads=8, num_key_value_heads=2, head_dim=128, rotary_dim=128)


def brute(attention: SoftmaxAttention, context: int) -> int:
    """Keys in the blocks that hold at least one visible key; the query is number ``context``."""
    size = attention.key_block
    window = attention.sliding_window or context + 1
    visible = range(max(context + 1 - window, 0), context + 1)
    return size * len({key // size for key in visible})


@given(
    st.sampled_from([64, 96, 128, 192, 256]),
    st.none() | st.integers(1, 5000),
    st.integers(0, 20_000),
)
def test_one_step(head_dim: int, window: int | None, context: int) -> None:
    attention = replace(FULL, head_dim=head_dim, sliding_window=window)
    counted = attention.decode_block_tokens(np.array([context]), np.ones(1))
    assert counted == pytest.approx([brute(attention, context)])


@given(
    st.sampled_from([64, 192, 256]),
    st.none() | st.integers(1, 700),
    st.integers(0, 3000),
    st.integers(1, 400),
)
def test_mean_of_consecutive_steps(
    head_dim: int, window: int | None, first: int, span: int
) -> None:
    attention = replace(FULL, head_dim=head_dim, sliding_window=window)
    middle = first + (span - 1) / 2
    expected = np.mean([brute(attention, first + i) for i in range(span)])
    counted = attention.decode_block_tokens(np.array([middle]), np.array([span]))
    assert counted == pytest.approx([expected])


@given(st.none() | st.integers(1, 5000), st.integers(0, 20_000), st.integers(1, 500))
def test_never_fewer_than_are_seen_nor_two_blocks_more(
    window: int | None, first: int, span: int
) -> None:
    attention = replace(FULL, sliding_window=window)
    middle = np.array([first + (span - 1) / 2])
    blocks = attention.decode_block_tokens(middle, np.array([span]))[0]
    seen = np.mean(attention.decode_kv_tokens(np.arange(first, first + span)))
    assert seen - 1e-6 <= blocks <= seen + 2 * attention.key_block


def test_rows_do_not_touch_each_other() -> None:
    attention = replace(FULL, sliding_window=500)
    context, span = np.array([0.0, 127.5, 900.0, 4000.0]), np.array([1.0, 256.0, 1.0, 33.0])
    alone = [attention.decode_block_tokens(c, s) for c, s in zip(context, span, strict=True)]
    assert attention.decode_block_tokens(context, span) == pytest.approx(alone)
