"""Number formats: what a stored value takes, and in what it is multiplied.

Names are those of vLLM where it has one. ``bfloat16`` and ``float16`` are *wide*: activations,
norms, embeddings and accumulators keep them whatever the weights are stored in.
"""

from collections.abc import Mapping
from typing import Final

GROUPS: Final[Mapping[int, str]] = {128: "", 32: "_g32", 64: "_g64", -1: "_channel"}
"""Inputs that share a scale, as checkpoints spell them, and what a format's name ends on for it.
-1: all inputs of a channel."""


def _grouped(name: str, bits: int, zero_bits: int = 0) -> dict[str, float]:
    """Bytes a value of ``bits`` whose groups share a 16-bit scale and ``zero_bits`` of zero point.

    One scale for a whole channel is neglected.
    """
    each = {group: (16 + zero_bits) / group if group > 0 else 0.0 for group in GROUPS}
    return {name + GROUPS[group]: (bits + shared) / 8 for group, shared in each.items()}


_WIDENED: Final[Mapping[str, float]] = {
    # Symmetric (GPTQ, compressed-tensors), and with zero points (AWQ).
    **_grouped("int4", 4),
    **_grouped("uint4", 4, zero_bits=4),
    # Eight bits in weights alone, as integers or in fp8.
    **_grouped("w8a16", 8),
    # OCP Microscaling MXFP4: blocks of 32 four-bit values share one eight-bit scale, 4.25 bits each.
    "mxfp4": 4.25 / 8,
    # NVIDIA's: blocks of 16 share one eight-bit scale.
    "nvfp4": 4.5 / 8,
    # bitsandbytes, NF4 or FP4: blocks of 64 share a float32 scale. Double quantisation, where the
    # checkpoint has it, is undone when vLLM loads the weights.
    "nf4": 0.5 + 4.0 / 64,
}

DTYPE_BYTES: Mapping[str, float] = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    # One scale for each tensor or channel, which is neglected.
    "fp8": 1.0,
    "int8": 1.0,
    # bitsandbytes: columns with outliers are multiplied apart, in 16 bits.
    "llm_int8": 1.0,
    # One float32 scale for each 128 x 128 values (DeepSeek V3).
    "fp8_block": 1.0 + 4.0 / 128**2,
    **_WIDENED,
}

INPUT_BYTES: Mapping[str, float] = {
    "fp8": 1.0,
    "int8": 1.0,
    "llm_int8": 1.0,
    "fp8_block": 1.0 + 4.0 / 128,
}
"""Bytes of an activation on its way into a product whose weights are stored so; others are wide.
Blocks of 128 values of a row share a float32 scale (fp8_block)."""

WEIGHT_ONLY = tuple(_WIDENED)
"""Formats that are widened inside the kernel: the arithmetic stays in 16 bits."""

UNPACKED = ("nf4",)
"""Formats that a call before the product widens into memory (bitsandbytes, more than one row)."""

WIDE = ("bfloat16", "float16")


def input_bytes(stored: str, wide: float) -> float:
    """Bytes of one activation that enters a product with weights in format ``stored``."""
    return INPUT_BYTES.get(stored, wide)


def arithmetic(stored: str, wide: str) -> str:
    """What a product with weights in format ``stored`` is computed in; peaks are listed by it."""
    if stored in WEIGHT_ONLY:
        return wide
    return {"fp8_block": "fp8", "llm_int8": "int8"}.get(stored, stored)
