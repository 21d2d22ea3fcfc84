"""Shapes that time laws read, and the parameters that tests evaluate them with."""

import numpy as np

from calibration.fit_time import START
from energymodel import profile as profiles
from energymodel.blocks.softmax import SoftmaxAttention
from energymodel.laws import LAWS, ROOFLINE_KINDS, STREAMING_KINDS

SHIPPED = profiles.load("h200").operations
LAW: dict[str, dict[str, float]] = {
    kind: {name: estimate.value for name, estimate in SHIPPED[kind].law.items()}
    if kind in SHIPPED
    else {**START[kind]}
    for kind in LAWS
}
"""Shipped where there are any, else those that a fit starts from."""


def arrays(**values: object) -> dict[str, np.ndarray]:
    """Shapes that broadcast to one length."""
    columns = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in values.values()))
    return {k: np.atleast_1d(c).copy() for k, c in zip(values, columns, strict=True)}


def gemm(m: object, n: object, k: object) -> dict[str, np.ndarray]:
    s = arrays(m=m, n=n, k=k, weight_element_bytes=2.0)
    return s | {"weight_bytes": 2.0 * s["n"] * s["k"]}


def attention(  # noqa: PLR0917 (a shape is read in order)
    num_seqs: object, tokens: object, context: object, heads: int, kv_heads: int, head_dim: int
) -> dict[str, np.ndarray]:
    """``num_seqs`` sequences of ``tokens`` queries each after ``context`` cached keys."""
    spec = SoftmaxAttention(
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rotary_dim=head_dim,
    )
    s = arrays(num_seqs=num_seqs, each=tokens, context=context)
    seqs, each, past = s["num_seqs"], s.pop("each"), s.pop("context")
    kv_tokens = seqs * spec.chunk_kv_tokens(each, past)
    rows = seqs * each
    return arrays(
        **s,
        tokens=rows,
        pairs=seqs * spec.chunk_pairs(each, past),
        kv_tokens=kv_tokens,
        block_tokens=seqs * spec.decode_block_tokens(past, np.ones_like(past)),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        kv_element_bytes=2.0,
        bytes=4.0 * head_dim * (kv_tokens * kv_heads + rows * heads),
    )


def moe(
    tokens: object, hidden: object, inner: object, experts: object, top_k: object
) -> dict[str, np.ndarray]:
    s = arrays(
        tokens=tokens,
        hidden_size=hidden,
        intermediate_size=inner,
        num_experts=experts,
        top_k=top_k,
        weight_element_bytes=2.0,
    )
    touched = s["num_experts"] * (1 - (1 - s["top_k"] / s["num_experts"]) ** s["tokens"])
    return s | {"experts_touched": touched}


def rows(rows: object, width: object) -> dict[str, np.ndarray]:
    """What works row by row, reading and writing each value once in 16 bits."""
    s = arrays(rows=rows, width=width)
    return s | {"bytes": 4.0 * s["rows"] * s["width"]}


def work(
    flop: object, moved_bytes: object, blocks: object = 1e4, steps: object = 0.0
) -> dict[str, np.ndarray]:
    """What any other law reads; by default plenty of blocks, side by side."""
    return arrays(flop=flop, bytes=moved_bytes, blocks=blocks, steps=steps)


def seconds(kind: str, shapes: dict[str, np.ndarray], **changes: float) -> np.ndarray:
    return LAWS[kind](shapes, LAW[kind] | changes).seconds


def grows(values: np.ndarray, slack: float = 1e-9) -> bool:
    """Whether no value is below the largest before it, but for ``slack``."""
    return bool((values >= np.maximum.accumulate(values) * (1 - slack)).all())


def extremes() -> dict[str, dict[str, np.ndarray]]:
    many = np.array([1.0, 1e3, 1e6, 1e9])
    streams = arrays(rows=many, width=many, bytes=np.array([1e-3, 1.0, 1e9, 1e18]))
    works = work(np.array([0.0, 1.0, 1e12, 1e24]), many**2, blocks=1.0, steps=many)
    return {
        "gemm": gemm(many, 1e6, 1e6),
        "decode_attention": attention(many, 1, 1e8, heads=256, kv_heads=1, head_dim=512),
        "prefill_attention": attention(many, many, 1e8, heads=256, kv_heads=1, head_dim=512),
        "moe": moe(many, 1e5, 1e5, 1024, 1),
        **dict.fromkeys(STREAMING_KINDS, streams),
        **dict.fromkeys(ROOFLINE_KINDS, works),
    }
