"""The scheduler where no prompt may be split over steps."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from energymodel.deployment import Deployment
from energymodel.serving import schedule_offline
from energymodel.workload import Bin, Workload

BUDGET = 1000

lengths = st.lists(
    st.tuples(st.integers(1, 800), st.integers(0, 100), st.integers(1, 20)), min_size=1, max_size=4
)


@given(lengths=lengths, blocks=st.integers(60, 2000))
def test_prompts_stay_whole_and_within_the_budget(
    lengths: list[tuple[int, int, int]], blocks: int
) -> None:
    workload = Workload(
        bins=tuple(Bin(input_tokens=i, output_tokens=o, count=n) for i, o, n in lengths)
    )
    deployment = Deployment(max_num_batched_tokens=BUDGET, max_num_seqs=16)
    steps = schedule_offline(workload, deployment, blocks * 16, whole_prompts=True).steps
    chunks = steps.chunks
    prompts = np.array([i for i, _, _ in lengths])[chunks.bin]
    assert (chunks.context == 0).all()
    assert (chunks.tokens >= prompts).all()  # more after a preemption
    assert (steps.sum_chunks(chunks.tokens) + steps.decoding <= BUDGET).all()
    first = np.bincount(chunks.bin, chunks.count * (chunks.tokens == prompts))
    assert first.tolist() == [n for _, _, n in lengths]


def test_a_prompt_that_does_not_fit_the_rest_of_a_step_waits() -> None:
    workload = Workload(bins=(Bin(input_tokens=400, output_tokens=0, count=3),))
    deployment = Deployment(max_num_batched_tokens=BUDGET)
    whole = schedule_offline(workload, deployment, 10_000, whole_prompts=True).steps
    split = schedule_offline(workload, deployment, 10_000).steps
    assert whole.sum_chunks(whole.chunks.tokens).tolist() == [800, 400]
    assert split.sum_chunks(split.chunks.tokens).tolist() == [1000, 200]
