"""Mixtures of experts, routed uniformly."""

from itertools import product

from calibration.grid.family import FULL, PART, Family, Shape

# (hidden, expert width, experts, top-k)
EXPERTS = (
    (2048, 1024, 64, 8), (4096, 14336, 8, 2), (2048, 1408, 60, 4), (4096, 1536, 128, 8),
    (2560, 768, 128, 6), (2880, 2880, 32, 4), (3584, 2560, 64, 8), (2048, 512, 512, 10),
    (4096, 6400, 16, 2),
)  # fmt: skip
MOE_TOKENS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192, 16384)


def _experts(tokens: int, hidden: int, inner: int, experts: int, top_k: int) -> Shape:
    widths = {"hidden_size": hidden, "intermediate_size": inner}
    return {"tokens": tokens, **widths, "num_experts": experts, "top_k": top_k}


def _routed(tokens: int, which: int, *duties: float) -> tuple[Shape, tuple[float, ...]]:
    return _experts(tokens, *EXPERTS[which]), duties or (FULL,)


_ALL_EXPERTS = tuple(_experts(n, *widths) for widths, n in product(EXPERTS, MOE_TOKENS))
# Scales of 128 x 128 need widths that they divide.
_BLOCKED_EXPERTS = tuple(
    s for s in _ALL_EXPERTS if s["hidden_size"] % 128 == 0 and s["intermediate_size"] % 128 == 0
)
MIXTURES = (
    Family(
        op="moe",
        energy=(
            _routed(16, 0),
            _routed(2048, 3, FULL, PART),
            _routed(256, 1),
            _routed(8192, 0, FULL, PART),
            _routed(64, 3),
            _routed(1, 2),
            _routed(256, 5),
        ),
        timed=_ALL_EXPERTS,
        bursts=48,
        more=72,
        windows=6,
        quick=1,
    ),
    Family(
        op="moe",
        dtype="fp8",
        energy=(_routed(16, 0), _routed(2048, 3), _routed(256, 1), _routed(8192, 0)),
        timed=_BLOCKED_EXPERTS,
        bursts=18,
        more=30,
        windows=3,
    ),
    Family(
        op="moe",
        dtype="fp8_block",
        energy=(_routed(16, 0), _routed(2048, 3), _routed(256, 1), _routed(8192, 0)),
        timed=_BLOCKED_EXPERTS,
        bursts=30,
        wide=True,
    ),
)
