"""Time laws against their limits; parameters are those shipped, or made extreme on purpose."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energymodel import laws
from energymodel import profile as profiles
from energymodel.attention import SoftmaxAttention
from energymodel.laws import LAWS, SM_COUNT, smooth_max

PARAMETERS = {
    kind: {name: estimate.value for name, estimate in operation.law.items()}
    for kind, operation in profiles.load("h200").operations.items()
}
STREAMING = ("elementwise", "gather", "sampling")
# A step of a law that is documented (splits, blocks, waves) may cost less by this share.
SMALL_STEP = 0.03

Build = Callable[..., dict[str, np.ndarray]]


def arrays(**values: object) -> dict[str, np.ndarray]:
    """Shapes that broadcast to one length."""
    columns = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in values.values()))
    return {k: np.atleast_1d(c).copy() for k, c in zip(values, columns, strict=True)}


def gemm(m: object, n: object, k: object) -> dict[str, np.ndarray]:
    s = arrays(m=m, n=n, k=k, weight_element_bytes=2.0)
    return s | {"weight_bytes": 2.0 * s["n"] * s["k"]}


def attention(  # noqa: PLR0917 (a shape is read in order)
    num_seqs: object, tokens: object, context: object, heads: int, kv_heads: int, head_dim: int
) -> dict[str, np.ndarray]:
    """``num_seqs`` sequences of ``tokens`` queries each after ``context`` cached keys."""
    spec = SoftmaxAttention(
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rotary_dim=head_dim,
    )
    s = arrays(num_seqs=num_seqs, each=tokens, context=context)
    seqs, each, past = s["num_seqs"], s.pop("each"), s.pop("context")
    kv_tokens = seqs * spec.chunk_kv_tokens(each, past)
    rows = seqs * each
    return arrays(
        **s,
        tokens=rows,
        pairs=seqs * spec.chunk_pairs(each, past),
        kv_tokens=kv_tokens,
        block_tokens=seqs * spec.decode_block_tokens(past, np.ones_like(past)),
        max_chunk=each,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        window=np.inf,
        kv_element_bytes=2.0,
        bytes=4.0 * head_dim * (kv_tokens * kv_heads + rows * heads),
    )


def moe(
    tokens: object, hidden: object, inner: object, experts: object, top_k: object
) -> dict[str, np.ndarray]:
    s = arrays(
        tokens=tokens,
        hidden_size=hidden,
        intermediate_size=inner,
        num_experts=experts,
        top_k=top_k,
        weight_element_bytes=2.0,
    )
    touched = s["num_experts"] * (1 - (1 - s["top_k"] / s["num_experts"]) ** s["tokens"])
    return s | {"experts_touched": touched}


def seconds(kind: str, shapes: dict[str, np.ndarray], **changes: float) -> np.ndarray:
    return LAWS[kind](shapes, PARAMETERS[kind] | changes).seconds


def grows(values: np.ndarray, slack: float = 1e-9) -> bool:
    """Whether no value is below the largest before it, but for ``slack``."""
    return bool((values >= np.maximum.accumulate(values) * (1 - slack)).all())


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
        ideal = moved / PARAMETERS["gemm"]["bytes_per_s"]
        assert seconds("gemm", shape, **free) == pytest.approx([ideal], rel=0.01)


def test_a_large_product_runs_at_the_rate_of_the_tensor_cores() -> None:
    shape = gemm(65536, 65536, 65536)
    ideal = 2.0 * 65536.0**3 / PARAMETERS["gemm"]["flop_per_s"]
    assert seconds("gemm", shape) == pytest.approx([ideal], rel=0.02)


def test_a_long_decode_runs_at_the_rate_of_the_memory() -> None:
    shape = attention(256, 1, 32767, heads=32, kv_heads=8, head_dim=128)
    moved = 4.0 * 128 * (256 * 32768 * 8 + 256 * 32)
    ideal = moved / PARAMETERS["decode_attention"]["bytes_per_s"]
    assert ideal * 0.999 <= seconds("decode_attention", shape)[0] <= ideal * 1.2


def test_a_long_prefill_is_never_faster_than_its_arithmetic() -> None:
    shape = attention(1, 131072, 0, heads=32, kv_heads=8, head_dim=128)
    flop = 4.0 * 32 * 128 * shape["pairs"]
    ideal = flop / PARAMETERS["prefill_attention"]["flop_per_s"]
    assert ideal[0] <= seconds("prefill_attention", shape)[0] <= 2.5 * ideal[0]


def test_one_token_streams_the_experts_that_it_visits() -> None:
    shape = moe(1, 16384, 16384, 8, 2)
    weights = 2 * 3 * 16384 * 16384 * 2.0
    ideal = weights / PARAMETERS["moe"]["bytes_per_s"]
    assert ideal <= seconds("moe", shape, launch_s=0.0)[0] <= 1.2 * ideal


def test_full_experts_run_at_the_rate_of_the_tensor_cores() -> None:
    shape = moe(200_000, 8192, 8192, 8, 2)
    ideal = 6.0 * 200_000 * 2 * 8192 * 8192 / PARAMETERS["moe"]["flop_per_s"]
    assert ideal <= seconds("moe", shape)[0] <= 1.6 * ideal


@pytest.mark.parametrize("kind", STREAMING)
def test_streams_reach_the_rates_of_memory_and_cache(kind: str) -> None:
    p = PARAMETERS[kind]
    much, little = p["cache_bytes"] * 1000, p["cache_bytes"] / 1000
    ideal = [much / p["bytes_per_s"], little / p["cache_bytes_per_s"]]
    assert seconds(kind, arrays(bytes=[much, little]), launch_s=0.0) == pytest.approx(
        ideal, rel=0.01
    )


@pytest.mark.parametrize("kind", LAWS)
def test_next_to_no_work_takes_about_a_launch(kind: str) -> None:
    tiny: dict[str, dict[str, np.ndarray]] = {
        "gemm": gemm(1, 8, 8),
        "decode_attention": attention(1, 1, 0, heads=1, kv_heads=1, head_dim=64),
        "prefill_attention": attention(1, 2, 0, heads=1, kv_heads=1, head_dim=64),
        "moe": moe(1, 64, 64, 8, 1),
    }
    launch_s = PARAMETERS[kind]["launch_s"]
    taken = seconds(kind, tiny.get(kind, arrays(bytes=2.0)))[0]
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


@pytest.mark.parametrize("kind", STREAMING)
def test_streams_take_longer_with_more_bytes(kind: str) -> None:
    assert grows(seconds(kind, arrays(bytes=np.geomspace(1, 1e12, 2000))))


# --- edges ----------------------------------------------------------------------------------------


def extremes() -> dict[str, dict[str, np.ndarray]]:
    many = np.array([1.0, 1e3, 1e6, 1e9])
    streams = {kind: arrays(bytes=np.array([1e-3, 1.0, 1e9, 1e18])) for kind in STREAMING}
    return streams | {
        "gemm": gemm(many, 1e6, 1e6),
        "decode_attention": attention(many, 1, 1e8, heads=256, kv_heads=1, head_dim=512),
        "prefill_attention": attention(many, many, 1e8, heads=256, kv_heads=1, head_dim=512),
        "moe": moe(many, 1e5, 1e5, 1024, 1),
    }


@pytest.mark.parametrize("kind", LAWS)
@settings(max_examples=20)
@given(sharpness=st.floats(0.5, 60))
def test_extreme_shapes_stay_finite(kind: str, sharpness: float) -> None:
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        taken = seconds(kind, extremes()[kind], sharpness=sharpness)
    assert np.isfinite(taken).all()
    assert (taken > 0).all()
    assert grows(taken)


@pytest.mark.parametrize("kind", ["gemm", "decode_attention", "prefill_attention", "moe"])
def test_features_are_finite_and_one_row_a_shape(kind: str) -> None:
    features = laws.features(kind, extremes()[kind])
    assert features.shape[0] == 4
    assert np.isfinite(features).all()


def test_streams_have_no_features() -> None:
    with pytest.raises(ValueError, match="elementwise"):
        laws.features("elementwise", arrays(bytes=1.0))


def test_the_board_has_the_multiprocessors_of_the_datasheet() -> None:
    assert profiles.load("h200").gpu.sm_count == SM_COUNT
