"""Captured sizes against those that vLLM's documentation of ``_set_cudagraph_sizes`` lists."""

import numpy as np
import pytest
from step_builders import decode, prefill

from energymodel.deployment import Deployment
from energymodel.engines.vllm_graphs import capture_sizes, largest, largest_whole, padded
from energymodel.find_model import find_model
from energymodel.ops import lower
from energymodel.timing import law_shapes


def test_defaults_are_those_of_the_docstring_of_vllm() -> None:
    wanted = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]
    assert capture_sizes(Deployment()).tolist() == wanted
    assert largest(Deployment()) == 512
    assert largest_whole(Deployment()) == 256


@pytest.mark.parametrize(
    ("flags", "sizes", "whole"),
    [
        ({"max_num_seqs": 3}, [1, 2, 4], 2),  # 6 is asked for and not among the sizes
        ({"max_num_seqs": 1}, [1, 2], 1),
        ({"max_num_seqs": 5}, [1, 2, 4, 8], 4),
        # A budget below the largest size is captured, too.
        ({"max_num_seqs": 8, "max_num_batched_tokens": 13}, [1, 2, 4, 8, 13], 8),
        # Three tokens a sequence: 24 tokens at most, sizes rounded up to multiples of 3.
        ({"max_num_seqs": 4, "num_speculative_tokens": 2}, [3, 6, 9, 18, 24], 9),
    ],
)
def test_small_deployments(flags: dict[str, int], sizes: list[int], whole: int) -> None:
    deployment = Deployment(**flags)
    assert capture_sizes(deployment).tolist() == sizes
    assert largest(deployment) == sizes[-1]
    assert largest_whole(deployment) == whole


def test_250_places_are_captured_up_to_496() -> None:
    # Steps of 16 from 256 on do not meet 500.
    assert largest(Deployment(max_num_seqs=250)) == 496
    # So 249 sequences that decode are padded to 256, for which no whole graph was captured.
    assert largest_whole(Deployment(max_num_seqs=250)) == 248


def test_tokens_are_padded_to_the_next_size() -> None:
    tokens = np.array([0.0, 1, 3, 5, 8, 249, 257, 512, 513, 4000])
    wanted = [0, 1, 4, 8, 8, 256, 272, 512, 513, 4000]
    assert padded(tokens, Deployment()).tolist() == wanted


def test_eager_pads_nothing() -> None:
    eager = Deployment(enforce_eager=True)
    assert largest(eager) == largest_whole(eager) == 0.0
    assert padded(np.array([3.0, 300.0]), eager).tolist() == [3.0, 300.0]


def test_only_rows_that_are_tokens_of_captured_layers_are_padded() -> None:
    model = find_model("Qwen3-30B-A3B")[0]
    ops = {op.name: op for op in lower(model, Deployment(), decode(9, count=3))}
    products = {name for name, op in ops.items() if op.kind in ("gemm", "moe")}
    assert {name for name, op in ops.items() if op.captured} == products - {"lm_head"}
    prompt = np.array([7])
    t5 = lower(find_model("flan-t5-base")[0], Deployment(), prefill(7), prompt)
    assert {op.captured for op in t5 if op.kind == "gemm"} == {True, False}
    twice = [law_shapes(op, lambda rows: 2.0 * rows)["m"] for op in t5 if op.kind == "gemm"]
    rows = [op.shape["m"] for op in t5 if op.kind == "gemm"]
    captured = [op.captured for op in t5 if op.kind == "gemm"]
    for padded_rows, m, is_captured in zip(twice, rows, captured, strict=True):
        assert padded_rows == pytest.approx(2.0 * m if is_captured else m)
