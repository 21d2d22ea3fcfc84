"""Odd settings of the families, windows and masked attention against transformers; fvcore.

What holds for every family is in ``test_families_against_torch``. FLOP are compared with
``torch.utils.flop_counter`` on tiny models on the CPU. Two conventions differ and are undone:

- torch counts attention unmasked, T x T pairs for a prompt of T; the model here counts the pairs
  that the mask lets through;
- torch sees the outer product that makes the rotary angles as a matrix product; here it is not
  one (an engine looks the angles up).
"""

import functools
import itertools

import numpy as np
import pytest
from family_cases import TINY
from step_builders import prefill

from energymodel.blocks import SoftmaxAttention
from energymodel.deployment import Deployment
from energymodel.ops import Op, lower

torch = pytest.importorskip("torch", reason="needs torch")
counts = pytest.importorskip("torch_counts", reason="needs transformers")

EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
TINY_MODELS = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 4},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {"sliding_window": None},
    "olmo": {"clip_qkv": None},
    "olmo2": {},
    "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 3},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 28, "mlp_only_layers": [1]},
    "qwen3_moe": EXPERTS | {"decoder_sparse_step": 2, "use_sliding_window": False},
    "gpt_oss": {"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 4},
}


def tiny(family: str, **changes: object) -> dict[str, object]:
    return {"model_type": family, **TINY, **TINY_MODELS[family], **changes}


@pytest.mark.parametrize("family", TINY_MODELS)
def test_odd_parameters_are_those_of_the_class(family: str) -> None:
    for bias, tied, kv_heads in itertools.product([False, True], [False, True], [1, 4]):
        changes = {"tie_word_embeddings": tied, "num_key_value_heads": kv_heads}
        if family != "gpt_oss":
            changes["attention_bias"] = bias
        config = tiny(family, **changes, qk_layernorm=bias, qkv_bias=bias)
        assert counts.spec(config).param_count == counts.param_count(config), changes


@pytest.mark.parametrize(
    "config",
    [
        *(tiny(family, num_hidden_layers=8) for family in TINY_MODELS),
        *(
            tiny(family, num_hidden_layers=8, use_sliding_window=True, max_window_layers=3)
            for family in ("qwen2", "qwen3", "qwen2_moe")
        ),
        tiny("gemma3_text", num_hidden_layers=8, sliding_window_pattern=3),
        tiny("gemma2", num_hidden_layers=2, layer_types=["full_attention", "sliding_attention"]),
    ],
    ids=lambda c: str(c["model_type"]),
)
def test_windows_are_those_of_the_configuration_class(config: dict[str, object]) -> None:
    made = counts.hf_config(config)
    window = getattr(made, "sliding_window", None)
    types = getattr(made, "layer_types", None) or ["sliding_attention"] * made.num_hidden_layers
    expected = [window if kind == "sliding_attention" else None for kind in types]
    assert [
        layer.find(SoftmaxAttention).sliding_window for layer in counts.spec(config).layers
    ] == expected


@functools.cache
def counted(family: str, tokens: int) -> tuple[dict[str, int], tuple[Op, ...]]:
    """FLOP that torch sees in (everything, rotary, attention) and our operations."""
    from torch.utils.flop_counter import FlopCounterMode

    model = counts.build(tiny(family), "cpu")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.arange(tokens)[None] % 64, use_cache=False)
    modules = counter.get_flop_counts()
    by_operator = modules["Global"]
    rotary = sum(sum(v.values()) for k, v in modules.items() if k.endswith("rotary_emb"))
    batched = sum(n for op, n in by_operator.items() if "bmm" in str(op))
    found = {
        "all": sum(by_operator.values()) - rotary,
        "attention": batched - rotary,
    }
    return found, lower(counts.spec(tiny(family)), Deployment(), prefill(tokens))


def full_attention_flop(family: str, tokens: int) -> int:
    """4 x heads x head_dim x T x T in every layer: what torch counts, mask or not."""
    layers = counts.spec(tiny(family)).layers
    return sum(4 * layer.find(SoftmaxAttention).q_size * tokens * tokens for layer in layers)


def our_flop(ops: tuple[Op, ...], *, head_rows: int) -> tuple[float, float]:
    """(products outside attention with the LM head on ``head_rows`` rows, attention)."""
    linear = sum(op.count * op.flop.item() for op in ops if op.kind in ("gemm", "moe"))
    head = next(op for op in ops if op.name == "lm_head")
    attention = sum(op.count * op.flop.item() for op in ops if op.kind.endswith("_attention"))
    return linear + (head_rows - 1) * head.flop.item(), attention


@pytest.mark.parametrize("family", TINY_MODELS)
@pytest.mark.parametrize("tokens", [1, 11])
def test_prefill_flop_are_those_of_torch(family: str, tokens: int) -> None:
    torch_flop, ops = counted(family, tokens)
    linear, attention = our_flop(ops, head_rows=tokens)
    full = full_attention_flop(family, tokens)
    assert torch_flop["attention"] == full
    assert torch_flop["all"] - full == linear
    model = counts.spec(tiny(family))
    pairs = [
        layer.find(SoftmaxAttention).chunk_pairs(np.array([tokens]), np.array([0])).item()
        for layer in model.layers
    ]
    assert attention == sum(4 * model.layers[0].find(SoftmaxAttention).q_size * n for n in pairs)
    assert attention / full == pytest.approx(sum(pairs) / (len(pairs) * tokens**2))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi"])
@pytest.mark.filterwarnings("ignore")  # tracing warns of shapes that are constants
def test_linear_flop_are_twice_the_multiply_adds_of_fvcore(family: str) -> None:
    nn = pytest.importorskip("fvcore.nn", reason="needs fvcore")
    tokens = 7

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = counts.build(tiny(family), "cpu")

        def forward(self, ids: "torch.Tensor") -> "torch.Tensor":
            return self.model(ids, use_cache=False).logits

    analysis = nn.FlopCountAnalysis(Logits(), torch.arange(tokens)[None])
    analysis.unsupported_ops_warnings(enabled=False).uncalled_modules_warnings(enabled=False)
    linear, _ = our_flop(
        lower(counts.spec(tiny(family)), Deployment(), prefill(tokens)), head_rows=tokens
    )
    assert linear == 2 * analysis.by_operator()["linear"]
