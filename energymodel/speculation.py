"""At which batch speculative decoding stops paying, in energy and in time between tokens.

A batch of equal requests is predicted with and without drafts. With few sequences a step streams
the weights whatever it computes, so that tokens which are verified along with another cost little;
with many it computes what drafts were wrong for nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from energymodel.deployment import Deployment
from energymodel.errors import InputError
from energymodel.model import ModelSpec
from energymodel.predict import predict
from energymodel.prediction import Prediction
from energymodel.profile import Profile
from energymodel.speculative import tokens_per_step
from energymodel.workload import Bin, Workload

# Acceptance rates that break-even is interpolated between.
RATES = tuple(i / 10 for i in range(11))


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationRow:
    """One batch: joules of an output token (prompts included) and mean seconds between tokens.

    ``*_ratio``: with drafts over without. ``break_even_*``: the acceptance rate from which drafts
    pay; None where they do not at any.
    """

    batch: int
    energy_per_output_token_j: float
    plain_energy_per_output_token_j: float
    energy_ratio: float
    itl_s: float
    plain_itl_s: float
    itl_ratio: float
    break_even_acceptance_energy: float | None
    break_even_acceptance_itl: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """The batch from which drafts no longer pay; None where they pay at the largest of the table.

    It lies between two batches of the table; 0 means that they pay at none.
    """

    energy: float | None
    itl: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """Speculative decoding against plain decoding, batch by batch."""

    schema_version: int = 1
    model: str
    gpu: str
    speculative_model: str
    num_speculative_tokens: int
    acceptance_rate: float
    tokens_per_step: float
    input_tokens: int
    output_tokens: int
    rows: tuple[SpeculationRow, ...]
    break_even_batch: BreakEven
    warnings: tuple[str, ...]


def speculate(
    model: ModelSpec,
    deployment: Deployment,
    profile: Profile,
    *,
    input_tokens: int,
    output_tokens: int,
    batches: Sequence[int],
) -> Speculation:
    """Predict each batch of requests with and without what ``deployment`` drafts.

    Raises:
        InputError: nothing drafts, or the workload or the deployment cannot be predicted.
    """
    rate = deployment.acceptance_rate
    if deployment.speculative_model is None:
        raise InputError("speculative_model must be given: a model that drafts, or ngram.")
    if rate is None:
        raise InputError("acceptance_rate must be given with speculative_model.")
    if output_tokens < 2:
        raise InputError("output_tokens must be 2 or more: drafts follow the first token.")
    plain = replace(
        deployment, speculative_model=None, num_speculative_tokens=0, acceptance_rate=None
    )
    rows: list[SpeculationRow] = []
    warnings: list[tuple[str, ...]] = []
    for batch in sorted(set(batches)):
        asked = Bin(input_tokens=input_tokens, output_tokens=output_tokens, count=batch)
        workload = Workload(bins=(asked,))
        without = _costs(predict(model, plain, workload, profile))
        found = predict(model, deployment, workload, profile)
        with_drafts = _costs(found)
        warnings.append(found.warnings)
        swept = [
            _costs(predict(model, replace(deployment, acceptance_rate=a), workload, profile))
            for a in RATES
        ]
        even = [
            crossing(RATES, [costs[i] / without[i] for costs in swept], falling=True)
            for i in range(2)
        ]
        rows.append(
            SpeculationRow(
                batch=batch,
                energy_per_output_token_j=with_drafts[0],
                plain_energy_per_output_token_j=without[0],
                energy_ratio=with_drafts[0] / without[0],
                itl_s=with_drafts[1],
                plain_itl_s=without[1],
                itl_ratio=with_drafts[1] / without[1],
                break_even_acceptance_energy=even[0],
                break_even_acceptance_itl=even[1],
            )
        )
    return Speculation(
        model=model.name,
        gpu=profile.gpu.name,
        speculative_model=deployment.speculative_model,
        num_speculative_tokens=deployment.num_speculative_tokens,
        acceptance_rate=rate,
        tokens_per_step=tokens_per_step(deployment),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        rows=tuple(rows),
        break_even_batch=BreakEven(
            energy=_last_paying(rows, [row.energy_ratio for row in rows]),
            itl=_last_paying(rows, [row.itl_ratio for row in rows]),
        ),
        # Those of the smallest and the largest batch: what lies between is as one of them.
        warnings=tuple(dict.fromkeys((*warnings[0], *warnings[-1]))),
    )


def _costs(found: Prediction) -> tuple[float, float]:
    """(joules of an output token, mean seconds between tokens)."""
    assert found.energy_per_output_token_j is not None  # noqa: S101 (two tokens or more)
    assert found.itl_s is not None  # noqa: S101
    return found.energy_per_output_token_j, found.itl_s.mean


def _last_paying(rows: Sequence[SpeculationRow], ratios: Sequence[float]) -> float | None:
    """The batch at which a ratio rises to 1 for good, between the logarithms of two; 0 if it never pays."""
    paying = [i for i, ratio in enumerate(ratios) if ratio < 1.0]
    if not paying:
        return 0.0
    last = paying[-1]
    found = crossing([math.log(row.batch) for row in rows[last:]], ratios[last:], falling=False)
    return None if found is None else math.exp(found)


def crossing(x: Sequence[float], ratios: Sequence[float], *, falling: bool) -> float | None:
    """Where ``ratios`` over ``x`` first passes 1 in its direction, interpolated; None if it does not.

    A ratio that begins beyond 1 has passed it at the first ``x``.
    """
    beyond = [(r < 1) if falling else (r >= 1) for r in ratios]
    if not any(beyond):
        return None
    i = beyond.index(True)
    if i == 0:
        return float(x[0])
    share = (1.0 - ratios[i - 1]) / (ratios[i] - ratios[i - 1])
    return float(x[i - 1] + share * (x[i] - x[i - 1]))
