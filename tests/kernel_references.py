"""What each micro-workload should compute, in float64 from its operands, and how far it is off."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling

from calibration.kernels import How, Prepared, build

Tensors = Mapping[str, torch.Tensor]
Shape = Mapping[str, int]
BLOCK = 128


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Root of the squared error over that of the squares wanted; infinite where not finite."""
    got, want = got.double(), want.double()
    if got.shape != want.shape:
        raise AssertionError(f"shape {tuple(got.shape)}, not {tuple(want.shape)}")
    if not bool(torch.isfinite(got).all()):
        return float("inf")
    return float((got - want).norm() / want.norm().clamp(min=1e-30))


def check(op: str, shape: Shape, how: How) -> tuple[Prepared, float]:
    """Build the operation, run its first call; the largest relative error of its results."""
    prepared = build(op, shape, how)
    before = {name: x.clone() for name, x in prepared.operands.items()}
    result = prepared.calls[0]()
    wanted = REFERENCES[op](shape, before)
    got = _results(op, shape, result, prepared.operands)
    assert len(got) == len(wanted)
    return prepared, max(relative_error(g, w) for g, w in zip(got, wanted, strict=True))


def _results(op: str, shape: Shape, result: Any, after: Tensors) -> tuple[torch.Tensor, ...]:
    """What a call computed: what it returned, or the operands that it wrote to."""
    if op == "kv_write":
        return tuple(_by_slot(after[k])[after["slots"]] for k in ("keys", "values"))
    if op == "copy":
        return (after["target"],)
    if op == "quantise":
        return (dequantised(result[0], result[1]),)
    if op == "moe_routing":
        gates, ids = result[:2]
        wide = torch.zeros(gates.shape[0], shape["num_experts"], device=gates.device)
        return (wide.scatter_(1, ids.long(), gates.float()),)
    if result is None:  # in place
        names = ("x", "residual") if op == "rms_norm" else ("query", "key")
        result = tuple(after[name] for name in names)
    return result if isinstance(result, tuple) else (result,)


def _by_slot(cache: torch.Tensor) -> torch.Tensor:
    """A paged or plain cache as [slots, kv_heads, head_dim], in float64."""
    return (cache.flatten(0, 1) if cache.ndim == 4 else cache).double()


def dequantised(numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Numbers [..., m, n] times the scale of their tile, in float64."""
    m, n = numbers.shape[-2:]
    scales = scales.double()
    if scales.numel() == 1:
        return numbers.double() * scales.reshape(())
    rows, columns = (
        size if count == 1 else 1 if count == size else BLOCK
        for size, count in zip((m, n), scales.shape[-2:], strict=True)
    )  # fmt: skip
    wide = scales.repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    return numbers.double() * wide[..., :m, :n]


def _gemm(shape: Shape, o: Tensors) -> tuple[torch.Tensor, ...]:
    x, groups = o["x"], 128
    if "nibbles" in o or "packed" in o:
        if "nibbles" in o:
            nibbles = o["nibbles"].T
        else:
            shifts = torch.arange(0, 32, 4, device=x.device, dtype=torch.int32)
            nibbles = (o["packed"].unsqueeze(1) >> shifts.view(1, 8, 1) & 15).flatten(0, 1)
        w = (nibbles.double() - 8) * o["scales"].double().repeat_interleave(groups, 0)
        return (x.double() @ w,)
    if "w_scale" in o:
        x, w = dequantised(x, o["x_scale"]), dequantised(o["w"], o["w_scale"])
        return (x @ w.T,)
    return (x.double() @ o["w"].double().T,)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int = 0
) -> torch.Tensor:
    """Causal attention [..., heads, tokens, size]; the last query sees the last key."""
    q, k, v = q.double(), k.double(), v.double()
    tokens, kv_tokens = q.shape[-2], k.shape[-2]
    at = torch.arange(tokens, device=q.device).unsqueeze(-1) + kv_tokens - tokens
    key = torch.arange(kv_tokens, device=q.device)
    seen = key <= at
    if window:
        seen &= key > at - window
    scores = (q @ k.mT * scale).masked_fill(~seen, float("-inf"))
    return torch.softmax(scores, dim=-1) @ v


def _unpaged(cache: torch.Tensor, table: torch.Tensor, kv_tokens: int) -> torch.Tensor:
    """A paged cache as [sequences, tokens, ...]."""
    return cache.double()[table.long()].flatten(1, 2)[:, :kv_tokens]


def _attention(shape: Shape, o: Tensors) -> tuple[torch.Tensor, ...]:
    seqs, tokens, heads = shape["num_seqs"], shape["tokens"], shape["heads"]
    per_kv, kv_tokens = heads // shape["kv_heads"], shape["context"] + tokens
    query, keys, values = o["query"], o["keys"], o["values"]
    paged = "table" in o
    if paged:
        query = query.unflatten(0, (seqs, tokens)).transpose(1, 2)
        keys, values = (_unpaged(c, o["table"], kv_tokens).transpose(1, 2) for c in (keys, values))
    keys, values = (c.double().repeat_interleave(per_kv, 1) for c in (keys, values))
    out = _attend(query, keys, values, shape["head_dim"] ** -0.5, shape.get("window", 0))
    return (out.transpose(1, 2).flatten(0, 1) if paged else out,)


def _mla(shape: Shape, o: Tensors) -> tuple[torch.Tensor, ...]:
    scale = (shape["qk_nope_head_dim"] + shape["qk_rope_head_dim"]) ** -0.5
    seqs, tokens, rank = shape["num_seqs"], shape["tokens"], shape["kv_lora_rank"]
    if tokens == 1:
        cache = o["cache"]
        if "table" in o:
            cache = _unpaged(cache, o["table"], shape["context"] + 1)
        query = o["query"] if "query" in o else torch.cat([o["q_latent"], o["q_rope"]], -1)
        # One query of each head over the same keys: no head sees more of them than another.
        scores = query.double() @ cache.double().mT * scale
        return (torch.softmax(scores, -1) @ cache.double()[..., :rank],)
    query, keys, values = o["query"], o["keys"], o["values"]
    if query.ndim == 4:
        return (_attend(query, keys, values, scale),)

    def by_sequence(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(0, (seqs, -1)).transpose(1, 2)

    query, keys, values = (by_sequence(x) for x in (query, keys, values))
    if "old_keys" in o:
        keys = torch.cat([by_sequence(o["old_keys"]), keys], dim=2)
        values = torch.cat([by_sequence(o["old_values"]), values], dim=2)
    return (_attend(query, keys, values, scale).transpose(1, 2).flatten(0, 1),)


def _moe(shape: Shape, o: Tensors) -> tuple[torch.Tensor, ...]:
    w1, w2 = o["w1"].double(), o["w2"].double()
    if "w1_scale" in o:
        w1, w2 = (
            dequantised(w, s.view(-1, 1, 1).expand(-1, *w.shape[1:]) if s.ndim == 1 else s)
            for w, s in ((o["w1"], o["w1_scale"]), (o["w2"], o["w2_scale"]))
        )
    out = torch.zeros_like(o["x"], dtype=torch.float64)
    for token, x in enumerate(o["x"].double()):
        for gate, expert in zip(o["gates"][token].double(), o["ids"][token].long(), strict=True):
            first, second = (w1[expert] @ x).chunk(2)
            out[token] += gate * (w2[expert] @ (F.silu(first) * second))
    return (out,)


def _moe_routing(shape: Shape, o: Tensors) -> tuple[torch.Tensor, ...]:
    gates = torch.softmax(o["logits"].double(), -1)
    kept, ids = gates.topk(shape["top_k"], -1)
    kept = kept / kept.sum(-1, keepdim=True)
    return (torch.zeros_like(gates).scatter_(1, ids, kept),)


def _rms_norm(shape: Shape, o: Tensors) -> tuple[torch.Tensor, ...]:
    total = o["residual"].double() + o["x"].double()
    rms = total.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt()
    return total / rms * o["w"].double(), total


def _layer_norm(shape: Shape, o: Tensors) -> tuple[torch.Tensor, ...]:
    x = o["x"].double()
    scaled = (x - x.mean(-1, keepdim=True)) / x.var(-1, keepdim=True, correction=0).sqrt()
    return (scaled * o["w"].double() + o["b"].double(),)


def _gelu(shape: Shape, o: Tensors) -> tuple[torch.Tensor, ...]:
    x = o["x"].double()
    return (x * 0.5 * (1 + torch.erf(x / 2**0.5)),)


def _silu_and_mul(shape: Shape, o: Tensors) -> tuple[torch.Tensor, ...]:
    gate, up = o["x"].double().chunk(2, -1)
    return (gate / (1 + torch.exp(-gate)) * up,)


def _rotary(shape: Shape, o: Tensors) -> tuple[torch.Tensor, ...]:
    cos, sin = o["table"][o["positions"]].double().chunk(2, -1)
    turn = torch.complex(cos, sin).unsqueeze(1)

    def turned(x: torch.Tensor) -> torch.Tensor:
        first, second = x.double().unflatten(-1, (-1, shape["head_dim"])).chunk(2, -1)
        z = torch.complex(first, second) * turn
        return torch.cat([z.real, z.imag], -1).flatten(-2)

    return turned(o["query"]), turned(o["key"])


def _kv_write(shape: Shape, o: Tensors) -> tuple[torch.Tensor, ...]:
    return tuple(o[k].to(o["keys"].dtype).double() for k in ("key", "value"))


def _selective_scan(shape: Shape, o: Tensors) -> tuple[torch.Tensor, ...]:
    """h = exp(dt a) h + dt b x; y = c h + d x (arXiv 2405.21060), token by token."""
    seqs, tokens, per = shape["num_seqs"], shape["tokens"], shape["heads"] // shape["groups"]
    x, dt, b, c = (o[k].double().unflatten(0, (seqs, tokens)) for k in ("x", "dt", "b", "c"))
    b, c = b.repeat_interleave(per, 2), c.repeat_interleave(per, 2)
    dt = F.softplus(dt + o["dt_bias"].double())
    h = o["state"].double()
    h = h[o["slots"].long()] if "slots" in o else h
    h = h if tokens == 1 else torch.zeros_like(h)
    out = []
    for t in range(tokens):
        decay = torch.exp(dt[:, t] * o["a"].double())
        h = h * decay[..., None, None]
        h = h + (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None]
        out.append((h * c[:, t, :, None]).sum(-1) + o["d"].double()[:, None] * x[:, t])
    return (torch.stack(out, 1).flatten(0, 1),)


def _causal_conv1d(shape: Shape, o: Tensors) -> tuple[torch.Tensor, ...]:
    seqs, tokens = shape["num_seqs"], shape["tokens"]
    x = o["x"].double().unflatten(0, (seqs, tokens)).mT
    past = o["state"].double()[o["slots"].long()]
    past = past if tokens == 1 else torch.zeros_like(past)
    w, bias = o["w"].double(), o["bias"].double()
    out = F.conv1d(torch.cat([past, x], -1), w.unsqueeze(1), bias, groups=shape["width"])
    return (F.silu(out).mT.flatten(0, 1),)


def _linear_attention(shape: Shape, o: Tensors) -> tuple[torch.Tensor, ...]:
    """The gated delta rule (arXiv 2412.06464, equation 10), token by token; state [v, k]."""
    seqs, tokens, heads = shape["num_seqs"], shape["tokens"], shape["heads"]
    keys, size = shape["key_heads"], shape["head_dim"]
    parts = o["qkv"].double().split([keys * size, keys * size, heads * size], -1)
    q, k, v = (p.unflatten(-1, (-1, size)).unflatten(0, (seqs, tokens)) for p in parts)
    q, k = (F.normalize(p, dim=-1).repeat_interleave(heads // keys, 2) for p in (q, k))
    gates = (o[name].double().unflatten(0, (seqs, tokens)) for name in ("a", "b"))
    a, b = gates
    decay = torch.exp(-o["a_log"].double().exp() * F.softplus(a + o["dt_bias"].double()))
    beta = torch.sigmoid(b)
    h = o["state"].double()[o["slots"].long()]
    h = h if tokens == 1 else torch.zeros_like(h)
    out = []
    for t in range(tokens):
        h = h * decay[:, t, :, None, None]
        miss = v[:, t] - (h * k[:, t, :, None]).sum(-1)
        h = h + (beta[:, t, :, None] * miss)[..., None] * k[:, t, :, None]
        out.append((h * q[:, t, :, None]).sum(-1) * size**-0.5)
    return (torch.stack(out, 1).flatten(0, 1),)


def _sdpa(shape: Shape, o: Tensors) -> tuple[torch.Tensor, ...]:
    keys, values = (
        o[name].double().repeat_interleave(shape["heads"] // shape["kv_heads"], 1)
        for name in ("keys", "values")
    )
    if shape.get("causal", 1):
        return (_attend(o["query"], keys, values, shape["head_dim"] ** -0.5),)
    scores = o["query"].double() @ keys.mT * shape["head_dim"] ** -0.5
    return (torch.softmax(scores, -1) @ values,)


def _eager_norm(_: Shape, o: Tensors) -> tuple[torch.Tensor, ...]:
    x = o["x"].double()
    return (x / x.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt() * o["w"].double(),)


def _eager_rotary(_: Shape, o: Tensors) -> tuple[torch.Tensor, ...]:
    x, (first, second) = o["x"].double(), o["x"].double().chunk(2, -1)
    return (x * o["cos"].double() + torch.cat([-second, first], -1) * o["sin"].double(),)


def _eager_gate(_: Shape, o: Tensors) -> tuple[torch.Tensor, ...]:
    gate = o["gate"].double()
    return (gate / (1 + torch.exp(-gate)) * o["up"].double(),)


REFERENCES: dict[str, Callable[[Shape, Tensors], tuple[torch.Tensor, ...]]] = {
    "gemm": _gemm,
    "quantise": lambda _, o: (o["x"].double(),),
    "attention": _attention,
    "mla": _mla,
    "moe": _moe,
    "moe_routing": _moe_routing,
    "sdpa": _sdpa,
    "cache_append": lambda _, o: (torch.cat([o["cache"], o["new"]], -2),),
    "cache_fill": lambda _, o: (o["new"],),
    "eager_norm": _eager_norm,
    "eager_rotary": _eager_rotary,
    "eager_gate": _eager_gate,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "gelu": _gelu,
    "silu_and_mul": _silu_and_mul,
    "rotary": _rotary,
    "residual_add": lambda _, o: (o["x"].double() + o["y"].double(),),
    "kv_write": _kv_write,
    "embedding": lambda _, o: (o["table"][o["ids"]],),
    "sampling": lambda _, o: (o["logits"].float().argmax(-1),),
    "copy": lambda _, o: (o["source"],),
    "selective_scan": _selective_scan,
    "causal_conv1d": _causal_conv1d,
    "linear_attention": _linear_attention,
}
