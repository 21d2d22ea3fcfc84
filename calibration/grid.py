"""The calibration grid: what is measured, in one place that a reader can see and change.

Every point is timed in short bursts at full clock. Points marked ``energy`` are also measured
over energy windows; the others carry the timing law across shapes, which needs many points, while
energy per operation is a smooth function of FLOPs, bytes and time, which needs few.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One operation at one shape. ``duties`` are the shares of busy time of its energy windows."""

    op: str
    shape: dict[str, int]
    duties: tuple[float, ...] = ()

    @property
    def key(self) -> str:
        """Identity of the point in observation files."""
        return f"{self.op}:" + ",".join(f"{k}={v}" for k, v in sorted(self.shape.items()))


# Output and input widths (n, k) of the layers of today's models, 0.5B to 123B parameters.
WIDTHS = (
    (8, 4096), (32, 2880), (64, 2048), (128, 4096), (512, 2048), (640, 896),
    (1152, 896), (9728, 896), (896, 4864), (151936, 896),
    (3072, 1024), (1024, 1024), (1024, 2048), (6144, 1024), (1024, 3072),
    (2048, 1536), (17920, 1536), (1536, 8960), (6912, 1152), (1152, 6912),
    (3072, 2048), (2048, 2048), (2560, 2048), (6144, 2048), (16384, 2048), (2048, 8192),
    (128256, 2048), (11264, 2048), (2048, 5632),
    (4096, 2560), (2560, 4096), (20480, 2560), (2560, 10240), (262144, 2560), (18432, 2304),
    (2304, 9216), (5120, 2880), (2880, 4096),
    (5120, 3072), (3072, 3072), (16384, 3072), (3072, 8192), (9216, 3072),
    (8192, 3840), (3840, 4096), (30720, 3840), (3840, 15360),
    (4608, 3584), (3584, 3584), (8192, 3584), (28672, 3584), (37888, 3584), (3584, 18944),
    (152064, 3584), (256000, 3584),
    (5120, 4096), (4096, 4096), (12288, 4096), (24576, 4096), (22016, 4096), (4096, 11008),
    (4096, 12288), (32000, 4096),
    (7680, 5120), (15360, 5120), (5120, 5120), (27648, 5120), (5120, 13824), (35840, 5120),
    (51200, 5120), (5120, 25600), (100352, 5120), (10240, 5120), (5120, 8192),
    (9216, 6144), (32768, 6144), (6144, 16384), (6144, 6144),
    (12288, 8192), (8192, 8192), (59392, 8192), (8192, 29696),
)  # fmt: skip
TOKENS = (
    1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192, 16384,
)  # fmt: skip
ENERGY_WIDTHS = (
    (3072, 2048),
    (16384, 3072),
    (2048, 8192),
    (5120, 5120),
    (22016, 4096),
    (8192, 29696),
)
ENERGY_TOKENS = (1, 16, 64, 128, 256, 512, 1024, 2048, 8192)
FULL, PART = 1.0, 0.2

# (query heads, KV heads, head size, window)
HEADS = (
    (32, 32, 128, 0), (32, 8, 128, 0), (40, 8, 128, 0), (64, 8, 128, 0), (24, 8, 128, 0),
    (14, 2, 64, 0), (32, 8, 64, 0), (64, 8, 64, 128), (16, 16, 128, 0), (28, 4, 128, 0),
    (8, 4, 256, 0), (8, 4, 256, 1024), (32, 4, 128, 0), (4, 1, 256, 512),
)  # fmt: skip
DECODE = tuple(
    product((1, 2, 4, 8, 16, 32, 64, 128, 256), (128, 512, 1024, 2048, 4096, 16384, 65536))
)
# (sequences, new tokens, context)
PREFILL = (
    (1, 16, 0), (1, 128, 0), (1, 512, 0), (1, 1024, 0), (1, 2048, 0), (1, 4096, 0), (1, 8192, 0),
    (1, 16384, 0), (4, 128, 0), (8, 512, 0), (64, 128, 0), (64, 256, 0), (16, 1024, 0),
    (4, 2048, 0), (4, 4096, 0), (1, 64, 0), (1, 256, 0), (2, 8192, 0), (16, 256, 0), (1, 512, 4096), (1, 2048, 8192), (1, 8192, 16384), (4, 512, 2048),
)  # fmt: skip
MAX_KV_BYTES = 24e9

# (hidden, expert width, experts, top-k)
EXPERTS = (
    (2048, 1024, 64, 8), (4096, 14336, 8, 2), (2048, 1408, 60, 4), (4096, 1536, 128, 8),
    (2560, 768, 128, 6), (2880, 2880, 32, 4), (3584, 2560, 64, 8), (2048, 512, 512, 10),
    (4096, 6400, 16, 2),
)  # fmt: skip
MOE_TOKENS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192, 16384)
ROWS = (1, 16, 64, 256, 1024, 4096, 16384)


def _gemm() -> Iterator[Point]:
    for (n, k), m in product(WIDTHS, TOKENS):
        energy = (n, k) in ENERGY_WIDTHS and m in ENERGY_TOKENS
        hot = m >= 128
        duties = ((FULL, PART) if hot else (FULL,)) if energy else ()
        yield Point(op="gemm", shape={"m": m, "n": n, "k": k}, duties=duties)


def _attention() -> Iterator[Point]:
    for heads, kv_heads, head_dim, window in HEADS:
        common = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
        if window:
            common["window"] = window
        for seqs, context in DECODE:
            if 4 * seqs * context * kv_heads * head_dim > MAX_KV_BYTES:
                continue
            energy = (heads, window) in ((32, 0), (64, 0), (28, 0), (8, 1024)) and (
                (seqs, context) in ((1, 2048), (16, 2048), (64, 1024), (128, 4096), (4, 16384))
            )
            yield Point(
                op="attention",
                shape={"num_seqs": seqs, "tokens": 1, "context": context - 1, **common},
                duties=(FULL,) if energy else (),
            )
        for seqs, tokens, context in PREFILL:
            energy = (heads, window) in ((32, 0), (64, 0), (14, 0), (8, 0), (8, 1024)) and (
                (seqs, tokens, context)
                in ((1, 2048, 0), (1, 8192, 0), (8, 512, 0), (64, 128, 0), (1, 2048, 8192))
            )
            yield Point(
                op="attention",
                shape={"num_seqs": seqs, "tokens": tokens, "context": context, **common},
                duties=(FULL, PART) if energy else (),
            )


def _moe() -> Iterator[Point]:
    for (hidden, inter, experts, top_k), tokens in product(EXPERTS, MOE_TOKENS):
        energy = experts in (8, 32, 64, 128) and tokens in (1, 16, 64, 256, 2048, 8192)
        yield Point(
            op="moe",
            shape={
                "tokens": tokens,
                "hidden_size": hidden,
                "intermediate_size": inter,
                "num_experts": experts,
                "top_k": top_k,
            },
            duties=((FULL, PART) if tokens >= 256 else (FULL,)) if energy else (),
        )
    for experts, tokens in product((8, 64, 128), ROWS):
        yield Point(
            op="moe_routing",
            shape={"tokens": tokens, "num_experts": experts, "top_k": min(8, experts)},
        )


def _small() -> Iterator[Point]:
    for op, width in (
        ("rms_norm", 2048), ("rms_norm", 4096), ("rms_norm", 8192),
        ("silu_and_mul", 6144), ("silu_and_mul", 14336),
    ):  # fmt: skip
        for rows in ROWS:
            energy = width in (4096, 14336) and rows in (64, 1024, 16384)
            yield Point(
                op=op, shape={"rows": rows, "width": width}, duties=(FULL,) if energy else ()
            )
    for op, rows in product(("rotary", "kv_write"), ROWS):
        width = 5120 if op == "rotary" else 1024
        yield Point(
            op=op,
            shape={"rows": rows, "width": width, "head_dim": 128},
            duties=(FULL,) if rows in (64, 16384) else (),
        )
    for rows in ROWS:
        yield Point(
            op="embedding",
            shape={"rows": rows, "vocab": 128256, "width": 4096},
            duties=(FULL,) if rows == 4096 else (),
        )
    for rows, vocab in product((1, 16, 64, 256), (32000, 128256, 262144)):
        energy = vocab == 128256 and rows in (16, 256)
        yield Point(
            op="sampling", shape={"rows": rows, "width": vocab}, duties=(FULL,) if energy else ()
        )
    for megabytes in (1, 8, 64, 512, 2048):
        yield Point(
            op="copy", shape={"bytes": megabytes << 20}, duties=(FULL,) if megabytes > 100 else ()
        )


def _power_law() -> Iterator[Point]:
    """The same work at many duties: the clock falls as mean power meets the limit."""
    duties = (0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    yield Point(op="gemm", shape={"m": 8192, "n": 14336, "k": 4096}, duties=duties)
    yield Point(op="gemm", shape={"m": 512, "n": 12288, "k": 4096}, duties=duties[1::2])
    attention = {"num_seqs": 4, "tokens": 4096, "context": 0, "heads": 32, "kv_heads": 8}
    yield Point(op="attention", shape={**attention, "head_dim": 128}, duties=duties[1::2])


def full() -> list[Point]:
    """The whole grid; points that appear twice are merged, the richer one wins."""
    points: dict[str, Point] = {}
    for source in (_gemm(), _attention(), _moe(), _small(), _power_law()):
        for point in source:
            known = points.get(point.key)
            if known is None or len(point.duties) > len(known.duties):
                points[point.key] = point
    return list(points.values())


def quick() -> list[Point]:
    """One shape of each operation kind: a minute, enough to see that everything runs."""
    return [
        Point(op="gemm", shape={"m": 64, "n": 4096, "k": 4096}, duties=(FULL,)),
        Point(op="gemm", shape={"m": 8192, "n": 14336, "k": 4096}, duties=(FULL, 0.5, PART)),
        *(
            Point(
                op="attention",
                shape={
                    "num_seqs": seqs, "tokens": tokens, "context": 1023,
                    "heads": 32, "kv_heads": 8, "head_dim": 128,
                },
                duties=(FULL,),
            )
            for seqs, tokens in ((64, 1), (4, 1024))
        ),
        Point(
            op="moe",
            shape={
                "tokens": 64, "hidden_size": 2048, "intermediate_size": 1024,
                "num_experts": 64, "top_k": 8,
            },
            duties=(FULL,),
        ),
        Point(op="moe_routing", shape={"tokens": 64, "num_experts": 64, "top_k": 8}),
        Point(op="rms_norm", shape={"rows": 1024, "width": 4096}, duties=(FULL,)),
        Point(op="silu_and_mul", shape={"rows": 1024, "width": 14336}),
        Point(op="rotary", shape={"rows": 1024, "width": 5120, "head_dim": 128}),
        Point(op="kv_write", shape={"rows": 1024, "width": 1024, "head_dim": 128}),
        Point(op="embedding", shape={"rows": 1024, "vocab": 128256, "width": 4096}),
        Point(op="sampling", shape={"rows": 64, "width": 128256}),
        Point(op="copy", shape={"bytes": 512 << 20}, duties=(FULL,)),
    ]  # fmt: skip
