"""The calibration grids: that everything in them can run, fits, and comes in a useful order."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytest

from calibration import grid, kernels
from calibration.grid import FAMILIES, LAUNCHES, Family, Point
from calibration.grid.family import POWER_LAW
from calibration.kernels import copies
from calibration.observations import Observation
from calibration.run import BUDGET_S
from calibration.sweep import BURST_COST_S, TRIALS, WINDOW_COST_S
from calibration.tables import names_of
from energymodel.laws import LAWS, REQUIRED, kind_of

WIDE = grid.wide()
FULL = grid.full()
QUICK = grid.quick()
# Families that are in the full grid, and those that wait for the wide one.
SERVED = [f for f in FAMILIES if not f.wide]
RARE = [f for f in FAMILIES if f.wide]
# Memory of the smallest GPU that the grid is for.
MEMORY_BYTES = 80e9
# Bytes of a stored number while it is being quantised: wide, as float32, scaled, and narrow.
BUILDING = {"fp8": 2 + 4 + 4 + 4 + 1, "fp8_block": 2 + 4 + 4 + 4 + 1, "int8": 2 + 4 + 4 + 4 + 1}

HAS_KERNEL = {(s.op, s.library, dtype) for s in kernels.supported() for dtype in s.dtypes}


def family_name(family: Family) -> str:
    return f"{family.op} {family.dtype} {family.energy[0][0]}"


families = pytest.mark.parametrize("family", FAMILIES, ids=family_name)


def members(family: Family) -> set[str]:
    """Keys of a family's points."""
    return keys(family.energy_points()) | keys(family.burst_points())


def keys(points: Sequence[Point]) -> set[str]:
    return {p.key for p in points}


def in_full(family: Family) -> tuple[list[Point], list[Point]]:
    """Windows and bursts of a family that the full grid should have, as its fields say."""
    energy = family.energy_points()
    windows = len(energy) if family.windows is None else family.windows
    return energy[:windows], family.burst_points()[: family.bursts]


# --- points ---------------------------------------------------------------------------------------


def test_keys_are_unique_and_do_not_depend_on_order() -> None:
    for points in (WIDE, FULL, QUICK):
        assert len(keys(points)) == len(points)
    assert Point(op="a", shape={"x": 1, "y": 2}).key == Point(op="a", shape={"y": 2, "x": 1}).key


def test_a_key_tells_all_ways_to_run_apart() -> None:
    shape = {"x": 1}
    points = [
        Point(op="a", shape=shape),
        Point(op="b", shape=shape),
        Point(op="a", shape={"x": 2}),
        Point(op="a", shape=shape, dtype="fp8"),
        Point(op="a", shape=shape, library="torch"),
        Point(op="a", shape=shape, cache="warm"),
    ]
    assert len({p.key for p in points}) == len(points)
    assert points[0].key == Point(op="a", shape=shape, duties=(1.0,)).key


def test_a_point_that_appears_twice_keeps_its_richest_windows() -> None:
    drawn = [p for f in FAMILIES for p in (*f.energy_points(), *f.burst_points())]
    richest = most_windows(drawn)
    # There are shapes that are drawn for bursts and have windows as well.
    assert len(richest) < len(drawn)
    assert most_windows([p for p in WIDE if p.op != "launch"]) == richest
    served = most_windows([p for f in SERVED for part in in_full(f) for p in part])
    assert most_windows([p for p in FULL if p.op != "launch"]) == served
    law = next(p for p in FULL if p.shape == {"m": 8192, "n": 14336, "k": 4096})
    assert law.duties == POWER_LAW


def most_windows(points: Sequence[Point]) -> dict[str, int]:
    """The largest number of windows that each point has."""
    most: dict[str, int] = {}
    for p in points:
        most[p.key] = max(most.get(p.key, 0), len(p.duties))
    return most


def test_every_point_has_a_kernel_and_every_operation_is_measured() -> None:
    for points in (WIDE, FULL, QUICK):
        wanted = {(p.op, p.library, p.dtype) for p in points if p.op != "launch"}
        assert wanted - HAS_KERNEL == set()
    assert {p.op for p in WIDE} == {*kernels.operations(), "launch"}
    # Everything that inference needs has kernels of plain torch too.
    plain = {(p.op, p.library, p.dtype) for p in grid.quick("torch") if p.op != "launch"}
    assert {library for _, library, _ in plain} == {"torch"}
    assert plain - HAS_KERNEL == set()


def test_launches_come_first_eager_and_in_a_graph() -> None:
    assert [p.shape for p in LAUNCHES] == [{"graph": 0}, {"graph": 1}]
    for points in (WIDE, FULL, QUICK):
        assert tuple(points[:2]) == LAUNCHES
        assert sum(p.op == "launch" for p in points) == 2


def test_sizes_are_bounded() -> None:
    for point in WIDE:
        assert all(v >= 0 for v in point.shape.values())
        assert all(0 < d <= 1 for d in point.duties)
        if point.op != "launch":
            assert operand_bytes(point) < MEMORY_BYTES, point.key


def test_memory_of_a_product_by_hand() -> None:
    # 512 MiB of weights are more than the caches: a single copy; 1 row in, 1 row out.
    shape = {"m": 1, "n": 1 << 16, "k": 1 << 12}
    assert operand_bytes(Point(op="gemm", shape=shape)) == 2 * ((1 << 28) + (1 << 16) + (1 << 12))
    assert operand_bytes(Point(op="gemm", shape=shape | {"n": 1 << 12, "k": 1 << 11})) == (
        2 * (1 << 23) * copies(2 << 23) + 2 * ((1 << 12) + (1 << 11))
    )


def operand_bytes(point: Point) -> float:  # noqa: C901, PLR0911, PLR0912 - a case an operation
    """Bytes of all rotated operands of a point, and of what it takes to quantise them."""
    s = point.shape
    stored = {"float32": 4, "tf32": 4, "fp8": 1, "fp8_block": 1, "int8": 1}.get(point.dtype, 2)
    building = BUILDING.get(point.dtype, 0)
    rows = s.get("num_seqs", 1) * s.get("tokens", 0) or s.get("rows", 0)
    match point.op:
        case "gemm":
            numbers = s["n"] * s["k"]
            weights = stored * numbers * copies(stored * numbers) + building * numbers
            return (
                weights + max(2, stored) * s["m"] * (s["n"] + s["k"]) + building * s["m"] * s["k"]
            )
        case "attention":
            cache = 2 * s["num_seqs"] * (s["context"] + s["tokens"]) * s["kv_heads"] * s["head_dim"]
            activations = 2 * 2 * rows * s["heads"] * s["head_dim"]
            return stored * cache * copies(stored * cache) + 2 * cache + activations
        case "mla" if s["tokens"] == 1:
            width = s["kv_lora_rank"] + s["qk_rope_head_dim"]
            cache = 2 * s["num_seqs"] * (s["context"] + 1) * width
            return cache * copies(cache) + 4 * rows * s["heads"] * width
        case "mla":
            # Queries, keys, values; and those of the context; outputs of both passes, and merged.
            size = s["qk_nope_head_dim"] + s["qk_rope_head_dim"]
            tokens = rows + s["num_seqs"] * s["context"]
            return 2 * s["heads"] * (3 * tokens * size + 3 * rows * s["v_head_dim"])
        case "moe":
            numbers = 3 * s["num_experts"] * s["hidden_size"] * s["intermediate_size"]
            inner = rows * s["top_k"] * (3 * s["intermediate_size"] + s["hidden_size"])
            return stored * numbers * copies(stored * numbers) + building * numbers + 2 * inner
        case "selective_scan" | "linear_attention":
            size = s["heads"] * s["head_dim"] * s.get("state", s["head_dim"])
            state = s["state_bytes"] * s["num_seqs"] * size
            # Prefill starts from zeros, one for each copy, and keeps a state for each chunk of 64.
            chunks = 4 * size * (rows / 64 + s["num_seqs"]) if s["tokens"] > 1 else 0
            fresh = copies(state) * state if s["tokens"] > 1 else 0
            inner = 2 * rows * s["heads"] * s["head_dim"] * 8
            return state * copies(state) + fresh + chunks + inner
        case "causal_conv1d":
            state = 2 * s["num_seqs"] * 3 * s["width"]
            return state * copies(state) + 4 * rows * s["width"]
        case "copy":
            return 2 * s["bytes"] * copies(2 * s["bytes"])
        case "embedding":
            return 2 * (s["vocab"] + s["rows"]) * s["width"]
        case "kv_write":
            slots = max(rows, kernels.rows.CACHE_SLOTS)
            return 4 * slots * s["width"] * copies(4 * rows * s["width"]) + 4 * rows * s["width"]
        case "moe_routing":
            return 4 * rows * (s["num_experts"] + 128)
        case "sampling":
            return (2 + 4) * rows * s["width"]
        case "quantise":
            return (2 + building) * rows * s["width"]
        case "rms_norm" | "layer_norm" | "silu_and_mul" | "gelu" | "residual_add" | "rotary":
            return 8 * rows * s["width"]
        case "eager_norm" | "eager_rotary" | "eager_gate":
            return 40 * rows * s["width"]
        case "sdpa" | "cache_append" | "cache_fill":
            tokens = s.get("context", 0) + s.get("tokens", 1)
            cached = 4 * s["num_seqs"] * tokens * s["kv_heads"] * s["head_dim"]
            return cached * (1 + copies(cached))
    raise AssertionError(point.op)


# --- families -------------------------------------------------------------------------------------


@families
def test_energy_of_a_family_is_measured_at_several_shapes_at_full_load(family: Family) -> None:
    sustained = {p.key for p in family.energy_points() if grid.FULL in p.duties}
    assert len(sustained) >= 3
    assert len(sustained) == len(family.energy)
    # The full grid has enough of what it has at all; what it keeps back is for the wide one.
    windows, _ = in_full(family)
    assert 3 <= len(windows) <= len(family.energy)


@families
def test_a_family_is_of_one_law(family: Family) -> None:
    points = [*family.energy_points(), *family.burst_points()]
    own = {names_of(_seen(p))[0] for p in points}
    assert len(own) == 1
    assert kind_of(own.pop()) in LAWS
    assert {(p.op, p.dtype, p.library) for p in points} == {
        (family.op, family.dtype, family.library)
    }


@families
def test_bursts_are_as_many_as_asked_for_and_distinct(family: Family) -> None:
    bursts = family.burst_points()
    assert 0 < len(bursts) == max(family.bursts, family.more) <= len(family.timed)
    assert len(keys(bursts)) == len(bursts)
    # The wide grid has more of a family, or it is the only one that has it.
    assert family.more == 0 or family.more > family.bursts
    assert not (family.wide and (family.more or family.windows is not None or family.quick))
    assert not any(p.duties for p in bursts)


def _seen(point: Point) -> Observation:
    how: dict[str, Any] = {"dtype": point.dtype, "library": point.library, "cache": point.cache}
    return Observation(
        op=point.op, shape=point.shape, **how, mode="burst",
        trial=0, call_s=1.0, stack="", gpu="", board="", driver="",
    )  # fmt: skip


# --- order ----------------------------------------------------------------------------------------


def test_the_wide_grid_begins_with_the_full_one() -> None:
    start = WIDE[: len(FULL)]
    assert [p.key for p in start] == [p.key for p in FULL]
    # What was only timed may get windows of the wide grid; none loses any.
    assert all(set(full.duties) <= set(p.duties) for p, full in zip(start, FULL, strict=True))


def test_the_full_grid_has_what_is_served_and_no_more() -> None:
    served = set[str]().union(*(members(f) for f in SERVED))
    rare = set[str]().union(*(members(f) for f in RARE))
    assert RARE
    assert rare.isdisjoint(keys(FULL))
    assert keys(WIDE) == served | rare | keys(LAUNCHES)
    # It is cheaper by half, and the rest of the wide grid is both more shapes and rarer kernels.
    rest = keys(WIDE) - keys(FULL)
    assert rest & served
    assert len(FULL) < 0.6 * len(WIDE)


@families
def test_of_each_family_the_full_grid_has_what_its_fields_say(family: Family) -> None:
    there = members(family) & keys(FULL)
    if family.wide:
        assert not there
        return
    windows, bursts = in_full(family)
    assert there == keys(windows) | keys(bursts)
    with_windows = {p.key for p in FULL if p.duties and p.key in members(family)}
    assert with_windows == keys(windows)


def test_every_beginning_holds_its_share_of_each_family() -> None:
    regular = [{p.key for part in in_full(f) for p in part} for f in SERVED]
    order = [p.key for p in FULL if any(p.key in family for family in regular)]
    assert len(order) == len(FULL) - len(LAUNCHES)
    for end in range(120, len(order) + 1, 60):
        for family in regular:
            whole = len(family)
            there = len(family.intersection(order[:end]))
            share = there / whole
            # Two lists a family, of windows and of bursts, each rounded up.
            assert abs(share - end / len(order)) <= 0.1 + 2 / whole
            assert there >= 2


def test_windows_are_spread_over_the_grid_and_the_first_of_each_family_come_first() -> None:
    ranks = {p.key: i for i, p in enumerate(FULL)}
    for family in SERVED:
        windows, bursts = in_full(family)
        first, *others = [ranks[p.key] for p in windows]
        assert first < 2 * len(SERVED) + len(LAUNCHES)
        shared = keys(windows) & keys(bursts)
        assert [first, *others] == sorted([first, *others]) or shared


def test_energy_is_measured_at_fewer_points_than_time() -> None:
    for points, least in ((FULL, 400), (WIDE, 1000)):
        windows = sum(len(p.duties) for p in points)
        assert least / 10 < windows < len(points) / 4 < 1250
        assert len(points) > least


def test_the_full_grid_can_be_measured_in_about_ten_minutes() -> None:
    # As the sweep reckons; static power is looked at in between.
    cost_s = TRIALS * WINDOW_COST_S * sum(len(p.duties) for p in FULL) + BURST_COST_S * len(FULL)
    assert cost_s < 1.2 * BUDGET_S


# --- the quick grid -------------------------------------------------------------------------------


def test_the_quick_grid_has_all_that_a_prediction_needs() -> None:
    timed = {name for p in QUICK for name in names_of(_seen(p))}
    assert set(REQUIRED) <= timed
    windows = {name for p in QUICK if p.duties for name in names_of(_seen(p))}
    # Gathering and sampling share the coefficients of what works row by row.
    assert set(REQUIRED) - windows == {"gather", "sampling"}
    for name in REQUIRED:
        assert sum(name in names_of(_seen(p)) for p in QUICK) >= 10


def test_the_quick_grid_is_quick() -> None:
    assert sum(len(p.duties) for p in QUICK) < 20
    assert len(QUICK) < 150


def test_the_quick_grid_is_part_of_the_full_one() -> None:
    whole = {p.key: p for p in FULL}
    for p in QUICK:
        assert set(p.duties) <= set(whole[p.key].duties)


def test_the_quick_grid_begins_with_its_windows() -> None:
    points = list(islice(QUICK, len(LAUNCHES), None))
    windows = [bool(p.duties) for p in points]
    assert windows == sorted(windows, reverse=True)
