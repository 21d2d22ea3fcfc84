"""What transformers launches and vLLM does not: torch's attention, and caches that are copied."""

from itertools import product

from calibration.grid.family import FULL, Family, Shape

# (query heads, KV heads, head size)
_HEADS = ((32, 8, 128), (28, 4, 128), (32, 32, 128), (14, 2, 64), (32, 8, 64), (40, 8, 128))
_TOWERS = ((12, 12, 64), (16, 16, 64), (32, 32, 64))
# (sequences, tokens) of prompts
_PROMPTS = (
    (1, 64), (1, 256), (1, 1024), (1, 4096), (1, 8192), (4, 512), (4, 2048), (8, 1024),
    (16, 128), (16, 512), (32, 1024), (64, 256),
)  # fmt: skip
_READ = ((1, 64), (1, 256), (1, 512), (8, 128), (8, 512), (32, 256), (32, 512), (64, 512))
_CACHED = tuple(product((1, 4, 16, 32, 64), (128, 512, 1024, 2048, 4096)))


def _prompt(new: tuple[int, int], heads: tuple[int, int, int], **more: int) -> Shape:
    return {"num_seqs": new[0], "tokens": new[1], "context": 0, **_sizes(heads), **more}


def _decode(cached: tuple[int, int], heads: tuple[int, int, int], **more: int) -> Shape:
    seqs, context = cached
    return {"num_seqs": seqs, "tokens": 1, "context": context - 1, **_sizes(heads), **more}


def _sizes(heads: tuple[int, int, int]) -> Shape:
    return dict(zip(("heads", "kv_heads", "head_dim"), heads, strict=True))


def _append(seqs: int, context: int, kv_heads: int, head_dim: int) -> Shape:
    return {"num_seqs": seqs, "context": context, "kv_heads": kv_heads, "head_dim": head_dim}


def _fill(seqs: int, tokens: int, kv_heads: int, head_dim: int) -> Shape:
    return {"num_seqs": seqs, "tokens": tokens, "kv_heads": kv_heads, "head_dim": head_dim}


# Rows that elementwise expressions work on: tokens, or tokens x heads where heads are normalised.
_ROWS = (1, 16, 64, 256, 1024, 4096, 16384)

EAGER = (
    Family(
        op="sdpa",
        library="torch",
        energy=(
            (_prompt((1, 8192), _HEADS[0]), (FULL,)),
            (_prompt((8, 1024), _HEADS[2]), (FULL,)),
            (_prompt((64, 256), _HEADS[1]), (FULL,)),
            (_prompt((32, 512), _TOWERS[1], causal=0), (FULL,)),
        ),
        timed=tuple(
            [_prompt(new, heads) for new, heads in product(_PROMPTS, _HEADS)]
            + [_prompt(new, heads, causal=0) for new, heads in product(_READ, _TOWERS)]
        ),
        bursts=48,
        wide=True,
    ),
    Family(
        op="sdpa",
        library="torch",
        energy=(
            (_decode((64, 2048), _HEADS[0]), (FULL,)),
            (_decode((16, 2048), _HEADS[2]), (FULL,)),
            (_decode((4, 4096), _HEADS[1]), (FULL,)),
            (_decode((64, 512), _HEADS[4]), (FULL,)),
        ),
        timed=tuple(_decode(cached, heads) for cached, heads in product(_CACHED, _HEADS)),
        bursts=48,
        wide=True,
    ),
    Family(
        op="cache_append",
        library="torch",
        energy=(
            (_append(32, 2048, 8, 128), (FULL,)),
            (_append(4, 512, 8, 128), (FULL,)),
            (_append(16, 1024, 32, 64), (FULL,)),
        ),
        timed=tuple(
            _append(seqs, context, *sizes)
            for (seqs, context), sizes in product(_CACHED, ((8, 128), (4, 128), (32, 64)))
        ),
        bursts=24,
        wide=True,
    ),
    *(
        Family(
            op=op,
            library="torch",
            energy=tuple(
                ({"rows": rows, "width": width, **more}, (FULL,))
                for rows, width in ((16384, widths[1]), (1024, widths[0]), (16, widths[1]))
            ),
            timed=tuple(
                {"rows": rows, "width": width, **more} for rows, width in product(_ROWS, widths)
            ),
            bursts=28,
            wide=True,
        )
        for op, widths, more in (
            ("eager_norm", (512, 896, 2048, 4096), {}),
            ("eager_rotary", (512, 1024, 2048, 4096), {"head_dim": 128}),
            ("eager_gate", (2816, 4864, 8192, 18944), {}),
        )
    ),
    Family(
        op="cache_fill",
        library="torch",
        energy=tuple((_fill(*new, 8, 128), (FULL,)) for new in ((16, 1024), (64, 256), (4, 256))),
        timed=tuple(
            _fill(seqs, tokens, *sizes)
            for (seqs, tokens), sizes in product(
                ((1, 128), (1, 2048), (8, 512), (16, 1024)), ((8, 128), (4, 128), (32, 64))
            )
        ),
        bursts=12,
        wide=True,
    ),
)
