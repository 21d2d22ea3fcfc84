"""Whole-model runs on this GPU, appended to runs.jsonl as each one ends."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from calibration import jsonl
from calibration.engines import transformers, vllm, vllm_server
from calibration.engines.vllm_speculative import draft_rate
from calibration.gpu import gpu_key
from calibration.sensors import Sensor
from energymodel import io
from energymodel.deployment import Deployment
from energymodel.errors import InputError, WorkError
from energymodel.model import model_from_config
from energymodel.workload import Workload

Report = Callable[[str], None]
Record = dict[str, Any]

ENGINES: Mapping[str, ModuleType] = {"vllm": vllm, "transformers": transformers}
# Flags that transformers is measured with; ``hbm_byte_j`` is for predictions alone.
HEEDED = frozenset({"engine", "max_num_seqs", "power_limit_w", "hbm_byte_j"})
# What an engine is called, and how to get one that is not there.
TITLES: Mapping[str, str] = {"vllm": "vLLM", "transformers": "transformers"}
INSTALL: Mapping[str, str] = {
    "vllm": "pip install vllm), since it brings the torch that it was built for",
    "transformers": "pip install transformers torch)",
}


class Engine(Protocol):
    """A started engine that holds one model."""

    def measure(self, workload: Workload, *sensors: Sensor) -> vllm.Run:
        """Warm up, run, and take time and energy of one pass."""

    def close(self) -> None:
        """Free what it holds."""


class Start(Protocol):
    """Starts an engine; what ``calibration.engines.vllm.Engine`` does."""

    def __call__(
        self, config: Mapping[str, Any], deployment: Deployment, *, max_model_len: int
    ) -> Engine:
        """Load a model of this configuration with random weights."""


def measure(
    model_name: str,
    config: Mapping[str, Any],
    workload: Workload,
    *,
    deployment: Deployment,
    sensor: Sensor,
    out: Path,
    report: Report = lambda _: None,
    max_model_len: int | None = None,
) -> Record:
    """Measure one workload; its line of ``out``, which is the old one if it was there already."""
    records = measure_all(
        model_name,
        config,
        [workload],
        deployment=deployment,
        sensor=sensor,
        out=out,
        report=report,
        max_model_len=max_model_len,
    )
    return records[0]


def measure_all(
    model_name: str,
    config: Mapping[str, Any],
    workloads: Sequence[Workload],
    *,
    deployment: Deployment,
    sensor: Sensor,
    others: Sequence[Sensor] = (),
    out: Path,
    report: Report = lambda _: None,
    max_model_len: int | None = None,
    start: Start | None = None,
) -> list[Record]:
    """Measure several workloads with one start of the engine; their lines of ``out``, in order.

    A workload that ``out`` already holds for this model, GPU and deployment is not measured
    again. Each line is written as its run ends. A workload that fails is reported, the others
    are still measured.

    Args:
        model_name: the name that the lines carry.
        config: the model's Hugging Face configuration; weights are random.
        workloads: bins with counts.
        deployment: the engine's flags, at the power limit that the GPUs enforce.
        sensor: the GPU that the engine will use (``calibration.gpu.find_gpu``), or the first.
        others: the further GPUs of the replica (``calibration.gpu.find_gpus``).
        out: runs.jsonl, appended to.
        report: gets one line for each workload.
        max_model_len: as in vLLM; the longest request by default.
        start: the engine, vLLM by default.

    Raises:
        InputError: the workload, the deployment or the configuration cannot be measured.
        WorkError: the engine is missing or cannot start, or a workload failed.
    """
    identity = sensor.identity()
    gpu = gpu_key(identity.gpu_name)
    max_model_len = _checked_length(workloads, max_model_len)
    _check_deployment(deployment, identity.power_limit_w)
    _check_gpus(deployment, 1 + len(others))
    model_from_config(config, model_name)  # refuses a configuration that it cannot read
    jsonl.repair(out)
    known = _known(out, model_name, gpu, deployment)
    todo = [w for w in dict.fromkeys(workloads) if w not in known]
    report(f"{len(todo)} of {len(workloads)} workloads to measure")
    failures: list[str] = []
    if todo:
        engine = _start(start, model_name, config, deployment, max_model_len)
        facts = {
            "max_model_len": max_model_len,
            "board": identity.board,
            "driver": identity.driver,
            "software": dict(ENGINES[deployment.engine].versions()),
            **_flags(deployment),
        }
        try:
            for workload in todo:
                try:
                    run = engine.measure(workload, sensor, *others)
                except (RuntimeError, ValueError) as error:
                    failures.append(f"{_title(workload)}: {_first_line(error)}")
                    report(f"left out: {failures[-1]}")
                    continue
                found = draft_rate(deployment, workload, run.speculative, run.repeats)
                known[workload] = vllm.run_record(model_name, gpu, workload, run) | facts | found
                jsonl.append(out, known[workload])
                report(f"{_title(workload)}: {run.energy_j:.4g} J in {run.duration_s:.4g} s")
        finally:
            engine.close()
    if failures:
        raise WorkError(
            f"{len(failures)} of {len(workloads)} workloads could not be measured; the first: "
            f"{failures[0]}"
        )
    return [known[w] for w in workloads]


def _checked_length(workloads: Sequence[Workload], max_model_len: int | None) -> int:
    """``max_model_len``, or the length of the longest request."""
    if not workloads:
        raise InputError("workloads must hold at least one workload.")
    if any(w.online for w in workloads):
        raise InputError(
            "bins must have count, not requests_per_s: whole models are measured offline."
        )
    for field in ("images", "audio_s", "num_frames", "num_inference_steps"):
        if any(getattr(b, field) for w in workloads for b in w.bins):
            raise InputError(f"bins must not have {field}: what is measured are text tokens.")
    longest = max(
        (b for w in workloads for b in w.bins),
        key=lambda b: b.input_tokens + max(1, b.output_tokens),
    )
    needed = longest.input_tokens + max(1, longest.output_tokens)
    if max_model_len is None:
        return needed
    if max_model_len < needed:
        raise InputError(
            f"max_model_len must be at least {needed:,} for requests of {longest.input_tokens:,} "
            f"input and {longest.output_tokens:,} output tokens, got {max_model_len:,}."
        )
    return max_model_len


def _check_deployment(deployment: Deployment, power_limit_w: float) -> None:
    if deployment.engine not in ENGINES:
        raise InputError(
            f"engine must be one of {', '.join(ENGINES)} to be measured, got {deployment.engine}."
        )
    _check_flags(deployment)
    wanted_w = deployment.power_limit_w
    if wanted_w is not None and abs(wanted_w - power_limit_w) > 1.0:
        raise InputError(
            f"power_limit_w must be the limit that this GPU enforces, {power_limit_w:.0f} W, "
            f"got {wanted_w:g}: measuring changes no setting."
        )


def _check_flags(deployment: Deployment) -> None:
    """Refuse flags that the engine would not heed."""
    if deployment.engine != "transformers":
        return
    default = Deployment()
    for flag in set(Deployment.__dataclass_fields__) - HEEDED:
        if getattr(deployment, flag) != getattr(default, flag):
            raise InputError(f"{flag} must be left out: transformers is measured without it.")


def _check_gpus(deployment: Deployment, gpus: int) -> None:
    """Refuse a replica whose GPUs are not all measured."""
    if deployment.data_parallel_size != 1:
        raise InputError(
            "data_parallel_size must be 1 to be measured: LLM runs one replica, "
            f"got {deployment.data_parallel_size}."
        )
    needed = deployment.tensor_parallel_size * deployment.pipeline_parallel_size
    if needed != gpus:
        raise InputError(
            "tensor_parallel_size x pipeline_parallel_size must be the number of GPUs that are "
            f"measured, {gpus}, got {needed}."
        )


def _known(out: Path, model_name: str, gpu: str, deployment: Deployment) -> dict[Workload, Record]:
    """Lines of ``out`` with this model, GPU and deployment, by workload."""
    if not out.stat().st_size:
        return {}
    lines = [line for line in io.read_text(out).split("\n") if line.strip()]
    records: dict[Workload, Record] = {}
    for run, line in zip(io.read_runs(out), lines, strict=True):
        # How often n-grams find a draft is found out by measuring.
        asked = replace(run.deployment, draft_rate=deployment.draft_rate)
        if (run.model, run.gpu, asked) == (model_name, gpu, deployment):
            records[run.workload] = io.convert(io.parse_json(line, str(out)), Record, str(out))
    return records


def _flags(deployment: Deployment) -> Record:
    """Deployment keys that differ from the defaults."""
    default = Deployment()
    keys = Deployment.__dataclass_fields__
    pairs = ((k, getattr(deployment, k)) for k in keys)
    return {k: value for k, value in pairs if value != getattr(default, k)}


def _start(
    start: Start | None,
    model_name: str,
    config: Mapping[str, Any],
    deployment: Deployment,
    max_model_len: int,
) -> Engine:
    name = deployment.engine
    if start is None:
        if find_spec(name) is None:
            title, how = TITLES[name], INSTALL[name]
            raise WorkError(f"{title} is not installed here: install it first ({how}.")
        start = vllm_server.Engine if deployment.server else ENGINES[name].Engine
    try:
        return start(config, deployment, max_model_len=max_model_len)
    except (RuntimeError, ValueError, ImportError, OSError, AssertionError) as error:
        title, reason = TITLES[name], _first_line(error)
        raise WorkError(f"{title} could not load {model_name}: {reason}") from error


def _title(workload: Workload) -> str:
    """A workload in a few words."""
    first = workload.bins[0]
    more = f" and {len(workload.bins) - 1} more bins" if len(workload.bins) > 1 else ""
    return f"{first.count} x {first.input_tokens}+{first.output_tokens}{more}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
