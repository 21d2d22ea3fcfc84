"""Where an estimate from FLOP alone is wrong, by how much, and what it ranks the wrong way round.

A configuration is a model, a number of requests and a prompt length; what is compared is energy per
token: of a prompt token in prefill, of a generated one in decode. FLOP-only says FLOP at the
datasheet's peak at the power limit (``baselines.py``); as it is proportional to FLOP, no efficiency
that one could fit changes what it ranks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from energymodel.deployment import changed_flags
from energymodel.errors import InputError, WorkError
from energymodel.io import Run
from energymodel.prediction import Prediction
from energymodel.ranking import SAME, Ranking, equal, rank
from energymodel.steps import Floats
from energymodel.workload import Bin, Workload

K = TypeVar("K", str, int)
Work = Literal["prefill", "decode", "generation"]

N_INVERSIONS = 10
MOST_CONFIGURATIONS = 3000


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One point: energies per token of ``work``; ``ratio`` is FLOP-only over the energy.

    ``work`` is "prefill" or "decode", or "generation": a measured run with all that it took, per
    generated token. ``batch`` requests of ``context`` prompt tokens each; ``flags`` of the
    deployment that are not the defaults.
    """

    model: str
    flags: str
    batch: int
    context: int
    work: Work
    energy_per_token_j: float
    flop_only_per_token_j: float
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Inversion:
    """FLOP-only says that ``chosen`` costs less than ``other``, by ``flop_only_ratio`` (below 1).

    In truth it costs ``energy_ratio`` times as much.
    """

    chosen: Configuration
    other: Configuration
    flop_only_ratio: float
    energy_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Lowest, median and highest ratio of FLOP-only to energy."""

    configurations: int
    lowest: float
    median: float
    highest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkGap:
    """The gap in one kind of work; errors are fractions of the energy.

    ``fitted_efficiency`` is the median ratio; dividing by it is the best that one number can do,
    and leaves ``fitted_median_ape`` and ``fitted_p90_ape``. ``rankings``: "all" pairs, those of
    "models" (same batch and context) and those of "settings" (same model).
    """

    ratio: Spread
    median_ape: float
    fitted_efficiency: float
    fitted_median_ape: float
    fitted_p90_ape: float
    rankings: Mapping[str, Ranking]
    by_model: Mapping[str, Spread]
    by_batch: Mapping[str, Spread]
    by_context: Mapping[str, Spread]
    inversions: tuple[Inversion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """What could not be predicted, and why."""

    configuration: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FlopGap:
    """What ``explain --flop-gap --json`` prints.

    ``source``: whether the energies are predicted or measured; ``profiles``: those that predicted
    them, or counted the FLOP, with their kind.
    """

    schema_version: int = 1
    source: Literal["predicted", "measured"]
    profiles: Mapping[str, str]
    work: Mapping[str, WorkGap]
    configurations: tuple[Configuration, ...]
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...]


# Configurations ------------------------------------------------------------------------------


def predicted(
    predict: Callable[[str, Workload], Prediction],
    models: Sequence[str],
    batches: Sequence[int],
    contexts: Sequence[int],
    output_tokens: int,
) -> FlopGap:
    """The gap over all combinations, from predictions; ``predict`` (model, workload).

    Raises:
        InputError: too many combinations.
        WorkError: not one of them can be predicted.
    """
    _check_size(len(models) * len(batches) * len(contexts))
    rows: list[Configuration] = []
    left_out: list[LeftOut] = []
    warnings: dict[str, None] = {}
    profiles: dict[str, str] = {}
    for model in models:
        for batch in batches:
            for context in contexts:
                one = Bin(input_tokens=context, output_tokens=output_tokens, count=batch)
                try:
                    p = predict(model, Workload(bins=(one,)))
                except (InputError, WorkError) as error:
                    what = f"{model}, {batch:,} x {context:,}"
                    left_out.append(LeftOut(configuration=what, reason=str(error)))
                    continue
                profiles |= _profile(p)
                warnings |= dict.fromkeys(f"{p.model}: {text}" for text in p.warnings)
                rows += _phases(p, batch, context)
    return _gap("predicted", rows, left_out, tuple(warnings), profiles)


def measured(runs: Iterable[Run], predict: Callable[[Run], Prediction]) -> FlopGap:
    """The gap in measured runs; ``predict`` counts their FLOP.

    Runs of at most one output token count as prefill, the others as generation.

    Raises:
        InputError: too many runs.
        WorkError: the FLOP of not one of them can be counted.
    """
    runs = tuple(runs)
    _check_size(len(runs))
    rows: list[Configuration] = []
    left_out: list[LeftOut] = []
    profiles: dict[str, str] = {}
    for run in runs:
        requests = run.workload.requests
        context = round(run.workload.input_tokens / requests)
        try:
            p = predict(run)
        except (InputError, WorkError) as error:
            what = f"{run.model}, {requests:,.0f} x {context:,}"
            left_out.append(LeftOut(configuration=what, reason=str(error)))
            continue
        profiles |= _profile(p)
        prefill = all(b.output_tokens <= 1 for b in run.workload.bins)
        tokens = run.workload.input_tokens if prefill else run.workload.output_tokens
        rows.append(
            _configuration(
                p,
                int(requests),
                context,
                "prefill" if prefill else "generation",
                tokens=tokens,
                energy_j=run.energy_j,
                flop_only_j=p.flop_only.energy_j,
            )
        )
    return _gap("measured", rows, left_out, (), profiles)


def _profile(p: Prediction) -> dict[str, str]:
    return {str(p.provenance.get("profile", "")): str(p.provenance.get("kind", ""))}


def _check_size(size: int) -> None:
    if size > MOST_CONFIGURATIONS:
        raise InputError(
            f"There must be at most {MOST_CONFIGURATIONS:,} configurations to rank, got {size:,}."
        )


def _phases(p: Prediction, batch: int, context: int) -> list[Configuration]:
    """Prefill and decode of one prediction, as far as there are any."""
    flop = sum(causes.flop.amount for causes in p.causes.values())
    found = []
    works: tuple[Work, ...] = ("prefill", "decode")
    for work in works:
        causes = p.causes.get(work)
        if causes is None or causes.tokens == 0 or flop == 0:
            continue
        found.append(
            _configuration(
                p,
                batch,
                context,
                work,
                tokens=causes.tokens,
                energy_j=p.phases[work].energy_j,
                flop_only_j=p.flop_only.energy_j * causes.flop.amount / flop,
            )
        )
    return found


def _configuration(
    p: Prediction,
    batch: int,
    context: int,
    work: Work,
    *,
    tokens: float,
    energy_j: float,
    flop_only_j: float,
) -> Configuration:
    return Configuration(
        model=p.model,
        flags=" ".join(changed_flags(p.deployment)),
        batch=batch,
        context=context,
        work=work,
        energy_per_token_j=energy_j / tokens,
        flop_only_per_token_j=flop_only_j / tokens,
        ratio=flop_only_j / energy_j,
    )


# What they amount to -------------------------------------------------------------------------


def _gap(
    source: Literal["predicted", "measured"],
    rows: Sequence[Configuration],
    left_out: Sequence[LeftOut],
    warnings: tuple[str, ...],
    profiles: Mapping[str, str],
) -> FlopGap:
    if not rows:
        reason = f"the first reason: {left_out[0].reason}" if left_out else "there is none"
        raise WorkError(f"No configuration can be compared; {reason.rstrip('.')}.")
    works = dict.fromkeys(r.work for r in rows)
    return FlopGap(
        source=source,
        profiles=profiles,
        work={work: _of_work([r for r in rows if r.work == work]) for work in works},
        configurations=tuple(rows),
        left_out=tuple(left_out),
        warnings=warnings,
    )


def _of_work(rows: Sequence[Configuration]) -> WorkGap:
    ratio = np.array([r.ratio for r in rows])
    efficiency = float(np.median(ratio))
    fitted = np.abs(ratio / efficiency - 1)
    truth = np.log([r.energy_per_token_j for r in rows])
    simple = np.log([r.flop_only_per_token_j for r in rows])
    same_load = equal([(r.batch, r.context) for r in rows])
    same_model = equal([r.model for r in rows])
    return WorkGap(
        ratio=_spread(rows),
        median_ape=float(np.median(np.abs(ratio - 1))),
        fitted_efficiency=efficiency,
        fitted_median_ape=float(np.median(fitted)),
        fitted_p90_ape=float(np.quantile(fitted, 0.9)),
        rankings={
            "all": rank(truth, simple),
            "models": rank(truth, simple, same_load & ~same_model),
            "settings": rank(truth, simple, same_model),
        },
        by_model=_by(rows, lambda r: r.model),
        by_batch=_by(rows, lambda r: r.batch),
        by_context=_by(rows, lambda r: r.context),
        inversions=tuple(_inversions(rows, truth, simple)),
    )


def _by(rows: Sequence[Configuration], key: Callable[[Configuration], K]) -> dict[str, Spread]:
    groups: dict[K, list[Configuration]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return {str(name): _spread(groups[name]) for name in sorted(groups)}


def _spread(rows: Sequence[Configuration]) -> Spread:
    ratio = np.array([r.ratio for r in rows])
    return Spread(
        configurations=len(rows),
        lowest=float(ratio.min()),
        median=float(np.median(ratio)),
        highest=float(ratio.max()),
    )


def _inversions(
    rows: Sequence[Configuration], truth: Floats, simple: Floats
) -> Iterable[Inversion]:
    """The worst first, by what following FLOP-only would cost; each configuration is chosen once."""
    # chosen i, other j: FLOP-only says that i costs less, and it costs more.
    costs_more = truth[:, None] - truth[None, :]
    says_less = simple[None, :] - simple[:, None]
    wrong = np.where((costs_more > SAME) & (says_less > SAME), costs_more, 0.0)
    worst = wrong.argmax(axis=1)
    order = np.argsort(-wrong[np.arange(len(rows)), worst], kind="stable")
    for i in order[:N_INVERSIONS]:
        j = worst[i]
        if wrong[i, j] == 0.0:
            return
        yield Inversion(
            chosen=rows[i],
            other=rows[j],
            flop_only_ratio=float(np.exp(simple[i] - simple[j])),
            energy_ratio=float(np.exp(truth[i] - truth[j])),
        )
