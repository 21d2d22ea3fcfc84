"""Whole-model runs on vLLM: offline ``LLM.generate`` in one process, dummy weights redrawn.

The engine runs as a user would run it: default compilation and CUDA graphs, random prompt
tokens, every sequence to its full length; greedy, no detokenising and no prefix caching unless the
deployment says otherwise.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.engines import vllm_requests, vllm_speculative
from calibration.sensors import Sensor
from calibration.watch_all import (
    GpuRun,
    WatchAll,
    all_reasons,
    mean_clock_hz,
    mean_temperature_c,
    total_memory_power_w,
)

if TYPE_CHECKING:
    from energymodel.deployment import Deployment
    from energymodel.workload import Workload

# Prompts, and one set of sampling parameters for each.
Requests = tuple[list[Any], list[Any]]

MIN_RUN_S = 3.0
# At least this much work before the window, so that ticks of the energy counter were seen.
WARM_S = 0.4
# Prompt tokens that run on after the window closed.
TAIL_TOKENS = 8192
# Of redrawn weights. Online quantisation scales each tensor so that its largest value, about 4.5
# deviations, meets the largest of the format.
DEVIATION, SIGMAS = 0.02, 4.5
# How vLLM calls what 8-bit weights are multiplied with.
SCALES = ("weight_scale", "weight_scale_inv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measured workload. Energy is gross over one pass, of all GPUs; boundary: the GPU board.

    Clock and temperature are means over the GPUs, ``memory_power_w`` is their sum; ``gpus`` is what
    each spent where there are several.
    ``step_s`` are the durations of the engine's iterations in the last pass, in order, and
    ``waited_s`` what of each the host waited for the GPU's tokens;
    ``latency`` is what those who asked a server saw;
    ``speculative`` counts drafts over all passes.
    """

    duration_s: float
    energy_j: float
    repeats: int
    sm_clock_hz: float
    temperature_c: float
    throttle_reasons: int
    memory_power_w: float | None
    step_s: tuple[float, ...]
    waited_s: tuple[float, ...] = ()
    latency: Mapping[str, float] = field(default_factory=dict)
    speculative: Mapping[str, int] = field(default_factory=dict)
    gpus: tuple[GpuRun, ...] = ()


class Engine:
    """A vLLM engine holding one model with random weights."""

    def __init__(
        self, config: Mapping[str, Any], deployment: "Deployment", *, max_model_len: int
    ) -> None:
        # The engine in this process, so that steps can be timed; several GPUs have their own
        # processes, begun afresh, since this one may have asked CUDA something already.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        # Greedy sampling needs no FlashInfer, which vLLM otherwise imports whether installed or not.
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
        from vllm import LLM

        self._folder = tempfile.TemporaryDirectory()
        facts = {k: v for k, v in config.items() if not k.startswith("_")}
        Path(self._folder.name, "config.json").write_text(json.dumps(facts), encoding="utf-8")
        self._vocab = int(facts.get("vocab_size") or facts["text_config"]["vocab_size"])
        self._marks = vllm_requests.marks(self._vocab)
        if deployment.detokenize:
            vllm_requests.write_tokenizer(Path(self._folder.name), self._vocab)
        self._llm = LLM(
            model=self._folder.name,
            load_format="dummy",
            skip_tokenizer_init=not deployment.detokenize,
            enforce_eager=deployment.enforce_eager,
            dtype=deployment.dtype,
            quantization=deployment.quantization,
            kv_cache_dtype=deployment.kv_cache_dtype,
            tensor_parallel_size=deployment.tensor_parallel_size,
            pipeline_parallel_size=deployment.pipeline_parallel_size,
            enable_expert_parallel=deployment.enable_expert_parallel,
            max_num_seqs=deployment.max_num_seqs,
            max_num_batched_tokens=deployment.max_num_batched_tokens,
            gpu_memory_utilization=deployment.gpu_memory_utilization,
            # Drafts reach beyond the end of the longest request.
            max_model_len=max_model_len + deployment.num_speculative_tokens,
            enable_prefix_caching=deployment.enable_prefix_caching,
            disable_log_stats=True,
            trust_remote_code=False,
            **vllm_speculative.settings(deployment, Path(self._folder.name, "draft")),
        )
        self.deployment = deployment
        self._llm.apply_model(redraw_weights)
        self._drafts = vllm_speculative.DraftCounts()
        if deployment.speculative_model is not None:
            self._llm.collective_rpc(redraw_draft_weights)
            self._drafts.watch(self._llm)
        self._step_ends: list[float] = []
        self._waited_s: list[float] = []
        self._time_steps()

    def close(self) -> None:
        """Let go of the engine, of its processes and of the folder that held its configuration."""
        self._unwatch()
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        self._folder.cleanup()

    def _time_steps(self) -> None:
        engine = self._llm.llm_engine
        original = engine.step

        def step() -> Any:
            self._waited_s.append(0.0)
            result = original()
            self._step_ends.append(time.perf_counter())
            return result

        engine.step = step
        self._time_waits()

    def _time_waits(self) -> None:
        """Time what the host waits for tokens (``AsyncOutputFuture.result``), step by step."""
        from vllm.v1.executor.uniproc_executor import AsyncOutputFuture

        original = AsyncOutputFuture.result

        def result(future: Any, timeout: float | None = None) -> Any:
            start = time.perf_counter()
            found = original(future, timeout)
            if self._waited_s:
                self._waited_s[-1] += time.perf_counter() - start
            return found

        AsyncOutputFuture.result = result
        self._unwatch: Callable[[], None] = partial(setattr, AsyncOutputFuture, "result", original)

    def prepare(self, workload: "Workload", seed: int) -> Requests:
        """Random prompts and sampling parameters for every request of a workload."""
        from vllm import SamplingParams

        tokens = vllm_requests.prompts(workload, self.deployment, self._vocab, seed)
        params = [
            SamplingParams(
                **vllm_requests.sampling(self.deployment, b.output_tokens),
                detokenize=self.deployment.detokenize,
            )
            for b in workload.bins
            for _ in range(b.count or 0)
        ]
        return [{"prompt_token_ids": ids} for ids in tokens], params

    def generate(self, requests: Requests, places: Sequence[int] = ()) -> tuple[float, ...]:
        """Run requests to their end; seconds of each iteration, the first from submission.

        ``places``: where each prompt gets a new token, so that the prefix cache knows no more of it.
        """
        prompts, params = requests
        if places:
            vllm_requests.freshen([p["prompt_token_ids"] for p in prompts], places, self._marks)
        self._waited_s = []
        self._step_ends = [time.perf_counter()]
        self._llm.generate(prompts, params, use_tqdm=False)
        ends = self._step_ends
        return tuple(b - a for a, b in pairwise(ends))

    def measure(self, workload: "Workload", *sensors: Sensor, min_run_s: float = MIN_RUN_S) -> Run:
        """Warm up, then repeat back to back for ``min_run_s`` or more.

        Args:
            workload: bins with counts.
            sensors: of every GPU of the replica.
            min_run_s: least time that is measured.

        Raises:
            WindowRefused: the energy counter stood still, or the GPU was too hot.
        """
        variants = [self.prepare(workload, seed) for seed in range(2)]
        caching = self.deployment.enable_prefix_caching
        places = vllm_requests.own_tokens(workload, self.deployment) if caching else []
        with WatchAll(sensors) as watch:
            warm_until = time.perf_counter() + WARM_S
            self.generate(variants[0], places)
            while time.perf_counter() < warm_until:
                self.generate(variants[0], places)
            self._drafts.reset()
            start = time.perf_counter()
            repeats = 0
            while repeats == 0 or time.perf_counter() - start < min_run_s:
                repeats += 1
                step_s = self.generate(variants[repeats % 2], places)
            end = time.perf_counter()
            waited_s = tuple(self._waited_s)
            drafts = self._drafts.facts()
            memory_power_w = watch.memory_power_w()
            self._tail(variants[0])
            watch.wait_for_tick(end)
        gpus = watch.runs(start, end, memory_power_w, repeats)
        return Run(
            duration_s=(end - start) / repeats,
            energy_j=sum(gpu.energy_j for gpu in gpus),
            repeats=repeats,
            sm_clock_hz=mean_clock_hz(gpus),
            temperature_c=mean_temperature_c(gpus),
            throttle_reasons=all_reasons(gpus),
            memory_power_w=total_memory_power_w(gpus),
            gpus=gpus if len(gpus) > 1 else (),
            step_s=step_s,
            waited_s=waited_s,
            speculative=drafts,
        )

    def _tail(self, requests: Requests) -> None:
        """Keep the GPU loaded past the end, so that its last tick interpolates over like power."""
        prompts, params = requests
        count = max(1, min(len(prompts), TAIL_TOKENS // len(prompts[0]["prompt_token_ids"])))
        deadline = time.perf_counter() + 0.15
        while time.perf_counter() < deadline:
            self.generate((prompts[:count], params[:count]))


def redraw_weights(model: Any) -> None:
    """Weights normal(0, 0.02), norms at 1: dummy weights are tiny and equal in every layer.

    8-bit weights fill their range, and their scales bring them back to a deviation of 0.02: with
    random scales activations would grow from layer to layer, and the router send all tokens to a
    few experts.
    """
    import torch

    # What several GPUs hold a copy of, such as a router, must be the same on all of them.
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.dim() == 1 and "norm" in name:
            parameter.data.fill_(1.0)
        elif name.endswith(SCALES):
            parameter.data.fill_(DEVIATION * SIGMAS / torch.finfo(torch.float8_e4m3fn).max)
        elif parameter.element_size() >= 2:
            parameter.data.normal_(0.0, DEVIATION)
        else:
            _redraw_narrow(parameter.data, torch)


def redraw_draft_weights(worker: Any) -> None:
    """The same for the draft model of a worker, if it has one."""
    model = vllm_speculative.draft_model(worker)
    if model is not None:
        redraw_weights(model)


def _redraw_narrow(tensor: Any, torch: Any) -> None:
    """8-bit floats have no random fill: draw in float32, row block by row block, and convert."""
    # Kernels of some formats want weights transposed: view them in the order that they lie in.
    in_order = sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis))
    flat = tensor.permute(in_order).view(-1)
    largest = torch.finfo(tensor.dtype).max
    for start in range(0, flat.numel(), 1 << 24):
        part = flat[start : start + (1 << 24)]
        drawn = torch.randn(part.numel(), device=part.device) * (largest / SIGMAS)
        part.copy_(drawn.clamp(-largest, largest).to(part.dtype))


def run_record(model: str, gpu: str, workload: "Workload", run: Run) -> dict[str, Any]:
    """One line of runs.jsonl."""
    return {
        "model": model,
        "gpu": gpu,
        "engine": "vllm",
        "bins": [
            {
                "input_tokens": b.input_tokens,
                "output_tokens": b.output_tokens,
                "count": b.count,
                **({"prefix_tokens": b.prefix_tokens} if b.prefix_tokens else {}),
            }
            for b in workload.bins
        ],
        "duration_s": run.duration_s,
        "energy_j": run.energy_j,
        "repeats": run.repeats,
        "sm_clock_hz": run.sm_clock_hz,
        "temperature_c": run.temperature_c,
        "throttle_reasons": run.throttle_reasons,
        "memory_power_w": run.memory_power_w,
        "step_us": [round(s * 1e6) for s in run.step_s],
        **({"waited_us": [round(s * 1e6) for s in run.waited_s]} if any(run.waited_s) else {}),
        **({"latency": dict(run.latency)} if run.latency else {}),
        **({"speculative": dict(run.speculative)} if run.speculative else {}),
        **({"gpus": [asdict(gpu) for gpu in run.gpus]} if run.gpus else {}),
    }


def versions() -> Iterator[tuple[str, str]]:
    """Name and version of the software that decides time and energy."""
    from importlib.metadata import PackageNotFoundError, version

    for package in ("vllm", "torch", "triton", "transformers"):
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue
