"""Which bytes of a call reach the memory, and which the L2 cache holds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energymodel.laws import LAWS, REQUIRED, STREAMING_KINDS, memory_share, traffic

MIB = 2.0**20


def test_the_share_that_reaches_the_memory_by_hand() -> None:
    moved = np.array([0.0, 1.0, 5.0, 10.0, 20.0, 100.0]) * MIB
    share = memory_share(moved, 10.0 * MIB)
    assert share == pytest.approx([0.0, 1 / 101, 1 / 5, 1 / 2, 4 / 5, 100 / 101], abs=1e-9)


def spilled(kind: str, moved_bytes: float) -> tuple[float, float, float]:
    """What ``traffic`` says of a call row by row, next to a cache of 50 MiB."""
    parts = traffic(kind, {}, np.array([0.0]), np.array([moved_bytes]), 50.0 * MIB)
    return tuple(part.item() for part in parts)  # type: ignore[return-value]


@pytest.mark.parametrize("kind", STREAMING_KINDS)
def test_what_fits_the_cache_by_far_does_not_reach_the_memory(kind: str) -> None:
    # A fiftieth of the cache: one part in 2501 of what is not scattered.
    weights, rows, memory = spilled(kind, MIB)
    scattered = 0.5 if kind in {"gather", "kv_write"} else 0.0
    assert weights == memory == pytest.approx((scattered + (1 - scattered) / 2501) * MIB)
    assert rows == pytest.approx(MIB - weights)


@pytest.mark.parametrize("kind", STREAMING_KINDS)
def test_what_is_far_larger_than_the_cache_all_reaches_the_memory(kind: str) -> None:
    weights, rows, memory = spilled(kind, 50e3 * MIB)
    assert weights == memory == pytest.approx(50e3 * MIB, rel=2e-6)
    assert rows == pytest.approx(0.0, abs=2e-6 * weights)


@pytest.mark.parametrize("kind", STREAMING_KINDS)
@given(st.integers(0, 10**15), st.integers(0, 10**15), st.floats(1e3, 1e12))
def test_every_byte_is_in_the_memory_or_in_the_cache(
    kind: str, weights: int, rows: int, l2_bytes: float
) -> None:
    columns = np.array([1.0, 2.0]) * weights, np.array([1.0, 2.0]) * rows
    spill, held, memory = traffic(kind, {}, *columns, l2_bytes)
    assert (spill >= 0).all()
    assert (held >= -1e-9 * spill).all()
    assert spill + held == pytest.approx(columns[0] + columns[1])
    assert np.array_equal(memory, spill)
    # Twice the work never reaches the memory less.
    assert spill[1] >= 2 * spill[0] * (1 - 1e-12)


@pytest.mark.parametrize("kind", sorted(set(LAWS) - set(STREAMING_KINDS)))
def test_weights_come_from_the_memory_and_activations_pass_through_it(kind: str) -> None:
    for head_dim, padded in ((64.0, 64.0), (96.0, 128.0), (128.0, 128.0), (256.0, 256.0)):
        weights, rows, memory = traffic(
            kind, {"head_dim": head_dim}, np.array([3.0]), np.array([4.0]), 50.0 * MIB
        )
        # Attention walks its cache in whole blocks of a head; the memory delivers what is there.
        wider = padded / head_dim if "attention" in kind and kind in REQUIRED else 1.0
        assert (weights.item(), rows.item(), memory.item()) == pytest.approx((3 * wider, 4, 7))
