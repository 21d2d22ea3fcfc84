"""Times of operations: per call, per step, at full clock."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_builders import decode, prefill, steps_of

from energymodel import profile as profiles
from energymodel import timing
from energymodel.deployment import Deployment
from energymodel.find_model import find_model
from energymodel.kriging import Kriging
from energymodel.model import ModelSpec
from energymodel.ops import Op, lower
from energymodel.profile import Profile
from energymodel.steps import Floats, Steps
from energymodel.timing import OpTime, law_shapes, op_times

PROFILE = profiles.load("h200")
MODELS = {name: find_model(name)[0] for name in ("Qwen3-8B", "Qwen3-30B-A3B", "gemma-2-9b-it")}


def unpadded(rows: Floats) -> Floats:
    return rows


def times(model: ModelSpec, steps: Steps, profile: Profile = PROFILE) -> list[tuple[Op, OpTime]]:
    ops = lower(model, Deployment(), steps)
    return list(zip(ops, op_times(ops, profile, unpadded), strict=True))


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=15)
@given(
    chunk=st.tuples(st.integers(1, 16384), st.integers(0, 30_000), st.integers(1, 4)),
    decoding=st.tuples(st.integers(0, 100_000), st.integers(1, 1024)),
)
def test_every_time_is_a_time(
    name: str, chunk: tuple[int, int, int], decoding: tuple[int, int]
) -> None:
    one_chunk, one_decode = [(*chunk, 1)], [decoding]
    steps = steps_of((one_chunk, []), ([], one_decode), (one_chunk, one_decode))
    for op, time in times(MODELS[name], steps):
        assert np.isfinite(time.seconds).all(), op.name
        assert (time.seconds[op.hbm_bytes > 0] > 1e-7).all(), op.name
        assert (time.seconds < 100).all(), op.name
        # What stretches with the clock is a part of the whole.
        assert (time.clocked >= 0).all(), op.name
        assert (time.clocked <= time.seconds * (1 + 1e-9)).all(), op.name


def test_what_does_not_happen_takes_no_time() -> None:
    by_name = {op.name: time for op, time in times(MODELS["Qwen3-8B"], decode(100, count=4))}
    assert by_name["attention_prefill"].seconds == [0.0]
    assert by_name["attention_prefill"].clocked == [0.0]
    by_name = {op.name: time for op, time in times(MODELS["Qwen3-8B"], prefill(100, last=0))}
    assert by_name["attention_decode"].seconds == [0.0]
    assert by_name["lm_head"].seconds == [0.0]


def test_steps_do_not_touch_each_other() -> None:
    rows = [
        ([(700, 0, 1, 1)], [(500.0, 3)]),
        ([], [(33.0, 17), (2000.0, 1)]),
        ([(16, 4096, 2, 0)], []),
    ]
    together = times(MODELS["Qwen3-30B-A3B"], steps_of(*rows))
    for i, row in enumerate(rows):
        alone = times(MODELS["Qwen3-30B-A3B"], steps_of(row))
        for (op, many), (_, one) in zip(together, alone, strict=True):
            assert many.seconds[i] == pytest.approx(one.seconds[0], rel=1e-9), op.name
            assert many.clocked[i] == pytest.approx(one.clocked[0], rel=1e-9), op.name


def test_tabulated_curves_follow_the_residual_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = steps_of(*(([(tokens, 0, 1, 1)], []) for tokens in range(1, 4000, 7)))
    for model in MODELS.values():
        coarse = times(model, steps)
        with monkeypatch.context() as patch:
            patch.setattr(timing, "CURVE_AXIS", {})
            exact = times(model, steps)
        for (op, fast), (_, slow) in zip(coarse, exact, strict=True):
            assert fast.seconds == pytest.approx(slow.seconds, rel=0.005), op.name


def test_a_curve_is_found_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    mean = Kriging.mean

    def counted(kriging: Kriging, features: Floats) -> Floats:
        rows.append(len(features))
        return mean(kriging, features)

    monkeypatch.setattr(Kriging, "mean", counted)
    model, one = MODELS["Qwen3-8B"], steps_of(([(700, 0, 1, 1)], []))
    every = steps_of(*(([(tokens, 0, 1, 1)], []) for tokens in range(1, 4000, 7)))
    products = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}

    def seconds(steps: Steps) -> dict[str, Floats]:
        found = times(model, steps)
        return {op.name: time.seconds for op, time in found if op.name in products}

    timing._curve.cache_clear()
    alone = seconds(one)
    # Two nodes for each product (the LM head sees one row, which is a node itself).
    fresh = sum(rows)
    assert fresh <= 2 * (len(products) + 1) + len(lower(model, Deployment(), one))
    timing._curve.cache_clear()
    seconds(every)
    rows.clear()
    after = seconds(one)
    assert sum(rows) <= fresh - 2 * len(products)
    for name, value in alone.items():
        assert after[name] == pytest.approx(value, rel=1e-12), name


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = steps_of(*(([], [(float(context), 3)]) for context in range(1, 300, 7)))
    whole = times(MODELS["Qwen3-8B"], steps)
    monkeypatch.setattr(timing, "BLOCK_ROWS", 5)
    for (op, one), (_, other) in zip(whole, times(MODELS["Qwen3-8B"], steps), strict=True):
        assert one.seconds == pytest.approx(other.seconds, rel=1e-12), op.name


def test_rows_are_padded_for_products_only() -> None:
    model = MODELS["Qwen3-8B"]
    ops = lower(model, Deployment(), decode(1000, count=5))
    plain = op_times(ops, PROFILE, unpadded)
    padded = op_times(ops, PROFILE, lambda rows: np.full_like(rows, 512.0))
    for op, before, after in zip(ops, plain, padded, strict=True):
        if op.kind == "gemm" and op.component != "lm_head":
            assert after.seconds > before.seconds, op.name
        else:
            assert after.seconds == before.seconds, op.name


def test_the_residual_multiplies_the_law() -> None:
    gemm = PROFILE.operations["gemm"]
    assert gemm.residual is not None
    shift = replace(gemm.residual, weights=tuple(0.0 for _ in gemm.residual.weights))
    bare = replace(gemm, residual=None)
    model, steps = MODELS["Qwen3-8B"], prefill(100)
    with_zero, without = (
        times(model, steps, replace(PROFILE, operations={**PROFILE.operations, "gemm": p}))
        for p in (replace(gemm, residual=shift), bare)
    )
    for (op, zero), (_, none) in zip(with_zero, without, strict=True):
        assert zero.seconds == pytest.approx(none.seconds, rel=1e-12), op.name


def test_bytes_of_a_product_are_those_of_its_number_format() -> None:
    steps = prefill(64)
    for quantization, stored in ((None, 2.0), ("fp8", 1.0)):
        ops = lower(MODELS["Qwen3-8B"], Deployment(quantization=quantization), steps)
        for op in (o for o in ops if o.kind == "gemm"):
            shapes = law_shapes(op, unpadded)
            m, n, k = (shapes[name] for name in "mnk")
            # The LM head is never quantised, and no product writes fewer than 16 bits.
            narrow = 2.0 if op.name == "lm_head" else stored
            assert shapes["input_element_bytes"] == narrow, op.name
            assert shapes["output_element_bytes"] == 2.0, op.name
            assert shapes["weight_bytes"] == narrow * n * k, op.name
            moved = shapes["weight_bytes"] + m * (narrow * k + 2.0 * n)
            assert moved == pytest.approx(op.hbm_bytes), op.name


def test_padding_leaves_the_bytes_of_the_weights_alone() -> None:
    (op,) = (o for o in lower(MODELS["Qwen3-8B"], Deployment(), decode(9)) if o.name == "down_proj")
    plain, padded = (law_shapes(op, f) for f in (unpadded, lambda rows: np.full_like(rows, 8.0)))
    assert (plain["m"].item(), padded["m"].item()) == (1.0, 8.0)
    assert plain["weight_bytes"] == padded["weight_bytes"]


def test_multiprocessors_are_those_of_the_profile() -> None:
    kind = "decode_attention"
    operation = PROFILE.operations[kind]
    count = operation.law["sm_count"]
    half = replace(operation, law={**operation.law, "sm_count": replace(count, value=66.0)})
    smaller = replace(PROFILE, operations={**PROFILE.operations, kind: half})
    steps = decode(100, count=256)
    both = (times(MODELS["Qwen3-8B"], steps, p) for p in (PROFILE, smaller))
    for (op, whole), (_, part) in zip(*both, strict=True):
        if op.kind == kind:
            assert part.seconds > 1.05 * whole.seconds
        else:
            assert part.seconds == whole.seconds, op.name
