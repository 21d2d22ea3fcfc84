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
        energy=tuple(
            (_scan(seqs, tokens, which), (FULL,))
            for seqs, tokens, which in (
                (1, 4096, 0),
                (8, 512, 1),
                (1, 512, 0),
                (16, 1024, 2),
                (1, 16384, 1),
                (1, 1024, 2),
            )
        ),
        timed=tuple(_scan(*chunk, w) for w, chunk in product((0, 1, 2), CHUNKS)),
        bursts=18,
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
        energy=tuple(
            (_delta(seqs, tokens, which), (FULL,))
            for seqs, tokens, which in (
                (1, 4096, 0),
                (8, 512, 1),
                (1, 512, 0),
                (16, 1024, 0),
                (1, 16384, 1),
                (1, 1024, 1),
            )
        ),
        timed=tuple(_delta(*chunk, w) for w, chunk in product((0, 1), CHUNKS)),
        bursts=12,
        wide=True,
    ),
    Family(
        op="causal_conv1d",
        energy=tuple(
            ({"num_seqs": seqs, "tokens": tokens, "width": width}, (FULL,))
            for seqs, tokens, width in (
                (64, 1, 10240),
                (1, 4096, 10240),
                (8, 512, 10240),
                (1, 1024, 5376),
                (256, 1, 5376),
                (16, 1024, 5376),
                (256, 1, 10240),
                (1, 256, 10240),
            )
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
