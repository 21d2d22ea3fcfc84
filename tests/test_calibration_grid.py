import math

import pytest
import torch

from calibration import grid, kernels
from calibration.grid import Point

FULL = grid.full()
QUICK = grid.quick()
# Memory of the smallest GPU that the grid is for.
MEMORY_BYTES = 80e9


def test_keys_are_unique_and_do_not_depend_on_order() -> None:
    for points in (FULL, QUICK):
        assert len({p.key for p in points}) == len(points)
    assert Point(op="a", shape={"x": 1, "y": 2}).key == Point(op="a", shape={"y": 2, "x": 1}).key


def test_a_point_that_appears_twice_keeps_its_richest_windows() -> None:
    law = next(p for p in FULL if p.shape == {"m": 8192, "n": 14336, "k": 4096})
    assert len(law.duties) == 9


def test_every_operation_has_a_builder_and_every_builder_is_measured() -> None:
    assert {p.op for p in FULL} == set(kernels.BUILDERS)
    assert {p.op for p in QUICK} == set(kernels.BUILDERS)


def test_sizes_are_bounded() -> None:
    for point in FULL:
        assert all(v >= 0 for v in point.shape.values())
        assert all(0 < d <= 1 for d in point.duties)
        assert operand_bytes(point) < MEMORY_BYTES, point.key


def operand_bytes(point: Point) -> float:
    """Bytes of all rotated operands of a point."""
    s = point.shape
    match point.op:
        case "gemm":
            weights = 2 * s["n"] * s["k"]
            return weights * kernels.copies(weights) + 2 * s["m"] * (s["n"] + s["k"])
        case "attention":
            cache = 4 * s["num_seqs"] * (s["context"] + s["tokens"]) * s["kv_heads"] * s["head_dim"]
            return cache * kernels.copies(cache)
        case "moe":
            weights = 6 * s["num_experts"] * s["hidden_size"] * s["intermediate_size"]
            return weights * kernels.copies(weights)
        case "copy":
            return 2 * s["bytes"] * kernels.copies(2 * s["bytes"])
        case "embedding":
            return 2 * (s["vocab"] + s["rows"]) * s["width"]
        case _:
            return 8 * math.prod(v for k, v in s.items() if k in ("rows", "width"))


def test_energy_is_measured_at_fewer_points_than_time() -> None:
    windows = sum(len(p.duties) for p in FULL)
    assert 100 < windows < 1000
    assert 1000 < len(FULL) < 5000


def test_the_quick_grid_is_quick() -> None:
    assert len(QUICK) < 20
    assert sum(len(p.duties) for p in QUICK) < 20


# Kernels on the CPU ----------------------------------------------------------------------------


def test_copies_keep_operands_out_of_the_cache() -> None:
    for size in (1, 1000, 10**6, 10**8, 10**9, 10**11):
        n = kernels.copies(size)
        assert 1 <= n <= 64
        assert n * size >= kernels.COLD_BYTES or n == 64
        assert n == 1 or (n - 1) * size < kernels.COLD_BYTES


def test_gemm() -> None:
    prepared = kernels.gemm({"m": 3, "n": 4096, "k": 4096}, "cpu")
    assert len(prepared.calls) == kernels.copies(2 * 4096 * 4096)
    first, second = prepared.calls[0](), prepared.calls[1]()
    assert first.shape == (3, 4096)
    assert not torch.equal(first, second)
    # Rows of n(0, 1) times columns of n(0, 0.02): standard deviation 0.02 sqrt(k).
    assert first.float().std().item() == pytest.approx(0.02 * 64, rel=0.1)
    # Twice the same operands, twice the same product.
    assert torch.equal(first, prepared.calls[0]())


def test_embedding_gathers_rows() -> None:
    result = kernels.embedding({"rows": 5, "vocab": 11, "width": 8}, "cpu").calls[0]()
    assert result.shape == (5, 8)
    assert len(torch.unique(result, dim=0)) <= 5


def test_sampling_is_greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, -1.0, 2.0]], dtype=torch.bfloat16)
    monkeypatch.setattr(kernels, "_activation", lambda *_size, **_device: logits)
    result = kernels.sampling({"rows": 2, "width": 3}, "cpu").calls[0]()
    assert result.tolist() == [1, 0]


def test_copy() -> None:
    prepared = kernels.copy({"bytes": 1 << 25}, "cpu")
    assert len(prepared.calls) == kernels.copies(1 << 26)
    copied = prepared.calls[0]()
    assert copied.numel() * copied.element_size() == 1 << 25
    assert copied.float().std().item() == pytest.approx(1.0, rel=0.01)
