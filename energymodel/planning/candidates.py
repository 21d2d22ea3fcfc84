"""What could be deployed: every allowed way of serving a model on a GPU that fits its memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from energymodel.deployment import Deployment
from energymodel.engines.vllm import cache_room
from energymodel.errors import InputError
from energymodel.model import ModelSpec
from energymodel.planning.doubt import mean_byte_j
from energymodel.profile import Profile

# Sequences that a replica may hold at most: above them nothing more is gained.
MOST_SEQUENCES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What may be chosen from. ``quantizations`` and ``power_limits_w``: None is what is usual."""

    tensor_parallel_sizes: tuple[int, ...] = (1, 2, 4, 8)
    pipeline_parallel_sizes: tuple[int, ...] = (1,)
    expert_parallel: tuple[bool, ...] = (False,)
    quantizations: tuple[str | None, ...] = (None,)
    power_limits_w: tuple[float | None, ...] = (None,)
    base: Deployment = field(default_factory=lambda: Deployment(max_num_seqs=MOST_SEQUENCES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way of serving ``model``; ``kv_tokens`` fit its caches. ``deployment`` has no power limit.

    ``power_limits_w`` are those that may be set on its GPUs.
    """

    model: ModelSpec
    profile: Profile
    deployment: Deployment
    power_limits_w: tuple[float | None, ...]
    kv_tokens: int

    @property
    def gpus(self) -> int:
        """GPUs of a replica."""
        d = self.deployment
        return d.tensor_parallel_size * d.pipeline_parallel_size * d.data_parallel_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A way that is none, and why, in a sentence."""

    model: str
    deployment: Deployment
    reason: str


def candidates(
    models: Sequence[ModelSpec], profiles: Sequence[Profile], allowed: Allowed
) -> tuple[list[Candidate], list[Refused]]:
    """All that fit, and those that do not."""
    found, refused = [], []
    for model, profile in product(models, profiles):
        for asked in _deployments(model, allowed):
            # Nobody knows which boards will be delivered: on average they are like those calibrated.
            byte_j = mean_byte_j(profile) if asked.hbm_byte_j is None else asked.hbm_byte_j
            deployment = replace(asked, hbm_byte_j=byte_j)
            if reason := _unplanned(asked, profile, allowed):
                refused.append(Refused(model=model.name, deployment=deployment, reason=reason))
                continue
            try:
                room = cache_room(model, deployment, profile.gpu)
            except InputError as error:
                reason = str(error)
                refused.append(Refused(model=model.name, deployment=deployment, reason=reason))
                continue
            found.append(
                Candidate(
                    model=model,
                    profile=profile,
                    deployment=deployment,
                    power_limits_w=_limits(allowed, profile),
                    kv_tokens=room.tokens_within_windows,
                )
            )
    return found, refused


def _deployments(model: ModelSpec, allowed: Allowed) -> Iterator[Deployment]:
    for tensor, stages, experts, quantization in product(
        allowed.tensor_parallel_sizes,
        allowed.pipeline_parallel_sizes,
        allowed.expert_parallel if model.regime == "moe" else (False,),
        allowed.quantizations,
    ):
        if experts and tensor == 1:
            continue  # experts are spread over the GPUs of a tensor-parallel group
        yield replace(
            allowed.base,
            tensor_parallel_size=tensor,
            pipeline_parallel_size=stages,
            enable_expert_parallel=experts,
            quantization=quantization,
            power_limit_w=None,
        )


def _unplanned(deployment: Deployment, profile: Profile, allowed: Allowed) -> str:
    """Why a deployment is not planned; empty where it is."""
    gpu = profile.gpu
    if deployment.pipeline_parallel_size > 1:
        return (
            "--pipeline-parallel-size must be 1: replicas that serve in time are planned on "
            "tensor-parallel groups alone."
        )
    if not _limits(allowed, profile):
        return (
            f"--power-limit-w must be from {gpu.min_power_limit_w:g} to {gpu.power_limit_w:g} on "
            f"{gpu.full_name}."
        )
    return ""


def _limits(allowed: Allowed, profile: Profile) -> tuple[float | None, ...]:
    """Power limits that this GPU can be set to; the usual one stands for its own number."""
    gpu = profile.gpu
    limits = [
        None if limit_w == gpu.power_limit_w else limit_w
        for limit_w in allowed.power_limits_w
        if limit_w is None or gpu.min_power_limit_w <= limit_w <= gpu.power_limit_w
    ]
    return tuple(dict.fromkeys(limits))
