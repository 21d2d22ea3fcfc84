"""What every micro-workload shares: what to build, what comes out, and its random operands.

Weights, KV caches and recurrent states rotate over enough copies to miss the L2 cache, as they
do in a model; activations do not, because in a model the operation before has just written them.
Data are normal(0, 1) for activations and caches and normal(0, 0.02) for weights, and what is
stored in fewer bits is quantised from such draws: zeros cost up to a third less energy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling

Call = Callable[[], Any]
Shape = Mapping[str, int]

# Distinct operands add up to at least this, several times the L2 of any current GPU.
COLD_BYTES = 256_000_000
MAX_COPIES = 64
# Tokens in a block of vLLM's paged KV cache.
BLOCK_SIZE = 16
# The largest magnitude that float8_e4m3fn holds.
FP8_MAX = 448.0
FP8_BLOCK = 128
INT8_MAX = 127.0

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "tf32": torch.float32,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """Which kernel to build: number format, whose kernel, on what device, warm or cold cache.

    ``dtype`` is what weights or caches are stored in: bfloat16, float16, float32, tf32 (float32
    data, multiplied in 19 bits), fp8 (one scale a tensor or token), fp8_block (one scale for 128
    or 128 x 128 numbers), int8, int4. Whatever is not stored in it is bfloat16.
    """

    dtype: str = "bfloat16"
    library: str = "vllm"
    device: str = "cuda"
    warm: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type of activations."""
        return DTYPES.get(self.dtype, torch.bfloat16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Calls to run in turn, and the name of the code that they exercise.

    ``operands`` are those of the first call, by name, so that its result can be checked. A call
    may write to them.
    """

    calls: tuple[Call, ...]
    stack: str
    operands: Mapping[str, torch.Tensor] = field(default_factory=dict)


def copies(bytes_each: int, *, warm: bool = False) -> int:
    """How many copies of an operand keep it out of the L2 cache; one where it is to be warm."""
    if warm:
        return 1
    return max(1, min(MAX_COPIES, -(-COLD_BYTES // max(1, bytes_each))))


def activation(*size: int, how: How) -> torch.Tensor:
    """Normal(0, 1) of the type of activations."""
    return torch.empty(*size, device=how.device, dtype=how.torch_dtype).normal_()


def weight(*size: int, how: How) -> torch.Tensor:
    """Normal(0, 0.02) of the type of activations."""
    return torch.empty(*size, device=how.device, dtype=how.torch_dtype).normal_(0.0, 0.02)


def replicas(operands: tuple[torch.Tensor, ...], how: How) -> list[tuple[torch.Tensor, ...]]:
    """The operands and enough clones of them to miss the cache, which goes by address.

    Clones keep the strides, which carry the layout of prepacked weights.
    """
    size = sum(t.numel() * t.element_size() for t in operands)
    count = copies(size, warm=how.warm)
    return [operands, *(tuple(t.clone() for t in operands) for _ in range(count - 1))]


def to_fp8(x: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers [..., m, n] as float8_e4m3fn with one scale for each tile of ``rows`` x ``columns``.

    Returns them and the scales [..., m / rows, n / columns] (rounded up), float32; x is about the
    product.
    """
    m, n = x.shape[-2:]
    padded = F.pad(x.float(), (0, -n % columns, 0, -m % rows))
    tiles = padded.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))
    scales = tiles.abs().amax(dim=(-3, -1), keepdim=True).clamp_(min=1e-12) / FP8_MAX
    numbers = (tiles / scales).to(torch.float8_e4m3fn)
    whole = numbers.flatten(-2, -1).flatten(-3, -2)
    return whole[..., :m, :n].contiguous(), scales.squeeze(-1).squeeze(-2)


def to_int8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers [m, n] as int8 with one float32 scale a row [m, 1]."""
    scales = x.float().abs().amax(dim=-1, keepdim=True).clamp_(min=1e-12) / INT8_MAX
    return (x.float() / scales).round_().to(torch.int8), scales


def torch_stack(kernel: str) -> str:
    """Name of a kernel of torch, with its version."""
    return f"torch {torch.__version__} {kernel}"
