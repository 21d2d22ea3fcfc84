"""Which collectives a step makes, and what they take: by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from fabric_builders import (
    BUSY_W,
    BYTES_PER_S,
    LATENCY_S,
    WIRE_BYTE_J,
    collective,
    fabric,
    with_fabric,
)
from hypothesis import given
from hypothesis import strategies as st
from step_builders import steps_of

from energymodel import profile as profiles
from energymodel.collectives import handed_on, wire_share
from energymodel.deployment import Deployment
from energymodel.errors import InputError
from energymodel.fabric import collective_of, collective_seconds, energy_j, errors, seconds_of
from energymodel.find_model import find_model
from energymodel.op_kinds import Context, Op
from energymodel.ops import lower
from energymodel.parallel import Parallel
from energymodel.spread import busiest, largest_of

DENSE = find_model("Llama-3.1-8B-Instruct")[0]
EXPERTS = find_model("Qwen3-30B-A3B")[0]
PROFILE = profiles.load("h200")
GPUS = with_fabric(PROFILE)
# 100 tokens of a prompt that is not done, and 4 sequences that decode.
STEP = steps_of(([(100, 0, 1, 0)], [(50, 4)]))


def made(model: object, **flags: object) -> dict[str, Op]:
    ops = lower(model, Deployment(**flags), STEP)  # type: ignore[arg-type]
    return {op.name: op for op in ops if op.component == "collective"}


def message(op: Op) -> float:
    return float((op.shape["rows"] * op.shape["row_bytes"]).item())


def test_one_gpu_makes_none() -> None:
    assert made(DENSE) == {}


def test_tensor_parallel_adds_up_twice_a_layer_once_behind_the_embedding_and_gathers_logits() -> (
    None
):
    ops = lower(DENSE, Deployment(tensor_parallel_size=2), STEP)
    sums = [op for op in ops if op.kind == "all_reduce"]
    assert sum(op.count for op in sums) == 2 * 32 + 1
    assert {message(op) for op in sums} == {104 * 4096 * 2}
    (logits,) = (op for op in ops if op.kind == "all_gather")
    assert message(logits) == 4 * 128_256 * 2
    assert not logits.shape["graph"]


def test_every_gpu_samples_from_all_logits() -> None:
    ops = {op.name: op for op in lower(DENSE, Deployment(tensor_parallel_size=4), STEP)}
    assert ops["lm_head"].shape["n"] == 128_256 / 4
    assert ops["sampling"].shape["width"] == 128_256


def test_experts_of_copies_are_reached_by_gathering_and_scattering_tokens() -> None:
    ops = made(EXPERTS, data_parallel_size=2, enable_expert_parallel=True)
    assert set(ops) == {"experts_dispatch", "experts_combine"}
    assert message(ops["experts_dispatch"]) == 2 * 104 * (2048 * 2 + 8 * 8)
    assert message(ops["experts_combine"]) == 2 * 104 * 2048 * 2
    assert ops["experts_combine"].count == 48


def test_spread_experts_of_one_copy_are_summed_like_cut_ones() -> None:
    cut, spread = (
        made(EXPERTS, tensor_parallel_size=2, enable_expert_parallel=e) for e in (False, True)
    )
    assert {n: message(op) for n, op in cut.items()} == {n: message(op) for n, op in spread.items()}


def test_with_both_tokens_are_divided_before_the_experts_and_gathered_behind() -> None:
    ops = lower(
        EXPERTS,
        Deployment(tensor_parallel_size=2, data_parallel_size=2, enable_expert_parallel=True),
        STEP,
    )
    counts: dict[str, int] = {}
    for op in ops:
        if op.component == "collective":
            counts[op.name] = counts.get(op.name, 0) + op.count
    # One sum a layer, behind the attention.
    assert counts["all_reduce"] == 48
    assert counts["tokens_all_gather"] == counts["experts_dispatch"] == 48


def test_stages_send_hidden_state_and_residual() -> None:
    ops = made(DENSE, pipeline_parallel_size=4, tensor_parallel_size=2)
    assert ops["stage_send"].count == 3
    assert message(ops["stage_send"]) == 104 * 2 * 4096 * 2 / 2
    assert message(ops["stage_all_gather"]) == 104 * 2 * 4096 * 2


@pytest.mark.parametrize(
    ("tensor", "pipeline", "far"),
    [
        (1, 8, 0),
        (4, 4, 1),  # GPU 4 to 7 -> 8 to 11
        (2, 8, 1),
        (8, 2, 1),
        (8, 3, 2),
        (1, 17, 2),
        (3, 3, 1),  # GPU 5 -> 8
        (3, 5, 2),  # and GPU 6 -> 9: the third stage is on both nodes
        (16, 2, 1),
    ],
)
def test_only_hand_overs_between_nodes_use_their_link(tensor: int, pipeline: int, far: int) -> None:
    ops = handed_on_by(tensor, pipeline)
    counts = {op.shape["node_link_bytes_per_s"]: op.count for op in ops if op.kind == "send_recv"}
    near = pipeline - 1 - far
    assert counts == {rate: n for rate, n in ((0.0, near), (1e10, far)) if n}


def handed_on_by(tensor: int, pipeline: int) -> list[Op]:
    groups = Parallel(tensor=tensor, pipeline=pipeline, node_link_bytes_per_s=1e10)
    model = find_model("Llama-3.1-8B-Instruct")[0]
    ctx = Context(
        steps=STEP,
        hidden_size=model.hidden_size,
        dtype="bfloat16",
        kv_element_bytes=2.0,
        tokens=STEP.tokens,
        sampled=STEP.sampled,
        source_tokens=np.zeros(0, np.int64),
        parallel=groups,
    )
    return handed_on(ctx)


@pytest.mark.parametrize(
    ("kind", "gpus", "share"),
    [("all_reduce", 4, 1.5), ("all_gather", 4, 0.75), ("all_to_all", 2, 0.5), ("send_recv", 2, 1)],
)
def test_wire_bytes_as_nccl_tests_counts_them(kind: str, gpus: int, share: float) -> None:
    assert wire_share(kind, gpus) == share


def test_seconds_and_joules_by_hand() -> None:
    op = made(DENSE, tensor_parallel_size=2)["all_reduce"]
    wire = 104 * 4096 * 2  # 2 (2 - 1) / 2 = 1
    seconds = seconds_of(op, GPUS, lambda rows: rows)
    assert seconds.item() == pytest.approx(LATENCY_S / 2 + wire / BYTES_PER_S)
    core_j, wire_j = energy_j(op, seconds, GPUS, lambda rows: rows)
    assert core_j.item() == pytest.approx(BUSY_W * seconds.item())
    assert wire_j.item() == pytest.approx(WIRE_BYTE_J * wire)


def test_padded_rows_take_longer_and_are_on_the_wire() -> None:
    ops = made(DENSE, tensor_parallel_size=2)
    for name, more_rows in (("all_reduce", 8.0), ("logits_all_gather", 0.0)):
        op, row_bytes = ops[name], ops[name].shape["row_bytes"]
        seconds, wire_j = [], []
        for padded in (lambda rows: rows, lambda rows: np.full_like(rows, 112.0)):
            seconds.append(seconds_of(op, GPUS, padded))
            wire_j.append(energy_j(op, seconds[-1], GPUS, padded)[1].item())
        wire = wire_share(op.kind, 2) * more_rows * row_bytes
        assert (seconds[1] - seconds[0]).item() == pytest.approx(wire / BYTES_PER_S)
        assert wire_j[1] - wire_j[0] == pytest.approx(WIRE_BYTE_J * wire)


def test_large_messages_go_through_nccl() -> None:
    steps = steps_of(([(2048, 0, 1, 0)], []))  # 2048 x 8192 bytes: twice the 8 MiB
    op = next(
        o for o in lower(DENSE, Deployment(tensor_parallel_size=2), steps) if o.kind == "all_reduce"
    )
    assert seconds_of(op, GPUS, lambda rows: rows).item() == pytest.approx(
        LATENCY_S + 2048 * 8192 / BYTES_PER_S
    )


def test_what_is_left_over_is_drawn_through_the_measured_sizes() -> None:
    law = collective("all_reduce", "nccl", 2)
    law = replace(law, left_over=((1e3, 0.0), (1e5, 0.2)))
    plain = LATENCY_S + 1e4 / BYTES_PER_S
    assert collective_seconds(law, np.array([1e4])).item() == pytest.approx(plain * math.exp(0.1))


def test_eight_gpus_are_drawn_through_two_and_four_and_less_certain() -> None:
    law = collective_of(GPUS, "all_reduce", "nccl", 8)
    assert law.latency_s.value == pytest.approx(LATENCY_S)
    grown = fabric()
    changed = tuple(
        collective(c.kind, c.library, c.gpus, 2e-5 if c.gpus == 4 else 1e-5)
        for c in grown.collectives
    )
    profile = replace(GPUS, fabric=replace(grown, collectives=changed))
    law = collective_of(profile, "all_reduce", "nccl", 8)
    assert law.latency_s.value == pytest.approx(3e-5)
    assert law.latency_s.stderr > 1e-5


def test_a_profile_without_collectives_is_refused_with_the_remedy() -> None:
    op = made(DENSE, tensor_parallel_size=2)["all_reduce"]
    with pytest.raises(InputError, match="energymodel calibrate --collectives"):
        seconds_of(op, replace(PROFILE, fabric=None), lambda rows: rows)


# --- uneven experts -------------------------------------------------------------------------------


def test_largest_of_two_normal_values() -> None:
    assert largest_of(2) == pytest.approx(1 / math.sqrt(math.pi), rel=1e-6)
    assert largest_of(4) == pytest.approx(1.02938, rel=1e-4)


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "gpus"), [(1, 128, 8, 2), (16, 128, 8, 4), (256, 60, 4, 4)]
)
def test_busiest_gpu_against_drawing(tokens: int, experts: int, top_k: int, gpus: int) -> None:
    random = np.random.default_rng(7)
    most_choices, most_experts = [], []
    for _ in range(600):
        chosen = np.array([random.permutation(experts)[:top_k] for _ in range(tokens)])
        home = chosen * gpus // experts
        most_choices.append(np.bincount(home.ravel(), minlength=gpus).max())
        most_experts.append(np.bincount(np.unique(chosen) * gpus // experts, minlength=gpus).max())
    touched = experts * (1 - (1 - top_k / experts) ** tokens)
    found = busiest(np.array([float(tokens)]), experts=experts, top_k=top_k, gpus=gpus)
    mean = tokens * top_k / gpus
    assert found.choices.item() * mean == pytest.approx(np.mean(most_choices), rel=0.05)
    assert found.experts.item() * touched / gpus == pytest.approx(np.mean(most_experts), rel=0.05)


@given(
    st.floats(0, 1e6), st.sampled_from([(128, 8), (8, 2), (4, 4)]), st.sampled_from([1, 2, 4, 8])
)
def test_the_busiest_gpu_has_no_less_than_the_mean_and_no_more_than_all(
    tokens: float, sizes: tuple[int, int], gpus: int
) -> None:
    experts, top_k = sizes
    found = busiest(np.array([tokens]), experts=experts, top_k=top_k, gpus=gpus)
    for share in (found.choices.item(), found.experts.item()):
        assert 1.0 <= share <= gpus


def test_errors_grow_with_what_is_not_known() -> None:
    four, eight = (
        next(
            o
            for o in lower(DENSE, Deployment(tensor_parallel_size=n), STEP)
            if o.kind == "all_reduce"
        )
        for n in (4, 8)
    )
    assert errors(four, GPUS) == (0.03, 0.02)
    assert GPUS.fabric is not None
    two = tuple(c for c in GPUS.fabric.collectives if c.gpus == 2)
    only_two = replace(GPUS, fabric=replace(GPUS.fabric, collectives=two))
    assert min(errors(eight, only_two)) > 0.4
    far = Deployment(tensor_parallel_size=4, gpus_per_node=2, node_link_bytes_per_s=1e11)
    op = next(o for o in lower(DENSE, far, STEP) if o.kind == "all_reduce")
    assert errors(op, GPUS) == (0.5, 0.5)
