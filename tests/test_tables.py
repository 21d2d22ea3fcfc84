"""What an observation is evidence for, and its work by hand and as a prediction sees it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from step_builders import decode, prefill

from calibration import grid
from calibration.fit_time import START
from calibration.grid import Point
from calibration.observations import Observation
from calibration.tables import Table, all_names, names_of, table
from energymodel import laws
from energymodel.blocks.softmax import SoftmaxAttention
from energymodel.deployment import Deployment
from energymodel.find_model import find_model
from energymodel.laws import REQUIRED
from energymodel.model import ModelSpec
from energymodel.ops import lower
from energymodel.steps import Steps
from energymodel.timing import law_shapes

QWEN, MIXTURE = (find_model(name)[0] for name in ("Qwen3-8B", "Qwen3-30B-A3B"))
EXPERTS = {"hidden_size": 2048, "intermediate_size": 768, "num_experts": 128, "top_k": 8}


def seen(op: str, shape: Mapping[str, int], **changes: Any) -> Observation:
    observation = Observation(
        op=op,
        shape=shape,
        mode="burst",
        trial=0,
        call_s=1.0,
        stack="simulated",
        gpu="NVIDIA H200",
        board="simulated",
        driver="0",
    )
    return replace(observation, **changes)


def of(point: Point) -> Observation:
    """What a point of the grid would become."""
    how = {"dtype": point.dtype, "library": point.library, "cache": point.cache}
    return seen(point.op, point.shape, **how)


# --- names ----------------------------------------------------------------------------------------

DECODE = {"num_seqs": 4, "tokens": 1, "context": 9, "heads": 8, "kv_heads": 2, "head_dim": 64}
ROW = {"rows": 4, "width": 64}


@pytest.mark.parametrize(
    ("observation", "names"),
    [
        (seen("gemm", {}), ("gemm",)),
        (seen("gemm", {}, dtype="fp8"), ("gemm.fp8",)),
        (seen("gemm", {}, library="torch", dtype="tf32"), ("gemm.tf32",)),
        (seen("attention", DECODE), ("decode_attention",)),
        (seen("attention", DECODE | {"tokens": 2}, dtype="fp8"), ("prefill_attention.fp8",)),
        (seen("mla", {"tokens": 1}), ("mla_decode",)),
        (seen("mla", {"tokens": 2}), ("mla_prefill",)),
        (seen("selective_scan", {"tokens": 1}), ("scan_decode",)),
        (seen("linear_attention", {"tokens": 9}), ("linear_attention_prefill",)),
        # What a prediction pools is evidence for the pool and for itself.
        (seen("rms_norm", ROW), ("rms_norm", "elementwise")),
        (seen("silu_and_mul", ROW), ("silu_and_mul", "elementwise")),
        (seen("kv_write", ROW), ("kv_write", "elementwise")),
        (seen("rotary", ROW), ("rotary",)),
        (seen("embedding", ROW), ("gather",)),
        # Quantising to fp8 is what quantising means; to anything else is marked.
        (seen("quantise", ROW, dtype="fp8"), ("quantise",)),
        (seen("quantise", ROW, dtype="int8"), ("quantise.int8",)),
        # Operands that stay in the cache say nothing about a model.
        (seen("gemm", {}, cache="warm"), ()),
        (seen("rms_norm", ROW, cache="warm"), ()),
        (seen("idle", {}), ()),
        (seen("launch", {"graph": 1}), ()),
    ],
    ids=lambda x: f"{x.op} {x.dtype} {x.cache}" if isinstance(x, Observation) else "",
)
def test_an_observation_is_evidence_for(observation: Observation, names: tuple[str, ...]) -> None:
    assert names_of(observation) == names


def test_every_name_has_a_law_and_every_point_a_table() -> None:
    observations = [of(p) for p in grid.wide() if p.op != "launch"]
    assert all(names_of(o) for o in observations)
    for name in all_names(observations):
        t = table(name, observations)
        assert t.kind in laws.LAWS
        assert len(t.observations) == len(t.group) == len(t.flop) > 0
        seconds = laws.LAWS[t.kind](t.shapes, START[t.kind]).seconds
        assert seconds.shape == t.group.shape
        assert np.isfinite(seconds).all()
        assert (seconds > 0).all()


def test_required_names_come_first_seen_or_not() -> None:
    assert all_names([]) == REQUIRED
    found = all_names([seen("rotary", ROW), seen("gemm", {}, dtype="fp8"), seen("gemm", {})])
    assert found == (*REQUIRED, "gemm.fp8", "rotary")


def test_a_table_holds_what_is_evidence_for_its_name_and_no_more() -> None:
    gemm = {"m": 1, "n": 2, "k": 3}
    mixed = [
        seen("gemm", gemm, sm_clock_hz=1.5e9),
        seen("gemm", gemm, dtype="fp8"),
        seen("gemm", gemm, cache="warm"),
        seen("rms_norm", ROW, sm_clock_hz=1.9e9),
        seen("kv_write", ROW),
        seen("rotary", ROW),
    ]
    assert table("gemm", mixed).observations == (mixed[0],)
    assert table("gemm.fp8", mixed).observations == (mixed[1],)
    assert table("elementwise", mixed).observations == (mixed[3], mixed[4])
    assert table("kv_write", mixed).observations == (mixed[4],)
    assert table("moe", mixed).observations == ()
    # The highest clock is that of all observations: it is the GPU's.
    assert table("gemm", mixed).top_clock_hz == 1.9e9
    assert table("gemm", mixed, 108.0).sm_count == 108.0


def test_trials_and_boards_of_a_shape_are_one_point() -> None:
    shape, other = {"m": 1, "n": 8, "k": 8}, {"m": 2, "n": 8, "k": 8}
    same = [seen("gemm", shape), seen("gemm", shape, trial=1), seen("gemm", shape, board="b")]
    t = table("gemm", [*same, seen("gemm", other)])
    assert len(set(t.point)) == 2
    assert len(set(t.point[:3])) == 1
    assert len(set(t.group)) == 1


def test_a_table_is_of_one_library() -> None:
    shapes = [{"m": m, "n": 8, "k": 8} for m in (1, 2)]
    vllm, torch = seen("gemm", shapes[0]), seen("gemm", shapes[1], library="torch")
    assert table("gemm", [torch, vllm]).observations == (vllm,)
    assert table("gemm", [torch]).observations == (torch,)


# --- work by hand ---------------------------------------------------------------------------------


def work(t: Table) -> tuple[float, float, float]:
    """(FLOP, bytes of weights or caches, bytes of rows) of the only observation."""
    return t.flop.item(), t.weight_bytes.item(), t.row_bytes.item()


def one(observation: Observation) -> Table:
    return table(names_of(observation)[0], [observation])


def test_products_by_hand() -> None:
    shape = {"m": 3, "n": 128, "k": 256}
    flop, numbers = 2 * 3 * 128 * 256, 128 * 256
    expected = {
        # stored, then 3 rows of 256 in and 128 out
        "bfloat16": (2 * numbers, 3 * (2 * 256 + 2 * 128)),
        "float32": (4 * numbers, 3 * (4 * 256 + 4 * 128)),
        "fp8": (numbers, 3 * (256 + 2 * 128)),
        # 1 x 2 blocks of weights and 2 blocks of a row's inputs have a scale of 4 bytes
        "fp8_block": (numbers + 2 * 4, 3 * (256 + 2 * 4 + 2 * 128)),
        "int8": (numbers, 3 * (256 + 2 * 128)),
        # 2 groups of 128 inputs for each of 128 outputs have a scale of 2 bytes
        "int4": (numbers // 2 + 2 * 128 * 2, 3 * (2 * 256 + 2 * 128)),
    }
    for dtype, moved in expected.items():
        assert work(one(seen("gemm", shape, dtype=dtype))) == (flop, *moved), dtype
    assert one(seen("gemm", shape, dtype="fp8")).shapes["weight_bytes"] == [numbers]


def test_decoding_from_latents_by_hand() -> None:
    widths = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128}
    shape = {"num_seqs": 4, "tokens": 1, "context": 9, "heads": 16, **widths, "v_head_dim": 128}
    t = one(seen("mla", shape))
    # Each of 4 x 16 heads: scores over 512 + 64, sums over 512, for 10 cached tokens.
    flop = 2 * 4 * 16 * 10 * (576 + 512)
    # One latent of 576 for each cached token, whatever the heads; queries of 576, outputs of 512.
    assert work(t) == (flop, 2 * 4 * 10 * 576, 2 * 4 * 16 * (576 + 512))
    assert t.shapes["bytes"] == t.weight_bytes + t.row_bytes
    assert t.shapes["steps"] == [0.0]


def test_prefill_of_expanded_latents_by_hand() -> None:
    widths = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128}
    shape = {"num_seqs": 2, "tokens": 3, "context": 5, "heads": 16, **widths, "v_head_dim": 128}
    # New tokens see 6, 7 and 8 keys; scores over 192, sums over 128.
    flop = 2 * 2 * 16 * (6 + 7 + 8) * (192 + 128)
    moved = (2 * 2 * 8 * 16 * 320, 2 * 2 * 3 * 16 * 320)
    assert work(one(seen("mla", shape))) == (flop, *moved)


@pytest.mark.parametrize(("more", "state_bytes"), [({}, 2), ({"state_bytes": 4}, 4)])
def test_a_scan_by_hand(more: dict[str, int], state_bytes: int) -> None:
    shape = {"num_seqs": 3, "heads": 4, "head_dim": 8, "state": 16, "groups": 2, **more}
    state = 4 * 8 * 16
    # A token: x in, z in, y out of 4 x 8, B and C of 2 x 16, a step for each head.
    row = 2 * (3 * 32 + 2 * 32 + 4)
    once = one(seen("selective_scan", {**shape, "tokens": 1}))
    # Decay, input and output of each state: 3 multiply-adds. The state is read and written.
    assert work(once) == (6 * 3 * state, 2 * state_bytes * 3 * state, 3 * row)
    assert (once.shapes["blocks"].item(), once.shapes["steps"].item()) == (3 * 4, 0)
    many = one(seen("selective_scan", {**shape, "tokens": 512}))
    assert work(many) == (
        512 * 6 * 3 * state, 2 * state_bytes * 3 * state, 512 * 3 * row,
    )  # fmt: skip
    # Two chunks of 256, one after the other.
    assert (many.shapes["blocks"].item(), many.shapes["steps"].item()) == (3 * 4 * 2, 2)


def test_a_delta_rule_by_hand() -> None:
    shape = {"num_seqs": 3, "heads": 4, "key_heads": 2, "head_dim": 16, "state_bytes": 4}
    state = 4 * 16 * 16
    # A token: query and key of 2 x 16, value and output of 4 x 16, decay and gate of each head.
    row = 2 * (2 * 32 + 2 * 64 + 2 * 4)
    once = one(seen("linear_attention", {**shape, "tokens": 1}))
    # Reading, correcting and querying the state: 3 multiply-adds.
    assert work(once) == (6 * 3 * state, 2 * 4 * 3 * state, 3 * row)
    many = one(seen("linear_attention", {**shape, "tokens": 128}))
    assert work(many) == (128 * 6 * 3 * state, 2 * 4 * 3 * state, 128 * 3 * row)
    assert (many.shapes["blocks"].item(), many.shapes["steps"].item()) == (3 * 4 * 2, 2)


def test_experts_in_fp8_by_hand() -> None:
    shape = {"tokens": 2, "hidden_size": 8, "intermediate_size": 16, "num_experts": 4, "top_k": 2}
    # 2 tokens, 2 of 4 experts each: 4 x (1 - (1/2)^2) = 3 experts touched, 3x8x16 weights each.
    flop = 2 * 2 * 2 * 3 * 8 * 16
    # A token: 8 in (1 byte), 8 out; for 2 choices 32 out and in, 16 out (2 bytes) and in (1), 8 out
    # and in.
    row = 8 + 16 + 2 * (2 * 64 + 32 + 16 + 2 * 16)
    found = work(one(seen("moe", shape, dtype="fp8")))
    assert found == pytest.approx((flop, 3 * 384, 2 * row), rel=1e-12)


def moved(t: Table) -> float:
    """Bytes of the only observation, of something that works row by row: it stores no weights."""
    # What the cache does not hold is all that reaches the memory.
    assert t.hbm_bytes == t.weight_bytes
    assert t.flop == [0.0]
    total = (t.weight_bytes + t.row_bytes).item()
    assert t.shapes["bytes"].item() == total
    return total


def test_rows_by_hand() -> None:
    for op, each in (
        ("rms_norm", 8),
        ("layer_norm", 4),
        ("gelu", 4),
        ("residual_add", 6),
        ("silu_and_mul", 6),
        ("kv_write", 8),
        ("rotary", 4),
        ("embedding", 4),
        ("sampling", 10),
    ):
        t = one(seen(op, {"rows": 3, "width": 64}))
        assert moved(t) == 3 * 64 * each, op
        assert (t.shapes["rows"].item(), t.shapes["width"].item()) == (3, 64), op
    # 16 bits in, 8 out.
    assert moved(one(seen("quantise", {"rows": 3, "width": 64}, dtype="fp8"))) == 3 * 64 * 3
    copied = one(seen("copy", {"bytes": 1 << 20}))
    assert moved(copied) == 2 << 20
    # Logits of 5 experts in, a weight and a number for each of 2 choices out.
    routing = one(seen("moe_routing", {"tokens": 3, "num_experts": 5, "top_k": 2}))
    assert moved(routing) == 3 * (5 * 2 + 2 * (4 + 4))
    # A token in and out, and a state of 3 tokens read and written for each of 2 sequences.
    conv = one(seen("causal_conv1d", {"num_seqs": 2, "tokens": 4, "width": 64}))
    assert moved(conv) == 2 * 64 * (2 * 4 * 2 + 2 * 6)


@pytest.mark.parametrize(
    ("op", "scattered"), [("rms_norm", 0.0), ("embedding", 0.5), ("kv_write", 0.5)]
)
def test_what_a_row_by_row_call_spills_depends_on_the_cache(op: str, scattered: float) -> None:
    observation = seen(op, {"rows": 1024, "width": 4096})
    name = names_of(observation)[0]
    whole = moved(table(name, [observation]))
    caches = {1e3 * whole: scattered, whole: 0.5 * (1 + scattered), 1e-3 * whole: 1.0}
    for l2_bytes, share in caches.items():
        t = table(name, [observation], l2_bytes=l2_bytes)
        assert moved(t) == whole
        assert t.hbm_bytes.item() == pytest.approx(share * whole, rel=1e-5, abs=2e-6 * whole)


def test_writes_to_the_cache_count_as_scattered_by_themselves_only() -> None:
    # In the pool that a prediction falls back on, all kernels count the same way.
    write, norm = (seen(op, {"rows": 1, "width": 1024}) for op in ("kv_write", "rms_norm"))
    assert table("kv_write", [write]).hbm_bytes.item() > 0.5 * 8 * 1024
    pooled = table("elementwise", [write, norm]).hbm_bytes
    assert pooled[0] == pooled[1] < 1e-6 * 8 * 1024


def test_families_hold_what_differs_in_the_free_axis_only() -> None:
    def group(op: str, shape: Mapping[str, int]) -> float:
        return one(seen(op, shape)).group.item()

    base = {"m": 1, "n": 8, "k": 4}
    assert group("gemm", base) == group("gemm", base | {"m": 99})
    assert group("gemm", base) != group("gemm", base | {"n": 4, "k": 8})
    assert group("attention", DECODE) == group("attention", DECODE | {"num_seqs": 9})
    assert group("attention", DECODE) != group("attention", DECODE | {"window": 128})
    experts = {"tokens": 1, **EXPERTS}
    assert group("moe", experts) == group("moe", experts | {"tokens": 7})
    assert group("moe", experts) != group("moe", experts | {"num_experts": 64})
    assert group("rms_norm", ROW) == group("rms_norm", ROW | {"rows": 7})
    assert group("rms_norm", ROW) != group("rms_norm", ROW | {"width": 7})
    assert group("rms_norm", ROW) != group("kv_write", ROW)


# --- as a prediction sees it ----------------------------------------------------------------------


class Watched(dict[str, np.ndarray]):
    """Shapes that remember what a law asked of them, whether they had it or not."""

    def __init__(self, shapes: Mapping[str, np.ndarray]) -> None:
        super().__init__(shapes)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> np.ndarray:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def check(
    spec: ModelSpec, deployment: Deployment, steps: Steps, name: str, observation: Observation
) -> str:
    """Work, and all that the law reads, are the same in table and lowering; the lowering's law."""
    (op,) = (o for o in lower(spec, deployment, steps) if o.name == name)
    t = table(names_of(observation)[0], [observation])
    law = laws.LAWS[t.kind]
    assert laws.LAWS[op.kind] is law, name
    assert t.flop == pytest.approx(op.flop), name
    rows = op.hbm_bytes - op.weight_bytes
    work = laws.traffic(op.kind, op.shape, op.weight_bytes, rows, laws.L2_BYTES)
    for fitted, predicted in zip((t.weight_bytes, t.row_bytes, t.hbm_bytes), work, strict=True):
        assert fitted == pytest.approx(predicted), name
    if t.kind not in laws.STREAMING_KINDS:
        assert t.hbm_bytes == pytest.approx(op.hbm_bytes), name
    ours, theirs = Watched(t.shapes), Watched(law_shapes(op, lambda m: m))
    seconds = [law(shapes, START[t.kind]).seconds for shapes in (ours, theirs)]
    assert seconds[0] == pytest.approx(seconds[1]), name
    asked = ours.asked | theirs.asked
    assert asked <= ours.keys(), name
    assert asked <= theirs.keys(), name
    for key in ours.keys() & theirs.keys():
        same = np.broadcast_to(theirs[key], ours[key].shape)
        assert ours[key] == pytest.approx(same), f"{name}: {key}"
    return op.law


def heads_of(spec: ModelSpec) -> dict[str, int]:
    attention = spec.layers[0].find(SoftmaxAttention)
    assert isinstance(attention, SoftmaxAttention)
    return {
        "heads": attention.num_attention_heads,
        "kv_heads": attention.num_key_value_heads,
        "head_dim": attention.head_dim,
    }


@pytest.mark.parametrize(
    ("model", "steps", "name", "op", "shape"),
    [
        (QWEN, prefill(300, 0, 2), "o_proj", "gemm", {"m": 600, "n": 4096, "k": 4096}),
        (QWEN, prefill(300, 0, 2), "down_proj", "gemm", {"m": 600, "n": 4096, "k": 12288}),
        (
            QWEN, prefill(300, 50, 2), "attention_prefill", "attention",
            {"num_seqs": 2, "tokens": 300, "context": 50, **heads_of(QWEN)},
        ),
        (
            QWEN, decode(1000, 7), "attention_decode", "attention",
            {"num_seqs": 7, "tokens": 1, "context": 1000, **heads_of(QWEN)},
        ),
        (MIXTURE, decode(1000, 7), "experts", "moe", {"tokens": 7, **EXPERTS}),
        (QWEN, prefill(300), "activation", "silu_and_mul", {"rows": 300, "width": 12288}),
        (QWEN, decode(1000, 7), "embedding", "embedding", {"rows": 7, "width": 4096}),
        (QWEN, decode(1000, 7), "sampling", "sampling", {"rows": 7, "width": QWEN.vocab_size}),
        (QWEN, decode(1000, 7), "kv_cache_write", "kv_write", {"rows": 7, "width": 1024}),
        (QWEN, decode(1000, 7), "rotary", "rotary", {"rows": 7, "width": 5120}),
        (
            MIXTURE, decode(1000, 7), "topk", "moe_routing",
            {"tokens": 7, "num_experts": 128, "top_k": 8},
        ),
    ],
)  # fmt: skip
def test_what_is_fitted_is_what_is_predicted(
    model: ModelSpec, steps: Steps, name: str, op: str, shape: dict[str, int]
) -> None:
    observation = seen(op, shape)
    assert check(model, Deployment(), steps, name, observation) == names_of(observation)[0]


@pytest.mark.parametrize(
    ("model", "name", "op", "shape"),
    [
        (QWEN, "o_proj", "gemm", {"m": 7, "n": 4096, "k": 4096}),
        (QWEN, "o_proj_quant", "quantise", {"rows": 7, "width": 4096}),
        (MIXTURE, "experts", "moe", {"tokens": 7, **EXPERTS}),
        (
            QWEN, "attention_decode", "attention",
            {"num_seqs": 7, "tokens": 1, "context": 1000, **heads_of(QWEN)},
        ),
    ],
)  # fmt: skip
def test_the_same_in_fp8(model: ModelSpec, name: str, op: str, shape: dict[str, int]) -> None:
    deployment = Deployment(quantization="fp8", kv_cache_dtype="fp8")
    observation = seen(op, shape, dtype="fp8")
    found = check(model, deployment, decode(1000, 7), name, observation)
    assert found == names_of(observation)[0]
