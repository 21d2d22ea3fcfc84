"""Quantising activations [rows, width] on the fly, which every fp8 or int8 layer does first.

``fp8``: one scale a token, as online ``quantization="fp8"`` of dense layers; with the shape key
``per_tensor`` = 1 one scale in all, as in its MoE layers. ``fp8_block``: one for 128 numbers.
"""

from calibration.kernels.common import (
    FP8_BLOCK,
    Call,
    How,
    Prepared,
    Shape,
    activation,
    to_fp8,
    to_int8,
    torch_stack,
)


def quantise(shape: Shape, how: How) -> Prepared:
    """Dynamic quantisation with vLLM's kernels."""
    import vllm._custom_ops as ops
    from vllm.model_executor.layers.quantization.utils.fp8_utils import per_token_group_quant_fp8

    x = activation(shape["rows"], shape["width"], how=how)
    per_token = not shape.get("per_tensor", 0)
    kernels: dict[str, tuple[str, Call]] = {
        "fp8": (
            "scaled_fp8_quant",
            lambda: ops.scaled_fp8_quant(x, use_per_token_if_dynamic=per_token),
        ),
        "fp8_block": (
            "per_token_group_quant_fp8",
            lambda: per_token_group_quant_fp8(
                x, FP8_BLOCK, column_major_scales=True, use_ue8m0=False
            ),
        ),
        "int8": ("scaled_int8_quant", lambda: ops.scaled_int8_quant(x)),
    }
    name, call = kernels[how.dtype]
    return Prepared(calls=(call,), stack=f"vllm {name}", operands={"x": x})


def quantise_torch(shape: Shape, how: How) -> Prepared:
    """The same in plain torch: largest magnitude, divide, convert."""
    x = activation(shape["rows"], shape["width"], how=how)
    rows, width = x.shape
    if how.dtype == "int8":
        return Prepared(
            calls=(lambda: to_int8(x),), stack=torch_stack("quantise int8"), operands={"x": x}
        )
    if how.dtype == "fp8_block":
        tile = (1, FP8_BLOCK)
    else:
        tile = (rows if shape.get("per_tensor", 0) else 1, width)
    return Prepared(
        calls=(lambda: to_fp8(x, *tile),), stack=torch_stack("quantise fp8"), operands={"x": x}
    )
