"""Why one prediction costs more than another: factors that multiply back to the ratio of energies.

Both documents say what each phase was spent on (``causes.py``). Every cause is a chain of amounts,
and the factors of a chain are the ratios of neighbours in it:

    flop        tokens -> FLOP -> joules at full clock -> joules
    weights     tokens -> passes -> bytes -> joules at full clock -> joules
    data        tokens -> bytes -> joules at full clock -> joules
    time        tokens -> seconds at full clock -> joules at full clock -> joules
    gaps        tokens -> passes -> joules
    collective  tokens -> joules
    idle        requests -> joules

In decode time goes by passes (tokens -> passes -> seconds -> ...), as that of a pass hardly depends
on how many sequences share it. ``lmdi.contributions`` gives each factor its part of the logarithm
of the ratio. ``time`` x ``static_power`` is static power times time. What a document's energy
differs from the sum of its causes is ``unexplained``; predictions of this program have none.

In joules, factor k changes the energy by L(E_B, E_A) ln D_k; these changes sum to E_B - E_A, in
whatever order they are taken.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from energymodel.errors import InputError
from energymodel.explain_document import LEAST, CauseJson, CausesJson, Document, EnergyJson
from energymodel.lmdi import Term, contributions, log_mean

FACTORS: Mapping[str, str] = {
    "tokens": "tokens computed",
    "flop_per_token": "FLOP per token",
    "energy_per_flop": "joules per FLOP of the kernels",
    "bytes": "bytes per token, of weights per pass",
    "energy_per_byte": "joules per byte of the kernels",
    "batch_limit": "passes per token: how many share one",
    "time": "kernel time per token, in decode per pass",
    "static_power": "watts that flow whatever is computed",
    "clock": "clock below its maximum",
    "host_gaps": "gaps and waits for the host, per pass",
    "idle": "before the first step, per request",
    "collectives": "between GPUs, per token",
    "unexplained": "energy outside the causes",
}
"""Every factor and what it says, in the order of the documents."""

UNEXPLAINED = "unexplained"
IDLE = "idle"
PER_PASS = ("decode",)
"""Phases in which a pass takes about as long however many tokens share it."""
# Where the documents' energies and the sums of their causes differ by no more, they agree.
ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two documents, in short."""

    file: str
    model: str
    gpu: str
    engine: str
    requests: int
    input_tokens: int
    output_tokens: int
    energy_j: float
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """``ratio`` is B's over A's; ``change_j`` what it adds, in all and by phase."""

    ratio: float
    change_j: float
    by_phase_j: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Joules of a component or phase in A, in B, and the difference."""

    a_j: float
    b_j: float
    change_j: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What ``explain --json`` prints: the product of the factors is ``ratio``, E_B / E_A.

    ``differs`` are the settings that are not the same, as [A, B].
    """

    schema_version: int = 1
    a: Side
    b: Side
    ratio: float
    factors: Mapping[str, Factor]
    phases: Mapping[str, Change]
    components: Mapping[str, Change]
    differs: Mapping[str, tuple[object, object]]
    warnings: tuple[str, ...]


def explain(a: Document, b: Document) -> Explanation:
    """Factors from document ``a`` to document ``b``.

    Raises:
        InputError: the documents cannot be compared; the message says why.
    """
    _check(a, b)
    terms = _terms(a, b)
    beyond = [
        _beyond(d, sum(amounts))
        for d, amounts in ((a, (t.a[-1] for t in terms)), (b, (t.b[-1] for t in terms)))
    ]
    logs = contributions(terms)
    logs[UNEXPLAINED, ""] = beyond[1] - beyond[0]
    mean_j = log_mean(a.json.energy_j, b.json.energy_j)
    return Explanation(
        a=_side(a),
        b=_side(b),
        ratio=b.json.energy_j / a.json.energy_j,
        factors={name: _factor(name, logs, mean_j) for name in FACTORS},
        phases=_changes(a.json.phases, b.json.phases),
        components=_changes(a.json.components, b.json.components),
        differs=_differs(a, b),
        warnings=tuple(_warnings(a, b, beyond)),
    )


def _check(a: Document, b: Document) -> None:
    if a.json.boundary != b.json.boundary:
        raise InputError(
            f"{a.file} has the boundary {a.json.boundary!r} and {b.file} {b.json.boundary!r}: "
            "energies of different boundaries cannot be compared."
        )
    phases_a, phases_b = ({n for n in d.json.causes if n != IDLE} for d in (a, b))
    if not phases_a & phases_b:
        raise InputError(
            f"{a.file} ({', '.join(sorted(phases_a))}) and {b.file} "
            f"({', '.join(sorted(phases_b))}) have no phase in common to compare."
        )


Link = tuple[str, str, float]
"""A step of a chain: the factor that leads to it, the field that holds the amount, the amount."""


def _terms(a: Document, b: Document) -> list[Term]:
    terms = []
    for phase in dict.fromkeys((*a.json.causes, *b.json.causes)):
        for chain_a, chain_b in zip(_checked(a, phase), _checked(b, phase), strict=True):
            terms.append(
                Term(
                    names=[factor for factor, _, _ in chain_a],
                    a=[amount for _, _, amount in chain_a],
                    b=[amount for _, _, amount in chain_b],
                    group=phase,
                )
            )
    return terms


def _checked(d: Document, phase: str) -> list[list[Link]]:
    """The chains of a phase; one that ends in energy has no amount of zero on its way."""
    chains = _chains(phase, d.json.causes.get(phase, CausesJson()))
    for chain in chains:
        _, end, spent_j = chain[-1]
        small = next((field for _, field, amount in chain if amount < LEAST), None)
        if small is not None and spent_j > 0:
            raise InputError(
                f"{d.file}: causes.{phase}.{small} must be at least {LEAST:g}, as {end} is not 0."
            )
    return chains


def _chains(phase: str, c: CausesJson) -> list[list[Link]]:
    """The chain of every cause of a phase."""
    tokens, passes = ("tokens", "tokens", c.tokens), ("batch_limit", "steps", c.steps)
    if phase == IDLE:
        return [[tokens, ("idle", "gaps.energy_j", c.gaps.energy_j)]]

    def tail(name: str, cause: CauseJson, factors: tuple[str, str, str]) -> list[Link]:
        amounts = cause.amount, cause.full_clock_j, cause.energy_j
        fields = (f"{name}.{field}" for field in ("amount", "full_clock_j", "energy_j"))
        return list(zip(factors, fields, amounts, strict=True))

    streamed = ("bytes", "energy_per_byte", "clock")
    timed = tail("time", c.time, ("time", "static_power", "clock"))
    return [
        [tokens, *tail("flop", c.flop, ("flop_per_token", "energy_per_flop", "clock"))],
        [tokens, passes, *tail("weights", c.weights, streamed)],
        [tokens, *tail("data", c.data, streamed)],
        [tokens, *([passes] if phase in PER_PASS else []), *timed],
        [tokens, passes, ("host_gaps", "gaps.energy_j", c.gaps.energy_j)],
        [tokens, ("collectives", "collective.energy_j", c.collective.energy_j)],
    ]


def _factor(name: str, logs: Mapping[tuple[str, str], float], mean_j: float) -> Factor:
    own = {group: log for (factor, group), log in logs.items() if factor == name}
    log = sum(own.values())
    return Factor(
        ratio=math.exp(log),
        change_j=mean_j * log,
        by_phase_j={group: mean_j * part for group, part in own.items() if group},
    )


def _side(d: Document) -> Side:
    j = d.json
    return Side(
        file=d.file,
        model=j.model,
        gpu=j.gpu,
        engine=j.engine,
        requests=j.requests,
        input_tokens=j.input_tokens,
        output_tokens=j.output_tokens,
        energy_j=j.energy_j,
        duration_s=j.duration_s,
    )


def _changes(a: Mapping[str, EnergyJson], b: Mapping[str, EnergyJson]) -> dict[str, Change]:
    found = {}
    for name in dict.fromkeys((*a, *b)):
        a_j, b_j = (side[name].energy_j if name in side else 0.0 for side in (a, b))
        found[name] = Change(a_j=a_j, b_j=b_j, change_j=b_j - a_j)
    return found


def _differs(a: Document, b: Document) -> dict[str, tuple[object, object]]:
    """Model, GPU, workload and flags that are not the same."""
    found: dict[str, tuple[object, object]] = {}
    for name in ("model", "gpu", "engine", "requests", "input_tokens", "output_tokens"):
        values = getattr(a.json, name), getattr(b.json, name)
        if values[0] != values[1]:
            found[name] = values
    flags_a, flags_b = a.json.deployment, b.json.deployment
    for name in dict.fromkeys((*flags_a, *flags_b)):
        if name not in found and flags_a.get(name) != flags_b.get(name):
            found[name] = flags_a.get(name), flags_b.get(name)
    return found


def _beyond(d: Document, spent_j: float) -> float:
    """Logarithm of the energy over the sum of its causes; rounding is nothing."""
    if spent_j == 0:
        raise InputError(f"{d.file}: causes must hold energy.")
    log = math.log(d.json.energy_j) - math.log(spent_j)
    return log if abs(log) > ROUNDING else 0.0


def _warnings(a: Document, b: Document, logs: Sequence[float]) -> list[str]:
    found = []
    kinds = [d.json.provenance.kind for d in (a, b)]
    if kinds[0] != kinds[1]:
        found.append(
            f"{a.file} comes from a {kinds[0]} profile, {b.file} from a {kinds[1]} one: the factors "
            "hold that difference as well."
        )
    found += [
        f"{d.file}: the causes sum to {math.exp(-log):.4g} of energy_j; the rest is in the factor "
        f"{UNEXPLAINED}."
        for d, log in ((a, logs[0]), (b, logs[1]))
        if log
    ]
    return found + [f"{d.file}: {text}" for d in (a, b) for text in d.json.warnings]
