"""Whole-model runs on vLLM: offline ``LLM.generate`` in one process, dummy weights redrawn.

The engine runs as a user would run it: default compilation and CUDA graphs, random prompt
tokens, greedy sampling, every sequence to its full length, no detokenising, no prefix caching.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.sensors import Sensor
from calibration.watch import Watcher
from calibration.window import WindowRefused, refuse_thermal

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
    """One measured workload. Energy is gross over one pass; boundary: the GPU board.

    ``step_s`` are the durations of the engine's iterations in the last pass, in order.
    """

    duration_s: float
    energy_j: float
    repeats: int
    sm_clock_hz: float
    temperature_c: float
    throttle_reasons: int
    memory_power_w: float | None
    step_s: tuple[float, ...]


class Engine:
    """A vLLM engine holding one model with random weights."""

    def __init__(
        self, config: Mapping[str, Any], deployment: "Deployment", *, max_model_len: int
    ) -> None:
        # One process, so that weights can be redrawn in place and steps can be timed.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # Greedy sampling needs no FlashInfer, which vLLM otherwise imports whether installed or not.
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
        from vllm import LLM

        self._folder = tempfile.TemporaryDirectory()
        facts = {k: v for k, v in config.items() if not k.startswith("_")}
        Path(self._folder.name, "config.json").write_text(json.dumps(facts), encoding="utf-8")
        self._llm = LLM(
            model=self._folder.name,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype=deployment.dtype,
            quantization=deployment.quantization,
            kv_cache_dtype=deployment.kv_cache_dtype,
            tensor_parallel_size=deployment.tensor_parallel_size,
            max_num_seqs=deployment.max_num_seqs,
            max_num_batched_tokens=deployment.max_num_batched_tokens,
            gpu_memory_utilization=deployment.gpu_memory_utilization,
            max_model_len=max_model_len,
            enable_prefix_caching=False,
            disable_log_stats=True,
            trust_remote_code=False,
        )
        self._llm.apply_model(redraw_weights)
        self._vocab = int(facts.get("vocab_size") or facts["text_config"]["vocab_size"])
        self._step_ends: list[float] = []
        self._time_steps()

    def close(self) -> None:
        """Let go of the engine and of the folder that held its configuration."""
        del self._llm
        self._folder.cleanup()

    def _time_steps(self) -> None:
        engine = self._llm.llm_engine
        original = engine.step

        def step() -> Any:
            result = original()
            self._step_ends.append(time.perf_counter())
            return result

        engine.step = step

    def prepare(self, workload: "Workload", seed: int) -> Requests:
        """Random prompts and sampling parameters for every request of a workload."""
        import numpy as np
        from vllm import SamplingParams

        rng = np.random.default_rng(seed)
        prompts, params = [], []
        for b in workload.bins:
            # Greedy, to the full length: the output is noise and its length is the workload's.
            sampling = SamplingParams(
                temperature=0.0,
                max_tokens=max(1, b.output_tokens),
                ignore_eos=True,
                detokenize=False,
            )
            for _ in range(b.count or 0):
                tokens = rng.integers(10, self._vocab - 10, size=b.input_tokens).tolist()
                prompts.append({"prompt_token_ids": tokens})
                params.append(sampling)
        return prompts, params

    def generate(self, requests: Requests) -> tuple[float, ...]:
        """Run requests to their end; seconds of each iteration, the first from submission."""
        prompts, params = requests
        self._step_ends = [time.perf_counter()]
        self._llm.generate(prompts, params, use_tqdm=False)
        ends = self._step_ends
        return tuple(b - a for a, b in pairwise(ends))

    def measure(self, workload: "Workload", sensor: Sensor, *, min_run_s: float = MIN_RUN_S) -> Run:
        """Warm up, then repeat back to back for ``min_run_s`` or more.

        Raises:
            WindowRefused: the energy counter stood still, or the GPU was too hot.
        """
        variants = [self.prepare(workload, seed) for seed in range(2)]
        watcher = Watcher(sensor)
        with watcher as trace:
            warm_until = time.perf_counter() + WARM_S
            self.generate(variants[0])
            while time.perf_counter() < warm_until:
                self.generate(variants[0])
            start = time.perf_counter()
            repeats = 0
            while repeats == 0 or time.perf_counter() - start < min_run_s:
                repeats += 1
                step_s = self.generate(variants[repeats % 2])
            end = time.perf_counter()
            memory_power_w = sensor.memory_power_w()
            self._tail(variants[0])
            watcher.wait_for_tick(end)
        try:
            energy_j = trace.energy_between(start, end)
        except ValueError as error:
            raise WindowRefused("The energy counter did not move around the run.") from error
        sm_clock_hz, temperature_c = trace.clock_hz(start, end), trace.temperature_c(start, end)
        throttle_reasons = trace.throttle_reasons(start, end)
        refuse_thermal(throttle_reasons, sm_clock_hz, temperature_c)
        return Run(
            duration_s=(end - start) / repeats,
            energy_j=energy_j / repeats,
            repeats=repeats,
            sm_clock_hz=sm_clock_hz,
            temperature_c=temperature_c,
            throttle_reasons=throttle_reasons,
            memory_power_w=memory_power_w,
            step_s=step_s,
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
            {"input_tokens": b.input_tokens, "output_tokens": b.output_tokens, "count": b.count}
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
    }


def versions() -> Iterator[tuple[str, str]]:
    """Name and version of the software that decides time and energy."""
    from importlib.metadata import PackageNotFoundError, version

    for package in ("vllm", "torch", "triton", "transformers"):
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue
