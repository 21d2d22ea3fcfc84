"""Linear attention by the gated delta rule (arXiv 2412.06464), as Qwen3-Next runs it in vLLM.

Shape: num_seqs, tokens, heads (of values), key_heads, head_dim, and state_bytes as in scan.py.
From the convolved queries, keys and values and the gates' logits to the outputs: decode
(``tokens`` = 1) in one recurrent kernel, prefill of fresh sequences in chunks.
"""

from collections.abc import Callable, Mapping

import torch

from calibration.kernels.attention import starts_of
from calibration.kernels.common import Call, How, Prepared, Shape, activation
from calibration.kernels.scan import rotating_states, slots_of


def linear_attention(shape: Shape, how: How) -> Prepared:
    """The gated delta rule with Triton kernels of vLLM; each call returns its outputs."""
    tokens = shape["num_seqs"] * shape["tokens"]
    heads, key_heads, head_dim = shape["heads"], shape["key_heads"], shape["head_dim"]
    operands = {
        "qkv": activation(tokens, (2 * key_heads + heads) * head_dim, how=how),
        "a": activation(tokens, heads, how=how),
        "b": activation(tokens, heads, how=how),
        "a_log": torch.empty(heads, device=how.device).uniform_(1e-3, 16.0).log_(),
        "dt_bias": torch.ones(heads, device=how.device, dtype=how.torch_dtype),
    }
    states = rotating_states(shape, how, heads, head_dim, head_dim)
    slots = slots_of(shape, how)
    decode = shape["tokens"] == 1
    call = (_decode if decode else _prefill)(shape, how, operands, slots)
    kernel = "fused_recurrent" if decode else "chunk"
    return Prepared(
        calls=tuple(call(state) for state in states),
        stack=f"vllm {kernel}_gated_delta_rule (Triton)",
        operands={**operands, "state": states[0], "slots": slots},
    )


def _decode(
    shape: Shape, how: How, operands: Mapping[str, torch.Tensor], slots: torch.Tensor
) -> Callable[[torch.Tensor], Call]:
    from vllm.model_executor.layers.fla.ops import (
        fused_recurrent_gated_delta_rule_packed_decode,
    )

    head_dim = shape["head_dim"]
    size = (shape["num_seqs"], 1, shape["heads"], head_dim)
    out = torch.empty(size, device=how.device, dtype=how.torch_dtype)

    def call(state: torch.Tensor) -> Call:
        def run() -> torch.Tensor:
            fused_recurrent_gated_delta_rule_packed_decode(
                mixed_qkv=operands["qkv"],
                a=operands["a"],
                b=operands["b"],
                A_log=operands["a_log"],
                dt_bias=operands["dt_bias"],
                scale=head_dim**-0.5,
                initial_state=state,
                out=out,
                ssm_state_indices=slots,
                use_qk_l2norm_in_kernel=True,
            )
            return out.squeeze(1)

        return run

    return call


def _prefill(
    shape: Shape, how: How, operands: Mapping[str, torch.Tensor], slots: torch.Tensor
) -> Callable[[torch.Tensor], Call]:
    from vllm.model_executor.layers.fla.ops import chunk_gated_delta_rule, fused_post_conv_prep
    from vllm.model_executor.layers.fla.ops.index import (
        prepare_chunk_indices,
        prepare_chunk_offsets,
    )
    from vllm.model_executor.layers.fla.ops.utils import FLA_CHUNK_SIZE

    starts = starts_of(shape["num_seqs"], shape["tokens"], how.device)
    indices = prepare_chunk_indices(starts, FLA_CHUNK_SIZE)
    offsets = prepare_chunk_offsets(starts, FLA_CHUNK_SIZE)
    size = (shape["num_seqs"], shape["heads"], shape["head_dim"], shape["head_dim"])

    def call(state: torch.Tensor) -> Call:
        fresh = torch.zeros(size, device=how.device, dtype=state.dtype)

        def run() -> torch.Tensor:
            q, k, v, g, beta = fused_post_conv_prep(
                conv_output=operands["qkv"],
                a=operands["a"],
                b=operands["b"],
                A_log=operands["a_log"],
                dt_bias=operands["dt_bias"],
                num_k_heads=shape["key_heads"],
                head_k_dim=shape["head_dim"],
                head_v_dim=shape["head_dim"],
                apply_l2norm=True,
                output_g_exp=False,
            )
            out, last = chunk_gated_delta_rule(
                q=q.unsqueeze(0),
                k=k.unsqueeze(0),
                v=v.unsqueeze(0),
                g=g.unsqueeze(0),
                beta=beta.unsqueeze(0),
                initial_state=fresh,
                output_final_state=True,
                cu_seqlens=starts,
                chunk_indices=indices,
                chunk_offsets=offsets,
                use_qk_l2norm_in_kernel=False,
            )
            state[slots] = last.to(state.dtype)
            return out.squeeze(0)

        return run

    return call
