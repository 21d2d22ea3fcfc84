"""Number formats: what a stored value takes, and in what it is multiplied.

Names are those of vLLM where it has one. ``bfloat16`` and ``float16`` are *wide*: activations,
norms, embeddings and accumulators keep them whatever the weights are stored in.
"""

from collections.abc import Mapping

DTYPE_BYTES: Mapping[str, float] = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    # One scale for each tensor or channel, which is neglected.
    "fp8": 1.0,
    "int8": 1.0,
    # One float32 scale for each 128 x 128 values (DeepSeek V3).
    "fp8_block": 1.0 + 4.0 / 128**2,
    # Groups of 128 share a 16-bit scale (AWQ, GPTQ, compressed-tensors).
    "int4": 0.5 + 2.0 / 128,
    # OCP Microscaling MXFP4: blocks of 32 four-bit values share one eight-bit scale, 4.25 bits each.
    "mxfp4": 4.25 / 8,
    # bitsandbytes: blocks of 64 share an 8-bit scale, 256 blocks a float32 one (double quantised).
    "nf4": 0.5 + 1.0 / 64 + 4.0 / (64 * 256),
}

INPUT_BYTES: Mapping[str, float] = {"fp8": 1.0, "int8": 1.0, "fp8_block": 1.0 + 4.0 / 128}
"""Bytes of an activation on its way into a product whose weights are stored so; others are wide.
Blocks of 128 values of a row share a float32 scale (fp8_block)."""

WEIGHT_ONLY = ("int4", "mxfp4", "nf4")
"""Formats that are widened inside the kernel: the arithmetic stays in 16 bits."""

WIDE = ("bfloat16", "float16")


def input_bytes(stored: str, wide: float) -> float:
    """Bytes of one activation that enters a product with weights in format ``stored``."""
    return INPUT_BYTES.get(stored, wide)


def arithmetic(stored: str, wide: str) -> str:
    """What a product with weights in format ``stored`` is computed in; peaks are listed by it."""
    if stored in WEIGHT_ONLY:
        return wide
    return "fp8" if stored == "fp8_block" else stored
