"""Sums over decoding sequences against counting them one by one."""

from hypothesis import given
from hypothesis import strategies as st

from energymodel.context_sums import ContextSums

EVENTS = st.lists(
    st.tuples(st.integers(0, 6), st.booleans(), st.integers(-20, 30), st.integers(1, 3)),
    max_size=30,
)


@given(EVENTS)
def test_visible_keys_are_those_of_each_sequence(
    events: list[tuple[int, bool, int, int]],
) -> None:
    windows = (None, 4, 16)
    sums = ContextSums(windows)
    present: list[tuple[int, int]] = []  # (offset, sequences) of each group
    iteration = 25
    for passed, comes, offset, count in events:
        iteration += passed
        if comes:
            present.append((offset, count))
            sums.add(offset, count)
        elif present:
            gone, sequences = present.pop(offset % len(present))
            sums.add(gone, -sequences)
        expected = [
            sum(n * min(o + iteration + 1, w or 10**9) for o, n in present) for w in windows
        ]
        assert list(sums.visible(iteration)) == expected
        assert sums.sequences == sum(n for _, n in present)
