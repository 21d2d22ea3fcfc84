"""Time laws against their limits; parameters are those shipped (or those that a fit starts from,
for what is not shipped), or made extreme on purpose."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from law_builders import (
    LAW,
    SHIPPED,
    arrays,
    attention,
    extremes,
    gemm,
    grows,
    moe,
    rows,
    seconds,
    work,
)

from calibration.fit_time import START
from energymodel import laws
from energymodel import profile as profiles
from energymodel.laws import (
    LAWS,
    PARAMETERS,
    REQUIRED,
    ROOFLINE_KINDS,
    SM_COUNT,
    STREAMING_KINDS,
    kind_of,
    smooth_max,
)

# A step of a law that is documented (splits, blocks, waves) may cost less by this share.
SMALL_STEP = 0.03

# --- the pieces -----------------------------------------------------------------------------------

positive = st.floats(1e-12, 1e3)
sharp = st.floats(1, 12)


@given(positive, positive, sharp)
def test_smooth_max_is_between_the_maximum_and_its_root_multiple(
    a: float, b: float, p: float
) -> None:
    x = smooth_max(np.array([a]), np.array([b]), p)[0]
    assert max(a, b) * (1 - 1e-12) <= x <= max(a, b) * 2 ** (1 / p) * (1 + 1e-12)
    assert x == smooth_max(np.array([b]), np.array([a]), p)[0]


@given(positive, positive, sharp, st.floats(1e-3, 1e3))
def test_smooth_max_scales_with_its_unit(a: float, b: float, p: float, unit: float) -> None:
    x = smooth_max(np.array([a]), np.array([b]), p)
    assert smooth_max(np.array([unit * a]), np.array([unit * b]), p) == pytest.approx(unit * x)


@given(positive, positive, st.floats(1, 10), sharp)
def test_smooth_max_grows_with_both(a: float, b: float, factor: float, p: float) -> None:
    x = smooth_max(np.array([a]), np.array([b]), p)[0]
    assert smooth_max(np.array([a * factor]), np.array([b]), p)[0] >= x * (1 - 1e-12)


def test_smooth_max_by_hand() -> None:
    # (3^2 + 4^2)^(1/2) = 5; with nothing on one side, the other; with nothing at all, nothing.
    a, b = np.array([3.0, 0.0, 2.0, 0.0, 1e300]), np.array([4.0, 2.0, 0.0, 0.0, 1e-300])
    assert smooth_max(a, b, 2.0) == pytest.approx([5.0, 2.0, 2.0, 0.0, 1e300])


# --- limits ---------------------------------------------------------------------------------------


def test_a_thin_product_runs_at_the_rate_of_the_memory() -> None:
    for m in (1, 4):
        shape = gemm(m, 65536, 8192)
        moved = 2.0 * (65536 * 8192 + m * (65536 + 8192))
        free = {"launch_s": 0.0, "reduce_s": 0.0}
        ideal = moved / LAW["gemm"]["bytes_per_s"]
        assert seconds("gemm", shape, **free) == pytest.approx([ideal], rel=0.01)


def test_a_large_product_runs_at_the_rate_of_the_tensor_cores() -> None:
    shape = gemm(65536, 65536, 65536)
    ideal = 2.0 * 65536.0**3 / LAW["gemm"]["flop_per_s"]
    assert seconds("gemm", shape) == pytest.approx([ideal], rel=0.02)


def test_a_long_decode_runs_at_the_rate_of_the_memory() -> None:
    shape = attention(256, 1, 32767, heads=32, kv_heads=8, head_dim=128)
    moved = 4.0 * 128 * (256 * 32768 * 8 + 256 * 32)
    ideal = moved / LAW["decode_attention"]["bytes_per_s"]
    assert ideal * 0.999 <= seconds("decode_attention", shape)[0] <= ideal * 1.2


def test_a_long_prefill_is_never_faster_than_its_arithmetic() -> None:
    shape = attention(1, 131072, 0, heads=32, kv_heads=8, head_dim=128)
    flop = 4.0 * 32 * 128 * shape["pairs"]
    ideal = flop / LAW["prefill_attention"]["flop_per_s"]
    assert ideal[0] <= seconds("prefill_attention", shape)[0] <= 2.5 * ideal[0]


def test_one_token_streams_the_experts_that_it_visits() -> None:
    shape = moe(1, 16384, 16384, 8, 2)
    weights = 2 * 3 * 16384 * 16384 * 2.0
    ideal = weights / LAW["moe"]["bytes_per_s"]
    assert ideal <= seconds("moe", shape, launch_s=0.0)[0] <= 1.2 * ideal


def test_full_experts_run_at_the_rate_of_the_tensor_cores() -> None:
    shape = moe(200_000, 8192, 8192, 8, 2)
    ideal = 6.0 * 200_000 * 2 * 8192 * 8192 / LAW["moe"]["flop_per_s"]
    assert ideal <= seconds("moe", shape)[0] <= 1.6 * ideal


@pytest.mark.parametrize("kind", STREAMING_KINDS)
def test_streams_reach_the_rates_of_memory_and_cache(kind: str) -> None:
    p = LAW[kind]
    much, little = p["cache_bytes"] * 1000, p["cache_bytes"] / 1000
    # No cache is slower than the memory behind it.
    cached_per_s = max(p["cache_bytes_per_s"], p["bytes_per_s"])
    ideal = [much / p["bytes_per_s"], little / cached_per_s]
    # Next to no values to walk: nothing but bytes.
    shapes = arrays(rows=1e-9, width=1e-9, bytes=[much, little])
    assert seconds(kind, shapes, launch_s=0.0) == pytest.approx(ideal, rel=0.01)


@pytest.mark.parametrize("kind", STREAMING_KINDS)
def test_many_long_rows_run_at_the_rate_of_the_memory(kind: str) -> None:
    # 64 GiB in rows that are walked twice as fast as they come.
    shape = rows(1 << 22, 1 << 12)
    bytes_per_s = LAW[kind]["bytes_per_s"]
    walked = bytes_per_s / 4.0 / (SM_COUNT * 8.0)
    taken = seconds(kind, shape, element_s=0.5 / walked, rows_per_sm=8.0)
    assert taken == pytest.approx(shape["bytes"] / bytes_per_s, rel=0.05)


@pytest.mark.parametrize("kind", STREAMING_KINDS)
def test_a_single_wide_row_is_walked_by_one_block(kind: str) -> None:
    walk = {"element_s": 2e-10, "rows_per_sm": 8.0}
    p = LAW[kind] | walk
    width = 1 << 18
    floor = p["launch_s"] + 2e-10 * width
    taken = seconds(kind, rows(1, width), **walk)[0]
    assert (
        floor <= taken <= floor * 1.02 + 4.0 * width / min(p["bytes_per_s"], p["cache_bytes_per_s"])
    )
    # Each time as many rows as run at a time are one more walk.
    together = SM_COUNT * 8.0
    still = arrays(rows=[1e-9, together, 3 * together], width=width, bytes=0.0)
    walked = seconds(kind, still, **walk) - p["launch_s"]
    assert walked == pytest.approx(2e-10 * width * np.array([1.0, 2.0, 4.0]))


@pytest.mark.parametrize("kind", ROOFLINE_KINDS)
def test_a_roofline_has_two_limits(kind: str) -> None:
    p = LAW[kind]
    free = {"launch_s": 0.0, "fill_blocks": 1e-9}
    balance = p["flop_per_s"] / p["bytes_per_s"]
    # Far from the balance of the two, however softly one goes over into the other.
    streamed = LAWS[kind](work(1e9, 1e5 * 1e9 / balance), p | free)
    computed = LAWS[kind](work(1e15, 1e-5 * 1e15 / balance), p | free)
    assert streamed.seconds == pytest.approx([1e5 * 1e9 / balance / p["bytes_per_s"]], rel=1e-3)
    assert computed.seconds == pytest.approx([1e15 / p["flop_per_s"]], rel=1e-3)
    # What streams does not stretch with the clock, what computes does.
    assert streamed.memory_s == pytest.approx(streamed.seconds, rel=1e-3)
    assert computed.memory_s[0] <= 1e-3 * computed.seconds[0]


@pytest.mark.parametrize("kind", ROOFLINE_KINDS)
def test_few_blocks_leave_multiprocessors_idle(kind: str) -> None:
    p = LAW[kind] | {"launch_s": 0.0}
    for shape in ((1e13, 1.0), (1.0, 1e11)):
        plenty, few = (seconds(kind, work(*shape, blocks=b), launch_s=0.0)[0] for b in (1e12, 1.0))
        ideal = max(shape[0] / p["flop_per_s"], shape[1] / p["bytes_per_s"])
        assert plenty == pytest.approx(ideal, rel=1e-3)
        # A single block runs at 1 / (1 + fill x multiprocessors) of the rate.
        assert few == pytest.approx(ideal * (1 + p["fill_blocks"] * SM_COUNT), rel=1e-3)


@pytest.mark.parametrize("kind", ROOFLINE_KINDS)
def test_steps_follow_one_another(kind: str) -> None:
    none, many = seconds(kind, work(1e9, 1e6, steps=[0.0, 64.0]))
    assert many - none == pytest.approx(64.0 * LAW[kind]["step_s"])


@pytest.mark.parametrize("kind", LAWS)
def test_next_to_no_work_takes_about_a_launch(kind: str) -> None:
    tiny: dict[str, dict[str, np.ndarray]] = {
        "gemm": gemm(1, 8, 8),
        "decode_attention": attention(1, 1, 0, heads=1, kv_heads=1, head_dim=64),
        "prefill_attention": attention(1, 2, 0, heads=1, kv_heads=1, head_dim=64),
        "moe": moe(1, 64, 64, 8, 1),
        **dict.fromkeys(STREAMING_KINDS, rows(1, 1)),
        **dict.fromkeys(ROOFLINE_KINDS, work(2.0, 2.0, blocks=1)),
    }
    launch_s = LAW[kind]["launch_s"]
    taken = seconds(kind, tiny[kind])[0]
    assert launch_s <= taken <= launch_s + 25e-6


# --- order ----------------------------------------------------------------------------------------

dims = st.sampled_from([256, 896, 2048, 4096, 5120, 8192, 14336, 29568])
heads = st.sampled_from([(32, 8, 128), (32, 32, 128), (64, 8, 128), (16, 2, 64), (16, 8, 256)])


@given(dims, dims)
def test_products_take_longer_with_more_rows(n: int, k: int) -> None:
    m = np.unique(np.geomspace(1, 65536, 200).round())
    assert grows(seconds("gemm", gemm(m, n, k)))


@given(st.integers(1, 16384), dims)
def test_products_take_longer_with_more_columns_and_depth(m: int, other: int) -> None:
    size = np.unique(np.geomspace(64, 262144, 200).round())
    assert grows(seconds("gemm", gemm(m, size, other)))
    assert grows(seconds("gemm", gemm(m, other, size)))


@given(st.integers(1, 1024), heads)
def test_decode_takes_longer_with_more_context(seqs: int, shape: tuple[int, int, int]) -> None:
    # Contexts are split into whole blocks: one more split may be a little faster.
    context = np.arange(127, 131072, 128)
    taken = seconds("decode_attention", attention(seqs, 1, context, *shape))
    assert grows(taken, SMALL_STEP)


@given(st.integers(0, 131072), heads)
def test_decode_takes_longer_with_more_sequences(context: int, shape: tuple[int, int, int]) -> None:
    seqs = np.arange(1, 1025)
    taken = seconds("decode_attention", attention(seqs, 1, context, *shape))
    assert grows(taken, SMALL_STEP)


@given(st.integers(1, 64), st.integers(0, 32768), heads)
def test_prefill_takes_longer_with_more_tokens(
    seqs: int, context: int, shape: tuple[int, int, int]
) -> None:
    tokens = np.unique(np.geomspace(1, 16384, 300).round())
    assert grows(seconds("prefill_attention", attention(seqs, tokens, context, *shape)))


@given(st.integers(1, 64), st.integers(1, 8192), heads)
def test_prefill_takes_longer_with_more_context(
    seqs: int, tokens: int, shape: tuple[int, int, int]
) -> None:
    context = np.unique(np.geomspace(1, 131072, 300).round()) - 1
    assert grows(seconds("prefill_attention", attention(seqs, tokens, context, *shape)))


@given(st.integers(1, 8192), st.integers(0, 8192), heads)
def test_prefill_takes_longer_with_more_sequences(
    tokens: int, context: int, shape: tuple[int, int, int]
) -> None:
    seqs = np.arange(1, 200)
    assert grows(seconds("prefill_attention", attention(seqs, tokens, context, *shape)))


@given(
    st.sampled_from(
        [(2048, 768, 128, 8), (4096, 14336, 8, 2), (2048, 1408, 60, 4), (2880, 2880, 32, 4)]
    )
)
def test_experts_take_longer_with_more_tokens(shape: tuple[int, int, int, int]) -> None:
    tokens = np.unique(np.geomspace(1, 32768, 400).round())
    assert grows(seconds("moe", moe(tokens, *shape)))


def test_experts_without_a_gate_stream_two_thirds_of_the_weights() -> None:
    # Few tokens: nothing but weights counts. 2 x 768 x 2048 instead of 3 x 768 x 2048 an expert.
    gated = moe(np.array([32.0]), 2048, 768, 128, 8)
    plain = gated | {"up_size": np.array(768.0)}
    free = {"launch_s": 0.0, "expert_s": 0.0, "hidden_passes": 0.0, "inner_passes": 0.0}
    ratio = seconds("moe", plain, **free) / seconds("moe", gated, **free)
    assert ratio == pytest.approx(2 / 3, rel=0.1)


@pytest.mark.parametrize("kind", STREAMING_KINDS)
def test_streams_take_longer_with_more_bytes(kind: str) -> None:
    assert grows(seconds(kind, arrays(rows=1.0, width=1.0, bytes=np.geomspace(1, 1e12, 2000))))


@pytest.mark.parametrize("kind", STREAMING_KINDS)
@settings(max_examples=20)
@given(st.integers(1, 1 << 20))
def test_streams_take_longer_with_more_and_with_wider_rows(kind: str, other: int) -> None:
    size = np.unique(np.geomspace(1, 1 << 20, 500).round())
    assert grows(seconds(kind, rows(size, other)))
    assert grows(seconds(kind, rows(other, size)))


amounts = st.floats(1.0, 1e18)


@pytest.mark.parametrize("kind", ROOFLINE_KINDS)
@settings(max_examples=20)
@given(amounts, amounts, st.floats(1, 1e6), st.floats(0, 1e6), st.floats(1, 60))
def test_rooflines_take_longer_with_more_work_and_with_fewer_blocks(  # noqa: PLR0917
    kind: str, flop: float, moved: float, blocks: float, steps: float, sharpness: float
) -> None:
    more = np.geomspace(1, 1e18, 300)
    for shapes in (
        work(more, moved, blocks, steps),
        work(flop, more, blocks, steps),
        work(flop, moved, blocks, more),
        work(flop, moved, more[::-1], steps),
    ):
        assert grows(seconds(kind, shapes, sharpness=sharpness))


# --- edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAWS)
@settings(max_examples=20)
@given(sharpness=st.floats(0.5, 60))
def test_extreme_shapes_stay_finite(kind: str, sharpness: float) -> None:
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        taken = seconds(kind, extremes()[kind], sharpness=sharpness)
    assert np.isfinite(taken).all()
    assert (taken > 0).all()
    assert grows(taken)


@pytest.mark.parametrize("kind", LAWS)
def test_what_the_clock_does_not_touch_is_a_part_of_the_time(kind: str) -> None:
    timed = LAWS[kind](extremes()[kind], LAW[kind])
    assert (timed.memory_s >= 0).all()
    assert (timed.memory_s <= timed.seconds * (1 + 1e-12)).all()
    if kind in STREAMING_KINDS:
        assert np.array_equal(timed.memory_s, timed.seconds)


@pytest.mark.parametrize("kind", LAWS)
def test_features_are_finite_and_one_row_a_shape(kind: str) -> None:
    features = laws.features(kind, extremes()[kind])
    assert features.shape[0] == 4
    assert np.isfinite(features).all()
    # Different shapes are different places.
    assert len(np.unique(features, axis=0)) == 4


@pytest.mark.parametrize("kind", LAWS)
def test_what_bounds_the_domain_is_finite(kind: str) -> None:
    axes = laws.domain_axes(kind, extremes()[kind])
    assert all(np.isfinite(values).all() for values in axes.values())
    assert bool(axes) == (kind not in STREAMING_KINDS)


def test_what_has_no_law_has_no_features() -> None:
    with pytest.raises(ValueError, match="sorting"):
        laws.features("sorting", rows(1, 1))


# --- names ----------------------------------------------------------------------------------------


def test_every_law_has_parameters_that_a_fit_starts_from() -> None:
    assert set(LAWS) == set(PARAMETERS) == set(START)
    assert set(REQUIRED) <= set(LAWS)
    for kind, names in PARAMETERS.items():
        assert set(START[kind]) == set(names)
        assert all(value > 0 for value in START[kind].values())


def test_the_law_of_a_number_format_is_that_of_its_kind() -> None:
    assert kind_of("gemm.fp8_block") == kind_of("gemm") == "gemm"
    assert kind_of("decode_attention.fp8") == "decode_attention"


def test_fewer_bytes_in_fp8_are_less_time() -> None:
    wide = gemm(8, 16384, 4096)
    narrow = wide | {"weight_bytes": wide["weight_bytes"] / 2, "input_element_bytes": np.ones(1)}
    p = LAW["gemm"]
    free = {"launch_s": 0.0, "reduce_s": 0.0}
    saved = seconds("gemm", wide, **free) - seconds("gemm", narrow, **free)
    moved = wide["weight_bytes"] / 2 + 8 * 4096
    assert saved == pytest.approx(moved / p["bytes_per_s"], rel=0.01)
    cache = attention(256, 1, 32767, heads=32, kv_heads=8, head_dim=128)
    half = cache | {"kv_element_bytes": np.ones(1)}
    kind = "decode_attention"
    assert seconds(kind, half)[0] < 0.7 * seconds(kind, cache)[0]


@pytest.mark.parametrize("kind", LAWS)
def test_the_multiprocessors_of_another_board_are_a_parameter(kind: str) -> None:
    # Experts see it where there are fewer tiles than multiprocessors.
    shapes = moe([1.0, 4.0], 256, 128, 8, 2) if kind == "moe" else extremes()[kind]
    unnamed = {name: value for name, value in LAW[kind].items() if name != "sm_count"}
    usual = LAWS[kind](shapes, unnamed).seconds
    assert np.array_equal(usual, LAWS[kind](shapes, unnamed | {"sm_count": SM_COUNT}).seconds)
    other = LAWS[kind](shapes, unnamed | {"sm_count": 66.0}).seconds
    # Products fill a board by tiles, which ``fill_tiles`` counts.
    assert np.array_equal(usual, other) == (kind == "gemm")


def test_the_board_has_the_multiprocessors_of_the_datasheet() -> None:
    assert profiles.load("h200").gpu.sm_count == SM_COUNT
    for operation in SHIPPED.values():
        assert operation.law["sm_count"].value == SM_COUNT
