"""Observations as arrays: the shapes that the time laws read, the work that the energy laws read.

The conventions of bytes and FLOP are those of ``energymodel.ops``, so that what is fitted here is
what is predicted there. What is fitted together has a name: a kind of ``energymodel.laws``, with
the dtype behind a dot unless it is bfloat16 (``gemm``, ``gemm.fp8``, ``mla_decode``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibration.observations import Observation
from energymodel.blocks.softmax import SoftmaxAttention
from energymodel.engines.eager import GATE_BYTES, NORM_BYTES, ROTARY_BYTES
from energymodel.errors import InputError
from energymodel.laws import L2_BYTES, REQUIRED, SM_COUNT, executed_flop, traffic
from energymodel.laws import kind_of as law_kind
from energymodel.steps import Floats

Raw = Mapping[str, int]
Columns = dict[str, float]

# Bytes of a stored weight or cached value, of an activation that enters, and of one that leaves.
# Scales add 4 bytes for each block of 128 x 128 (fp8_block), 2 for each 128 of a column (int4).
BYTES: Mapping[str, tuple[float, float, float]] = {
    "bfloat16": (2, 2, 2),
    "float16": (2, 2, 2),
    "float32": (4, 4, 4),
    "tf32": (4, 4, 4),
    "fp8": (1, 1, 2),
    "fp8_block": (1 + 4 / 128**2, 1 + 4 / 128, 2),
    "int8": (1, 1, 2),
    "int4": (0.5 + 2 / 128, 2, 2),
}
WIDE = 2.0
# Micro-workloads that are pooled, beside their own fit, into what a prediction falls back on.
POOLED = {"rms_norm": "elementwise", "silu_and_mul": "elementwise", "kv_write": "elementwise"}
# What eager transformers runs in place of one kernel has a name of its own.
EAGER = {
    "cache_append": "copy.append",
    "cache_fill": "copy.fill",
    "eager_norm": "rms_norm.eager",
    "eager_rotary": "rotary.eager",
    "eager_gate": "silu_and_mul.eager",
}
# Tokens that a scan and a delta rule work off together.
SCAN_CHUNK, DELTA_CHUNK = 256, 64
# Kernels of a name come from one library: this one where it was measured.
PREFERRED = "vllm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Observations of one name; arrays of shape [n].

    ``weight_bytes``, ``row_bytes`` and ``hbm_bytes`` are those of ``laws.traffic``.

    ``shapes`` is what ``laws.LAWS[kind]`` reads, ``group`` numbers the shape families that are
    held out together, ``point`` the shapes. ``top_clock_hz`` is the highest SM clock that any observation saw.
    """

    name: str
    observations: tuple[Observation, ...]
    shapes: dict[str, Floats]
    flop: Floats
    weight_bytes: Floats
    row_bytes: Floats
    hbm_bytes: Floats
    group: Floats
    point: Floats
    top_clock_hz: float
    sm_count: float = SM_COUNT

    @property
    def core_flop(self) -> Floats:
        """FLOP of one call that cost energy in the SMs, [n]; padding included."""
        return executed_flop(self.kind, self.shapes, self.flop)

    @property
    def kind(self) -> str:
        """The kind whose law holds."""
        return law_kind(self.name)


def _own_kind(op: str, shape: Raw) -> str | None:
    if op in ("attention", "mla", "selective_scan", "linear_attention"):
        phase = "decode" if shape["tokens"] == 1 else "prefill"
        stem = {"mla": "mla", "selective_scan": "scan", "linear_attention": "linear_attention"}
        return f"{phase}_attention" if op == "attention" else f"{stem[op]}_{phase}"
    if op == "sdpa":
        phase = "decode" if shape["tokens"] == 1 else "prefill"
        return f"{phase}_attention.sdpa"
    if op in EAGER:
        return EAGER[op]
    if op == "embedding":
        return "gather"
    return op if op in _BUILD else None


def names_of(o: Observation) -> tuple[str, ...]:
    """What an observation is evidence for: its own name, and the pool that it is part of."""
    try:
        own = _own_kind(o.op, o.shape)
    except KeyError as error:
        raise _unusable(o, error) from error
    if own is None or o.cache != "cold":
        return ()
    plain = o.dtype == "bfloat16" or (own == "quantise" and o.dtype == "fp8")
    name = own if plain else f"{own}.{o.dtype}"
    return (name, POOLED[o.op]) if plain and o.op in POOLED else (name,)


def all_names(observations: Sequence[Observation]) -> tuple[str, ...]:
    """Every name that there is evidence for; what a profile needs comes first, seen or not."""
    seen = {name for o in observations for name in names_of(o)}
    return (*REQUIRED, *sorted(seen - set(REQUIRED)))


def table(
    name: str,
    observations: Sequence[Observation],
    sm_count: float = SM_COUNT,
    l2_bytes: float = L2_BYTES,
) -> Table:
    """Table of those ``observations`` that are evidence for ``name``, of one library.

    ``sm_count`` and ``l2_bytes`` are of the GPU's datasheet.
    """
    chosen = [o for o in observations if name in names_of(o)]
    if any(o.library == PREFERRED for o in chosen):
        chosen = [o for o in chosen if o.library == PREFERRED]
    build = _BUILD[law_kind(name)]
    columns = [_columns(build, o) for o in chosen]
    keys = tuple(columns[0]) if columns else ("flop", "weights", "rows_moved", "group")
    shapes = {key: np.array([c[key] for c in columns], dtype=np.float64) for key in keys}
    weight_bytes, row_bytes, hbm_bytes = traffic(
        law_kind(name), shapes, shapes.pop("weights"), shapes.pop("rows_moved"), l2_bytes
    )
    return Table(
        name=name,
        observations=tuple(chosen),
        flop=shapes["flop"],
        weight_bytes=weight_bytes,
        row_bytes=row_bytes,
        hbm_bytes=hbm_bytes,
        group=shapes.pop("group"),
        point=_numbered([o.point for o in chosen]),
        shapes=shapes,
        top_clock_hz=max((o.sm_clock_hz or 0.0 for o in observations), default=0.0),
        sm_count=sm_count,
    )


def _columns(build: Callable[[Observation], Columns], o: Observation) -> Columns:
    try:
        return build(o)
    except (KeyError, ZeroDivisionError) as error:
        raise _unusable(o, error) from error


def _unusable(o: Observation, error: Exception) -> InputError:
    what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else "a size is 0"
    return InputError(f"observation of {o.op}: shape {dict(o.shape)} cannot be used, {what}.")


def _numbered(keys: Sequence[str]) -> Floats:
    """A number for each distinct key."""
    numbers = {key: float(i) for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys])


def _family(*numbers: float) -> float:
    """A number for a shape family; different ones for different tuples."""
    return float(hash(tuple(float(x) for x in numbers)) % 2**52)


# --- columns of one observation: shapes of the law, "flop", "weights", "rows_moved", "group" -------


def _gemm(o: Observation) -> Columns:
    m, n, k = o.shape["m"], o.shape["n"], o.shape["k"]
    stored, entering, leaving = BYTES[o.dtype]
    return {
        "m": m,
        "n": n,
        "k": k,
        "weight_bytes": stored * n * k,
        "input_element_bytes": entering,
        "output_element_bytes": leaving,
        "flop": 2.0 * m * n * k,
        "weights": stored * n * k,
        "rows_moved": m * (n * leaving + k * entering),
        "group": _family(n, k),
    }


def _attention(o: Observation) -> Columns:
    s = o.shape
    seqs, tokens, context = s["num_seqs"], s["tokens"], s["context"]
    heads, kv_heads, head_dim = s["heads"], s["kv_heads"], s["head_dim"]
    spec = SoftmaxAttention(
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rotary_dim=head_dim,
        sliding_window=s.get("window"),
        causal=bool(s.get("causal", 1)),
    )
    ones, before = np.array([float(tokens)]), np.array([float(context)])
    pairs = seqs * float(spec.chunk_pairs(ones, before)[0])
    kv_tokens = seqs * float(spec.chunk_kv_tokens(ones, before)[0])
    block_tokens = seqs * float(spec.decode_block_tokens(before, np.ones(1))[0])
    rows = seqs * tokens
    stored = BYTES[o.dtype][0]
    cached = 2 * stored * head_dim * kv_tokens * kv_heads
    row_bytes = 2 * WIDE * head_dim * rows * heads
    return {
        "num_seqs": seqs,
        "tokens": rows,
        "pairs": pairs,
        "kv_tokens": kv_tokens,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "block_tokens": block_tokens,
        "kv_element_bytes": stored,
        "bytes": cached + row_bytes,
        "flop": 4.0 * heads * head_dim * pairs,
        "weights": cached,
        "rows_moved": row_bytes,
        "group": _family(heads, kv_heads, head_dim, s.get("window", 0)),
    }


def _moe(o: Observation) -> Columns:
    s = o.shape
    n, hidden, inner = s["tokens"], s["hidden_size"], s["intermediate_size"]
    experts, top_k = s["num_experts"], s["top_k"]
    stored, entering, _ = BYTES[o.dtype]
    touched = experts * (1.0 - (1.0 - top_k / experts) ** n)
    inner_bytes = 5 * inner * WIDE + inner * entering
    row_bytes = hidden * (entering + WIDE) + top_k * (inner_bytes + 2 * hidden * WIDE)
    return {
        "tokens": n,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "up_size": 2 * inner,
        "num_experts": experts,
        "top_k": top_k,
        "experts_touched": touched,
        "imbalance": 1.0,  # all experts are on one GPU
        "weight_element_bytes": stored,
        "flop": 6.0 * n * top_k * hidden * inner,
        "weights": touched * 3 * hidden * inner * stored,
        "rows_moved": n * row_bytes,
        "group": _family(hidden, inner, experts),
    }


# Values of 16 bits moved for each row and unit of width: what is read and what is written.
_TENSORS: Mapping[str, float] = {
    "rms_norm": 4,
    "eager_norm": NORM_BYTES / WIDE,
    "eager_rotary": ROTARY_BYTES / WIDE,
    "eager_gate": GATE_BYTES / WIDE,
    "layer_norm": 2,
    "silu_and_mul": 3,
    "gelu": 2,
    "residual_add": 3,
    "rotary": 2,
    "kv_write": 4,
    "embedding": 2,
    "quantise": 1.5,
    "sampling": 5,  # 16-bit logits read, written as float32, and those read again
    "causal_conv1d": 2,
}


def _streaming(o: Observation) -> Columns:
    s = o.shape
    if o.op == "copy":
        rows, width, moved = 1.0, float(s["bytes"]) / WIDE, 2.0 * s["bytes"]
    elif o.op in ("cache_append", "cache_fill"):
        each = s["context"] if o.op == "cache_append" else s["tokens"]
        rows, width = float(s["num_seqs"] * s["kv_heads"] * each), float(s["head_dim"])
        moved = 2 * WIDE * rows * width
    elif o.op == "moe_routing":
        rows, width = float(s["tokens"]), float(s["num_experts"])
        moved = rows * (width * WIDE + 8 * s["top_k"])
    elif o.op == "causal_conv1d":
        rows, width = float(s["num_seqs"] * s["tokens"]), float(s["width"])
        # One token shifts the convolution's state of three inputs, more tokens leave it behind.
        moved = WIDE * width * (rows * _TENSORS[o.op] + 6 * s["num_seqs"])
    else:
        rows, width = float(s["rows"]), float(s["width"])
        moved = _TENSORS[o.op] * _value_bytes(o) * rows * width
    group = _family(sum(map(ord, o.op)), rows if o.op == "copy" else width)
    return {
        "rows": rows,
        "width": width,
        "bytes": moved,
        "flop": 0.0,
        "weights": 0.0,
        "rows_moved": moved,
        "group": group,
    }


def _value_bytes(o: Observation) -> float:
    """Bytes of a value that moves; what is quantised on the way counts in ``_TENSORS``."""
    return BYTES[o.dtype][2]


def _mla(o: Observation) -> Columns:
    """Latent attention: decode in the latent space, prefill on expanded keys and values."""
    s = o.shape
    seqs, tokens, context, heads = s["num_seqs"], s["tokens"], s["context"], s["heads"]
    latent = s["kv_lora_rank"] + s["qk_rope_head_dim"]
    query = s["qk_nope_head_dim"] + s["qk_rope_head_dim"]
    pairs = seqs * tokens * (context + 0.5 * (tokens + 1))
    kv_tokens = seqs * (context + tokens)
    decode = tokens == 1
    widths = latent + s["kv_lora_rank"] if decode else query + s["v_head_dim"]
    cached = BYTES[o.dtype][0] * kv_tokens * (latent if decode else heads * widths)
    rows = WIDE * seqs * tokens * heads * widths
    return _roofline(
        flop=2.0 * heads * widths * pairs,
        cached=cached,
        rows=rows,
        blocks=seqs * (max(1.0, heads / 64) if decode else heads * max(1.0, tokens / 128)),
        group=_family(heads, s["kv_lora_rank"]),
    )


def _scan(o: Observation) -> Columns:
    """Mamba 2: a state of heads x head_dim x state values for each sequence."""
    s = o.shape
    seqs, tokens, heads, width, state = (
        s[name] for name in ("num_seqs", "tokens", "heads", "head_dim", "state")
    )
    per_token = heads * width * 3 + 2 * s["groups"] * state + heads
    return _roofline(
        flop=6.0 * seqs * tokens * heads * width * state,
        cached=2.0 * _state_bytes(s) * seqs * heads * width * state,
        rows=WIDE * seqs * tokens * per_token,
        blocks=seqs * heads * max(1.0, tokens / SCAN_CHUNK),
        steps=0.0 if tokens == 1 else tokens / SCAN_CHUNK,
        group=_family(heads, width, state),
    )


def _delta_rule(o: Observation) -> Columns:
    """Gated delta rule: a state of head_dim x head_dim for each value head of a sequence."""
    s = o.shape
    seqs, tokens, heads, width = s["num_seqs"], s["tokens"], s["heads"], s["head_dim"]
    per_token = 2 * s["key_heads"] * width + 2 * heads * width + 2 * heads
    return _roofline(
        flop=6.0 * seqs * tokens * heads * width * width,
        cached=2.0 * _state_bytes(s) * seqs * heads * width * width,
        rows=WIDE * seqs * tokens * per_token,
        blocks=seqs * heads * max(1.0, tokens / DELTA_CHUNK),
        steps=0.0 if tokens == 1 else tokens / DELTA_CHUNK,
        group=_family(heads, width),
    )


def _state_bytes(s: Raw) -> float:
    return float(s.get("state_bytes", WIDE))


def _roofline(
    *, flop: float, cached: float, rows: float, blocks: float, group: float, steps: float = 0.0
) -> Columns:
    return {
        "bytes": cached + rows,
        "blocks": blocks,
        "steps": steps,
        "flop": flop,
        "weights": cached,
        "rows_moved": rows,
        "group": group,
    }


_BUILD: Mapping[str, Callable[[Observation], Columns]] = {
    "gemm": _gemm,
    "decode_attention": _attention,
    "prefill_attention": _attention,
    "moe": _moe,
    **dict.fromkeys(("elementwise", "gather", "moe_routing", "copy", *_TENSORS), _streaming),
    **dict.fromkeys(("mla_decode", "mla_prefill"), _mla),
    **dict.fromkeys(("scan_decode", "scan_prefill"), _scan),
    **dict.fromkeys(("linear_attention_decode", "linear_attention_prefill"), _delta_rule),
}
