"""What the host of vLLM does in a step, counted; the profile's ``engines["vllm"]`` times it.

Facts of vLLM 0.24. A step is scheduled, prepared and launched while the GPU still works on the one
before (asynchronous scheduling), and what came out of that one is then handled: a step takes the
longer of the GPU's time and the host's. Pure decode within the captured sizes is one launch; a step
with prompt chunks replays a graph for each piece between attentions, which are launched from
Python; beyond the captured sizes compiled code launches kernel by kernel. With ``enforce_eager``
Python does, module by module: that was not measured, and is taken to last as long.

Models of ``NEW_RUNNER`` are run by another program (``DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES`` in
``vllm/config/vllm.py``, ``vllm/v1/worker/gpu/model_runner.py``) than the others
(``vllm/v1/worker/gpu_model_runner.py``): its host work and its sampler are its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from energymodel.blocks import ChannelMix, CrossAttention, Mlp, Moe, SoftmaxAttention
from energymodel.deployment import Deployment
from energymodel.engines import vllm_graphs
from energymodel.errors import InputError
from energymodel.model import ModelSpec
from energymodel.profile import Estimate
from energymodel.steps import Floats, Steps
from energymodel.towers import layers_run
from energymodel.vllm_runner import by_new_runner
from energymodel.workload import Bin, Workload

# Host work that comes before the first launch: a step is scheduled and prepared.
BEFORE_LAUNCH = ("host_step_s", "new_runner_step_s")
# Normalisations of a layer that most models have: before attention and before the feed-forward part.
USUAL_NORMS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class HostWork:
    """How often each piece of host work is done, per step [n_steps], by the name of its time.

    ``launch_norm_s`` is of the normalisations of the layers beyond ``USUAL_NORMS``, where they are
    launched one by one.
    """

    counts: Mapping[str, Floats]

    def seconds(self, engine: Mapping[str, float]) -> Floats:
        """Host seconds of each step; what a profile has no time for takes none."""
        terms = (engine.get(name, 0.0) * count for name, count in self.counts.items())
        return np.asarray(sum(terms), dtype=np.float64)

    def lead_seconds(self, engine: Mapping[str, float]) -> Floats:
        """Those of them that pass before the first launch of a step."""
        before = {n: count for n, count in self.counts.items() if n in BEFORE_LAUNCH}
        return HostWork(counts=before).seconds(engine)


def new_runner(model: ModelSpec, deployment: Deployment) -> bool:
    """Whether the newer model runner runs the model: neither draft models nor n-grams are its.

    ``_get_v2_model_runner_unsupported_features`` in ``vllm/config/vllm.py``.
    """
    return by_new_runner(model) and deployment.speculative_model is None


def launches(
    model: ModelSpec,
    deployment: Deployment,
    steps: Steps,
    bins: Sequence[Bin] = (),
    *,
    graphs: bool = True,
) -> HostWork:
    """Launches of each step: none for pure decode steps that one graph holds.

    An encoder in front of a decoder is launched kernel by kernel, and so are towers, in the steps
    that use them (``bins`` say what requests show). ``graphs``: whether any were captured.
    """
    decodes = steps.decodes.queries * steps.decoding
    prompt = steps.sum_chunks(steps.chunks.tokens)
    largest = vllm_graphs.largest(deployment) if graphs else 0.0
    beyond = first_tokens(model, steps) + decodes > largest
    pieces = ~beyond & ((prompt > 0) | (decodes > vllm_graphs.largest_whole(deployment)))
    # One graph holds sequences that all verify a draft, or none of them where nothing drafts.
    unlike = 1.0 - deployment.draft_rate**steps.decoding
    encoder = float(len(model.encoder.layers)) if model.encoder else 0.0
    layers, new = float(token_mixers(model)), new_runner(model, deployment)
    moes = [moe for layer in model.layers if (moe := layer.find(Moe)) is not None]
    shared = sum(moe.shared_expert is not None for moe in moes)
    one_by_one = (
        np.where(beyond, layers, 0.0)
        + np.where(prompt > 0, encoder, 0.0)
        + layers_run(model.towers, steps, bins)
    )
    return HostWork(
        counts={
            "launch_graph_layer_s": layers * np.where(beyond, 0.0, np.where(pieces, 1.0, unlike)),
            "launch_layer_s": one_by_one,
            "launch_norm_s": np.where(beyond, float(more_norms(model)), 0.0),
            "launch_experts_s": np.where(beyond, float(len(moes)), 0.0),
            "launch_shared_expert_s": np.where(beyond, float(shared), 0.0),
            "launch_token_s": np.where(beyond | (prompt > 0), prompt + decodes, 0.0),
            "host_step_s": np.ones(steps.size),
            "new_runner_step_s": np.full(steps.size, float(new)),
            "new_runner_sequence_s" if new else "host_sequence_s": steps.decoding,
            **_handed_out(deployment, steps),
        }
    )


def _handed_out(deployment: Deployment, steps: Steps) -> dict[str, Floats]:
    """What becomes of the tokens of each step in the engine's own process."""
    if deployment.server:
        return {"server_step_s": np.ones(steps.size)}
    return {"detokenize_s": steps.sampled} if deployment.detokenize else {}


def check_server(engine: Mapping[str, float], profile: str) -> None:
    """Refuse to predict a server that was not measured.

    Raises:
        InputError: the profile has no times of it.
    """
    lacking = {"server_step_s", "server_request_s", "server_token_s", "server_latency_s"} - {
        *engine
    }
    if lacking:
        raise InputError(
            f"profile '{profile}' has no times of the HTTP server (engines.vllm.{min(lacking)}); "
            "leave --server out."
        )


def request_seconds(deployment: Deployment, engine: Mapping[str, Estimate]) -> float:
    """Seconds that a request to a server takes beside its steps; none without one."""
    return engine["server_latency_s"].value if deployment.server else 0.0


def serving(steps: Steps) -> HostWork:
    """Work of the process that answers over HTTP, beside the engine's own (``vllm serve``).

    It reads each request, detokenizes each token and sends it off
    (``AsyncLLM.generate`` in ``vllm/v1/engine/async_llm.py``).
    """
    begun = steps.sum_chunks(steps.chunks.last)
    return HostWork(counts={"server_request_s": begun, "server_token_s": steps.sampled})


def token_mixers(model: ModelSpec) -> int:
    """Blocks that mix the tokens of a sequence: one a layer in the models that were measured.

    Each is launched apart from the graphs between them. Nemotron-H has layers of a feed-forward
    block alone, Falcon-H1 two mixers a layer.
    """
    apart = (Mlp, Moe, ChannelMix, CrossAttention)
    return sum(
        count * sum(not isinstance(leaf, apart) for leaf in layer.leaves)
        for layer, count in model.layer_groups()
    )


def more_norms(model: ModelSpec) -> int:
    """Normalisations of all layers beyond two a layer: of queries and keys, or of a block's result."""
    total = 0
    for layer, count in model.layer_groups():
        of_heads = 2 * sum(
            leaf.qk_norm is not None for leaf in layer.leaves if isinstance(leaf, SoftmaxAttention)
        )
        total += count * max(layer.norms + of_heads - USUAL_NORMS, 0)
    return total


def first_tokens(model: ModelSpec, steps: Steps) -> Floats:
    """Tokens of prompts in the layers that generate: of an encoder-decoder, only its start."""
    if model.encoder is None:
        return steps.sum_chunks(steps.chunks.tokens)
    return model.start_tokens * steps.sum_chunks(steps.chunks.last)


def submissions(workload: Workload, deployment: Deployment) -> dict[str, float]:
    """How often each piece of work is done to take requests in, by the name of its time.

    With prefix caching each block of a prompt gets a hash (``vllm/v1/core/kv_cache_utils.py``). A
    server begins while requests still come.
    """
    if deployment.server:
        return {"server_latency_s": 1.0}
    blocks = sum(b.amount * (b.input_tokens // deployment.block_size) for b in workload.bins)
    return {
        "submit_request_s": workload.requests,
        "submit_token_s": workload.input_tokens,
        "submit_block_s": float(blocks) if deployment.enable_prefix_caching else 0.0,
    }


def idle_seconds(workload: Workload, deployment: Deployment, engine: Mapping[str, float]) -> float:
    """Time in which an offline run leaves the GPU idle: requests are taken in, the last handled."""
    terms = (engine.get(n, 0.0) * count for n, count in submissions(workload, deployment).items())
    return sum(terms) + engine.get("finish_s", 0.0)
