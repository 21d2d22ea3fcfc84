"""What works row by row: norms, activations, rotary, cache writes, gather, sampling, copy."""

from collections.abc import Sequence
from itertools import product

from calibration.grid.family import FULL, Family, Shape

ROWS = (1, 4, 16, 64, 256, 1024, 4096, 16384)
ROW_WIDTHS = (1024, 2048, 4096, 8192)
INNER_WIDTHS = (3072, 6144, 14336, 28672)
VOCABULARIES = (32000, 50304, 102400, 128256, 151936, 202048, 262144)


def _rows(widths: Sequence[int], rows: Sequence[int] = ROWS, **more: int) -> tuple[Shape, ...]:
    return tuple({"rows": r, "width": w, **more} for r, w in product(rows, widths))


def _row_windows(*shapes: tuple[int, int], **more: int) -> tuple[tuple[Shape, tuple[float]], ...]:
    return tuple(({"rows": r, "width": w, **more}, (FULL,)) for r, w in shapes)


BY_ROW = (
    Family(
        op="rms_norm",
        energy=_row_windows((16384, 4096), (64, 4096), (1024, 2048), (4096, 8192)),
        timed=_rows(ROW_WIDTHS),
        bursts=16,
        more=24,
        windows=3,
        quick=1,
    ),
    Family(
        op="silu_and_mul",
        energy=_row_windows((64, 14336), (16384, 14336), (1024, 6144)),
        timed=_rows(INNER_WIDTHS),
        bursts=16,
        more=24,
        windows=3,
        quick=1,
    ),
    Family(
        op="kv_write",
        energy=_row_windows((16384, 1024), (64, 1024), (2048, 2048), head_dim=128),
        timed=_rows((512, 1024, 2048, 4096), head_dim=128),
        bursts=12,
        more=32,
        quick=0,
    ),
    Family(
        op="rotary",
        energy=_row_windows((16384, 5120), (64, 5120), (1024, 10240), head_dim=128),
        timed=_rows((2560, 5120, 10240), head_dim=128),
        bursts=18,
        wide=True,
    ),
    Family(
        op="quantise",
        dtype="fp8",
        energy=_row_windows((16384, 4096), (64, 4096), (1024, 14336)),
        timed=_rows((2048, 4096, 8192, 14336)),
        bursts=12,
        more=32,
    ),
    Family(
        op="embedding",
        energy=_row_windows(
            (16384, 4096), (64, 4096), (1024, 2048), (4096, 8192), (256, 2048), vocab=128256
        ),
        timed=_rows(ROW_WIDTHS, vocab=128256),
        bursts=12,
        more=32,
        windows=3,
        quick=0,
    ),
    Family(
        op="sampling",
        energy=_row_windows((16, 128256), (256, 128256), (64, 32000)),
        timed=_rows(VOCABULARIES, (1, 4, 16, 64, 128, 256)),
        bursts=18,
        more=42,
        quick=0,
    ),
    Family(
        op="copy",
        energy=tuple(({"bytes": size << 20}, (FULL,)) for size in (2048, 512, 64)),
        timed=tuple({"bytes": size << 20} for size in (1, 2, 4, 8, 16, 32, 128, 256, 1024)),
        bursts=9,
    ),
    Family(
        op="moe_routing",
        energy=tuple(
            ({"tokens": n, "num_experts": experts, "top_k": 8}, (FULL,))
            for n, experts in ((16384, 128), (64, 64), (2048, 256), (4096, 64), (512, 128))
        ),
        timed=tuple(
            {"tokens": n, "num_experts": experts, "top_k": min(8, experts)}
            for experts, n in product((8, 64, 128, 256), ROWS)
        ),
        bursts=20,
        wide=True,
    ),
    *(
        Family(
            op=op,
            library="torch",
            energy=_row_windows(
                (16384, 4096), (64, 4096), (1024, 2048), (4096, 8192), (256, 4096), (4096, 1024)
            ),
            timed=_rows(ROW_WIDTHS),
            bursts=16,
            wide=True,
        )
        for op in ("layer_norm", "gelu", "residual_add")
    ),
)
