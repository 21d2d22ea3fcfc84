"""What an operation is, and the building blocks that ``ops.lower`` is written with.

One function for each shape of call; conventions of FLOP and bytes are those of ``ops``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from energymodel.dtypes import DTYPE_BYTES, UNPACKED, WIDE, arithmetic, input_bytes
from energymodel.laws import executed_flop
from energymodel.parallel import Parallel
from energymodel.steps import Floats, Ints, Steps

Shape = Mapping[str, Floats | float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One kind of call in a step; ``count`` identical ones. Arrays have shape [n_steps].

    ``kind`` says which timing law holds, ``component`` to what the energy is attributed, ``dtype``
    in what the arithmetic runs, ``stored`` in what weights or cached values are kept. ``flop`` and
    ``hbm_bytes`` are of one call; ``weight_bytes`` is the part of ``hbm_bytes`` that are weights or
    cached keys and values. ``stands_for`` names what really runs where no law of its own exists
    and that of ``kind`` is borrowed. ``kernel``: which of several that do the same,
    where an engine has another than vLLM. ``captured``: its rows are the tokens of a step, so that
    an engine that replays CUDA graphs pads them. ``asked`` is what one request of each row of chunks asks
    of it [n_chunks], and of each row of decoding sequences [n_decodes], in any unit; None: its tokens (or
    its sampled rows, at the end of the model). ``shape`` by kind:

    - gemm: ``m`` rows, ``n`` outputs, ``k`` inputs, ``weight_element_bytes``
    - moe: ``tokens``, ``hidden_size``, ``intermediate_size``, ``up_size`` (of gate and up
      projection), ``num_experts``, ``top_k``,
      ``experts_touched``, ``weight_element_bytes``
    - prefill_attention: ``tokens`` (queries), ``pairs`` (query-key pairs of one head),
      ``kv_tokens`` (keys read), ``num_seqs``, ``heads``, ``kv_heads``, ``head_dim``,
      ``kv_element_bytes``
    - decode_attention: ``num_seqs``, ``kv_tokens``, ``block_tokens`` (keys in whole blocks),
      ``heads``, ``kv_heads``, ``head_dim``, ``kv_element_bytes``
    - mla_*, scan_*, linear_attention_*: ``blocks`` (pieces that run independently of each other),
      ``steps`` (that follow one another), ``flop``, ``bytes``
    - collectives (``collectives.py``): ``rows`` of ``row_bytes`` of message each, ``gpus``
    - elementwise, gather, sampling and the kernels that work row by row (``rms_norm``, ``rotary``,
      ...): ``rows``, ``width``, ``bytes`` (as ``hbm_bytes``)
    """

    name: str
    kind: str
    component: str
    dtype: str
    stored: str
    count: int
    flop: Floats
    hbm_bytes: Floats
    weight_bytes: Floats
    shape: Shape
    stands_for: str = ""
    kernel: str = ""
    asked: tuple[Floats, Floats] | None = None
    captured: bool = False

    @property
    def core_flop(self) -> Floats:
        """FLOP of one call that cost energy in the SMs, shape [n_steps]; padding included."""
        return executed_flop(self.kind, self.shape, self.flop)

    @property
    def law(self) -> str:
        """Name under which a profile holds the operation: its kind, and its kernel or narrow format."""
        if self.kernel:
            return f"{self.kind}.{self.kernel}"
        return self.kind if self.stored in WIDE else f"{self.kind}.{self.stored}"


ONE_GPU = Parallel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every operation of a lowering needs; arrays have shape [n_steps].

    ``source_tokens`` are what cross attention reads for a request of each bin: the prompt of an
    encoder-decoder, the features of images. ``count``, ``formats`` (of weights that are not wide,
    by name) and ``norm_vectors`` (of one normalisation) are those of the layer that is being
    lowered. ``parallel``: the GPUs that share the model, of which one is lowered. ``captured``:
    whether CUDA graphs hold the layers; no engine captures encoders in front of decoders and towers.
    """

    steps: Steps
    hidden_size: int
    dtype: str
    kv_element_bytes: float
    tokens: Floats
    sampled: Floats
    source_tokens: Ints
    count: int = 1
    formats: tuple[tuple[str, str], ...] = ()
    norm_vectors: int = 1
    parallel: Parallel = ONE_GPU
    captured: bool = True

    @property
    def wide(self) -> float:
        """Bytes of one activation."""
        return DTYPE_BYTES[self.dtype]

    @property
    def kv_stored(self) -> str:
        """Format of cached keys and values."""
        return self.dtype if self.kv_element_bytes == self.wide else "fp8"

    def stored(self, name: str) -> str:
        """Format that the weight called ``name`` is stored in."""
        return dict(self.formats).get(name, self.dtype)

    def within(
        self, *, count: int, formats: tuple[tuple[str, str], ...], norm_vectors: int
    ) -> Self:
        """The same steps inside ``count`` layers of one kind."""
        return replace(self, count=count, formats=formats, norm_vectors=norm_vectors)


def linear(
    ctx: Context,
    name: str,
    component: str,
    *,
    n: int,
    k: int,
    bias: bool = False,
    rows: Floats | None = None,
    stands_for: str = "",
    asked: tuple[Floats, Floats] | None = None,
) -> list[Op]:
    """[m, k] x [k, n] with m = ``rows`` (all tokens if None), after the quantisation of its input."""
    m = ctx.tokens if rows is None else rows
    stored = ctx.stored(name)
    if stored in UNPACKED:
        unpack = _unpack(ctx, name, component, n=n, k=k, rows=m, asked=asked)
        wide = replace(ctx, formats=tuple(f for f in ctx.formats if f[0] != name))
        product = linear(wide, name, component, n=n, k=k, bias=bias, rows=rows, asked=asked)
        return [unpack, *product]
    weights = n * k * DTYPE_BYTES[stored] + (n * ctx.wide if bias else 0)
    entering = input_bytes(stored, ctx.wide)
    row_bytes = k * entering + n * ctx.wide
    gemm = Op(
        name=name,
        kind="gemm",
        component=component,
        dtype=arithmetic(stored, ctx.dtype),
        stored=stored,
        count=ctx.count,
        flop=2.0 * n * k * m,
        hbm_bytes=np.where(m > 0, weights, 0.0) + m * row_bytes,
        weight_bytes=np.where(m > 0, weights, 0.0),
        shape={
            "m": m,
            "n": float(n),
            "k": float(k),
            "weight_element_bytes": DTYPE_BYTES[stored],
            "input_element_bytes": entering,
        },
        stands_for=stands_for,
        asked=asked,
        captured=rows is None and ctx.captured,
    )
    if entering == ctx.wide:
        return [gemm]
    before = quantise(ctx, f"{name}_quant", component, width=k, narrow=entering, rows=rows)
    return [replace(before, asked=asked), gemm]


def _unpack(
    ctx: Context,
    name: str,
    component: str,
    *,
    n: int,
    k: int,
    rows: Floats,
    asked: tuple[Floats, Floats] | None,
) -> Op:
    """Widening of a weight [n, k] into memory before its product, as bitsandbytes does.

    A single row is multiplied in one fused call instead, which this overstates.
    """
    row_bytes = k * (DTYPE_BYTES[ctx.stored(name)] + ctx.wide)
    each = np.where(rows > 0, float(n), 0.0)
    op = elementwise(
        ctx, f"{name}_unpack", component, width=k, row_bytes=row_bytes, rows=each, asked=asked
    )
    return replace(op, stands_for=f"the widening of {ctx.stored(name)} weights")


def quantise(
    ctx: Context,
    name: str,
    component: str,
    *,
    width: int,
    narrow: float,
    rows: Floats | None = None,
) -> Op:
    """Dynamic activation quantisation: reads 16 bits, writes ``narrow`` bytes a value."""
    row_bytes = width * (ctx.wide + narrow)
    return elementwise(
        ctx, name, component, width=width, row_bytes=row_bytes, rows=rows, kind="quantise"
    )


def normalise(
    ctx: Context,
    name: str,
    *,
    tensors: int,
    weights: int | None = None,
    width: int | None = None,
    rows: Floats | None = None,
) -> Op:
    """A normalisation that moves ``tensors`` activations of ``width``, and its learnt vectors.

    ``weights`` are the values of those vectors: as many as the layer's norm has unless given.
    """
    width = ctx.hidden_size if width is None else width
    row_bytes = tensors * width * ctx.wide
    learnt = ctx.norm_vectors * width if weights is None else weights
    # A scale and a shift: the mean is taken off, too.
    kind = "layer_norm" if learnt >= 2 * width else "rms_norm"
    fixed = learnt * ctx.wide
    return elementwise(
        ctx, name, "norm", width=width, row_bytes=row_bytes, fixed=fixed, rows=rows, kind=kind
    )


def in_place(
    ctx: Context,
    name: str,
    component: str,
    *,
    width: int,
    rows: Floats | None = None,
    kind: str = "elementwise",
) -> Op:
    """A call that reads and rewrites ``width`` values of each row."""
    row_bytes = 2 * width * ctx.wide
    return elementwise(ctx, name, component, width=width, row_bytes=row_bytes, rows=rows, kind=kind)


def elementwise(
    ctx: Context,
    name: str,
    component: str,
    *,
    width: int,
    row_bytes: float,
    fixed: float = 0.0,
    rows: Floats | None = None,
    kind: str = "elementwise",
    asked: tuple[Floats, Floats] | None = None,
) -> Op:
    """A call bound by memory: ``row_bytes`` for each row and ``fixed`` bytes once."""
    m = ctx.tokens if rows is None else rows
    hbm_bytes = m * row_bytes + np.where(m > 0, fixed, 0.0)
    return Op(
        name=name,
        kind=kind,
        component=component,
        dtype=ctx.dtype,
        stored=ctx.dtype,
        count=ctx.count,
        flop=np.zeros_like(m),
        hbm_bytes=hbm_bytes,
        weight_bytes=np.zeros_like(m),
        shape={"rows": m, "width": float(width), "bytes": hbm_bytes},
        asked=asked,
    )
