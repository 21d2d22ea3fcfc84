"""Simpler estimates that predictions are compared with; a prediction never uses them."""

from typing import TYPE_CHECKING

import numpy as np

from energymodel.hardware import GpuSpec
from energymodel.prediction import Baseline
from energymodel.steps import Floats

if TYPE_CHECKING:
    from energymodel.predict import StepCosts

PEAK_DTYPE = "bfloat16"


def estimate(
    costs: "StepCosts", weight: Floats, gpu: GpuSpec, duration_s: float, energy_j: float
) -> dict[str, Baseline]:
    """Energy of the whole run by each simpler method.

    - ``flop_only``: FLOP at the datasheet's peak rate, at the board's power limit, the estimate
      that arXiv 2504.17674 (section 4) shows to be too low by 27 to 507 %.
    - ``roofline``: each operation takes the longer of FLOP at peak and bytes at peak, at the limit.
    - ``tdp``: the predicted duration at the limit.
    """
    peak = gpu.peak_flop_per_s[PEAK_DTYPE]
    flop_s = sum(c.op.count * float(weight @ c.op.flop) / peak for c in costs.ops)
    roofline_s = sum(
        c.op.count
        * float(weight @ np.maximum(c.op.flop / peak, c.op.hbm_bytes / gpu.hbm_bytes_per_s))
        for c in costs.ops
    )
    seconds = {"flop_only": flop_s, "roofline": roofline_s, "tdp": duration_s}
    return {
        name: Baseline(energy_j=s * gpu.power_limit_w, ratio=s * gpu.power_limit_w / energy_j)
        for name, s in seconds.items()
    }
