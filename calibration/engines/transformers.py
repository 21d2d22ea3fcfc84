"""Whole-model runs on Hugging Face transformers: eager, SDPA, bfloat16, weights drawn at random.

Requests run in static batches of up to ``max_num_seqs`` of one bin. What generates runs ``generate``:
greedy, with the dynamic cache, every sequence to its full length. What does not (``output_tokens``
of 0) is one forward pass: of a decoder with the logits of the last token, of an encoder, or of the
encoder of an encoder-decoder.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from calibration.engines.vllm import MIN_RUN_S, WARM_S, Run
from calibration.sensors import Sensor
from calibration.watch_all import WatchAll

if TYPE_CHECKING:
    from energymodel.deployment import Deployment
    from energymodel.workload import Workload

# Work that runs on after the window closed, so that its last tick interpolates over like power.
TAIL_S = 0.15
PACKAGES = ("transformers", "torch", "triton")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Prompts that run together: ``ids`` [sequences, tokens] on the device."""

    ids: Any
    output_tokens: int


class Engine:
    """A transformers model with random weights on a device."""

    def __init__(
        self,
        config: Mapping[str, Any],
        deployment: "Deployment",
        *,
        max_model_len: int,  # noqa: ARG002 (as every engine is started)
        device: str = "cuda",
    ) -> None:
        """Draw the model; ``max_model_len`` is not needed, since memory is taken as it is used."""
        import torch
        from transformers import GenerationConfig

        from calibration.components.model import ENCODER_DECODER, load
        from energymodel.find_model import FoundConfig

        name = str(config.get("model_type"))
        loaded = load(FoundConfig(name=name, where=name, config=dict(config)), device=device)
        self._torch, self._device = torch, device
        self._model, self._encodes = loaded.model, loaded.kind == ENCODER_DECODER
        self._most = deployment.max_num_seqs
        text = self._model.config.get_text_config()
        self._vocab = int(text.vocab_size)
        if self._model.can_generate():
            # That of the checkpoint may search beams or forbid repetition.
            self._model.generation_config = GenerationConfig(
                eos_token_id=text.eos_token_id,
                pad_token_id=text.pad_token_id or 0,
                decoder_start_token_id=getattr(text, "decoder_start_token_id", None) or 0,
            )
        self._last = (
            {"logits_to_keep": 1}
            if "logits_to_keep" in signature(self._model.forward).parameters
            else {}
        )
        self._begun_s: list[float] = []
        self._model.register_forward_pre_hook(lambda *_: self._begun_s.append(time.perf_counter()))

    def close(self) -> None:
        """Let go of the model."""
        del self._model
        if self._device != "cpu":
            self._torch.cuda.empty_cache()

    def prepare(self, workload: "Workload", seed: int) -> list[Batch]:
        """Random prompts of a workload, in batches of one bin."""
        generator = self._torch.Generator(self._device).manual_seed(seed)
        batches = []
        for b in workload.bins:
            for size in batch_sizes(b.count or 0, self._most):
                ids = self._torch.randint(
                    10,
                    self._vocab - 10,
                    (size, b.input_tokens),
                    device=self._device,
                    generator=generator,
                )
                batches.append(Batch(ids=ids, output_tokens=b.output_tokens))
        return batches

    def run(self, batches: Sequence[Batch]) -> tuple[float, ...]:
        """One batch after the other, to the end; seconds of each forward pass, in order.

        A pass lasts until the host begins the next one, the last until the device is done.
        """
        self._begun_s = []
        with self._torch.inference_mode():
            for batch in batches:
                if batch.output_tokens:
                    self._generate(batch)
                elif self._encodes:
                    self._begun_s.append(time.perf_counter())
                    self._model.get_encoder()(input_ids=batch.ids)
                else:
                    self._model(input_ids=batch.ids, **self._last)
        if self._device != "cpu":
            self._torch.cuda.synchronize()
        return tuple(b - a for a, b in pairwise([*self._begun_s, time.perf_counter()]))

    def _generate(self, batch: Batch) -> None:
        self._model.generate(
            batch.ids,
            attention_mask=self._torch.ones_like(batch.ids),
            do_sample=False,
            min_new_tokens=batch.output_tokens,
            max_new_tokens=batch.output_tokens,
        )

    def measure(
        self, workload: "Workload", *sensors: Sensor, min_run_s: float | None = None
    ) -> Run:
        """Warm up, then repeat back to back for ``min_run_s`` (``MIN_RUN_S``) or more, on one GPU.

        Raises:
            WindowRefused: the energy counter stood still, or the GPU was too hot.
        """
        variants = [self.prepare(workload, seed) for seed in range(2)]
        least_s = MIN_RUN_S if min_run_s is None else min_run_s
        return repeated(lambda i: self.run(variants[i % 2]), *sensors, min_run_s=least_s)


def repeated(once: Callable[[int], tuple[float, ...]], sensor: Sensor, *, min_run_s: float) -> Run:
    """Time and energy of one pass of ``once``, which gives the durations of its steps.

    It runs for ``WARM_S`` or longer before the window, and on after it.

    Raises:
        WindowRefused: the energy counter stood still, or the GPU was too hot.
    """
    with WatchAll([sensor]) as watch:
        _until(time.perf_counter() + WARM_S, once)
        start = time.perf_counter()
        repeats, step_s = _until(start + min_run_s, once)
        end = time.perf_counter()
        memory_power_w = watch.memory_power_w()
        _until(time.perf_counter() + TAIL_S, once)
        watch.wait_for_tick(end)
    (gpu,) = watch.runs(start, end, memory_power_w, repeats)
    return Run(
        duration_s=(end - start) / repeats,
        energy_j=gpu.energy_j,
        repeats=repeats,
        sm_clock_hz=gpu.sm_clock_hz,
        temperature_c=gpu.temperature_c,
        throttle_reasons=gpu.throttle_reasons,
        memory_power_w=gpu.memory_power_w,
        step_s=step_s,
    )


def _until(
    deadline_s: float, once: Callable[[int], tuple[float, ...]]
) -> tuple[int, tuple[float, ...]]:
    """Repeat until ``deadline_s``, at least once; how often, and the steps of the last pass."""
    repeats, step_s = 1, once(0)
    while time.perf_counter() < deadline_s:
        step_s = once(repeats)
        repeats += 1
    return repeats, step_s


def batch_sizes(requests: int, most: int) -> Iterator[int]:
    """Sequences of each batch: full ones, then what is left."""
    while requests > 0:
        yield min(requests, most)
        requests -= most


def versions() -> Iterator[tuple[str, str]]:
    """Name and version of the software that decides time and energy."""
    from importlib.metadata import PackageNotFoundError, version

    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue
