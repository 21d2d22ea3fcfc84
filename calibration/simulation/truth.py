"""The declared truth of a simulated GPU: every coefficient that a calibration should give back.

Time follows the laws of ``energymodel.laws`` with parameters away from where the fit starts;
energy follows ``energymodel.power``. What no law covers has a plain cost by its size.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calibration.fit_time import START
from calibration.grid import Point
from calibration.observations import Observation
from calibration.simulation.gpu import SimulatedGpu, SimulatedOp
from calibration.tables import Table, names_of, table
from energymodel import laws
from energymodel.hardware import GpuSpec
from energymodel.laws import STREAMING_KINDS
from energymodel.power import StepLoad, core_energy_j
from energymodel.timing import clocked_seconds

# How far parameters are from where their fit starts, each in its own direction.
AWAY = 0.12
# Rates of the GPU that the starting values belong to: FLOP/s in bfloat16 and bytes/s.
START_FLOP_PER_S, START_BYTES_PER_S = 989.4e12, 4.8e12

ENERGY: Mapping[str, Mapping[str, float]] = {
    "gemm": {"flop_j": 8e-13, "weight_byte_j": 6e-11, "row_byte_j": 8e-11, "busy_w": 90.0},
    "decode_attention": {
        "flop_j": 8e-13, "weight_byte_j": 8e-11, "row_byte_j": 2e-10, "busy_w": 30.0,
    },
    "prefill_attention": {
        "flop_j": 1.1e-12, "weight_byte_j": 5e-11, "row_byte_j": 1.2e-10, "busy_w": 60.0,
    },
    "moe": {"flop_j": 1.0e-12, "weight_byte_j": 9e-11, "row_byte_j": 2e-10, "busy_w": 30.0},
}  # fmt: skip
ROWS_ENERGY = {"flop_j": 0.0, "weight_byte_j": 1.5e-10, "row_byte_j": 1e-10, "busy_w": 20.0}
OTHER_ENERGY = {"flop_j": 9e-13, "weight_byte_j": 8e-11, "row_byte_j": 1e-10, "busy_w": 40.0}
CLOCK_SHARE: Mapping[str, float] = {"gemm": 0.7, "prefill_attention": 0.8, "moe": 0.9}
# FLOP/s and joules per FLOP against bfloat16.
DTYPES: Mapping[str, tuple[float, float]] = {
    "fp8": (1.9, 0.55),
    "fp8_block": (1.7, 0.6),
    "int8": (1.8, 0.5),
    "tf32": (0.5, 1.9),
    "float32": (0.06, 9.0),
    "int4": (0.9, 1.05),
}
# An operation whose operands stay in the cache takes this share of its time, and no HBM.
WARM_SHARE = 0.7
# What has no law: seconds to launch, bytes/s, joules per byte in the SMs, watts while busy.
PLAIN_LAUNCH_S, PLAIN_BYTES_PER_S, PLAIN_BYTE_J, PLAIN_BUSY_W = 3e-6, 3.5e12, 8e-11, 20.0
PLAIN_VALUE_BYTES = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Declared coefficients; ``static_w + static_w_per_c T`` is static power.

    ``law`` and ``energy`` give the parameters of ``laws.LAWS`` and the coefficients of
    ``power.core_energy_j`` of every name in ``tables`` (``gemm``, ``gemm.fp8``, ...).
    """

    gpu: GpuSpec
    static_w: float = 90.0
    static_w_per_c: float = 0.7
    ambient_c: float = 29.0
    c_per_w: float = 0.038
    limit_share: float = 0.99
    exponent: float = 1.3
    hbm_byte_j: float = 2.2e-11
    memory_idle_power_w: float = 40.0

    def law(self, name: str) -> dict[str, float]:
        """Parameters of the time law of ``name``."""
        kind, _, dtype = name.partition(".")
        values = {
            parameter: value * (1.0 + AWAY * math.sin(3.0 * i + len(kind)))
            for i, (parameter, value) in enumerate(START[kind].items())
        }
        for parameter in values:
            if parameter.endswith("flop_per_s"):
                values[parameter] *= self.gpu.peak_flop_per_s["bfloat16"] / START_FLOP_PER_S
                values[parameter] *= DTYPES.get(dtype, (1.0, 1.0))[0]
            elif parameter.endswith("bytes_per_s"):
                values[parameter] *= self.gpu.hbm_bytes_per_s / START_BYTES_PER_S
        return {**values, "sm_count": float(self.gpu.sm_count)}

    def energy(self, name: str) -> dict[str, float]:
        """Energy coefficients of ``name``, ``hbm_byte_j`` among them."""
        kind, _, dtype = name.partition(".")
        of_kind = ENERGY.get(kind, ROWS_ENERGY if kind in STREAMING_KINDS else OTHER_ENERGY)
        flop_j = of_kind["flop_j"] * DTYPES.get(dtype, (1.0, 1.0))[1]
        return {**of_kind, "flop_j": flop_j, "hbm_byte_j": self.hbm_byte_j}

    def clock_share(self, name: str) -> float:
        """Share of the time that waits for the SMs which stretches with 1/clock."""
        return CLOCK_SHARE.get(name.partition(".")[0], 1.0)

    def load(self, t: Table) -> StepLoad:
        """What one call asks of the GPU at full clock, for each row of a table."""
        timed = laws.LAWS[t.kind](t.shapes, self.law(t.name))
        full_s = np.asarray(timed.seconds, dtype=np.float64)
        clocked_s = clocked_seconds(t.kind, timed, full_s) * self.clock_share(t.name)
        work = (t.core_flop, t.weight_bytes, t.row_bytes, full_s)
        return StepLoad(
            fixed_s=full_s - clocked_s,
            clocked_s=clocked_s,
            core_j=core_energy_j(self.energy(t.name), *work),
            hbm_j=self.hbm_byte_j * t.hbm_bytes,
        )

    def op(self, point: Point) -> SimulatedOp:
        """What one call of a point of the grid costs."""
        seen = _observation(point)
        cold = replace(seen, cache="cold")
        names = names_of(cold)
        if not names:
            return self._plain(point.shape)
        load = self.load(table(names[0], [cold], float(self.gpu.sm_count), self.gpu.l2_bytes))
        op = _simulated(
            float(load.fixed_s[0]),
            float(load.clocked_s[0]),
            float(load.core_j[0]),
            float(load.hbm_j[0]),
        )
        if seen.cache == "cold":
            return op
        return replace(op, time_s=WARM_SHARE * op.time_s, memory_share=0.0)

    def _plain(self, shape: Mapping[str, int]) -> SimulatedOp:
        moved = shape.get("bytes", PLAIN_VALUE_BYTES * math.prod(shape.values()))
        # Shapes of what moves nothing (a launch, a graph) are counts of something small.
        seconds = PLAIN_LAUNCH_S + min(moved / PLAIN_BYTES_PER_S, 1e-3)
        moved = min(moved, 1e-3 * PLAIN_BYTES_PER_S)
        core_j = PLAIN_BYTE_J * moved + PLAIN_BUSY_W * seconds
        return _simulated(seconds, 0.0, core_j, self.hbm_byte_j * moved)

    def simulated_gpu(
        self,
        *,
        board: str = "simulated",
        board_factor: float = 1.0,
        noisy: bool = True,
        seed: int = 0,
    ) -> SimulatedGpu:
        """A board of this GPU; ``noisy`` as a real one is, else without noise and jitter."""
        gpu = SimulatedGpu(
            name=self.gpu.full_name,
            board=board,
            board_factor=board_factor,
            static_power_w=self.static_w,
            static_w_per_c=self.static_w_per_c,
            temperature_c=self.ambient_c,
            c_per_w=self.c_per_w,
            memory_idle_power_w=self.memory_idle_power_w,
            power_limit_w=self.gpu.power_limit_w,
            limit_share=self.limit_share,
            exponent=self.exponent,
            max_sm_clock_hz=self.gpu.max_sm_clock_hz,
            seed=seed,
        )
        if not noisy:
            return gpu
        return replace(
            gpu, tick_jitter_s=2e-3, counter_noise_j=0.02, run_noise=2e-3, time_noise=5e-3
        )


def declared(gpu: GpuSpec) -> Truth:
    """The truth of a simulated GPU with this datasheet."""
    return Truth(gpu=gpu)


def law(truth: Truth) -> Callable[[Point], SimulatedOp]:
    """The cost of every point, worked out once each: what ``SimulatedBench`` asks for."""
    known: dict[str, SimulatedOp] = {}

    def of(point: Point) -> SimulatedOp:
        if point.key not in known:
            known[point.key] = truth.op(point)
        return known[point.key]

    return of


def _simulated(fixed_s: float, clocked_s: float, core_j: float, hbm_j: float) -> SimulatedOp:
    seconds, joules = fixed_s + clocked_s, core_j + hbm_j
    return SimulatedOp(
        time_s=seconds,
        power_w=joules / seconds,
        clock_bound=clocked_s / seconds,
        memory_share=hbm_j / joules if joules else 0.0,
    )


def _observation(point: Point) -> Observation:
    """A line as a sweep would write it of this point, without what it measured."""
    how: dict[str, Any] = {
        "dtype": point.dtype,
        "library": point.library,
        "cache": point.cache,
    }
    return Observation(
        **how,
        op=point.op,
        shape=point.shape,
        mode="burst",
        trial=0,
        call_s=1.0,
        stack="simulated",
        gpu="simulated",
        board="simulated",
        driver="simulated",
    )
