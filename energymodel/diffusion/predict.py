"""Energy of images and videos: batches, calls, time, power, sum; then what to think of it."""

from dataclasses import replace

import numpy as np

from energymodel import domain
from energymodel.causes import PhaseShare
from energymodel.costs import StepCosts, priced, settled
from energymodel.deployment import Deployment
from energymodel.diffusion.passes import (
    STAGES,
    Passes,
    operations,
    sample_values,
    schedule,
)
from energymodel.diffusion.pipeline import Pipeline
from energymodel.diffusion.requests import Requests, prompt_warnings, read_requests
from energymodel.dtypes import DTYPE_BYTES
from energymodel.engines.engine import EngineTime
from energymodel.engines.vllm import NON_TORCH_BYTES
from energymodel.errors import InputError
from energymodel.op_kinds import Op
from energymodel.predict import check, summary
from energymodel.prediction import BinEnergy, PhaseEnergy, Prediction
from energymodel.profile import Profile
from energymodel.steps import Floats, Ints
from energymodel.workload import Workload

ENGINE = "diffusers"
# An eager layer of a dense decoder is launched in about this many calls under vLLM, whose host time
# for a layer is calibrated.
CALLS_OF_A_LAYER = 10.0
# Half width of the interval in log energy. Published runs of ten pipelines on an H100 took 1.5 to 1.75
# times what is predicted for an H200, which computes no faster (docs/diffusion.md).
EAGER = float(np.log(1.8))
# Of a normal distribution: the share of the half width that 80 % of errors stay below.
INNER = 1.2816 / 1.6449


def predict(
    pipeline: Pipeline, deployment: Deployment, workload: Workload, profile: Profile
) -> Prediction:
    """Energy and time of making every image or video of ``workload`` on one GPU.

    The networks run in eager torch in 16 bits, ``max_num_seqs`` samples at a time, or as many as
    the memory holds where those are fewer.

    Raises:
        InputError: the deployment or the workload is outside what can be predicted; the message
            names the field.
    """
    check(deployment, profile)
    _check_alone(deployment)
    requests = read_requests(pipeline, workload)
    most = _batch_limit(pipeline, deployment, profile, requests)
    passes = schedule(pipeline, requests, most)
    ops = tuple(operations(pipeline, passes, deployment))
    wanted = priced(ops, deployment, profile, lambda rows: rows)
    costs = settled(wanted, _host(ops, profile), passes.weight, deployment, profile)
    verdict = _examine(pipeline, deployment, workload, profile, passes=passes, costs=costs)
    small = np.minimum(deployment.max_num_seqs, requests.count) > most
    if small.any():
        fewest = int(most[small].min())
        verdict = replace(
            verdict,
            warnings=(
                *verdict.warnings,
                f"the memory holds {fewest:,} at a time, fewer than max_num_seqs allows.",
            ),
        )
    return summary(
        pipeline.name,
        replace(deployment, engine=ENGINE),
        workload,
        profile,
        costs=costs,
        weight=passes.weight,
        verdict=verdict,
        phases=_phases(passes, costs),
        bins=_bins(workload, passes, costs),
        shares=_shares(passes, costs),
    )


def _check_alone(deployment: Deployment) -> None:
    for flag in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        if getattr(deployment, flag) != 1:
            raise InputError(f"{flag} must be 1: pipelines split over GPUs are not supported yet.")
    if deployment.quantization is not None:
        raise InputError("quantization is not supported for pipelines of images and videos.")


def _batch_limit(
    pipeline: Pipeline, deployment: Deployment, profile: Profile, requests: Requests
) -> Ints:
    """Samples of each bin that run together: what was asked for, or what fits beside the weights."""
    usable = deployment.gpu_memory_utilization * profile.gpu.hbm_bytes
    weights = pipeline.weight_bytes()
    each = DTYPE_BYTES["bfloat16"] * sample_values(pipeline, requests)
    room = np.floor((usable - weights - NON_TORCH_BYTES) / each)
    if (room < 1).any():
        i = int(np.argmin(room))
        raise InputError(
            f"bins[{i}]: one {pipeline.kind} does not fit one {profile.gpu.full_name}: the weights "
            f"take {weights / 1e9:.1f} GB and its activations {each[i] / 1e9:.1f} GB of "
            f"{usable / 1e9:.1f} GB usable; ask for a smaller one or raise gpu_memory_utilization "
            f"({deployment.gpu_memory_utilization:g})."
        )
    return np.minimum(room, deployment.max_num_seqs).astype(np.int64)


def _host(ops: tuple[Op, ...], profile: Profile) -> EngineTime:
    """Host time to launch the calls of each row, kernel by kernel from Python."""
    call_s = profile.engines["vllm"]["launch_layer_s"].value / CALLS_OF_A_LAYER
    launches = np.asarray(sum(np.where(op.hbm_bytes > 0, op.count, 0) for op in ops), dtype=float)
    return EngineTime(outside_s=np.zeros_like(launches), launch_s=call_s * launches, submit_s=0.0)


def _phases(passes: Passes, costs: StepCosts) -> dict[str, PhaseEnergy]:
    def total(value: Floats, stages: tuple[int, ...]) -> float:
        return float((passes.weight * value)[np.isin(passes.stage, stages)].sum())

    return {
        name: PhaseEnergy(
            energy_j=total(costs.step_j, stages), duration_s=total(costs.step_s, stages)
        )
        for name, stages in STAGES.items()
    }


def _shares(passes: Passes, costs: StepCosts) -> dict[str, PhaseShare]:
    """A pass belongs to one phase; what counts in it are samples."""
    shares = {}
    for name, stages in STAGES.items():
        own = np.isin(passes.stage, stages).astype(np.float64)
        shares[name] = PhaseShare(
            ops=[own] * len(costs.ops), overhead=own, tokens=own * passes.batch
        )
    return shares


def _bins(workload: Workload, passes: Passes, costs: StepCosts) -> tuple[BinEnergy, ...]:
    """All work on a bin comes before an output, so all of it is prefill."""
    energy_j = np.bincount(
        passes.bin, passes.asked * costs.step_j[passes.row], minlength=len(workload.bins)
    ).tolist()
    return tuple(
        BinEnergy(
            input_tokens=b.input_tokens,
            output_tokens=0,
            count=b.count or 0,
            energy_j=joules,
            prefill_j=joules,
            decode_j=0.0,
            energy_per_output_token_j=None,
        )
        for b, joules in zip(workload.bins, energy_j, strict=True)
    )


def _examine(
    pipeline: Pipeline,
    deployment: Deployment,
    workload: Workload,
    profile: Profile,
    *,
    passes: Passes,
    costs: StepCosts,
) -> domain.Verdict:
    """No pipeline was measured, and other kernels run than those that were calibrated."""
    lent, _ = domain.borrowed(profile, costs, passes.weight)
    warnings = (
        (
            f"no {pipeline.kind} pipeline was measured: eager kernels of diffusers are predicted "
            "with the coefficients of a language model's, which are faster (docs/diffusion.md)."
        ),
        *lent,
        *_head_warnings(costs, profile),
        *domain.shape_warnings(profile, costs, passes.weight),
        *domain.power_warnings(deployment, profile, costs),
        *domain.host_warnings(costs, passes.weight),
        *prompt_warnings(pipeline, workload.bins),
    )
    return domain.Verdict(
        half_width=EAGER, duration_half_width=EAGER, inner=INNER, warnings=warnings
    )


def _head_warnings(costs: StepCosts, profile: Profile) -> list[str]:
    known = profile.operations["prefill_attention"].sizes.get("head_dim", ())
    attentions = (c.op for c in costs.ops if c.op.kind == "prefill_attention")
    sizes = {float(np.max(op.shape["head_dim"])) for op in attentions if not op.stands_for}
    strange = sorted(size for size in sizes if size not in known)
    if not known or not strange:
        return []
    listed = ", ".join(f"{size:g}" for size in strange)
    return [f"attention heads of {listed} values were not calibrated."]
