"""Whole-model runs on ``vllm serve``: requests over HTTP, tokens streamed, dummy weights redrawn.

The engine is in a process of its own and the HTTP server in another, as users deploy it. What is
measured is the time from the first request to the last token and the GPU's energy in between.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.engines import vllm_requests
from calibration.engines.http_load import Answer, Call, Load
from calibration.engines.vllm import MIN_RUN_S, WARM_S, Run, redraw_weights
from calibration.sensors import Sensor
from calibration.watch_all import (
    WatchAll,
    all_reasons,
    mean_clock_hz,
    mean_temperature_c,
    total_memory_power_w,
)

if TYPE_CHECKING:
    from energymodel.deployment import Deployment
    from energymodel.workload import Workload

# First request sent and last token, on the clock of the sensor's trace.
Span = tuple[float, float]

START_S = 420.0
STOP_S = 20.0
NAME = "model"


class Redraw:
    """What the server's workers get added, to be called through its development interface."""

    model_runner: Any

    def redraw_weights(self) -> None:
        """Dummy weights to random ones."""
        redraw_weights(self.model_runner.get_model())


class Engine:
    """A ``vllm serve`` holding one model with random weights, and processes that ask it."""

    def __init__(
        self, config: Mapping[str, Any], deployment: "Deployment", *, max_model_len: int
    ) -> None:
        self.deployment = deployment
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        facts = {k: v for k, v in config.items() if not k.startswith("_")}
        (folder / "config.json").write_text(json.dumps(facts), encoding="utf-8")
        self._vocab = int(facts.get("vocab_size") or facts["text_config"]["vocab_size"])
        vllm_requests.write_tokenizer(folder, self._vocab)
        self._marks = vllm_requests.marks(self._vocab)
        self._port = _free_port()
        log = (folder / "log").open("w", encoding="utf-8")
        environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1"}
        environment.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
        self._process = subprocess.Popen(  # noqa: S603 (our own arguments)
            [
                *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
                *_arguments(folder, deployment, max_model_len, self._port),
            ],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        try:
            self._wait(folder / "log")
            self._post("/collective_rpc", {"method": "redraw_weights"})
            self._load = Load(self._port)
        except BaseException:
            self._stop()
            raise

    def close(self) -> None:
        """Stop the server and those that ask it."""
        self._load.close()
        self._stop()
        self._folder.cleanup()

    def calls(self, workload: "Workload", seed: int, at_s: Sequence[float] = ()) -> list[Call]:
        """Requests of a workload, all at once unless ``at_s`` says when."""
        tokens = vllm_requests.prompts(workload, self.deployment, self._vocab, seed)
        if self.deployment.enable_prefix_caching:
            places = vllm_requests.own_tokens(workload, self.deployment)
            vllm_requests.freshen(tokens, places, self._marks)
        outputs = [b.output_tokens for b in workload.bins for _ in range(b.count or 0)]
        times = at_s or [0.0] * len(tokens)
        return [
            Call(
                body={
                    "model": NAME,
                    "prompt": ids,
                    "stream": True,
                    **vllm_requests.sampling(self.deployment, output),
                },
                at_s=at,
            )
            for ids, output, at in zip(tokens, outputs, times, strict=True)
        ]

    def measure(
        self,
        workload: "Workload",
        *sensors: Sensor,
        min_run_s: float = MIN_RUN_S,
        at_s: Sequence[float] = (),
    ) -> Run:
        """Warm up, then repeat until ``min_run_s`` or more were spent serving.

        Args:
            workload: bins with counts.
            sensors: of every GPU of the replica.
            min_run_s: least time that is measured.
            at_s: when each request is sent, all at once unless given.

        Raises:
            WindowRefused: the energy counter stood still, or the GPU was too hot.
        """
        spans: list[Span] = []
        with WatchAll(sensors) as watch:
            warm_until = time.perf_counter() + WARM_S
            self._load.run(self.calls(workload, 0, at_s))
            while time.perf_counter() < warm_until:
                self._load.run(self.calls(workload, 0, at_s))
            while not spans or sum(b - a for a, b in spans) < min_run_s:
                # What a pass takes to prepare is not of the run, so each has a span of its own.
                calls = self.calls(workload, 1 + len(spans), at_s)
                answers = self._load.run(calls)
                spans.append(_span(answers))
            memory_power_w = watch.memory_power_w()
            self._load.run(self.calls(workload, 0, at_s))
            watch.wait_for_tick(spans[-1][1])
        passes = [watch.runs(a, b, memory_power_w, 1) for a, b in spans]
        gpus = watch.runs(spans[0][0], spans[-1][1], memory_power_w, 1)
        return Run(
            duration_s=float(np.mean([b - a for a, b in spans])),
            energy_j=float(np.mean([sum(gpu.energy_j for gpu in one) for one in passes])),
            repeats=len(spans),
            sm_clock_hz=mean_clock_hz(gpus),
            temperature_c=mean_temperature_c(gpus),
            throttle_reasons=all_reasons(gpus),
            memory_power_w=total_memory_power_w(gpus),
            step_s=(),
            latency=latency_facts(answers),
        )

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                errors = [line for line in lines if "Error" in line] or lines
                raise RuntimeError(f"the server ended: {errors[-1] if errors else 'no output'}")
            try:
                with urllib.request.urlopen(self._url("/health"), timeout=2):  # noqa: S310
                    return
            except OSError:
                time.sleep(0.5)
        raise RuntimeError(f"the server was not ready after {START_S:.0f} s")

    def _post(self, path: str, body: Mapping[str, Any]) -> None:
        request = urllib.request.Request(  # noqa: S310 (our own address)
            self._url(path),
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120):  # noqa: S310
            return

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._port}{path}"

    def _stop(self) -> None:
        """The server leads a process group: what it started ends with it."""
        for signal_number in (signal.SIGINT, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, signal_number)
                self._process.wait(STOP_S)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def latency_facts(answers: Sequence[Answer]) -> dict[str, float]:
    """Seconds to the first token and between tokens, as those who ask see them."""
    first = np.array([a.event_s[0] - a.sent_s for a in answers])
    gaps = np.array([y - x for a in answers for x, y in pairwise(a.event_s)])
    facts = {"ttft_mean_s": float(first.mean()), "ttft_p90_s": float(np.quantile(first, 0.9))}
    if gaps.size:
        facts |= {"itl_mean_s": float(gaps.mean()), "itl_p50_s": float(np.median(gaps))}
    return facts


def _span(answers: Sequence[Answer]) -> Span:
    shift = time.perf_counter() - time.monotonic()
    return (
        min(a.sent_s for a in answers) + shift,
        max(a.event_s[-1] for a in answers) + shift,
    )


def _arguments(folder: Path, deployment: "Deployment", max_model_len: int, port: int) -> list[str]:
    chosen = {
        "--model": str(folder),
        "--served-model-name": NAME,
        "--load-format": "dummy",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": deployment.dtype,
        "--kv-cache-dtype": deployment.kv_cache_dtype,
        "--tensor-parallel-size": str(deployment.tensor_parallel_size),
        "--max-num-seqs": str(deployment.max_num_seqs),
        "--max-num-batched-tokens": str(deployment.max_num_batched_tokens),
        "--gpu-memory-utilization": str(deployment.gpu_memory_utilization),
        "--max-model-len": str(max_model_len),
        "--worker-extension-cls": f"{Redraw.__module__}.{Redraw.__name__}",
    }
    if deployment.quantization is not None:
        chosen["--quantization"] = deployment.quantization
    caching = "" if deployment.enable_prefix_caching else "no-"
    switches = [f"--{caching}enable-prefix-caching", "--disable-uvicorn-access-log"]
    if deployment.enforce_eager:
        switches.append("--enforce-eager")
    return [*(text for pair in chosen.items() for text in pair), *switches]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
