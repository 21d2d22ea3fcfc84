"""Matrix products: layers of today's models in every number format."""

from collections.abc import Sequence
from itertools import product

from calibration.grid.family import FULL, PART, POWER_LAW, Family, Shape

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
# Narrow formats are packed in blocks of 128.
BLOCKED_WIDTHS = tuple((n, k) for n, k in WIDTHS if n % 128 == 0 and k % 128 == 0 and n < 100_000)
TOKENS = (
    1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192, 16384,
)  # fmt: skip


def _products(
    widths: Sequence[tuple[int, int]], tokens: Sequence[int] = TOKENS
) -> tuple[Shape, ...]:
    return tuple({"m": m, "n": n, "k": k} for (n, k), m in product(widths, tokens))


def _at(m: int, n: int, k: int, *duties: float) -> tuple[Shape, tuple[float, ...]]:
    return {"m": m, "n": n, "k": k}, duties or (FULL,)


# Number formats narrower than 16 bits; their kernels change tiles with the shape more often.
_NARROW = (
    _at(8192, 14336, 4096),
    _at(16, 16384, 3072),
    _at(512, 5120, 5120),
    _at(1, 22016, 4096),
    _at(2048, 8192, 28672),
    _at(128, 22016, 4096),
    _at(1024, 2048, 8192),
    _at(64, 6144, 2048),
    _at(256, 5120, 25600),
    _at(4096, 3072, 3072),
)
PRODUCTS = (
    Family(
        op="gemm",
        energy=(
            _at(8192, 14336, 4096, *POWER_LAW),
            _at(16, 16384, 3072),
            _at(512, 5120, 5120, FULL, PART),
            _at(1, 22016, 4096),
            _at(2048, 8192, 28672),
            _at(128, 22016, 4096),
            _at(1024, 2048, 8192, FULL, PART),
            _at(64, 3072, 2048),
            _at(256, 16384, 3072),
            _at(4096, 3072, 2048),
            _at(16, 128256, 2048),
            _at(1, 2048, 2048),
            _at(8192, 3072, 3072),
            _at(256, 5120, 25600),
        ),
        timed=_products(WIDTHS),
        bursts=110,
        more=200,
        windows=9,
        quick=2,
    ),
    Family(
        op="gemm",
        dtype="fp8",
        energy=_NARROW,
        timed=_products(BLOCKED_WIDTHS),
        bursts=40,
        more=100,
        windows=5,
    ),
    Family(
        op="gemm",
        dtype="fp8_block",
        energy=_NARROW[:8],
        timed=_products(BLOCKED_WIDTHS),
        bursts=28,
        more=80,
        windows=3,
    ),
    Family(
        op="gemm",
        dtype="int4",
        energy=_NARROW[:8],
        timed=_products(BLOCKED_WIDTHS),
        bursts=24,
        more=70,
        windows=3,
    ),
    Family(
        op="gemm",
        dtype="int8",
        energy=_NARROW[:8],
        timed=_products(BLOCKED_WIDTHS),
        bursts=70,
        wide=True,
    ),
    Family(
        op="gemm",
        dtype="float16",
        energy=_NARROW[:6],
        timed=_products(WIDTHS),
        bursts=12,
        wide=True,
    ),
    Family(
        op="gemm",
        dtype="tf32",
        library="torch",
        energy=_NARROW[:8],
        timed=_products(WIDTHS),
        bursts=12,
        wide=True,
    ),
    Family(
        op="gemm",
        dtype="float32",
        library="torch",
        energy=(
            _at(1024, 5120, 5120),
            _at(16, 16384, 3072),
            _at(256, 5120, 5120),
            _at(1, 22016, 4096),
            _at(1024, 2048, 8192),
            _at(64, 6144, 2048),
            _at(4096, 3072, 3072),
        ),
        timed=_products(WIDTHS, TOKENS[:16]),
        bursts=12,
        wide=True,
    ),
)
