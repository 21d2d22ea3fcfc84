"""Fields that configurations of diffusers share, beyond what ``Fields`` reads."""

from collections.abc import Sequence

from energymodel.errors import InputError
from energymodel.fields import Fields

MAX_BLOCKS = 1000
"""Layers of a kind; published ones have fewer than a hundred."""
MAX_LEVELS = 16
"""Resolutions of a U-Net or an autoencoder; published ones have at most six."""


def depth(f: Fields, key: str, default: int) -> int:
    """Number of layers of a kind."""
    return f.integer(key, default, low=1, high=MAX_BLOCKS)


def heads_and_width(f: Fields, *, heads: int, head_dim: int) -> tuple[int, int, int]:
    """(heads, values of a head, width of the layers)."""
    count = f.integer("num_attention_heads", heads, high=1024)
    size = f.integer("attention_head_dim", head_dim, high=4096)
    return count, size, count * size


def whole_numbers(
    f: Fields,
    key: str,
    default: Sequence[int],
    *,
    length: int | None = None,
    low: int = 0,
    high: int = 100_000,
) -> tuple[int, ...]:
    """A short list of whole numbers, of ``length`` entries where it is given."""
    given = f.sequence(key)
    values = default if given is None else given
    expected = f"{length} entries" if length else f"at most {MAX_BLOCKS} entries"
    right = len(values) == length if length else len(values) <= MAX_BLOCKS
    whole = all(isinstance(v, int) and not isinstance(v, bool) and low <= v <= high for v in values)
    if not right or not whole:
        raise InputError(
            f"{f.where}: field '{key}' must be a list of {expected}, {low} to {high:,}"
        )
    return tuple(v for v in values if isinstance(v, int))


def out_channels(f: Fields, default: int, channels: int) -> int:
    """``out_channels``: a null means as many as enter, only an absent field means the default."""
    if "out_channels" in f.config:
        return f.integer("out_channels", channels)
    return default


def words(f: Fields, key: str, default: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """A short list of names, each one of ``known``."""
    values = f.sequence(key)
    if values is None:
        return tuple(default)
    if not 1 <= len(values) <= MAX_LEVELS or not all(v in known for v in values):
        raise InputError(
            f"{f.where}: field '{key}' must be a list of 1 to {MAX_LEVELS} entries, "
            f"each one of {', '.join(known)}"
        )
    return tuple(str(v) for v in values)


def choice(f: Fields, key: str, known: Sequence[str], default: str | None = None) -> str | None:
    """One of ``known`` names, or None where the file says null; ``default`` where it says nothing."""
    value = f.config.get(key, default)
    if value is None or value in known:
        return value if value is None else str(value)
    raise InputError(
        f"{f.where}: field '{key}' is {value!r}; it must be null or {' or '.join(known)}"
    )


def refuse(f: Fields, key: str, reason: str, allowed: Sequence[object] = (None, False)) -> None:
    """Stop where a field says that the network is of a kind that is not read."""
    value = f.config.get(key)
    if value not in allowed:
        raise InputError(f"{f.where}: field '{key}' is {value!r:.40}, and {reason}")


def doublings(f: Fields, key: str, default: int) -> int:
    """How often a compression of ``key`` halves; it must be a power of 2."""
    ratio = f.integer(key, default, high=64)
    if ratio & (ratio - 1):
        raise InputError(f"{f.where}: field '{key}' is {ratio}; it must be a power of 2")
    return ratio.bit_length() - 1
