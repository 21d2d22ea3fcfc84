"""Softmax and latent attention, decode (one new token a sequence) and prefill."""

from itertools import product

from calibration.grid.family import FULL, PART, Family, Shape

# (query heads, KV heads, head size, window)
HEADS = (
    (32, 8, 128, 0), (32, 32, 128, 0), (40, 8, 128, 0), (64, 8, 128, 0), (24, 8, 128, 0),
    (14, 2, 64, 0), (32, 8, 64, 0), (64, 8, 64, 128), (16, 16, 128, 0), (28, 4, 128, 0),
    (8, 4, 256, 0), (8, 4, 256, 1024), (32, 4, 128, 0), (4, 1, 256, 512), (32, 32, 96, 0),
)  # fmt: skip
DECODE = tuple(
    product((1, 2, 4, 8, 16, 32, 64, 128, 256), (128, 512, 1024, 2048, 4096, 16384, 65536))
)
# (sequences, new tokens, context)
PREFILL = (
    (1, 16, 0), (1, 64, 0), (1, 128, 0), (1, 256, 0), (1, 512, 0), (1, 1024, 0), (1, 2048, 0),
    (1, 4096, 0), (1, 8192, 0), (1, 16384, 0), (2, 8192, 0), (4, 128, 0), (4, 2048, 0),
    (4, 4096, 0), (8, 512, 0), (16, 256, 0), (16, 1024, 0), (64, 128, 0), (64, 256, 0),
    (1, 512, 4096), (1, 2048, 8192), (1, 8192, 16384), (4, 512, 2048),
)  # fmt: skip
MAX_KV_BYTES = 24e9


def _heads(heads: int, kv_heads: int, head_dim: int, window: int = 0) -> Shape:
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    return {**shape, "window": window} if window else shape


def _fits(s: Shape) -> bool:
    tokens = s["num_seqs"] * (s["context"] + s["tokens"])
    return 4 * tokens * s["kv_heads"] * s["head_dim"] <= MAX_KV_BYTES


def _new(num_seqs: int, tokens: int, context: int) -> Shape:
    return {"num_seqs": num_seqs, "tokens": tokens, "context": context}


def _decodes() -> tuple[Shape, ...]:
    shapes = (
        {**_new(seqs, 1, context - 1), **_heads(*heads)}
        for heads, (seqs, context) in product(HEADS, DECODE)
    )
    return tuple(s for s in shapes if _fits(s))


def _prefills() -> tuple[Shape, ...]:
    return tuple({**_new(*new), **_heads(*heads)} for heads, new in product(HEADS, PREFILL))


_LLAMA, _MHA = _heads(32, 8, 128), _heads(32, 32, 128)
ATTENTION = (
    Family(
        op="attention",
        energy=(
            ({**_new(64, 1, 2047), **_LLAMA}, (FULL,)),
            ({**_new(16, 1, 2047), **_MHA}, (FULL,)),
            ({**_new(4, 1, 16383), **_heads(28, 4, 128)}, (FULL,)),
            ({**_new(256, 1, 1023), **_heads(64, 8, 128)}, (FULL,)),
            ({**_new(64, 1, 1023), **_heads(32, 8, 64)}, (FULL,)),
            ({**_new(64, 1, 4095), **_heads(8, 4, 256)}, (FULL,)),
            ({**_new(1, 1, 65535), **_heads(40, 8, 128)}, (FULL,)),
            ({**_new(4, 1, 511), **_LLAMA}, (FULL,)),
        ),
        timed=_decodes(),
        bursts=70,
        more=120,
        windows=6,
        quick=1,
    ),
    Family(
        op="attention",
        energy=(
            ({**_new(1, 8192, 0), **_LLAMA}, (FULL, PART)),
            ({**_new(8, 512, 0), **_MHA}, (FULL,)),
            ({**_new(1, 2048, 8192), **_heads(64, 8, 128)}, (FULL,)),
            ({**_new(64, 128, 0), **_heads(28, 4, 128)}, (FULL,)),
            ({**_new(1, 4096, 0), **_heads(14, 2, 64)}, (FULL,)),
            ({**_new(2, 4096, 0), **_heads(8, 4, 256)}, (FULL,)),
            ({**_new(1, 256, 0), **_LLAMA}, (FULL,)),
        ),
        timed=_prefills(),
        bursts=60,
        more=90,
        windows=6,
        quick=1,
    ),
    Family(
        op="attention",
        dtype="fp8",
        energy=(
            ({**_new(64, 1, 2047), **_LLAMA}, (FULL,)),
            ({**_new(16, 1, 4095), **_MHA}, (FULL,)),
            ({**_new(256, 1, 1023), **_heads(64, 8, 128)}, (FULL,)),
        ),
        timed=tuple(s for s in _decodes() if s["head_dim"] in (64, 128)),
        bursts=18,
        more=70,
    ),
    Family(
        op="attention",
        dtype="fp8",
        energy=(
            ({**_new(1, 8192, 0), **_LLAMA}, (FULL,)),
            ({**_new(8, 512, 0), **_MHA}, (FULL,)),
            ({**_new(64, 128, 0), **_heads(28, 4, 128)}, (FULL,)),
        ),
        timed=tuple(s for s in _prefills() if s["head_dim"] in (64, 128)),
        bursts=24,
        wide=True,
    ),
)


def _latent(heads: int) -> Shape:
    """Latent attention of the DeepSeek models, whole (128 heads) or split, and of small ones."""
    widths = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128}
    return {"heads": heads, **widths, "v_head_dim": 128}


LATENT = (
    Family(
        op="mla",
        energy=(
            ({**_new(64, 1, 2047), **_latent(16)}, (FULL,)),
            ({**_new(128, 1, 4095), **_latent(128)}, (FULL,)),
            ({**_new(8, 1, 8191), **_latent(32)}, (FULL,)),
        ),
        timed=tuple(
            {**_new(seqs, 1, context - 1), **_latent(heads)}
            for heads, (seqs, context) in product((16, 32, 64, 128), DECODE)
            if seqs * context <= 2_000_000
        ),
        bursts=18,
        more=60,
    ),
    Family(
        op="mla",
        energy=(
            ({**_new(1, 4096, 0), **_latent(16)}, (FULL,)),
            ({**_new(8, 512, 0), **_latent(128)}, (FULL,)),
            ({**_new(1, 2048, 4096), **_latent(32)}, (FULL,)),
        ),
        timed=tuple(
            {**_new(*new), **_latent(heads)}
            for heads, new in product((16, 32, 64, 128), PREFILL)
            if new[0] * (new[1] + new[2]) * heads <= 3_000_000
        ),
        bursts=16,
        more=24,
    ),
)
