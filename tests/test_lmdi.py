import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energymodel.lmdi import Term, contributions, log_mean

amounts = st.floats(1e-12, 1e12)
a_term = st.integers(1, 4).flatmap(
    lambda n: st.builds(
        lambda a, b, names, group: Term(names=names, a=a, b=b, group=group),
        st.lists(amounts, min_size=n, max_size=n),
        st.lists(amounts, min_size=n, max_size=n),
        st.lists(st.sampled_from("wxyz"), min_size=n, max_size=n),
        st.sampled_from(["prefill", "decode"]),
    )
)
terms = st.lists(a_term, min_size=1, max_size=5)


def swapped(t: Term) -> Term:
    return Term(names=t.names, a=t.b, b=t.a, group=t.group)


def ended(t: Term, *, a: bool) -> Term:
    """The term with the last amount of one side at zero."""
    side = [*(t.a if a else t.b)[:-1], 0.0]
    return Term(names=t.names, a=side if a else t.a, b=t.b if a else side, group=t.group)


def test_the_logarithmic_mean_by_hand() -> None:
    assert log_mean(1.0, math.e) == pytest.approx(math.e - 1)
    assert log_mean(3.0, 3.0) == 3.0
    # L(a, b) = a (1 + e/2 - e^2/12 + ...) for b = a (1 + e).
    assert log_mean(2.0, 2.0 * (1 + 1e-7)) == pytest.approx(2.0 * (1 + 0.5e-7), rel=1e-15)


@given(amounts, amounts)
def test_the_logarithmic_mean_lies_between(a: float, b: float) -> None:
    slack = 1 + 1e-12
    assert log_mean(a, b) == log_mean(b, a)
    assert min(a, b) / slack <= log_mean(a, b) <= max(a, b) * slack
    assert log_mean(a, b) >= math.sqrt(a) * math.sqrt(b) / slack


def test_two_terms_by_hand() -> None:
    # 2 x 3 + 4 x 1 = 10 becomes 2 x 6 + 8 x 1 = 20.
    first = Term(names=("n", "price"), a=(2, 6), b=(2, 12))
    second = Term(names=("n", "price"), a=(4, 4), b=(8, 8))
    found = contributions([first, second])
    mean = 10 / math.log(2)
    assert found["price", ""] == pytest.approx(6 / math.log(2) * math.log(2) / mean)
    assert found["n", ""] == pytest.approx(4 / mean)
    assert sum(found.values()) == pytest.approx(math.log(2))


def test_what_is_not_there_belongs_to_the_factor_that_makes_it_so() -> None:
    rest = Term(names=("n",), a=(1.0,), b=(1.0,), group="rest")
    # Without bytes there is no energy of bytes, whatever one would cost.
    gone = Term(names=("n", "bytes", "cost"), a=(5.0, 10.0, 3.0), b=(5.0, 0.0, 0.0))
    found = contributions([rest, gone])
    assert found["bytes", ""] == pytest.approx(math.log(1.0 / 4.0))
    assert found.get(("n", ""), 0.0) == found.get(("cost", ""), 0.0) == 0.0
    nowhere = Term(names=("n",), a=(0.0,), b=(0.0,))
    assert contributions([rest, nowhere]) == {("n", "rest"): 0.0}


@given(terms, st.data())
def test_exact_and_the_other_way_round(found: list[Term], data: st.DataObject) -> None:
    some = [
        ended(t, a=data.draw(st.booleans())) if i and data.draw(st.booleans()) else t
        for i, t in enumerate(found)
    ]
    ratio = sum(t.b[-1] for t in some) / sum(t.a[-1] for t in some)
    there = contributions(some)
    back = contributions([swapped(t) for t in some])
    assert sum(there.values()) == pytest.approx(math.log(ratio), rel=1e-9, abs=1e-9)
    assert back == pytest.approx({key: -log for key, log in there.items()}, rel=1e-9, abs=1e-9)


@given(terms)
def test_nothing_changed(found: list[Term]) -> None:
    same = [Term(names=t.names, a=t.a, b=t.a, group=t.group) for t in found]
    assert set(contributions(same).values()) == {0.0}
