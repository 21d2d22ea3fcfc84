"""Whether a prediction stays inside what was calibrated; outside it widens and says so."""

from typing import TYPE_CHECKING

import numpy as np

from energymodel.deployment import Deployment
from energymodel.model import ModelSpec
from energymodel.profile import Profile

if TYPE_CHECKING:
    from energymodel.predict import StepCosts

# Factor on the half width (in log energy) of the interval outside the calibrated domain.
WIDER = 2.0
# A shape this little outside the calibrated range is still interpolation for a smooth law.
SLACK = 1.25
# Operations below this share of the energy do not decide it.
NEGLIGIBLE = 0.02


def examine(
    model: ModelSpec, deployment: Deployment, profile: Profile, costs: "StepCosts"
) -> tuple[bool, list[str]]:
    """(outside the calibrated domain, warnings of one sentence each)."""
    warnings = _shape_warnings(profile, costs)
    limit_w = deployment.power_limit_w
    if limit_w is not None and limit_w != profile.gpu.power_limit_w:
        warnings.append(
            f"power limit {limit_w:g} W: extrapolated from the clock law seen at "
            f"{profile.gpu.power_limit_w:g} W."
        )
    longest = model.max_position_embeddings
    contexts = [0.0, *costs_context(costs)]
    if longest is not None and max(contexts) > longest:
        warnings.append(
            f"requests of {max(contexts):,.0f} tokens exceed the model's "
            f"max_position_embeddings of {longest:,}."
        )
    if deployment.dtype == "float16":
        warnings.append("float16 is predicted with the coefficients measured in bfloat16.")
    return bool(warnings), warnings


def costs_context(costs: "StepCosts") -> list[float]:
    """Longest mean context of a decode and longest chunk of a prefill, tokens."""
    longest = []
    for cost in costs.ops:
        shape = cost.op.shape
        if cost.op.kind == "decode_attention" and not np.isfinite(float(np.max(shape["window"]))):
            mean = np.asarray(shape["kv_tokens"]) / np.maximum(np.asarray(shape["num_seqs"]), 1)
            longest.append(float(mean.max()))
    return longest


def _shape_warnings(profile: Profile, costs: "StepCosts") -> list[str]:
    """One sentence for each operation that matters and lies outside the calibrated shapes."""
    total_j = float(costs.step_j.sum())
    seen: dict[tuple[str, str], str] = {}
    for cost in costs.ops:
        op = cost.op
        if float(cost.energy_j.sum()) < NEGLIGIBLE * total_j:
            continue
        active = op.hbm_bytes > 0
        for axis, (low, high) in profile.operations[op.kind].domain.items():
            values = (np.asarray(op.shape[axis]) + np.zeros_like(op.hbm_bytes))[active]
            worst = float(values.max() if values.max() > high * SLACK else values.min())
            if worst > high * SLACK or worst < low / SLACK:
                seen.setdefault(
                    (op.kind, axis),
                    f"{op.name}: {axis} of {worst:,.0f} is outside the calibrated range of "
                    f"{low:,.0f} to {high:,.0f}.",
                )
    return list(seen.values())
