"""A small world of matrix products with known costs, for the tests of the calibration report."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from calibration.fit_components import Components, NameFit
from calibration.fit_energy import fit_coefficients, fit_static, on_boards, windows
from calibration.fit_memory import fit_memory
from calibration.fit_power import cross_validate, refine
from calibration.fit_time import START, fit_time
from calibration.observations import Observation
from calibration.tables import table
from energymodel import hardware, laws, power
from energymodel.profile import Estimate

MOST_HZ, CELSIUS = 1.98e9, 50.0
STATIC_W, STATIC_W_PER_C = 90.0, 0.6
HBM_BYTE_J, MEMORY_BASE_W = 2.5e-11, 45.0
ENERGY = {"flop_j": 5e-13, "weight_byte_j": 5e-11, "row_byte_j": 8e-11, "busy_w": 60.0}
# No mean power reaches it: everything runs at full clock.
CAP_W = 1e5
FAMILIES = ((4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (3072, 1024), (5120, 5120))
ROWS = (1, 16, 64, 256, 1024)
SPEC = hardware.load("h200")

Twist = Callable[[Mapping[str, int]], float]


def observation(**fields: object) -> Observation:
    """One burst of a small product, unless ``fields`` say otherwise."""
    usual: dict[str, object] = {
        "op": "gemm",
        "shape": {"m": 1, "n": 4096, "k": 4096},
        "mode": "burst",
        "trial": 0,
        "call_s": 1e-5,
        "stack": "torch linear",
        "gpu": "NVIDIA H200",
        "board": "board-a",
        "driver": "580",
        "sm_clock_hz": MOST_HZ,
    }
    return Observation(**(usual | fields))  # type: ignore[arg-type]


def world(
    *,
    boards: Mapping[str, float] | None = None,
    memory: Mapping[str, float] | None = None,
    trials: int = 1,
    noise: float = 0.002,
    twist: Twist = lambda _: 0.0,
    seed: int = 0,
    **fields: object,
) -> tuple[Observation, ...]:
    """Bursts and sustained windows of products, and idle windows, with noise in log.

    Args:
        boards: log of what each board's energy is multiplied by.
        memory: joules per byte in each board's memory; ``HBM_BYTE_J`` unless given.
        trials: of every point.
        noise: standard deviation of the log of times and energies.
        twist: log of what the energy of a shape is multiplied by, beyond the law.
        seed: of the noise.
        fields: of every observation.
    """
    random = np.random.default_rng(seed)
    seen = []
    clock_s = 1.8e9
    for board, offset in (boards or {"board-a": 0.0}).items():
        common = {**fields, "board": board}
        for celsius in np.linspace(35, 60, 8):
            idle_w = STATIC_W + STATIC_W_PER_C * celsius + random.normal(0, 0.2)
            clock_s += 2.0
            seen.append(
                observation(
                    **{**common, "op": "idle", "shape": {}, "mode": "idle"},
                    temperature_c=float(celsius),
                    duration_s=1.0,
                    energy_j=float(idle_w),
                    memory_power_w=MEMORY_BASE_W,
                    time_s=clock_s,
                )
            )
        for trial in range(trials):
            for n, k in FAMILIES:
                for m in ROWS:
                    shape = {"m": m, "n": n, "k": k}
                    clock_s += 2.0
                    one = {**common, "shape": shape, "trial": trial, "time_s": clock_s}
                    byte_j = (memory or {}).get(board, HBM_BYTE_J)
                    seen += _product(one, offset + twist(shape), noise, random, byte_j)
    return tuple(seen)


def _product(
    common: dict[str, object],
    extra: float,
    noise: float,
    random: np.random.Generator,
    byte_j: float,
) -> list[Observation]:
    t = table("gemm", [observation(**common)])
    full_s = float(laws.LAWS["gemm"](t.shapes, START["gemm"]).seconds[0])
    moved = float((t.weight_bytes + t.row_bytes)[0])
    core = power.core_energy_j(ENERGY, t.flop, t.weight_bytes, t.row_bytes, np.array([full_s]))
    static_w = STATIC_W + STATIC_W_PER_C * CELSIUS
    call_j = static_w * full_s + float(core[0]) + byte_j * moved
    errors = np.exp(random.normal(0, noise, 3))
    calls = 1.0 / full_s
    sustained: dict[str, object] = {
        "mode": "sustained",
        "duty": 1.0,
        "duration_s": 1.0,
        "busy_s": 1.0,
        "calls": calls,
        "call_s": full_s * float(errors[1]),
        "energy_j": calls * call_j * float(np.exp(extra) * errors[2]),
        "temperature_c": CELSIUS,
        "memory_power_w": MEMORY_BASE_W + byte_j * moved / full_s,
    }
    return [
        observation(**{**common, "call_s": full_s * float(errors[0])}),
        observation(**{**common, **sustained}),
    ]


def components(
    seen: Sequence[Observation], left_out: Mapping[str, str] | None = None
) -> Components:
    """What ``calibration.fit`` finds for the products alone."""
    static = fit_static(seen)
    t = table("gemm", seen)
    time = fit_time(t)
    memory = fit_memory([t])
    w = on_boards(windows(t, static, time, MOST_HZ), memory)
    hbm_byte_j = memory.usual
    exponent = Estimate(value=1.0, stderr=0.05, unit="1")
    held_out_j, held_out_s = cross_validate(w, hbm_byte_j, exponent, CAP_W)
    start = fit_coefficients(w, hbm_byte_j, exponent.value)
    fitted = NameFit(
        table=t,
        time=time,
        windows=w,
        power=refine(w, start, exponent, CAP_W),
        held_out_j=held_out_j,
        held_out_s=held_out_s,
    )
    return Components(
        observations=tuple(seen),
        static=static,
        memory=memory,
        exponent=exponent,
        limit_share=Estimate(value=0.99, stderr=0.001, unit="1"),
        names={"gemm": fitted},
        left_out=left_out or {},
    )
