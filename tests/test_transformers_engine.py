"""What transformers launches and how it batches: counted, hand-calculated, refused."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from energymodel import profile as profiles
from energymodel.costs import planned
from energymodel.deployment import Deployment
from energymodel.engines import transformers as engine
from energymodel.engines.batches import static_batches
from energymodel.errors import InputError
from energymodel.find_model import find_model
from energymodel.model import model_from_config
from energymodel.ops import lower
from energymodel.predict import predict
from energymodel.profile import Estimate, Profile
from energymodel.workload import Bin, Workload

TRANSFORMERS = Deployment(engine="transformers")
GPU = profiles.load("h200").gpu
TEXT = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
GROUPED = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4}
BART = {
    "vocab_size": 64, "d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "is_encoder_decoder": True,
}  # fmt: skip
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_head": 4}
# Configuration, and the keys that hold the number of layers.
FAMILIES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "llama": (GROUPED, ("num_hidden_layers",)),
    "qwen2": ({**TEXT, "num_key_value_heads": 2}, ("num_hidden_layers",)),
    "qwen3": (GROUPED, ("num_hidden_layers",)),
    "mistral": ({**GROUPED, "sliding_window": None}, ("num_hidden_layers",)),
    "gemma": (GROUPED, ("num_hidden_layers",)),
    "gpt2": (GPT2, ("n_layer",)),
    "bert": (TEXT, ("num_hidden_layers",)),
    "roberta": (TEXT, ("num_hidden_layers",)),
    "modernbert": (
        {**TEXT, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2},
        ("num_hidden_layers",),
    ),
    "t5": ({**T5, "feed_forward_proj": "gated-gelu"}, ("num_layers", "num_decoder_layers")),
    "bart": (BART, ("encoder_layers", "decoder_layers")),
}
# What is called and launches nothing on a GPU: views, allocations, dropout outside of training, and
# the copy behind attention, which leaves its result in order (that of a biased one counts in it).
NOTHING = {
    "view", "_unsafe_view", "transpose", "t", "permute", "expand", "unsqueeze", "squeeze", "slice",
    "select", "split", "detach", "detach_", "alias", "chunk", "as_strided", "reshape", "unbind",
    "split_with_sizes", "empty", "empty_like", "lift_fresh", "dropout",
    "contiguous",
}  # fmt: skip


def launched_by_torch(
    family: str, config: dict[str, Any], tokens: int, output_tokens: int
) -> Counter[str]:
    """Operations that a run of two requests calls, by name."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from torch.utils._python_dispatch import TorchDispatchMode

    from calibration.engines.transformers import Engine

    calls: Counter[str] = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None):
            name = function.__name__.split(".")[0]
            calls.update([] if name in NOTHING else [name])
            return function(*args, **(kwargs or {}))

    torch.manual_seed(0)
    facts = {"model_type": family, **config}
    started = Engine(facts, TRANSFORMERS, max_model_len=0, device="cpu")
    workload = Workload(bins=(Bin(input_tokens=tokens, output_tokens=output_tokens, count=2),))
    batches = started.prepare(workload, 0)
    with Count():
        started.run(batches)
    started.close()
    return calls


def launched_by_us(family: str, config: dict[str, Any], tokens: int, output_tokens: int) -> float:
    """Launches that are predicted for the same run; a biased attention counts as one."""
    model = model_from_config({"model_type": family, **config}, family)[0]
    workload = Workload(bins=(Bin(input_tokens=tokens, output_tokens=output_tokens, count=2),))
    served, schedule = planned(model, TRANSFORMERS, workload, GPU)
    steps, prompts = schedule.steps, np.array([b.input_tokens for b in served.bins])
    ops = engine.lower_eagerly(model, TRANSFORMERS, steps, prompts, served.bins)
    each = [
        op.count * (1 if op.kernel == "biased" else engine.kernels(op)) * (op.hbm_bytes > 0)
        for op in ops
    ]
    return float(steps.weight @ sum(each))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("output_tokens", [0, 3])
def test_a_layer_launches_what_transformers_calls(family: str, output_tokens: int) -> None:
    config, depths = FAMILIES[family]
    if family in ("bert", "roberta", "modernbert") and output_tokens:
        pytest.skip("an encoder generates nothing")
    # The first layer of ModernBERT has no norm, and every third sees further than the others.
    few, more = ({**config, **dict.fromkeys(depths, n)} for n in (2, 3))
    asked = (8, output_tokens)
    real = launched_by_torch(family, more, *asked)
    real.subtract(launched_by_torch(family, few, *asked))
    ours = launched_by_us(family, more, *asked) - launched_by_us(family, few, *asked)
    assert ours == sum(real.values()), dict(real)


def test_batches_are_of_one_bin_and_run_to_their_end() -> None:
    workload = Workload(
        bins=(
            Bin(input_tokens=100, output_tokens=5, count=5),
            Bin(input_tokens=7, output_tokens=0, count=2),
        )
    )
    schedule = static_batches(workload, 2, samples_always=False)
    steps = schedule.steps
    # Two full batches of the first bin and one of a single request, then one of the second.
    assert steps.chunks.count.tolist() == [2, 2, 1, 2]
    assert steps.chunks.tokens.tolist() == [100, 100, 100, 7]
    assert steps.chunks.last.tolist() == [1, 1, 1, 0]
    # Each batch of the first bin: one pass for the first token, four for the others.
    assert schedule.iterations == 3 * 5 + 1
    assert steps.decoding.tolist() == [0, 2, 2, 2, 2, 0, 2, 2, 2, 2, 0, 1, 1, 1, 1, 0]
    assert steps.decodes.context[:4].tolist() == [100, 101, 102, 103]
    milestones = schedule.milestones
    assert milestones.count.tolist() == [2, 2, 1, 2]
    assert milestones.first_token_row.tolist() == [0, 5, 10, 15]
    assert milestones.finish_row.tolist() == [4, 9, 14, 15]


def test_long_answers_are_rows_that_stand_for_their_mean() -> None:
    workload = Workload(bins=(Bin(input_tokens=10, output_tokens=1001, count=3),))
    steps = static_batches(workload, 8, samples_always=False).steps
    assert steps.weight.sum() == 1001
    assert steps.size < 12
    assert steps.weight[1:] @ steps.decodes.context == sum(range(10, 1010))
    many = Workload(bins=(Bin(input_tokens=10, output_tokens=1001, count=1000),))
    crowd = static_batches(many, 8, samples_always=False).steps
    assert crowd.size == 2 * 125
    assert crowd.weight.sum() == 125 * 1001


def test_too_many_batches_are_refused() -> None:
    workload = Workload(bins=(Bin(input_tokens=1, output_tokens=1, count=100_000),))
    with pytest.raises(InputError, match="at most 50,000 batches of max_num_seqs"):
        static_batches(workload, 1, samples_always=False)


def test_the_cache_is_copied_at_every_step() -> None:
    # Llama-3.2-1B: 16 layers, 8 KV heads of 64. One decode step after 99 cached tokens copies
    # 100 of 4 sequences, keys and values, read and written: 2 x 2 x 2 B x 8 x 64 x 400 a layer.
    model = find_model("Llama-3.2-1B-Instruct")[0]
    workload = Workload(bins=(Bin(input_tokens=99, output_tokens=2, count=4),))
    served, schedule = planned(model, TRANSFORMERS, workload, GPU)
    prompts = np.array([99])
    ops = engine.lower_eagerly(model, TRANSFORMERS, schedule.steps, prompts, served.bins)
    copied = [op for op in ops if op.law == "copy.append"]
    assert sum(op.count * op.hbm_bytes[1] for op in copied) == 16 * 8 * 8 * 64 * 400
    assert sum(op.hbm_bytes[0] for op in copied) == 0
    filled = [op for op in ops if op.law == "copy.fill"]
    assert sum(op.count * op.hbm_bytes[0] for op in filled) == 16 * 8 * 8 * 64 * 396


@pytest.mark.parametrize(
    "name", ["Qwen3-4B", "OLMoE-1B-7B-0924", "flan-t5-base", "bert-base-uncased", "phi-2"]
)
def test_flop_are_those_of_the_fused_operations(name: str) -> None:
    # What is split is split without a remainder; experts compute the same either way.
    model = find_model(name)[0]
    output = 0 if model.kind == "encoder" else 3
    workload = Workload(bins=(Bin(input_tokens=64, output_tokens=output, count=2),))
    served, schedule = planned(model, TRANSFORMERS, workload, GPU)
    asked = (model, TRANSFORMERS, schedule.steps, np.array([64]), served.bins)
    eager = sum(op.count * op.flop for op in engine.lower_eagerly(*asked))
    fused = sum(op.count * op.flop for op in lower(*asked))
    assert np.allclose(eager, fused, rtol=1e-12)


def with_host(**values: float) -> Profile:
    """The shipped profile with such numbers of the host; 0 where not named."""
    profile = profiles.load("h200")
    names = profiles.ENGINE["transformers"]
    host = {n: Estimate(value=values.get(n, 0.0), stderr=0.0, unit="s") for n in names}
    regimes = {"transformers": profile.accuracy.regimes["vllm"], **profile.accuracy.regimes}
    return replace(
        profile,
        engines={**profile.engines, "transformers": host},
        accuracy=replace(profile.accuracy, regimes=regimes),
    )


def test_a_small_model_is_as_slow_as_its_launches() -> None:
    model = find_model("Llama-3.2-1B-Instruct")[0]
    workload = Workload(bins=(Bin(input_tokens=64, output_tokens=11, count=1),))
    profile = with_host(launch_row_s=1e-4, token_s=2e-3)
    found = predict(model, TRANSFORMERS, workload, profile)
    # A layer: two norms of 8 kernels, two sums, a rotary of 10, two copies of the cache, silu and
    # product: 32; then the last norm, the embedding, four kernels of sampling, and no sum before
    # the last norm but the one that belongs to the last layer.
    rows = 16 * 32 + 8 + 1 + 4 + 1
    assert found.duration_s == pytest.approx(11 * (rows * 1e-4 + 2e-3), rel=1e-9)
    assert found.energy_j == pytest.approx(sum(p.energy_j for p in found.phases.values()))
    assert any("host launches" in text for text in found.warnings)


def test_a_large_prompt_does_not_wait_for_its_launches() -> None:
    model = find_model("Qwen2.5-7B-Instruct")[0]
    workload = Workload(bins=(Bin(input_tokens=4096, output_tokens=0, count=4),))
    free = predict(model, TRANSFORMERS, workload, with_host())
    launched = predict(model, TRANSFORMERS, workload, with_host(launch_row_s=1e-5))
    assert launched.duration_s == free.duration_s


@pytest.mark.parametrize(
    ("model", "flags", "bins", "message"),
    [
        ("Qwen3-4B", {"quantization": "fp8"}, {}, "quantization must be left out"),
        ("Qwen3-4B", {"tensor_parallel_size": 2}, {}, "tensor_parallel_size"),
        ("Qwen2.5-7B-Instruct-GPTQ-Int4", {}, {}, "must be stored in 16 bits"),
        ("mamba-2.8b-hf", {}, {}, "must be of attention, feed-forward blocks and experts"),
        ("Qwen3-4B", {}, {"count": None, "requests_per_s": 1.0}, "bins must have count"),
        ("Qwen3-4B", {}, {"input_tokens": 32000, "count": 200}, "lower max_num_seqs"),
    ],
)
def test_what_transformers_is_not_calibrated_for_is_refused(
    model: str, flags: dict[str, Any], bins: dict[str, Any], message: str
) -> None:
    asked = Workload(bins=(Bin(**{"input_tokens": 8, "output_tokens": 2, "count": 1, **bins}),))
    deployment = Deployment(engine="transformers", **flags)
    with pytest.raises(InputError, match=message):
        predict(find_model(model)[0], deployment, asked, with_host())


def test_a_profile_without_transformers_says_how_to_get_it() -> None:
    profile = profiles.load("h200")
    without = replace(profile, engines={"vllm": profile.engines["vllm"]})
    workload = Workload(bins=(Bin(input_tokens=8, output_tokens=2, count=1),))
    with pytest.raises(InputError, match="has no calibration of engine transformers"):
        predict(find_model("Qwen3-4B")[0], TRANSFORMERS, workload, without)
