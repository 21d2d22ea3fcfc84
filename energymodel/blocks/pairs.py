"""How many keys queries see, and whole blocks of keys: sums in closed form over arrays."""

import numpy as np

from energymodel.steps import Floats, Ints


def visible_pairs(tokens: Floats | Ints, context: Floats | Ints, window: float) -> Floats:
    """(query, key) pairs of ``tokens`` queries after ``context`` tokens that see ``window`` keys."""
    start = np.asarray(context, dtype=np.float64)
    return _pairs_up_to(start + tokens, window) - _pairs_up_to(start, window)


def _pairs_up_to(n: Floats, window: float) -> Floats:
    """S(n) = m(m+1)/2 + (n-m)W with m = min(n, W); without a window m = n."""
    ramp: Floats = np.minimum(n, window)
    beyond = n - ramp
    return ramp * (ramp + 1) / 2 + (beyond * window if np.isfinite(window) else 0.0)


def blocks_up_to(n: Floats, size: float) -> Floats:
    """Sum of ceil(i / size) over i = 1 ... n."""
    whole = np.floor(n / size)
    return size * whole * (whole + 1.0) / 2.0 + (n - whole * size) * (whole + 1.0)


def piece_pairs(n: Floats, size: float) -> Floats:
    """Sum of (x - 1) mod size + 1 over x = 1 ... n."""
    whole = np.floor(n / size)
    rest = n - whole * size
    return whole * size * (size + 1.0) / 2.0 + rest * (rest + 1.0) / 2.0


def piece_blocks(n: Floats, piece: float, size: float) -> Floats:
    """Sum of ceil(((x - 1) mod piece + 1) / size) over x = 1 ... n."""
    whole = np.floor(n / piece)
    rest = n - whole * piece
    each = blocks_up_to(np.full_like(rest, piece), size)
    return whole * each + blocks_up_to(rest, size)


def band_pairs(n: Floats, window: int) -> Floats:
    """Pairs of n tokens that are at most window // 2 apart."""
    reach = np.minimum(float(window // 2), np.maximum(n - 1.0, 0.0))
    return n * (2.0 * reach + 1.0) - reach * (reach + 1.0)
