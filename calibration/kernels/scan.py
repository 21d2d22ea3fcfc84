"""Mamba2: its selective scan (arXiv 2405.21060) and the causal convolution before it.

``tokens`` = 1 is one decode step of each sequence, more is the chunked prefill of fresh
sequences. States rotate like KV caches; vLLM keeps them in slots, of which slot 0 means none.
``state_bytes`` = 4 in the shape keeps recurrent states in float32 (Nemotron-H, Qwen3.5) instead
of the type of activations.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling

from calibration.kernels.attention import starts_of
from calibration.kernels.common import (
    Call,
    How,
    Prepared,
    Shape,
    activation,
    copies,
    torch_stack,
)

SCAN_CHUNK = 256
CONV_WIDTH = 4


def rotating_states(shape: Shape, how: How, *size: int) -> list[torch.Tensor]:
    """State caches [sequences + 1, *size]: rotating copies, float32 or as activations."""
    seqs = shape["num_seqs"]
    dtype = torch.float32 if shape.get("state_bytes", 2) == 4 else how.torch_dtype
    size_bytes = dtype.itemsize * seqs * torch.Size(size).numel()
    return [
        torch.empty(seqs + 1, *size, device=how.device, dtype=dtype).normal_()
        for _ in range(copies(size_bytes, warm=how.warm))
    ]


def slots_of(shape: Shape, how: How) -> torch.Tensor:
    """A slot for each sequence, from 1 on, shuffled."""
    slots = torch.randperm(shape["num_seqs"], device=how.device) + 1
    return slots.to(torch.int32)


def _scan_operands(shape: Shape, how: How) -> dict[str, torch.Tensor]:
    """Inputs of the scan; A is in -16..-1 and dt about 0.001 to 0.1, as Mamba2 starts out."""
    tokens = shape["num_seqs"] * shape["tokens"]
    heads, groups, state = shape["heads"], shape["groups"], shape["state"]
    step = torch.empty(heads, device=how.device).uniform_(-6.9, -2.3).exp_()
    return {
        "x": activation(tokens, heads, shape["head_dim"], how=how),
        "dt": activation(tokens, heads, how=how),
        "a": -torch.empty(heads, device=how.device).uniform_(1.0, 16.0),
        "b": activation(tokens, groups, state, how=how),
        "c": activation(tokens, groups, state, how=how),
        "d": torch.ones(heads, device=how.device, dtype=how.torch_dtype),
        "dt_bias": torch.expm1(step).log_().to(how.torch_dtype),
    }


def selective_scan(shape: Shape, how: How) -> Prepared:
    """Mamba2's scan with vLLM's Triton kernels; each call returns its outputs."""
    operands = _scan_operands(shape, how)
    states = rotating_states(shape, how, shape["heads"], shape["head_dim"], shape["state"])
    slots = slots_of(shape, how)
    decode = shape["tokens"] == 1
    call = (_scan_decode if decode else _scan_prefill)(shape, operands, slots)
    return Prepared(
        calls=tuple(call(state) for state in states),
        stack=f"vllm {'selective_state_update' if decode else 'mamba_chunk_scan'} (Triton)",
        operands={**operands, "state": states[0], "slots": slots},
    )


def _scan_decode(
    shape: Shape, operands: Mapping[str, torch.Tensor], slots: torch.Tensor
) -> Callable[[torch.Tensor], Call]:
    from vllm.model_executor.layers.mamba.ops.mamba_ssm import selective_state_update

    size, x = (shape["heads"], shape["head_dim"], shape["state"]), operands["x"]
    out = torch.empty_like(x)
    # Constant along a head, expanded without copying, as the kernel looks for.
    dt = operands["dt"].unsqueeze(-1).expand_as(x)
    a = operands["a"].view(-1, 1, 1).expand(size)
    d, dt_bias = (operands[k].unsqueeze(-1).expand(size[:2]) for k in ("d", "dt_bias"))

    def call(state: torch.Tensor) -> Call:
        def run() -> torch.Tensor:
            selective_state_update(
                state,
                x,
                dt,
                a,
                operands["b"],
                operands["c"],
                d,
                dt_bias,
                dt_softplus=True,
                state_batch_indices=slots,
                dst_state_batch_indices=slots,
                out=out,
            )
            return out

        return run

    return call


def _scan_prefill(
    shape: Shape, operands: Mapping[str, torch.Tensor], slots: torch.Tensor
) -> Callable[[torch.Tensor], Call]:
    from vllm.model_executor.layers.mamba.ops.ssd_combined import (
        mamba_chunk_scan_combined_varlen,
    )

    seqs, tokens = shape["num_seqs"], shape["tokens"]
    out = torch.empty_like(operands["x"])
    device = slots.device
    # Chunks end where a sequence ends.
    edges = [s * tokens + i for s in range(seqs) for i in range(0, tokens, SCAN_CHUNK)]
    each = -(-tokens // SCAN_CHUNK)
    chunks = torch.tensor([*edges, seqs * tokens], dtype=torch.int32, device=device)
    sequences = torch.arange(seqs, dtype=torch.int32, device=device)
    chunk_sequences = sequences.repeat_interleave(each)
    last_chunks = (sequences + 1) * each - 1
    starts = starts_of(seqs, tokens, device)

    def call(state: torch.Tensor) -> Call:
        def run() -> torch.Tensor:
            last = mamba_chunk_scan_combined_varlen(
                operands["x"],
                operands["dt"],
                operands["a"],
                operands["b"],
                operands["c"],
                chunk_size=SCAN_CHUNK,
                cu_seqlens=starts,
                cu_chunk_seqlens=chunks,
                last_chunk_indices=last_chunks,
                seq_idx=chunk_sequences,
                out=out,
                D=operands["d"],
                dt_bias=operands["dt_bias"],
                dt_softplus=True,
                state_dtype=state.dtype,
            )
            state[slots] = last
            return out

        return run

    return call


def selective_scan_torch(shape: Shape, how: How) -> Prepared:
    """One step of Mamba2's scan in plain torch, in float32; no prefill."""
    if shape["tokens"] != 1:
        raise ValueError("selective_scan: torch does one token a sequence; use library vllm")
    operands = _scan_operands(shape, how)
    size = (shape["heads"], shape["head_dim"], shape["state"])
    states = [state[1:] for state in rotating_states(shape, how, *size)]
    per_group = shape["heads"] // shape["groups"]
    b, c = (operands[k].repeat_interleave(per_group, 1).unsqueeze(2) for k in ("b", "c"))

    def call(state: torch.Tensor) -> Call:
        def run() -> torch.Tensor:
            dt = F.softplus(operands["dt"].float() + operands["dt_bias"].float())
            decay = torch.exp(dt * operands["a"])[:, :, None, None]
            new = (dt.unsqueeze(-1) * operands["x"]).unsqueeze(-1) * b
            state.copy_(state * decay + new)
            y = (state * c).sum(-1) + operands["d"].unsqueeze(-1) * operands["x"]
            return y.to(operands["x"].dtype)

        return run

    return Prepared(
        calls=tuple(call(state) for state in states),
        stack=torch_stack("selective scan expression"),
        operands={**operands, "state": states[0]},
    )


def causal_conv1d(shape: Shape, how: How) -> Prepared:
    """Depthwise convolution over the last 4 tokens of ``width`` channels, then SiLU (Triton).

    A decode step works in place: what it reads is the output of the call before. A bias of
    normal(0, 1) keeps that alive, weights that add up to less than one keep it bounded.
    """
    from vllm.model_executor.layers.mamba.ops.causal_conv1d import (
        causal_conv1d_fn,
        causal_conv1d_update,
    )

    seqs, tokens, width = shape["num_seqs"], shape["tokens"], shape["width"]
    x = activation(seqs * tokens, width, how=how)
    w = torch.empty(width, CONV_WIDTH, device=how.device, dtype=how.torch_dtype)
    w.uniform_(-0.24, 0.24)
    bias = activation(width, how=how)
    slots = slots_of(shape, how)
    # Stored token by token, seen as [slots, channels, tokens].
    states = [state.mT for state in rotating_states(shape, how, CONV_WIDTH - 1, width)]

    def decode(state: torch.Tensor) -> Call:
        return lambda: causal_conv1d_update(x, state, w, bias, "silu", conv_state_indices=slots)

    def prefill(state: torch.Tensor) -> Call:
        return lambda: causal_conv1d_fn(
            x.t(),
            w,
            bias,
            conv_states=state,
            query_start_loc=starts,
            cache_indices=slots,
            has_initial_state=fresh,
            activation="silu",
            metadata=metadata,
        ).t()

    if tokens > 1:
        starts = starts_of(seqs, tokens, how.device)
        fresh = torch.zeros(seqs, dtype=torch.bool, device=how.device)
        metadata = _conv_metadata(starts)
    return Prepared(
        calls=tuple((decode if tokens == 1 else prefill)(state) for state in states),
        stack=f"vllm causal_conv1d_{'update' if tokens == 1 else 'fn'} (Triton)",
        operands={"x": x, "w": w, "bias": bias, "state": states[0], "slots": slots},
    )


def _conv_metadata(starts: torch.Tensor) -> SimpleNamespace:
    """Which program of the kernel does what, worked out before as vLLM does for a step."""
    from vllm.v1.attention.backends.utils import compute_causal_conv1d_metadata

    programs, batch, offsets = compute_causal_conv1d_metadata(starts.cpu(), device=starts.device)
    return SimpleNamespace(nums_dict=programs, batch_ptr=batch, token_chunk_offset_ptr=offsets)
