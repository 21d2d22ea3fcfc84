import dataclasses

import pytest

from energymodel.workload import Bin, Workload


def test_totals_of_counts() -> None:
    workload = Workload(
        bins=(
            Bin(input_tokens=512, output_tokens=128, count=64),
            Bin(input_tokens=100, output_tokens=0, count=10),
        )
    )
    assert not workload.online
    assert workload.requests == 74
    assert workload.input_tokens == 512 * 64 + 1000
    assert workload.output_tokens == 128 * 64


def test_totals_of_rates_are_per_second() -> None:
    workload = Workload(bins=(Bin(input_tokens=512, output_tokens=128, requests_per_s=0.5),))
    assert workload.online
    assert (workload.requests, workload.input_tokens, workload.output_tokens) == (0.5, 256, 64)


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Bin(input_tokens=1, output_tokens=1, count=1).count = 2  # type: ignore[misc]
