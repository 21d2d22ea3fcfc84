"""What a network of a diffusion pipeline does in one pass: calls with their learnt values.

A network is written as a function from its configuration and ``Sizes`` to a tuple of ``Call``. The
same description gives parameters, FLOP and bytes. Conventions are those of ``energymodel.ops``: a
multiply-add is 2 FLOP, biases and softmax are 0, weights and activations are moved once by each
call. Kernels are those of eager torch, so every sum and activation is a call of its own.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from energymodel.dtypes import DTYPE_BYTES
from energymodel.op_kinds import Op, Shape
from energymodel.steps import Floats

# Bytes moved by one call over those of its bfloat16 input, from how diffusers writes it.
# torch's own normalisation reads and writes once.
PLAIN_NORM = 2.0
# x.float(), norm in float32, back: 3 + 4 + 3.
FLOAT_NORM = 10.0
# diffusers' RMSNorm: to float32 3, square 4, mean 2, scale 3, to bfloat16 3, times weight 2.
OWN_NORM = 17.0
# apply_rotary_emb: rotate 3, stack 2, two casts 6, two products 8, sum 6, cast back 3.
ROTARY = 28.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What passes a network together, one entry for each pass; shape [n_passes].

    ``batch`` samples of ``frames`` x ``height`` x ``width`` positions each, with ``text`` tokens.
    """

    batch: Floats
    frames: Floats
    height: Floats
    width: Floats
    text: Floats

    @property
    def positions(self) -> Floats:
        """Positions of all samples."""
        return self.batch * self.frames * self.height * self.width

    @property
    def text_rows(self) -> Floats:
        """Text tokens of all samples."""
        return self.batch * self.text

    def resized(self, factor: float) -> Self:
        """Images ``factor`` times as high and wide; a half position is a whole one."""
        return replace(
            self, height=np.ceil(self.height * factor), width=np.ceil(self.width * factor)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """``count`` identical calls, each with ``params`` learnt values of its own.

    ``kind`` says which time law holds; a ``kind`` of "" is learnt values without a call. ``cached``
    are the keys and values that attention reads, ``moved`` the other activations read and written,
    in values; shape [n_passes]. ``shape`` is what the law reads, as in ``op_kinds.Op``.
    """

    name: str
    kind: str
    component: str
    flop: Floats
    moved: Floats
    shape: Shape
    params: int = 0
    cached: Floats | float = 0.0
    count: int = 1
    stands_for: str = ""


Calls = tuple[Call, ...]

NOTHING: Floats = np.zeros(1)


def linear(
    name: str,
    component: str,
    rows: Floats,
    n: int,
    k: int,
    *,
    bias: bool = True,
    count: int = 1,
) -> Call:
    """[rows, k] x [k, n]."""
    return _product(
        name, component, rows, n, k, params=n * k + bias * n, inputs=rows * k, count=count
    )


def convolution(
    name: str,
    rows: Floats,
    n: int,
    k: int,
    *,
    kernel: int = 9,
    inputs: Floats | float = 1.0,
    groups: int = 1,
    bias: bool = True,
    component: str = "convolution",
) -> Call:
    """``k`` to ``n`` channels over a window of ``kernel`` positions, as the product it amounts to.

    ``rows`` are output positions, each of which has ``inputs`` positions of its own in the input
    (4 where the stride is 2, 1/4 of an upsampled one is counted as 1). A window of one position is
    a product; others stand for a convolution.
    """
    return _product(
        name,
        component,
        rows,
        n,
        kernel * k // groups,
        params=n * (kernel * k // groups) + bias * n,
        inputs=rows * inputs * k,
        stands_for="" if kernel == groups == 1 else "convolution",
    )


def depthwise(
    name: str, rows: Floats, channels: int, *, kernel: int = 9, bias: bool = True
) -> Call:
    """Every channel convolved with a window of its own: bound by memory, not by products."""
    call = rowwise(
        name, "convolution", rows, channels, tensors=2, params=channels * (kernel + bias)
    )
    return replace(call, flop=2.0 * rows * channels * kernel, stands_for="depthwise convolution")


def _product(
    name: str,
    component: str,
    rows: Floats,
    n: int,
    k: int,
    *,
    params: int,
    inputs: Floats,
    count: int = 1,
    stands_for: str = "",
) -> Call:
    entering = np.divide(inputs, rows * k, out=np.ones_like(rows), where=rows > 0)
    wide = DTYPE_BYTES["bfloat16"]
    return Call(
        name=name,
        kind="gemm",
        component=component,
        flop=2.0 * rows * n * k,
        moved=inputs + rows * n,
        shape={
            "m": rows,
            "n": float(n),
            "k": float(k),
            "weight_element_bytes": wide,
            "input_element_bytes": wide * entering,
        },
        params=params,
        count=count,
        stands_for=stands_for,
    )


def attention(
    name: str,
    batch: Floats,
    queries: Floats,
    keys: Floats,
    *,
    heads: int,
    head_dim: int,
    pairs: Floats | None = None,
    stands_for: str = "",
) -> Call:
    """Every query of a sample sees every key of it, or ``pairs`` of all samples where given."""
    width, tokens = heads * head_dim, batch * queries
    pairs = tokens * keys if pairs is None else pairs
    kv_tokens = batch * keys
    return Call(
        name=name,
        kind="prefill_attention",
        component="attention",
        flop=4.0 * width * pairs,
        moved=2.0 * width * tokens,
        cached=2.0 * width * kv_tokens,
        shape={
            "tokens": tokens,
            "pairs": pairs,
            "kv_tokens": kv_tokens,
            "num_seqs": batch,
            "heads": float(heads),
            "kv_heads": float(heads),
            "head_dim": float(head_dim),
            "kv_element_bytes": DTYPE_BYTES["bfloat16"],
        },
        stands_for=stands_for,
    )


def rowwise(
    name: str,
    component: str,
    rows: Floats,
    width: int,
    *,
    tensors: float,
    params: int = 0,
    count: int = 1,
) -> Call:
    """A call that moves ``tensors`` values for each of ``width`` values of a row."""
    return Call(
        name=name,
        kind="elementwise",
        component=component,
        flop=np.zeros_like(rows),
        moved=rows * (tensors * width),
        shape={"rows": rows, "width": float(width)},
        params=params,
        count=count,
    )


def norm(
    name: str,
    rows: Floats,
    width: int,
    *,
    params: int = 0,
    tensors: float = PLAIN_NORM,
    count: int = 1,
) -> Call:
    """A normalisation with ``params`` learnt values."""
    return rowwise(name, "norm", rows, width, tensors=tensors, params=params, count=count)


def table(name: str, params: int) -> Call:
    """Learnt values without a call that is worth counting."""
    return Call(
        name=name, kind="", component="", flop=NOTHING, moved=NOTHING, shape={}, params=params
    )


def repeated(calls: Iterable[Call], count: int) -> Calls:
    """``count`` layers like these calls, each with its own weights."""
    return tuple(replace(c, count=c.count * count) for c in calls) if count else ()


def param_count(calls: Iterable[Call]) -> int:
    """All learnt values."""
    return sum(c.count * c.params for c in calls)


def flop(calls: Iterable[Call]) -> Floats:
    """FLOP of one pass; shape [n_passes]."""
    return np.asarray(sum(c.count * c.flop for c in calls if c.kind))


def operation(call: Call, dtype: str) -> Op:
    """The call in 16 bits, as a profile can time it."""
    wide = DTYPE_BYTES[dtype]
    works = call.moved > 0
    read = wide * (np.where(works, call.params, 0.0) + call.cached)
    # Learnt values of a normalisation or a depthwise convolution pass with its rows.
    weights = np.zeros_like(read) if call.kind == "elementwise" else read
    hbm_bytes = read + wide * call.moved
    extra: Shape = {"bytes": hbm_bytes} if call.kind == "elementwise" else {}
    return Op(
        name=call.name,
        kind=call.kind,
        component=call.component,
        dtype=dtype,
        stored=dtype,
        count=call.count,
        flop=call.flop,
        hbm_bytes=hbm_bytes,
        weight_bytes=weights,
        shape={**call.shape, **extra},
        stands_for=call.stands_for,
    )
