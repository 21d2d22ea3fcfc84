"""A calibrated GPU: coefficients with standard errors, their valid domain, their provenance.

A profile is a JSON file. ``calibration.fit`` writes it, ``load`` reads it, and a prediction needs
nothing else about the GPU. Every coefficient is an ``Estimate``; nothing is executed or unpickled.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from energymodel import hardware
from energymodel.dtypes import WEIGHT_ONLY
from energymodel.errors import InputError
from energymodel.hardware import GpuSpec
from energymodel.kriging import Kriging
from energymodel.laws import STREAMING_KINDS, kind_of

# Names that a prediction looks up.
ENGINE: Mapping[str, tuple[str, ...]] = {
    "vllm": (
        "host_step_s", "submit_request_s", "submit_token_s", "launch_graph_layer_s", "launch_layer_s",
        "launch_experts_s", "launch_shared_expert_s", "launch_token_s", "step_s", "layer_s",
        "sequence_s", "outside_w",
    ),
    "transformers": (
        "launch_product_s", "launch_row_s", "launch_attention_s", "launch_layer_s", "pass_s",
        "token_s", "generate_s",
    ),
}  # fmt: skip
ENERGY = ("flop_j", "weight_byte_j", "row_byte_j", "busy_w", "hbm_byte_j")

Kind = Literal["measured", "transferred", "imported", "simulated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A fitted value, its standard error and its unit."""

    value: float
    stderr: float
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKriging:
    """``Kriging`` as JSON holds it; ``points`` are in units of the length scales.

    Hashed by identity: it is a cache key, and its thousands of numbers are never changed.
    """

    __hash__ = object.__hash__

    length_scales: tuple[float, ...]
    points: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    amplitude: float

    @lru_cache(maxsize=64)  # noqa: B019 - profiles live as long as the process
    def unpack(self) -> Kriging:
        """Arrays for evaluation."""
        return Kriging(
            length_scales=np.array(self.length_scales),
            points=np.array(self.points),
            weights=np.array(self.weights),
            amplitude=self.amplitude,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Covariance:
    """Covariance of the logarithms of fitted values, ``matrix[i][j]`` of ``names[i]`` and [j]."""

    names: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryKind:
    """What a byte costs in the memory of some boards: joules per byte in the HBM itself.

    Boards of one GPU model may carry memories of different makers.
    """

    byte_j: Estimate
    boards: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationProfile:
    """Time and energy of one kind of operation, in one dtype.

    ``law`` are the parameters of ``laws.LAWS[kind]``; ``clock_share`` says how much of the
    clocked time really stretches when the SM clock falls (1: like 1/f). ``energy``: ``flop_j`` per
    FLOP, ``weight_byte_j`` and ``row_byte_j`` per byte of weights (or cached keys and values) and
    of activations through SMs and caches, ``busy_w`` while the operation runs, ``hbm_byte_j`` per
    byte in the memory itself, which the SM clock does not touch.
    ``domain`` bounds the calibrated shapes, ``sizes`` lists the calibrated values of what selects
    a kernel and cannot be interpolated; ``time_error`` and ``energy_error`` are median
    absolute relative errors on shapes held out of the fit. ``stack`` names the kernels.
    """

    law: Mapping[str, Estimate]
    clock_share: Estimate
    energy: Mapping[str, Estimate]
    domain: Mapping[str, tuple[float, float]]
    time_error: float
    energy_error: float
    sizes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    residual: StoredKriging | None = None
    law_covariance: Covariance | None = None
    energy_covariance: Covariance | None = None
    stack: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerProfile:
    """Static power and the response to the power limit.

    Static power is ``static_w + static_w_per_c x temperature``; the temperature settles at
    ``ambient_c + c_per_w x mean power``. Energy through the SMs goes as (f / f_max)^``exponent``.
    The firmware holds mean power at ``limit_share`` of the limit.
    """

    static_w: Estimate
    static_w_per_c: Estimate
    ambient_c: Estimate
    c_per_w: Estimate
    exponent: Estimate
    limit_share: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """What errors on whole runs of models held out of the fit are made of; ``uncertainty.py``.

    ``model`` is the standard deviation of the log error that no source explains, ``outside`` that
    of the time outside the operations. ``inner`` and ``outer`` are how many scales (of
    ``uncertainty.Sources``) 80 % and 90 % of the errors stay below.
    """

    model: float
    outside: float
    inner: float
    outer: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """Errors of one engine, over ``runs`` of ``models`` that were left out of the fit in turn."""

    energy: Spread
    duration: Spread
    runs: int
    models: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """What prediction intervals are made of: errors on whole runs, by engine, and between boards.

    ``board_energy`` and ``board_duration`` are the standard deviations of the log ratio between
    boards with the same kind of memory.
    """

    regimes: Mapping[str, Regime]
    board_energy: float
    board_duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveProfile:
    """A collective of ``gpus`` GPUs under one library ("nccl", or "vllm" for its own all-reduce).

    ``fabric.py`` has the equations; ``left_over`` are (message bytes, log of measured over law).
    ``time_error`` and ``energy_error`` are median absolute relative errors on sizes held out.
    """

    kind: str
    library: str
    gpus: int
    latency_s: Estimate
    bus_bytes_per_s: Estimate
    wire_byte_j: Estimate
    busy_w: Estimate
    left_over: tuple[tuple[float, float], ...] = ()
    time_error: float
    energy_error: float
    stack: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricProfile:
    """The links between GPUs of one node: collectives, and what waiting for another GPU costs.

    ``wait_w``: above static power, of a GPU that waits inside a collective. ``link`` and
    ``environment`` are what they were measured with. ``skew``: share of its time that a collective
    takes longer in a model than back to back, for GPUs come to it one after the other. ``workers``: what vLLM adds that serves with
    several processes (``engines/vllm_workers.py``).
    """

    collectives: tuple[CollectiveProfile, ...]
    wait_w: Estimate
    link: str
    environment: Mapping[str, str]
    boards: tuple[str, ...] = ()
    skew: Estimate = Estimate(value=0.0, stderr=0.0, unit="1")
    workers: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One GPU, calibrated, and what each engine adds to its operations.

    ``engines`` hold the numbers of each engine, by its name. ``operations`` are by name: a kind of ``laws.LAWS``, with a dtype behind a dot unless it is
    bfloat16 (``gemm``, ``gemm.fp8``).
    """

    schema_version: Literal[1]
    name: str
    gpu: GpuSpec
    kind: Kind
    engines: Mapping[str, Mapping[str, Estimate]]
    operations: Mapping[str, OperationProfile]
    power: PowerProfile
    accuracy: Accuracy
    provenance: Mapping[str, Any]
    memory: tuple[MemoryKind, ...] = ()
    fabric: FabricProfile | None = None

    def held_w(self, limit_w: float | None) -> float:
        """Mean power that the firmware holds under a power limit; None is the limit of the board."""
        return self.power.limit_share.value * (limit_w or self.gpu.power_limit_w)

    def memory_over_usual(self, byte_j: float | None) -> float:
        """What a byte costs in a memory over the usual one, which ``operations`` hold.

        ``byte_j``: joules per byte of that memory; None for the usual.
        """
        usual = self.memory[0].byte_j.value if self.memory else 0.0
        return byte_j / usual if byte_j is not None and usual else 1.0

    def memory_of(self, board: object) -> float | None:
        """Joules per byte in the memory of a board; None where it was not calibrated."""
        return next((k.byte_j.value for k in self.memory if board in k.boards), None)

    def calibrated_as(self, law: str) -> str:
        """The calibrated operation that ``law`` is predicted with: itself, or the nearest.

        Raises:
            InputError: nothing like it was calibrated.
        """
        name = law
        while name not in self.operations:
            by_row = kind_of(name) in STREAMING_KINDS
            nearest = "elementwise" if by_row else STAND_INS.get(name, kind_of(name))
            if nearest == name:
                raise InputError(
                    f"profile '{self.name}' has no calibration of {law}; calibrate it with "
                    "`energymodel calibrate --grid wide`."
                )
            name = nearest
        return name

    def operation(self, law: str) -> OperationProfile:
        """Coefficients for ``law``; see ``calibrated_as``."""
        return self.operations[self.calibrated_as(law)]


STAND_INS: Mapping[str, str] = {
    **{f"gemm.{name}": "gemm.int4" for name in WEIGHT_ONLY if name != "int4"},
    **{f"moe.{name}": "moe.int4" for name in WEIGHT_ONLY if name != "int4"},
    "gemm.fp8_block": "gemm.fp8",
    "gemm.int8": "gemm.fp8",
    "gemm.llm_int8": "gemm.int8",
    "moe.fp8_block": "moe.fp8",
    "moe.int8": "moe.fp8",
}
"""What is predicted with the coefficients of what else, where a profile lacks it; then its kind."""


def available() -> tuple[str, ...]:
    """Names of the shipped profiles; each is the name of its GPU."""
    files = resources.files("energymodel").joinpath("profiles").iterdir()
    return tuple(sorted(f.name.removesuffix(".json") for f in files if f.name.endswith(".json")))


def load(gpu: str | None, path: str | Path | None = None) -> Profile:
    """The profile at ``path``, or the shipped one of ``gpu``.

    Raises:
        InputError: no such profile, an unreadable one, or one of another GPU than ``gpu``.
    """
    if path is not None:
        profile = _read(str(path))
        if gpu is not None and gpu.lower() != profile.gpu.name:
            raise InputError(f"{path}: gpu is '{profile.gpu.name}', but --gpu says '{gpu}'.")
        return profile
    if gpu is None:
        raise InputError("name a GPU with --gpu or a profile with --profile.")
    known = available()
    if gpu.lower() not in known:
        other = "is unknown" if gpu.lower() not in hardware.available() else "has no profile"
        raise InputError(f"GPU '{gpu}' {other}; profiles exist for: {', '.join(known)}.")
    return _shipped(gpu.lower())


@cache
def _shipped(name: str) -> Profile:
    file = resources.files("energymodel").joinpath("profiles", f"{name}.json")
    return _read(str(file))


def _read(path: str) -> Profile:
    from energymodel.io import convert, read_json
    from energymodel.profile_problems import problems

    profile = convert(read_json(path), Profile, path)
    for where, problem in problems(profile):
        raise InputError(f"{path}: {where} {problem}.")
    return profile
