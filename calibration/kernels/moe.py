"""Mixture of experts: the gated MLP of the experts that tokens chose, and the choosing.

Routing is uniform and random. w1 [experts, 2 inter, hidden] holds gate and up projection, w2
[experts, hidden, inter] the down projection.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling

from calibration.kernels.common import (
    FP8_BLOCK,
    Call,
    How,
    Prepared,
    Shape,
    activation,
    copies,
    replicas,
    to_fp8,
    torch_stack,
    weight,
)

# Tokens are routed anew from call to call: one draw touches a few experts more or less than another.
ROUTINGS = 8


def _rotated(
    operands: Sequence[tuple[torch.Tensor, ...]], shape: Shape, how: How
) -> list[tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, torch.Tensor]]]:
    """Weights and routing (gates, experts) of each call, both in rotation."""
    routings = [_routing(shape, how) for _ in range(1 if how.warm else ROUTINGS)]
    return [
        (operands[i % len(operands)], routings[i % len(routings)])
        for i in range(max(len(operands), len(routings)))
    ]


def _routing(shape: Shape, how: How) -> tuple[torch.Tensor, torch.Tensor]:
    """Gates, float32, and experts, int32, of each token [tokens, top_k]."""
    scores = torch.rand(shape["tokens"], shape["num_experts"], device=how.device)
    gates, ids = torch.topk(scores, shape["top_k"], dim=-1)
    return torch.softmax(gates, dim=-1), ids.to(torch.int32)


def _weights(shape: Shape, how: How) -> tuple[torch.Tensor, torch.Tensor]:
    hidden, inter, experts = (
        shape["hidden_size"], shape["intermediate_size"], shape["num_experts"]
    )  # fmt: skip
    return weight(experts, 2 * inter, hidden, how=how), weight(experts, hidden, inter, how=how)


def _copies(shape: Shape, how: How) -> int:
    numbers = 3 * shape["num_experts"] * shape["hidden_size"] * shape["intermediate_size"]
    return copies(how.torch_dtype.itemsize * numbers, warm=how.warm)


def fused(shape: Shape, how: How) -> Prepared:
    """Fused experts of vLLM (Triton)."""
    from vllm.model_executor.layers.fused_moe import fused_experts

    x = activation(shape["tokens"], shape["hidden_size"], how=how)
    weights = [_weights(shape, how) for _ in range(_copies(shape, how))]
    rotation = _rotated(weights, shape, how)

    def call(weights: tuple[torch.Tensor, ...], routing: tuple[torch.Tensor, torch.Tensor]) -> Call:
        (w1, w2), (gates, ids) = weights, routing
        return lambda: fused_experts(x, w1, w2, gates, ids)

    (w1, w2), (gates, ids) = rotation[0]
    return Prepared(
        calls=tuple(call(*c) for c in rotation),
        stack="vllm fused_experts (Triton)",
        operands={"x": x, "w1": w1, "w2": w2, "gates": gates, "ids": ids},
    )


def fused_fp8(shape: Shape, how: How) -> Prepared:
    """Fused experts of vLLM in fp8, activations quantised inside.

    fp8: one scale an expert and one for all activations, as online ``quantization="fp8"``;
    fp8_block: 128 x 128 and 1 x 128.
    """
    from vllm.model_executor.layers.fused_moe import fused_experts
    from vllm.model_executor.layers.fused_moe.config import fp8_w8a8_moe_quant_config

    x = activation(shape["tokens"], shape["hidden_size"], how=how)
    w1, w2 = _weights(shape, how)
    block = how.dtype == "fp8_block"
    if block:
        w1, w1_scale = to_fp8(w1, FP8_BLOCK, FP8_BLOCK)
        w2, w2_scale = to_fp8(w2, FP8_BLOCK, FP8_BLOCK)
    else:
        w1, w1_scale = to_fp8(w1, *w1.shape[1:])
        w2, w2_scale = to_fp8(w2, *w2.shape[1:])
        w1_scale, w2_scale = w1_scale.flatten(), w2_scale.flatten()

    rotation = _rotated(replicas((w1, w2, w1_scale, w2_scale), how), shape, how)

    def call(weights: tuple[torch.Tensor, ...], routing: tuple[torch.Tensor, torch.Tensor]) -> Call:
        (w1, w2, w1_scale, w2_scale), (gates, ids) = weights, routing
        config = fp8_w8a8_moe_quant_config(
            w1_scale=w1_scale,
            w2_scale=w2_scale,
            block_shape=[FP8_BLOCK, FP8_BLOCK] if block else None,
        )
        return lambda: fused_experts(x, w1, w2, gates, ids, quant_config=config)

    gates, ids = rotation[0][1]
    return Prepared(
        calls=tuple(call(*c) for c in rotation),
        stack=f"vllm fused_experts (Triton) {'fp8 128x128' if block else 'fp8'}",
        operands={
            "x": x, "w1": w1, "w2": w2, "w1_scale": w1_scale, "w2_scale": w2_scale,
            "gates": gates, "ids": ids,
        },
    )  # fmt: skip


def grouped(shape: Shape, how: How) -> Prepared:
    """Tokens sorted by expert, then grouped products (torch._grouped_mm)."""
    x = activation(shape["tokens"], shape["hidden_size"], how=how)
    gates, ids = _routing(shape, how)
    top_k = shape["top_k"]
    experts = torch.arange(shape["num_experts"], device=how.device, dtype=ids.dtype)
    weights = [_weights(shape, how) for _ in range(_copies(shape, how))]

    def call(w1: torch.Tensor, w2: torch.Tensor) -> Call:
        def run() -> torch.Tensor:
            chosen, order = ids.flatten().sort(stable=True)
            ends = torch.searchsorted(chosen, experts, right=True).to(torch.int32)
            rows = order // top_k
            gate, up = torch._grouped_mm(x[rows], w1.mT, offs=ends).chunk(2, dim=-1)
            y = torch._grouped_mm(F.silu(gate) * up, w2.mT, offs=ends)
            y = y * gates.flatten()[order].unsqueeze(-1).to(y.dtype)
            return torch.zeros_like(x).index_add_(0, rows, y)

        return run

    w1, w2 = weights[0]
    return Prepared(
        calls=tuple(call(*w) for w in weights),
        stack=torch_stack("_grouped_mm"),
        operands={"x": x, "w1": w1, "w2": w2, "gates": gates, "ids": ids},
    )


def routing(shape: Shape, how: How) -> Prepared:
    """Softmax and top-k over router logits, as vLLM fuses them."""
    from vllm.model_executor.layers.fused_moe.router.fused_topk_router import fused_topk

    tokens, experts, top_k = shape["tokens"], shape["num_experts"], shape["top_k"]
    x = activation(tokens, 128, how=how)
    logits = activation(tokens, experts, how=how)
    return Prepared(
        calls=(lambda: fused_topk(x, logits, top_k, True),),
        stack="vllm topk_softmax",
        operands={"logits": logits},
    )


def routing_torch(shape: Shape, how: How) -> Prepared:
    """The same in plain torch, gates normalised to one."""
    logits = activation(shape["tokens"], shape["num_experts"], how=how)
    top_k = shape["top_k"]

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        gates, ids = torch.topk(torch.softmax(logits.float(), dim=-1), top_k, dim=-1)
        return gates / gates.sum(dim=-1, keepdim=True), ids

    return Prepared(calls=(call,), stack=torch_stack("softmax topk"), operands={"logits": logits})
