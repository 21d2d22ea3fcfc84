"""y[m, n] = x[m, k] @ w[n, k].T in the quantised formats of vLLM, with vLLM's kernels.

Activations come quantised: quantising them is an operation of its own (``quantise``), as it is
in the engine. The kernel is the one that vLLM's own selection ends at on this GPU when DeepGEMM
and FlashInfer are absent (``vllm/model_executor/kernels/linear``).
"""

from typing import Any

import torch

from calibration.kernels.common import (
    FP8_BLOCK,
    Call,
    How,
    Prepared,
    Shape,
    activation,
    replicas,
    to_fp8,
    to_int8,
    weight,
)
from calibration.kernels.gemm import INT4_GROUP, int4_scales

# CUTLASS wants both widths in multiples of this; vLLM pads what is not, and so do models.
_ALIGNMENT = 16


def _widths(shape: Shape) -> tuple[int, int, int]:
    """m, n, k; refuses widths that CUTLASS cannot take."""
    m, n, k = shape["m"], shape["n"], shape["k"]
    if n % _ALIGNMENT or k % _ALIGNMENT:
        raise ValueError(f"gemm: n = {n} and k = {k} must be multiples of {_ALIGNMENT}")
    return m, n, k


def fp8(shape: Shape, how: How) -> Prepared:
    """One scale for the weight, one a token for activations: online ``quantization="fp8"``."""
    import vllm._custom_ops as ops

    m, n, k = _widths(shape)
    x, x_scale = to_fp8(activation(m, k, how=how), 1, k)
    w, w_scale = to_fp8(weight(n, k, how=how), n, k)
    w_scale = w_scale.reshape(1)

    def call(w: torch.Tensor) -> Call:
        return lambda: ops.cutlass_scaled_mm(
            x, w.t(), scale_a=x_scale, scale_b=w_scale, out_dtype=torch.bfloat16
        )

    return Prepared(
        calls=tuple(call(w) for (w,) in replicas((w,), how)),
        stack="vllm cutlass_scaled_mm fp8",
        operands={"x": x, "x_scale": x_scale, "w": w, "w_scale": w_scale},
    )


def fp8_block(shape: Shape, how: How) -> Prepared:
    """One scale for 128 x 128 weights, one for 128 activations of a token (DeepSeek-V3)."""
    import vllm._custom_ops as ops

    m, n, k = _widths(shape)
    if k % FP8_BLOCK:
        raise ValueError(f"gemm fp8_block: k = {k} is no multiple of {FP8_BLOCK}")
    x, x_scale = to_fp8(activation(m, k, how=how), 1, FP8_BLOCK)
    w, w_scale = to_fp8(weight(n, k, how=how), FP8_BLOCK, FP8_BLOCK)
    major, minor = torch.cuda.get_device_capability()
    # CUTLASS derives the tile from the number of scales, which a ragged last tile upsets.
    cutlass = not n % FP8_BLOCK and ops.cutlass_scaled_mm_supports_block_fp8(10 * major + minor)
    # CUTLASS reads the scales of activations column by column.
    x_scale_columns = x_scale.t().contiguous().t()

    def call_cutlass(w: torch.Tensor, w_scale: torch.Tensor) -> Call:
        return lambda: ops.cutlass_scaled_mm(
            x, w.t(), scale_a=x_scale_columns, scale_b=w_scale.t(), out_dtype=torch.bfloat16
        )

    def call_triton(w: torch.Tensor, w_scale: torch.Tensor) -> Call:
        from vllm.model_executor.layers.quantization.utils.fp8_utils import (
            w8a8_triton_block_scaled_mm,
        )

        block = [FP8_BLOCK, FP8_BLOCK]
        return lambda: w8a8_triton_block_scaled_mm(
            x, w, x_scale, w_scale, block, output_dtype=torch.bfloat16
        )

    call = call_cutlass if cutlass else call_triton
    return Prepared(
        calls=tuple(call(*weights) for weights in replicas((w, w_scale), how)),
        stack=f"vllm {'cutlass_scaled_mm' if cutlass else 'Triton w8a8'} fp8 128x128",
        operands={"x": x, "x_scale": x_scale, "w": w, "w_scale": w_scale},
    )


def int8(shape: Shape, how: How) -> Prepared:
    """w8a8: one scale an output for weights, one a token for activations."""
    import vllm._custom_ops as ops

    m, n, k = _widths(shape)
    x, x_scale = to_int8(activation(m, k, how=how))
    w, w_scale = to_int8(weight(n, k, how=how))

    def call(w: torch.Tensor, w_scale: torch.Tensor) -> Call:
        return lambda: ops.cutlass_scaled_mm(
            x, w.t(), scale_a=x_scale, scale_b=w_scale, out_dtype=torch.bfloat16
        )

    return Prepared(
        calls=tuple(call(*weights) for weights in replicas((w, w_scale), how)),
        stack="vllm cutlass_scaled_mm int8",
        operands={"x": x, "x_scale": x_scale, "w": w, "w_scale": w_scale},
    )


def int4(shape: Shape, how: How) -> Prepared:
    """Weight-only int4 in groups of 128 without zero points, as GPTQ stores it.

    On Hopper vLLM takes Machete where n is a multiple of 128 and k of 64, else Marlin.
    """
    m, n, k = shape["m"], shape["n"], shape["k"]
    if k % INT4_GROUP:
        raise ValueError(f"gemm int4: k = {k} is no multiple of the group of {INT4_GROUP}")
    x = activation(m, k, how=how)
    # Eight successive inputs of an output share an int32, the first in the lowest bits.
    packed = torch.randint(-(2**31), 2**31, (k // 8, n), device=how.device, dtype=torch.int64).to(
        torch.int32
    )
    scales = int4_scales(k // INT4_GROUP, n, how)
    hopper = torch.cuda.get_device_capability() == (9, 0)
    machete = hopper and n % 128 == 0 and k % 64 == 0
    calls = (_machete if machete else _marlin)(x, packed, scales, how)
    return Prepared(
        calls=calls,
        stack=f"vllm {'Machete' if machete else 'Marlin'} int4",
        operands={"x": x, "packed": packed, "scales": scales},
    )


def _machete(
    x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, how: How
) -> tuple[Call, ...]:
    import vllm._custom_ops as ops
    from vllm.scalar_type import scalar_types

    prepacked = ops.machete_prepack_B(
        packed.t().contiguous().t(),
        a_type=x.dtype,
        b_type=scalar_types.uint4b8,
        group_scales_type=x.dtype,
    )

    def call(w: torch.Tensor, scales: torch.Tensor) -> Call:
        return lambda: ops.machete_mm(
            a=x,
            b_q=w,
            b_type=scalar_types.uint4b8,
            b_group_scales=scales,
            b_group_size=INT4_GROUP,
        )

    return tuple(call(*weights) for weights in replicas((prepacked, scales), how))


def _marlin(
    x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, how: How
) -> tuple[Call, ...]:
    import vllm._custom_ops as ops
    from vllm.model_executor.layers.quantization.utils import marlin_utils
    from vllm.scalar_type import scalar_types

    k, n = x.shape[1], packed.shape[1]
    marlin_utils.verify_marlin_supports_shape(n, k, k, INT4_GROUP)
    empty = marlin_utils.marlin_make_empty_g_idx(x.device)
    workspace = marlin_utils.marlin_make_workspace_new(x.device)
    repacked = ops.gptq_marlin_repack(
        packed.contiguous(), perm=empty, size_k=k, size_n=n, num_bits=4
    )
    permuted = marlin_utils.marlin_permute_scales(scales, size_k=k, size_n=n, group_size=INT4_GROUP)

    def call(w: Any, s: Any) -> Call:
        return lambda: marlin_utils.apply_gptq_marlin_linear(
            input=x,
            weight=w,
            weight_scale=s,
            weight_zp=empty,
            g_idx=empty,
            g_idx_sort_indices=empty,
            workspace=workspace,
            wtype=scalar_types.uint4b8,
            output_size_per_partition=n,
            input_size_per_partition=k,
            is_k_full=True,
        )

    return tuple(call(*weights) for weights in replicas((repacked, permuted), how))
