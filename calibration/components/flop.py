"""FLOP of a call, one multiply-add counted as 2, attention unmasked, as torch counts them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

Shape = Sequence[int]


def flop_of(call: Callable[[], Any]) -> int:
    """FLOP of the matrix products and the attention of one call, which is run once."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False, custom_mapping=_formulas())
    with torch.no_grad(), counter:
        call()
    return int(counter.get_total_flops())


def _formulas() -> dict[Any, Callable[..., int]]:
    """What torch's counter lacks in some versions: grouped products, attention on grouped heads."""
    aten, transformers = torch.ops.aten, torch.ops.transformers
    found: dict[tuple[Any, str], Callable[..., int]] = {
        (aten, "_grouped_mm"): grouped_product_flop,
        (transformers, "grouped_mm_fallback"): grouped_product_flop,
        (aten, "_scaled_dot_product_flash_attention"): attention_flop,
        (aten, "_scaled_dot_product_flash_attention_for_cpu"): attention_flop,
        (aten, "_scaled_dot_product_efficient_attention"): attention_flop,
        (aten, "_scaled_dot_product_cudnn_attention"): attention_flop,
    }
    return {getattr(ns, op): f for (ns, op), f in found.items() if hasattr(ns, op)}


def grouped_product_flop(rows: Shape, weights: Shape, *_: Any, **__: Any) -> int:
    """``rows`` (n, k), each multiplied with one of the ``weights`` (experts, k, m)."""
    n, k = rows
    return 2 * n * k * weights[-1]


def attention_flop(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Scores and weighted sum over (sequences, heads, tokens, head size), every pair counted."""
    sequences, heads, queries, head_size = query
    return 2 * sequences * heads * queries * key[-2] * (head_size + value[-1])
