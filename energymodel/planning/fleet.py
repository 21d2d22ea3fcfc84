"""How many replicas of which kind, and who serves what: a mixed-integer linear programme.

Replicas of a *choice* (a model on a deployment on a GPU, at an operating point that meets the
latency objective) are counted by an integer n_c, and serve r_cb requests a second of bin b. A
request of bin b takes s_cb seconds of a replica, so a choice serves what its replicas have time for,

    sum_b s_cb r_cb <= n_c - spare u_c,    n_c <= N u_c,    u_c in {0, 1},

where ``spare`` replicas of every choice in use stand by for those that fail. Replicas stand in *hosts*
(servers) that are there whole or not at all, sum_c places_c n_c <= places_h m_h with m_h an integer.
No more is served than asked, sum_c r_cb <= demand_b, and shared resources hold (power, GPUs, racks,
whatever is named):

    sum_h per_host_h m_h + sum_c (per_replica_c n_c + sum_b per_request_cb r_cb) <= limit.

The solver is HiGHS (Q. Huangfu and J. A. J. Hall, Mathematical Programming Computation 10, 2018,
pages 119-142) through ``scipy.optimize.milp``. Fleets are found in two passes: the most served,
then the least of a price among the fleets that serve as much.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from energymodel.errors import WorkError
from energymodel.steps import Floats, Ints

# Share of the best value of the first pass that the second may give away: rounding of the solver.
GIVEN_AWAY = 1e-7
# Share of a demand that is lost to rounding at most.
ROUNDED = 1e-6
# Requests a second of a replica that are as good as none.
NOTHING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a choice takes of one shared resource: a replica, and a request of each bin [n_bins]."""

    per_replica: float
    per_request: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One kind of replica, which takes ``places`` of the host of that index.

    ``bins`` [n] index the demand that it can serve; ``seconds`` [n] of a replica that a request of
    each takes; ``uses`` by name of the resource, their ``per_request`` in order of ``bins``.
    """

    name: str
    bins: Ints
    seconds: Floats
    uses: Mapping[str, Use]
    host: int = 0
    places: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What replicas stand in: ``places`` of them, and what it takes of each resource."""

    name: str
    places: int
    uses: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Demand in requests per second [n_bins], what serves it, and the limits of what is shared.

    ``worth`` [n_bins] is what serving a request counts for. ``price`` names the resource that is
    spared where fleets serve equally much.
    """

    demand: Floats
    worth: Floats
    choices: tuple[Choice, ...]
    hosts: tuple[Host, ...]
    limits: Mapping[str, float]
    price: str
    spare: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Replicas of each choice [n_choices] and rates [n_choices][n_bins of it], requests per second.

    ``hosts`` of each kind; ``served`` [n_bins]; ``used`` by resource. ``gap`` is the solver's relative distance to the best
    that there could be, of the worse of its passes.
    """

    replicas: Ints
    hosts: Ints
    rates: tuple[Floats, ...]
    served: Floats
    used: Mapping[str, float]
    gap: float


def most_served(problem: Problem, *, gap: float = 1e-4, seconds: float = 20.0) -> Fleet:
    """The fleet that serves most, and of those the one with the least of ``problem.price``.

    Args:
        problem: What is asked and what there is.
        gap: Relative gap at which the solver may stop.
        seconds: Time that each pass may take.

    Raises:
        WorkError: no fleet was found in that time.
    """
    system = _system(problem)
    worth = system.rates_of(lambda choice: problem.worth[choice.bins])
    first, first_gap = _solve(system, -worth, gap, seconds)
    value = float(worth @ first)
    served_enough = (worth, value - GIVEN_AWAY * abs(value) - NOTHING)
    second, second_gap = _solve(system, system.use_of(problem.price), gap, seconds, served_enough)
    return _fleet(problem, system, second, max(first_gap, second_gap))


@dataclass(frozen=True, slots=True, kw_only=True)
class _System:
    """Columns: replicas of each choice, whether it is in use, hosts, then rates choice by choice."""

    choices: tuple[Choice, ...]
    hosts: tuple[Host, ...]
    first_rate: tuple[int, ...]
    columns: int
    constraints: tuple[Any, ...]
    upper: Floats

    def rates_of(self, values: Any) -> Floats:
        """A row over all columns with ``values(choice)`` [n_bins of it] at its rates."""
        row = np.zeros(self.columns)
        for choice, at in zip(self.choices, self.first_rate, strict=True):
            row[at : at + len(choice.bins)] = values(choice)
        return row

    def use_of(self, resource: str) -> Floats:
        """A row over all columns with what they take of a resource."""
        row = self.rates_of(lambda choice: choice.uses[resource].per_request)
        for i, choice in enumerate(self.choices):
            row[i] = choice.uses[resource].per_replica
        for h, host in enumerate(self.hosts):
            row[2 * len(self.choices) + h] = host.uses[resource]
        return row


def _system(problem: Problem) -> _System:
    from scipy.optimize import LinearConstraint
    from scipy.sparse import coo_array

    choices, hosts, count = problem.choices, problem.hosts, len(problem.choices)
    sizes = np.array([len(choice.bins) for choice in choices])
    first = 2 * count + len(hosts) + np.cumsum(sizes) - sizes
    columns = 2 * count + len(hosts) + int(sizes.sum())
    most = _most_replicas(problem)
    upper = np.full(columns, np.inf)
    # Without spares nothing depends on which choices are in use.
    upper[:count], upper[count : 2 * count] = most, 1.0 if problem.spare else 0.0
    system = _System(
        choices=choices,
        hosts=hosts,
        first_rate=tuple(int(at) for at in first),
        columns=columns,
        constraints=(),
        upper=upper,
    )
    rows = _Rows()
    served: list[list[tuple[int, float]]] = [[] for _ in problem.demand]
    inside: list[list[tuple[int, float]]] = [
        [(2 * count + h, -float(host.places))] for h, host in enumerate(hosts)
    ]
    for i, (choice, at) in enumerate(zip(choices, system.first_rate, strict=True)):
        times = [(at + k, float(s)) for k, s in enumerate(choice.seconds)]
        rows.add([*times, (i, -1.0), (count + i, float(problem.spare))], 0.0)
        if problem.spare:
            rows.add([(i, 1.0), (count + i, -float(most[i]))], 0.0)
        inside[choice.host].append((i, float(choice.places)))
        for k, b in enumerate(choice.bins):
            served[b].append((at + k, 1.0))
    for terms, demand in zip(served, problem.demand, strict=True):
        rows.add(terms, float(demand))
    for terms in inside:
        rows.add(terms, 0.0)
    for resource, limit in problem.limits.items():
        rows.add(list(enumerate(system.use_of(resource))), limit)
    matrix = coo_array(
        (rows.values, (rows.rows, rows.columns)), shape=(len(rows.above), columns)
    ).tocsr()
    held = LinearConstraint(matrix, ub=np.array(rows.above))
    return replace(system, constraints=(held,))


class _Rows:
    """Constraints as they are written down: sums of terms (column, value) that are at most ..."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.values: list[float] = []
        self.above: list[float] = []

    def add(self, terms: Sequence[tuple[int, float]], above: float) -> None:
        terms = [term for term in terms if term[1]]
        self.rows.extend([len(self.above)] * len(terms))
        self.columns.extend(column for column, _ in terms)
        self.values.extend(value for _, value in terms)
        self.above.append(above)


def _most_replicas(problem: Problem) -> Ints:
    """As many of each choice as its whole demand could ever keep busy, or a limit allows."""
    found = []
    for choice in problem.choices:
        busy = float(problem.demand[choice.bins] @ choice.seconds)
        most = float(np.ceil(busy - NOTHING)) + problem.spare
        for resource, limit in problem.limits.items():
            each = choice.uses[resource].per_replica
            if each > 0:
                most = min(most, np.floor(limit / each + NOTHING))
        found.append(int(max(most, 0)))
    return np.array(found, dtype=np.int64)


def _solve(
    system: _System,
    objective: Floats,
    gap: float,
    seconds: float,
    at_least: tuple[Floats, float] | None = None,
) -> tuple[Floats, float]:
    """(values of the columns with the least ``objective``, relative gap)."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    count = len(system.choices)
    integral = np.zeros(system.columns, dtype=np.int64)
    integral[: 2 * count + len(system.hosts)] = 1
    constraints = list(system.constraints)
    if at_least is not None:
        constraints.append(LinearConstraint(at_least[0][None], lb=at_least[1]))
    scale = float(np.abs(objective).max()) or 1.0
    with _quiet():
        found = milp(
            objective / scale,
            integrality=integral,
            bounds=Bounds(np.zeros(system.columns), system.upper),
            constraints=constraints,
            options={"mip_rel_gap": gap, "time_limit": seconds},
        )
    if found.x is None:
        raise WorkError(f"no fleet was found in {seconds:g} s: allow more time or fewer choices.")
    return np.asarray(found.x), float(found.mip_gap or 0.0)


@contextmanager
def _quiet() -> Iterator[None]:
    """HiGHS prints remarks to the standard output of the process, where JSON is to stand alone."""
    try:
        sys.stdout.flush()
        kept = os.dup(1)
    except (AttributeError, OSError, ValueError):  # there is no such output
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _fleet(problem: Problem, system: _System, values: Floats, gap: float) -> Fleet:
    count, hosts = len(problem.choices), len(problem.hosts)
    whole = np.round(values[: 2 * count + hosts]).astype(np.int64)
    replicas = whole[:count]
    rates, served = [], np.zeros(problem.demand.size)
    for choice, at, n in zip(problem.choices, system.first_rate, replicas, strict=True):
        rate = np.maximum(values[at : at + len(choice.bins)], 0.0)
        rates.append(rate if n > 0 else np.zeros_like(rate))
        np.add.at(served, choice.bins, rates[-1])
    exact = np.concatenate([whole.astype(np.float64), *rates])
    return Fleet(
        replicas=replicas,
        hosts=whole[2 * count :],
        rates=tuple(rates),
        served=np.where(served > problem.demand * (1.0 - ROUNDED), problem.demand, served),
        used={
            resource: float(system.use_of(resource) @ exact) for resource in problem.choices[0].uses
        },
        gap=gap,
    )
