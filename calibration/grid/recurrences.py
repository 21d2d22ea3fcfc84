"""Selective scans (Mamba 2), gated delta rules and the convolution before them."""

from itertools import product

from calibration.grid.family import FULL, Family, Shape

# (heads, head size, state): Nemotron-H, Mamba-2 2.7B, Zamba2 7B
SCANS = ((128, 64, 128), (80, 64, 128), (112, 64, 64))
# (value heads, key heads, head size): Qwen3-Next, a small one
DELTAS = ((32, 16, 128), (16, 16, 128))
SEQUENCES = (1, 4, 16, 64, 256)
CHUNKS = ((1, 256), (1, 1024), (1, 4096), (1, 16384), (8, 512), (16, 1024))


def _scan(seqs: int, tokens: int, which: int = 0) -> Shape:
    heads, head_dim, state = SCANS[which]
    size = {"heads": heads, "head_dim": head_dim, "state": state, "groups": 8, "state_bytes": 4}
    return {"num_seqs": seqs, "tokens": tokens, **size}


def _delta(seqs: int, tokens: int, which: int = 0) -> Shape:
    heads, key_heads, head_dim = DELTAS[which]
    size = {"heads": heads, "key_heads": key_heads, "head_dim": head_dim, "state_bytes": 4}
    return {"num_seqs": seqs, "tokens": tokens, **size}


# Chunked kernels are tuned for up to a minute before their first call: in the wide grid alone.
RECURRENCES = (
    Family(
        op="selective_scan",
        energy=tuple(
            (_scan(n, 1, which), (FULL,))
            for n, which in ((64, 0), (8, 1), (256, 2), (256, 0), (64, 1), (16, 2), (64, 2))
        ),
        timed=tuple(_scan(n, 1, w) for w, n in product((0, 1, 2), SEQUENCES)),
        bursts=15,
        wide=True,
    ),
    Family(
        op="selective_scan",
        energy=((_scan(1, 4096), (FULL,)), (_scan(8, 512, 1), (FULL,)), (_scan(1, 512), (FULL,))),
        timed=tuple(_scan(*chunk, w) for w, chunk in product((0, 1, 2), CHUNKS)),
        bursts=12,
        wide=True,
    ),
    Family(
        op="linear_attention",
        energy=((_delta(64, 1), (FULL,)), (_delta(8, 1), (FULL,)), (_delta(256, 1, 1), (FULL,))),
        timed=tuple(_delta(n, 1, w) for w, n in product((0, 1), SEQUENCES)),
        bursts=10,
        wide=True,
    ),
    Family(
        op="linear_attention",
        energy=(
            (_delta(1, 4096), (FULL,)),
            (_delta(8, 512, 1), (FULL,)),
            (_delta(1, 512), (FULL,)),
        ),
        timed=tuple(_delta(*chunk, w) for w, chunk in product((0, 1), CHUNKS)),
        bursts=10,
        wide=True,
    ),
    Family(
        op="causal_conv1d",
        energy=tuple(
            ({"num_seqs": seqs, "tokens": tokens, "width": 10240}, (FULL,))
            for seqs, tokens in ((64, 1), (1, 4096), (8, 512))
        ),
        timed=tuple(
            {"num_seqs": seqs, "tokens": tokens, "width": width}
            for width, (seqs, tokens) in product(
                (5376, 10240), (*((n, 1) for n in SEQUENCES), *CHUNKS)
            )
        ),
        bursts=12,
        wide=True,
    ),
)
