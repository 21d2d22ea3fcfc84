"""From the operations of fused kernels to what transformers launches: one torch kernel after another.

``ops.lower`` describes a step as an engine with fused kernels runs it. Eager transformers computes
the same with torch's own. What follows was read in transformers 5.17 and counted on the device:

- The dynamic cache copies all keys and all values of a layer at every step
  (``cache_utils.DynamicLayer.update``).
- A root mean square norm takes 8 kernels, a rotary embedding 5 for queries and 5 for keys, a gated
  activation 2; projections that other engines join are apart.
- Attention is ``scaled_dot_product_attention`` (cuDNN's on Hopper). What T5 adds to the scores has its
  heads last in memory, which no fused kernel takes (``check_last_dim_stride_equals_1`` in
  ``aten/src/ATen/native/transformers/sdp_utils_cpp.h`` of torch): torch multiplies in float32 and
  writes the scores out (law "elementwise.biased").

Each expression is one operation, calibrated as a whole; ``kernels`` says how many launches it takes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from energymodel.blocks import SoftmaxAttention
from energymodel.engines.eager_experts import experts
from energymodel.engines.eager_rows import by_row, joined_rows
from energymodel.model import ModelSpec
from energymodel.op_kinds import Op
from energymodel.steps import Floats

# Families whose modelling code projects queries, keys and values (gate and up) in one product.
ONE_QKV = frozenset({
    "gpt2", "gpt_neox", "phi3", "bloom", "falcon", "mpt", "modernbert", "gpt_bigcode", "persimmon",
    "codegen", "openai-gpt", "dbrx",
})  # fmt: skip
ONE_GATE_UP = frozenset({"phi3", "glm", "glm4", "modernbert"})
# Families whose GELU is written out in Python (``activations.NewGELUActivation``): beside a gate or not.
WRITTEN_GELU: Mapping[bool, frozenset[str]] = {
    True: frozenset({"t5", "mt5", "umt5"}),
    False: frozenset({"gpt2", "gptj", "gpt_neo", "phi", "codegen", "albert"}),
}
NEW_GELU_BYTES = (4.0,) * 8
# Families whose norm without a shift, or without learnt values, is torch's own LayerNorm: one kernel.
LAYER_NORM = frozenset({"modernbert", "mpt", "dbrx", "olmo"})
# Whose norms multiply with 1 + weights in float32: two kernels more, on the weights.
ONE_PLUS = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text", "recurrent_gemma"})
# Whose rotary embedding is in float32. Strided kernels are bound by addresses, not by bytes.
WIDE_ROTARY = frozenset({"modernbert"})
# Launches of what is one operation here.
KERNELS: Mapping[str, int] = {
    "rms_norm.eager": 8,
    "rotary.eager": 5,
    "silu_and_mul.eager": 2,
    "elementwise.biased": 16,
}
WIDE = 2.0  # bytes of a value in bfloat16
# Bytes that an expression moves for each value of its width, over all of its kernels. A norm: to
# float32, its square, the mean, the product with the reciprocal root, back, the product with weights.
# A rotary embedding: times cosines, minus one half, the halves exchanged, times sines, the sum. A
# gated activation: of the gate, times the other half.
NORM_BYTES = 6.0 + 8.0 + 4.0 + 8.0 + 6.0 + 4.0
ROTARY_BYTES = 4.0 + 2.0 + 4.0 + 4.0 + 6.0
GATE_BYTES = 4.0 + 6.0
# To float32, once for each of the products, and back.
CONVERSION_BYTES = (6.0, 6.0, 6.0)
# Of a biased attention, for each score: written, the bias added, the softmax, read; all in float32.
SCORE_BYTES = 4.0 + 8.0 + 4.0 + 8.0 + 4.0
# Of greedy sampling: to float32, a copy, the end tokens ruled out, the maximum.
SAMPLING_BYTES = (6.0, 8.0, 9.0, 4.0)
# Softmax in float32, the largest, their sum, their share, back to bfloat16.
ROUTING_BYTES = (6.0, 4.0, 1.0, 1.0, 1.0)
# The rows that are sampled are a view: nothing is launched.
VIEWS = frozenset({"sampled_rows"})
ATTENTION = ("prefill_attention", "decode_attention")
# Operations from a projection to the attention that it feeds, both included.
REACH = 9


def kernels(op: Op) -> int:
    """Launches of one call of an operation."""
    return KERNELS.get(op.law, 1)


def unfused(model: ModelSpec, ops: Sequence[Op], decoding: Floats) -> list[Op]:
    """What eager transformers launches in place of ``ops``, in order.

    ``decoding``: sequences that decode in each step, [n_steps]; a step decodes or reads prompts.
    """
    found = []
    for i, op in enumerate(ops):
        if op.kind == "moe":
            found += experts(op, decoding)
        elif op.kind in _EXPRESSIONS:
            # The attention that a projection, or a write to the cache, belongs to.
            attention = [x for x in ops[i + 1 : i + REACH] if x.kind in ATTENTION][:2]
            found += _EXPRESSIONS[op.kind](model, op, attention)
        elif op.name not in VIEWS:
            found.append(op)
    return found


def biased(model: ModelSpec) -> bool:
    """Whether a bias is added to the scores of self attention."""
    found = _attention_of(model)
    return found is not None and (found.score_bias or found.alibi)


def _attention_of(model: ModelSpec) -> SoftmaxAttention | None:
    """The attention of the first layer that has any."""
    found = (layer.find(SoftmaxAttention) for layer, _ in model.layer_groups())
    return next((a for a in found if a is not None), None)


def _attend(model: ModelSpec, op: Op, _: Sequence[Op]) -> list[Op]:
    # What T5 hands to cross attention, zeros, has its keys last: a fused kernel takes it.
    if not biased(model) or op.name.startswith("cross"):
        return [replace(op, kernel="sdpa", stands_for="")]
    queries = np.asarray(op.shape["tokens" if "tokens" in op.shape else "num_seqs"])
    seqs, keys = np.asarray(op.shape["num_seqs"]), np.asarray(op.shape["kv_tokens"])
    width = np.divide(keys, seqs, out=np.zeros_like(keys), where=seqs > 0)
    rows = queries * float(op.shape["heads"])
    moved = SCORE_BYTES * rows * width
    return [
        replace(
            op,
            kind="elementwise",
            kernel="biased",
            stands_for="",
            hbm_bytes=moved,
            weight_bytes=np.zeros_like(moved),
            shape={"rows": rows, "width": width, "bytes": moved},
        )
    ]


def _add(_: ModelSpec, op: Op, __: Sequence[Op]) -> list[Op]:
    """The sum of more tensors than two takes one kernel for each."""
    return [by_row(op, (6.0,) * max(round(_row_values(op)) - 2, 1))]


def _gated(model: ModelSpec, op: Op, _: Sequence[Op]) -> list[Op]:
    if model.model_type in WRITTEN_GELU[True]:
        return [by_row(op, (*NEW_GELU_BYTES, 6.0))]
    return [replace(by_row(op, (GATE_BYTES,)), kernel="eager")]


def _activated(model: ModelSpec, op: Op, _: Sequence[Op]) -> list[Op]:
    return [by_row(op, NEW_GELU_BYTES)] if model.model_type in WRITTEN_GELU[False] else [op]


def _row_values(op: Op) -> float:
    """Values that a row-by-row call moves for each of its rows and unit of width."""
    rows = np.asarray(op.shape["rows"], dtype=np.float64)
    moved = op.hbm_bytes / WIDE / float(op.shape["width"])
    return float(np.max(np.divide(moved, rows, out=np.zeros_like(moved), where=rows > 0)))


def _norm(model: ModelSpec, op: Op, attention: Sequence[Op]) -> list[Op]:
    """The sum with the residual first, where the fused norm made it (three tensors or more).

    Norms of queries and of keys are two, head by head where each head is normalised alone.
    """
    written = op.kind == "rms_norm" and model.model_type not in LAYER_NORM
    kernel, moved = ("eager", (NORM_BYTES,)) if written else ("", (2 * WIDE,))
    if op.name in ("qk_norm", "cross_qk_norm") and attention:
        shape, found = attention[0].shape, _attention_of(model)
        head_dim, by_head = float(shape["head_dim"]), found is not None and found.qk_norm == "head"
        each = (("q_norm", float(shape["heads"])), ("k_norm", float(shape["kv_heads"])))
        return [
            replace(
                joined_rows(
                    op,
                    name,
                    rows=np.asarray(op.shape["rows"]) * (heads if by_head else 1.0),
                    width=head_dim if by_head else head_dim * heads,
                    value_bytes=moved,
                ),
                kind=op.kind,
                kernel=kernel,
            )
            for name, heads in each
        ]
    made = [replace(by_row(op, moved), kind=op.kind if written else "layer_norm", kernel=kernel)]
    if model.model_type in ONE_PLUS:
        made.append(_small(op, f"{op.name}_weights", 2))
    if _row_values(op) < 2.9:
        return made
    add = replace(by_row(op, (6.0,)), name=f"{op.name}_residual", kind="residual_add")
    return [add, *made]


def _small(op: Op, name: str, launches: int) -> Op:
    """Kernels that move next to nothing."""
    rows = np.where(np.asarray(op.shape["rows"]) > 0, 1.0, 0.0)
    small = joined_rows(op, name, rows=rows, width=1.0, value_bytes=(8.0,) * launches)
    return replace(small, kind="elementwise")


def _rotary(model: ModelSpec, op: Op, attention: Sequence[Op]) -> list[Op]:
    """Queries and keys apart; heads that are turned in part are put together again."""
    found = _attention_of(model)
    if not attention or found is None:
        return [replace(by_row(op, (ROTARY_BYTES,)), kernel="eager")]
    heads, kv_heads = (float(attention[0].shape[name]) for name in ("heads", "kv_heads"))
    share, rows = found.rotary_dim / found.head_dim, np.asarray(op.shape["rows"])
    made = []
    for name, many in (("q_rotary", heads), ("k_rotary", kv_heads)):
        width = many * found.head_dim
        turned = joined_rows(op, name, rows=rows, width=width * share, value_bytes=(ROTARY_BYTES,))
        made.append(replace(turned, kind="rotary", kernel="eager"))
        if model.model_type in WIDE_ROTARY:
            made.append(
                joined_rows(
                    op, f"{name}_convert", rows=rows, width=width, value_bytes=CONVERSION_BYTES
                )
            )
        if share < 1:
            whole = joined_rows(op, f"{name}_join", rows=rows, width=width, value_bytes=(4.0,))
            made.append(replace(whole, kind="copy", kernel="fill"))
    return made


def _cache(model: ModelSpec, op: Op, attention: Sequence[Op]) -> list[Op]:
    """Keys, and values, of all tokens so far copied to where the new ones fit behind them.

    Of cross attention only once: ``EncoderDecoderCache`` knows that they are complete. Where new ones
    are views into a joint projection, ``torch.cat`` takes the kernel for strided tensors, as it does
    for a whole prompt; keys that were turned by position are no such views.
    """
    width = float(op.shape["width"])
    if op.name.startswith("cross"):
        return [replace(by_row(op, (4.0, 4.0)), kind="copy", kernel="fill")]
    found = _attention_of(model)
    turned = found is not None and found.rotary_dim > 0
    made = []
    for a in attention:
        prompt = a.kind == "prefill_attention"
        strided = prompt or model.model_type in ONE_QKV
        for name, slow in (("keys", strided and (prompt or not turned)), ("values", strided)):
            copied = joined_rows(
                op,
                f"{name}_{'fill' if prompt else 'append'}",
                rows=np.asarray(a.shape["kv_tokens"], dtype=np.float64),
                width=width,
                value_bytes=(4.0,),
            )
            kernel = "fill" if slow else "append"
            made.append(replace(copied, kind="copy", kernel=kernel, asked=a.asked))
    return made


def _products(model: ModelSpec, op: Op, attention: Sequence[Op]) -> list[Op]:
    """Projections that fused engines join are apart, unless the modelling code joins them, too."""
    n = float(op.shape["n"])
    if op.name == "qkv_proj" and attention and model.model_type not in ONE_QKV:
        kv = float(attention[0].shape["kv_heads"]) * float(attention[0].shape["head_dim"])
        if n > 2 * kv:
            return [_part(op, "q_proj", n - 2 * kv, 1), _part(op, "kv_proj", kv, 2)]
    halves = op.name.endswith("gate_up_proj") and model.model_type not in ONE_GATE_UP
    if halves or op.name == "cross_kv_proj":
        return [_part(op, op.name, n / 2, 2)]
    return [op]


def _part(op: Op, name: str, n: float, times: int) -> Op:
    """``times`` products of ``n`` outputs each in place of the one that has all of them."""
    share = n / float(op.shape["n"])
    entering = np.asarray(op.shape["m"]) * float(op.shape["k"]) * WIDE
    leaving = op.hbm_bytes - op.weight_bytes - entering
    weights = share * op.weight_bytes
    return replace(
        op,
        name=name,
        count=op.count * times,
        flop=share * op.flop,
        hbm_bytes=weights + entering + share * leaving,
        weight_bytes=weights,
        shape={**op.shape, "n": n},
    )


_EXPRESSIONS: Mapping[str, Callable[[ModelSpec, Op, Sequence[Op]], list[Op]]] = {
    "gemm": _products,
    **dict.fromkeys(ATTENTION, _attend),
    **dict.fromkeys(("rms_norm", "layer_norm"), _norm),
    "residual_add": _add,
    "rotary": _rotary,
    "kv_write": _cache,
    "silu_and_mul": _gated,
    "gelu": _activated,
    "sampling": lambda _, op, __: [by_row(op, SAMPLING_BYTES)],
    "moe_routing": lambda _, op, __: [by_row(op, ROUTING_BYTES)],
}
