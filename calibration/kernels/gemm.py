"""y[m, n] = x[m, k] @ w[n, k].T in the formats that torch multiplies in by itself."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling

from calibration.kernels.common import (
    Call,
    How,
    Prepared,
    Shape,
    activation,
    copies,
    replicas,
    to_fp8,
    torch_stack,
    weight,
)

# Inputs that share a scale in weight-only int4, as in nearly all published checkpoints.
INT4_GROUP = 128
# Random nibbles are uniform on -8..7; their standard deviation, so that weights have 0.02.
NIBBLE_STD = 4.61
_INNER_K_TILES = 8


def linear(shape: Shape, how: How) -> Prepared:
    """F.linear (cuBLAS on NVIDIA), which is also what vLLM runs for unquantised layers."""
    m, n, k = shape["m"], shape["n"], shape["k"]
    x = activation(m, k, how=how)
    element = x.element_size()
    weights = [weight(n, k, how=how) for _ in range(copies(element * n * k, warm=how.warm))]
    precision = {"float32": "ieee", "tf32": "tf32"}.get(how.dtype)

    def call(w: torch.Tensor) -> Call:
        if precision is None:
            return lambda: F.linear(x, w)
        return _in_precision(precision, lambda: F.linear(x, w))

    return Prepared(
        calls=tuple(call(w) for w in weights),
        stack=torch_stack("linear"),
        operands={"x": x, "w": weights[0]},
    )


def _in_precision(precision: str, product: Callable[[], torch.Tensor]) -> Call:
    """The product with float32 multiplied in that precision, whatever the process has set."""
    matmul = torch.backends.cuda.matmul

    def call() -> torch.Tensor:
        before = matmul.fp32_precision
        matmul.fp32_precision = precision
        try:
            return product()
        finally:
            matmul.fp32_precision = before

    return call


def scaled(shape: Shape, how: How) -> Prepared:
    """fp8 with one scale a tensor through torch._scaled_mm."""
    m, n, k = shape["m"], shape["n"], shape["k"]
    x, x_scale = to_fp8(activation(m, k, how=how), m, k)
    w, w_scale = to_fp8(weight(n, k, how=how), n, k)
    x_scale, w_scale = x_scale.reshape(()), w_scale.reshape(())

    def call(w: torch.Tensor) -> Call:
        return lambda: torch._scaled_mm(
            x, w.t(), scale_a=x_scale, scale_b=w_scale, out_dtype=torch.bfloat16
        )

    return Prepared(
        calls=tuple(call(w) for (w,) in replicas((w,), how)),
        stack=torch_stack("_scaled_mm"),
        operands={"x": x, "x_scale": x_scale, "w": w, "w_scale": w_scale},
    )


def int4(shape: Shape, how: How) -> Prepared:
    """Weight-only int4 in groups of 128 through torch._weight_int4pack_mm."""
    m, n, k = shape["m"], shape["n"], shape["k"]
    if k % INT4_GROUP:
        raise ValueError(f"gemm int4: k = {k} is no multiple of the group of {INT4_GROUP}")
    x = activation(m, k, how=how)
    nibbles = torch.randint(0, 16, (n, k), device=how.device, dtype=torch.int32)
    scales = int4_scales(k // INT4_GROUP, n, how)
    # w = (nibble - 8) * scale + zero
    scales_and_zeros = torch.stack([scales, torch.zeros_like(scales)], dim=-1).contiguous()
    packed, product = _pack_int4(nibbles)

    def call(packed: torch.Tensor, scales_and_zeros: torch.Tensor) -> Call:
        return lambda: product(x, packed, INT4_GROUP, scales_and_zeros)

    return Prepared(
        calls=tuple(call(*w) for w in replicas((packed, scales_and_zeros), how)),
        stack=torch_stack("_weight_int4pack_mm"),
        operands={"x": x, "nibbles": nibbles, "scales": scales},
    )


def int4_scales(groups: int, n: int, how: How) -> torch.Tensor:
    """Scales [groups, n] that give random nibbles a standard deviation of about 0.02."""
    return activation(groups, n, how=how).mul_(0.1).add_(1.0).abs_().mul_(0.02 / NIBBLE_STD)


def _pack_int4(nibbles: torch.Tensor) -> tuple[torch.Tensor, Callable[..., torch.Tensor]]:
    """Weights [n, k] in the layout of this device's kernel, and that kernel."""
    aten = torch.ops.aten
    if nibbles.device.type == "cpu":
        packed = aten._convert_weight_to_int4pack_for_cpu(nibbles, _INNER_K_TILES)
        return packed, aten._weight_int4pack_mm_for_cpu
    bytes_ = (nibbles[:, ::2] << 4 | nibbles[:, 1::2]).to(torch.uint8)
    return aten._convert_weight_to_int4pack(bytes_, _INNER_K_TILES), aten._weight_int4pack_mm
