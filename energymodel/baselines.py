"""Simpler estimates that predictions are compared with; a prediction never uses them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from energymodel import power
from energymodel.prediction import Baseline
from energymodel.profile import Profile
from energymodel.steps import Floats, Ints

if TYPE_CHECKING:
    from energymodel.costs import StepCosts

PEAK_DTYPE = "bfloat16"
# The power law of arXiv 2507.11417 (section 3): above this share of the peak rate it draws the limit.
SATURATION, EXPONENT = 0.45, 0.7
# Baselines that are fitted to measured runs: of what each is a multiple.
FITTED: Mapping[str, str] = {"flop_only_fitted": "flop_only", "load_scaled_tdp": "tdp"}
# Candidates for a fitted factor; more of them change nothing.
MOST_CANDIDATES = 200
FOLDS = 10


def estimate(
    costs: "StepCosts",
    weight: Floats,
    profile: Profile,
    *,
    duration_s: float,
    energy_j: float,
    gpus: int = 1,
) -> dict[str, Baseline]:
    """Energy of the whole run on ``gpus`` GPUs by each simpler method.

    - ``flop_only``: FLOP at the datasheet's peak rate, at the board's power limit, the estimate
      that arXiv 2504.17674 (section 4) shows to be too low by 27 to 507 %.
    - ``roofline``: each operation takes the longer of FLOP at peak and bytes at peak, at the limit
      (S. Williams, A. Waterman, D. Patterson, Communications of the ACM 52(4), 2009).
    - ``tdp``: the predicted duration at the limit.
    - ``mfu_power_law``: idle power and a part that follows the share of the peak rate in each step
      (MFU), (MFU / 0.45)^0.7 up to the limit, as in arXiv 2507.11417 for Vidur's step times; here
      with the predicted ones, and with the static power of the profile as the idle power.
    """
    gpu = profile.gpu
    peak = gpu.peak_flop_per_s[PEAK_DTYPE]
    step_flop_s = np.asarray(sum(c.op.count * c.op.flop / peak for c in costs.ops))
    roofline_s = sum(
        c.op.count
        * float(weight @ np.maximum(c.op.flop / peak, c.op.hbm_bytes / gpu.hbm_bytes_per_s))
        for c in costs.ops
    )
    limit_w = gpu.power_limit_w
    joules = {
        "flop_only": float(weight @ step_flop_s) * limit_w,
        "roofline": roofline_s * limit_w,
        "tdp": duration_s * limit_w * gpus,
        "mfu_power_law": gpus * _power_law(costs, weight, profile, step_flop_s / gpus),
    }
    return {name: Baseline(energy_j=j, ratio=j / energy_j) for name, j in joules.items()}


def _power_law(costs: "StepCosts", weight: Floats, profile: Profile, step_flop_s: Floats) -> float:
    idle_w = float(power.static_power_w(profile.power, 0.0))
    mfu = np.divide(step_flop_s, costs.step_s, out=np.zeros_like(weight), where=costs.step_s > 0)
    share = np.minimum(mfu / SATURATION, 1.0) ** EXPONENT
    watts = idle_w + (profile.gpu.power_limit_w - idle_w) * share
    return float(weight @ (watts * costs.step_s)) + idle_w * costs.submit_s


def fitted(simple_j: Floats, measured_j: Floats, model: Ints, load: Ints) -> Floats:
    """``simple_j`` times one factor, fitted on runs of other models under the same load; [n].

    The factor is the one with the least median error. ``flop_only_fitted`` is FLOP at a fitted
    efficiency; ``load_scaled_tdp`` is TDP times a utilisation tuned for each load, offline and
    online, the baseline of WattGPU (arXiv 2607.02391). Where there is one model only, every tenth
    run is left out in turn; NaN where nothing is left to fit on.
    """
    groups = model if np.unique(model).size > 1 else np.arange(model.size) % FOLDS
    result = np.full(simple_j.shape, np.nan)
    for kind in np.unique(load):
        for group in np.unique(groups[load == kind]):
            own = (groups == group) & (load == kind)
            others = (groups != group) & (load == kind)
            if others.any():
                factor = _least_median_error(simple_j[others] / measured_j[others])
                result[own] = factor * simple_j[own]
    return result


def _least_median_error(ratio: Floats) -> float:
    """The factor, of those that make one run exact, with the least median of |factor ratio - 1|."""
    size = min(ratio.size, MOST_CANDIDATES)
    candidates = 1.0 / np.quantile(ratio, np.linspace(0, 1, size), method="nearest")
    errors = np.median(np.abs(candidates[:, None] * ratio - 1.0), axis=1)
    return float(candidates[int(np.argmin(errors))])
