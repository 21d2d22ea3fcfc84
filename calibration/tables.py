"""Observations as arrays: the shapes that the time laws read, the work that the energy laws read.

The conventions of bytes and FLOP are those of ``energymodel.ops``, so that what is fitted here is
what is predicted there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibration.observations import Observation
from energymodel.attention import SoftmaxAttention
from energymodel.steps import Floats

Raw = Mapping[str, int]
ELEMENT_BYTES = 2.0  # bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Observations of one operation kind; arrays of shape [n].

    ``shapes`` is what ``laws.LAWS[kind]`` reads, ``group`` numbers the shape families that are
    held out together.
    """

    kind: str
    observations: tuple[Observation, ...]
    shapes: dict[str, Floats]
    flop: Floats
    weight_bytes: Floats
    row_bytes: Floats
    group: Floats


def kind_of(op: str, shape: Raw) -> str | None:
    """Operation kind of an observed micro-workload; None for what no law covers."""
    if op == "attention":
        return "decode_attention" if shape["tokens"] == 1 else "prefill_attention"
    return {
        "gemm": "gemm",
        "moe": "moe",
        "rms_norm": "elementwise",
        "silu_and_mul": "elementwise",
        "kv_write": "elementwise",
        "embedding": "gather",
        "sampling": "sampling",
    }.get(op)


def table(kind: str, observations: Sequence[Observation]) -> Table:
    """Table of those ``observations`` that are of ``kind``."""
    chosen = tuple(o for o in observations if kind_of(o.op, o.shape) == kind)
    columns = [_BUILD[kind](o.op, o.shape) for o in chosen]
    names = columns[0].keys() if columns else ()
    shapes = {name: np.array([c[name] for c in columns], dtype=np.float64) for name in names}
    return Table(
        kind=kind,
        observations=chosen,
        flop=shapes.pop("flop"),
        weight_bytes=shapes.pop("weights"),
        row_bytes=shapes.pop("rows"),
        group=shapes.pop("group"),
        shapes=shapes,
    )


def _gemm(_: str, s: Raw) -> dict[str, float]:
    m, n, k = s["m"], s["n"], s["k"]
    return {
        "m": m,
        "n": n,
        "k": k,
        "weight_bytes": ELEMENT_BYTES * n * k,
        "flop": 2.0 * m * n * k,
        "weights": ELEMENT_BYTES * n * k,
        "rows": ELEMENT_BYTES * m * (n + k),
        "group": n * 1e6 + k,
    }


def _attention(_: str, s: Raw) -> dict[str, float]:
    seqs, tokens, context = s["num_seqs"], s["tokens"], s["context"]
    heads, kv_heads, head_dim = s["heads"], s["kv_heads"], s["head_dim"]
    spec = SoftmaxAttention(
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rotary_dim=head_dim,
        sliding_window=s.get("window"),
    )
    ones, before = np.array([float(tokens)]), np.array([float(context)])
    pairs = seqs * float(spec.chunk_pairs(ones, before)[0])
    kv_tokens = seqs * float(spec.chunk_kv_tokens(ones, before)[0])
    block_tokens = seqs * float(spec.decode_block_tokens(before, np.ones(1))[0])
    rows = seqs * tokens
    cached = 2 * ELEMENT_BYTES * head_dim * kv_tokens * kv_heads
    row_bytes = 2 * ELEMENT_BYTES * head_dim * rows * heads
    return {
        "num_seqs": seqs,
        "tokens": rows,
        "pairs": pairs,
        "kv_tokens": kv_tokens,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "block_tokens": block_tokens,
        "bytes": cached + row_bytes,
        "flop": 4.0 * heads * head_dim * pairs,
        "weights": cached,
        "rows": row_bytes,
        "group": ((heads * 1e3 + kv_heads) * 1e3 + head_dim) * 1e4 + s.get("window", 0),
    }


def _moe(_: str, s: Raw) -> dict[str, float]:
    n, hidden, inner = s["tokens"], s["hidden_size"], s["intermediate_size"]
    experts, top_k = s["num_experts"], s["top_k"]
    touched = experts * (1.0 - (1.0 - top_k / experts) ** n)
    row_bytes = ELEMENT_BYTES * (2 * hidden + top_k * (6 * inner + 2 * hidden))
    return {
        "tokens": n,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_experts": experts,
        "top_k": top_k,
        "experts_touched": touched,
        "weight_element_bytes": ELEMENT_BYTES,
        "flop": 6.0 * n * top_k * hidden * inner,
        "weights": touched * 3 * hidden * inner * ELEMENT_BYTES,
        "rows": n * row_bytes,
        "group": (hidden * 1e5 + inner) * 1e4 + experts,
    }


# Values moved for each row and unit of width: what is read and what is written.
_TENSORS = {"rms_norm": 4, "silu_and_mul": 3, "kv_write": 4, "embedding": 2}


def _streaming(op: str, s: Raw) -> dict[str, float]:
    # Sampling reads 16-bit logits, writes them as float32 and reads those again.
    per_value = 10.0 if op == "sampling" else ELEMENT_BYTES * _TENSORS[op]
    moved = per_value * s["rows"] * s["width"]
    group = float(sum(map(ord, op)) * 1_000_000 + s["width"])
    return {"bytes": moved, "flop": 0.0, "weights": 0.0, "rows": moved, "group": group}


_BUILD: dict[str, Callable[[str, Raw], dict[str, float]]] = {
    "gemm": _gemm,
    "decode_attention": _attention,
    "prefill_attention": _attention,
    "moe": _moe,
    "elementwise": _streaming,
    "gather": _streaming,
    "sampling": _streaming,
}
KINDS = tuple(_BUILD)
