"""What the tensor cores execute in decode attention: whole tiles of rows."""

from typing import TYPE_CHECKING

import numpy as np
import pytest

from energymodel.laws import executed_flop

if TYPE_CHECKING:
    from energymodel.steps import Floats


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rows"),
    [
        (32, 8, 128, 64),  # 4 query heads of 64 rows
        (32, 32, 64, 64),
        (32, 32, 96, 192),
        (16, 8, 256, 128),
        (71, 1, 64, 128),  # 71 heads share one KV head: two tiles
        (130, 1, 256, 256),
    ],
)
def test_rows_of_a_tile(heads: int, kv_heads: int, head_dim: int, rows: int) -> None:
    keys = np.array([1000.0, 5.0])
    shapes: dict[str, Floats | float] = {
        "heads": float(heads),
        "kv_heads": float(kv_heads),
        "head_dim": float(head_dim),
        "block_tokens": keys,
    }
    found = executed_flop("decode_attention", shapes, np.zeros(2))
    # Q K and P V: 2 FLOP each for every row, key and element of a head.
    assert found == pytest.approx(4.0 * rows * kv_heads * head_dim * keys)


def test_other_kinds_execute_what_they_count() -> None:
    flop = np.array([3.0])
    for kind in ("gemm", "prefill_attention", "moe", "mla_decode"):
        assert executed_flop(kind, {}, flop) is flop
