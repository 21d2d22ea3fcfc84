"""Whether a prediction stays inside what was calibrated; outside it widens and says so."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from energymodel import fabric, prefix_cache, reading, served, speculative, uncertainty
from energymodel.blocks import SoftmaxAttention
from energymodel.collectives import COMPONENT
from energymodel.deployment import Deployment
from energymodel.laws import domain_axes
from energymodel.model import ModelSpec
from energymodel.power import MIN_RELATIVE_CLOCK
from energymodel.profile import Profile
from energymodel.steps import Floats
from energymodel.workload import Bin, Workload

if TYPE_CHECKING:
    from energymodel.costs import StepCosts

# Factor on the half width (in log energy) of the interval outside the calibrated shapes.
WIDER = 2.0
# Half width where another kernel runs than those that were calibrated. The one such model that was
# measured, with heads of 96, took up to 1.53 times what was predicted (held_out_runs.jsonl).
OTHER_KERNEL = float(np.log(1.6))
# A shape this little outside the calibrated range is still interpolation for a smooth law.
SLACK = 1.25
# A step whose launches take this share of it is at the mercy of the host; warn from this share of
# the time on.
HOST_BOUND, HOST_SHARE = 0.7, 0.2
# Operations below this share of the energy do not decide it, nor does this share of an operation.
NEGLIGIBLE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Half widths of the intervals in log energy and log duration, and warnings of one sentence each.

    ``inner`` is the share of the half width in energy that 80 % of the errors stay below.
    """

    half_width: float
    duration_half_width: float
    inner: float
    warnings: tuple[str, ...]


def examine(
    model: ModelSpec,
    deployment: Deployment,
    workload: Workload,
    profile: Profile,
    *,
    costs: "StepCosts",
    weight: Floats,
    scheduled: Sequence[str] = (),
) -> Verdict:
    """Compare what was asked with what was calibrated.

    ``scheduled``: warnings that the schedule gives rise to; the interval is widened for them.

    The interval is made of the sources of error (``uncertainty.py``), as wide as runs of held-out
    models of the same engine ask for, and is widened where a warning says that the prediction
    reaches further.
    """
    kernels = [*_assumed_warnings(model), *kernel_warnings(model, profile)]
    reach = [
        *reading.warnings(model, workload, deployment.engine),
        *shape_warnings(profile, costs, weight),
        *power_warnings(deployment, profile, costs),
        *fabric.warnings([cost.op for cost in costs.ops], deployment, profile),
        *scheduled,
        *_length_warnings(model, workload),
        *served.warnings(deployment),
    ]
    lent, share = borrowed(profile, costs, weight)
    least = float(np.log1p(np.expm1(OTHER_KERNEL) * share))
    if kernels or (deployment.engine == "vllm" and not reading.vllm_serves(model)):
        least = max(least, OTHER_KERNEL)
    regime = profile.accuracy.regimes[deployment.engine]
    energy, duration = (
        max(of.scale(spread) * spread.outer * (WIDER if reach else 1.0), least)
        for of, spread in zip(
            uncertainty.sources(costs, weight, profile),
            (regime.energy, regime.duration),
            strict=True,
        )
    )
    half = deployment.dtype == "float16"
    notes = ["float16 is predicted with the coefficients measured in bfloat16."] if half else []
    notes += [*speculative.warnings(deployment), *served.notes(deployment)]
    if any(b.prefix_tokens for b in workload.bins):
        notes += prefix_cache.ignored(deployment)
    return Verdict(
        half_width=energy,
        duration_half_width=duration,
        inner=regime.energy.inner / regime.energy.outer,
        warnings=tuple(kernels + lent + reach + host_warnings(costs, weight) + notes),
    )


def _assumed_warnings(model: ModelSpec) -> list[str]:
    """A model that was read like another may run kernels that the other does not."""
    if not model.assumed:
        return []
    named = repr(model.model_type[:40])
    return [f"model_type {named} is not known: predicted is what a Llama of its sizes would take."]


def kernel_warnings(model: ModelSpec, profile: Profile) -> list[str]:
    """Kernels that no calibration saw: head sizes between the calibrated ones."""
    warnings = []
    known = profile.operations["decode_attention"].sizes.get("head_dim", ())
    heads = (layer.find(SoftmaxAttention) for layer in model.layers)
    for size in sorted({a.head_dim for a in heads if a is not None}):
        if known and size not in known:
            listed = ", ".join(f"{k:g}" for k in known)
            warnings.append(
                f"head_dim {size} runs an attention kernel that was not calibrated "
                f"(calibrated: {listed})."
            )
    return warnings


def borrowed(profile: Profile, costs: "StepCosts", weight: Floats) -> tuple[list[str], float]:
    """Operations predicted with the coefficients of others: (warnings, their share of the energy)."""
    total_j = float(weight @ costs.step_j)
    found: dict[str, float] = {}
    for cost in costs.ops:
        op = cost.op
        if op.component == COMPONENT:
            continue
        name = profile.calibrated_as(op.law)
        # The pooled kind of calls that work row by row is made of them: nothing is borrowed.
        if not op.stands_for and name in (op.law, "elementwise"):
            continue
        what = op.stands_for or op.law
        said = f"{what} was not calibrated: predicted with the coefficients of {name}."
        found[said] = found.get(said, 0.0) + float(weight @ cost.energy_j) / total_j
    matter = {said: share for said, share in found.items() if share >= NEGLIGIBLE}
    return list(matter), sum(matter.values())


def power_warnings(deployment: Deployment, profile: Profile, costs: "StepCosts") -> list[str]:
    """Where the power limit is not that of the calibration, or cannot be held."""
    limit_w = deployment.power_limit_w
    if limit_w is None or limit_w == profile.gpu.power_limit_w:
        return []
    warnings = [
        (
            f"power limit {limit_w:g} W: extrapolated from the clock law seen at "
            f"{profile.gpu.power_limit_w:g} W."
        )
    ]
    if (costs.relative_clock <= MIN_RELATIVE_CLOCK * 1.001).any():
        warnings.append(
            f"power limit {limit_w:g} W: not held; even the lowest modelled clock "
            f"({MIN_RELATIVE_CLOCK:.0%} of the maximum) draws more."
        )
    return warnings


def _length_warnings(model: ModelSpec, workload: Workload) -> list[str]:
    longest = max(_length(model, b) for b in workload.bins)
    allowed = model.max_position_embeddings
    if allowed is None or longest <= allowed:
        return []
    return [
        f"requests of {longest:,} tokens exceed the model's max_position_embeddings of {allowed:,}."
    ]


def _length(model: ModelSpec, b: Bin) -> int:
    """Positions of a request that the model must know, in its longer stack where it has two."""
    if model.encoder is None:
        shown = sum(tower.tokens(b) for tower in model.towers)
        return shown + b.input_tokens + b.output_tokens
    read = b.input_tokens if model.encoder_tokens is None else 0
    return max(read, model.start_tokens + b.output_tokens - 1)


def host_warnings(costs: "StepCosts", weight: Floats) -> list[str]:
    """Where the host's launches decide the duration, another host gives another duration."""
    bound = costs.launch_s > HOST_BOUND * costs.step_s
    share = float(weight[bound] @ costs.step_s[bound]) / float(weight @ costs.step_s)
    if share < HOST_SHARE:
        return []
    return [
        (
            f"{share:.0%} of the time is near or at the speed at which the host launches "
            "kernels, which differs between hosts."
        )
    ]


def shape_warnings(profile: Profile, costs: "StepCosts", weight: Floats) -> list[str]:
    """One sentence for each operation that matters and lies outside the calibrated shapes."""
    total_j = float(weight @ costs.step_j)
    seen: dict[tuple[str, str], str] = {}
    for cost in costs.ops:
        step_j = weight * cost.energy_j
        if cost.op.component == COMPONENT or float(step_j.sum()) < NEGLIGIBLE * total_j:
            continue
        shapes = {name: np.asarray(value) for name, value in cost.op.shape.items()}
        axes = domain_axes(cost.op.kind, shapes)
        for axis, (low, high) in profile.operation(cost.op.law).domain.items():
            worst = _worst(axes[axis], low, high, step_j)
            if worst is not None:
                seen.setdefault(
                    (cost.op.kind, axis),
                    f"{cost.op.name}: {axis} of {worst:,.0f} is outside the calibrated range of "
                    f"{low:,.0f} to {high:,.0f}.",
                )
    return list(seen.values())


def _worst(values: Floats, low: float, high: float, step_j: Floats) -> float | None:
    """The value furthest outside, if the steps outside carry a share of the operation's energy."""
    values = values + np.zeros_like(step_j)
    outside = (values > high * SLACK) | (values < low / SLACK)
    if float(step_j[outside].sum()) <= NEGLIGIBLE * float(step_j.sum()):
        return None
    beyond = values[outside]
    return float(beyond.max() if beyond.max() > high else beyond.min())
