"""What an image or a sound becomes on its way into a prompt: rows of a tower, and tokens.

How many depends on its size and is decided by the processor of each family. The settings of a
processor are in a file of their own (``preprocessor_config.json``), which is not read: where they
are not in ``config.json`` too they are those that the family's models were published with.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Runs = tuple[tuple[int, int], ...]
"""(how many, rows of each): sequences whose rows attend to one another and to no others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One image or one sound. ``tokens`` are its places in the prompt, row breaks included.

    ``rows`` are what the parts of a tower work on, by name: "patches" cut from an image,
    "positions" in the layers (with class tokens and padding), "windows" the same rows split, and
    "features", which leave the tower for the language model.
    """

    tokens: int
    rows: Mapping[str, Runs]


def total(runs: Runs) -> int:
    """Rows of all sequences."""
    return sum(number * each for number, each in runs)
