"""Typed, bounded access to the fields of a ``config.json`` that may hold anything.

Every message names the model, the field, what was found and what would be right. ``null`` counts as
absent, as it does in Hugging Face configurations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from energymodel.errors import InputError

MAX_LAYERS: Final = 10_000
"""No published decoder has more than a few hundred; a larger number is a damaged file."""
_MAX_INTEGER: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class Fields:
    """Read-only view of one JSON object; ``where`` starts every message.

    ``names`` are what the family calls fields that most families call otherwise; both are read.
    """

    config: Mapping[str, object]
    where: str
    names: Mapping[str, str] = field(default_factory=dict)

    def value(self, key: str) -> object:
        """What the file holds under either name; None where it holds nothing."""
        found = self.config.get(key)
        return self.config.get(self.names.get(key, key)) if found is None else found

    def named(self, **names: str) -> "Fields":
        """The same object, some of whose fields the family calls otherwise."""
        return Fields(self.config, self.where, {**self.names, **names})

    def has(self, key: str) -> bool:
        """True where the field is there and is not null."""
        return self.value(key) is not None

    def integer(
        self, key: str, default: int | None = None, *, low: int = 1, high: int = _MAX_INTEGER
    ) -> int:
        """A whole number in [low, high]; ``default`` where absent, an error without one."""
        value = self.value(key)
        if value is None:
            if default is None:
                raise InputError(
                    f"{self.where}: field '{self._name(key)}' is missing; "
                    f"it must be a whole number from {low} to {high}"
                )
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(key, value, f"a whole number from {low} to {high}")
        return value

    def optional_integer(self, key: str, *, low: int = 1, high: int = _MAX_INTEGER) -> int | None:
        """A whole number in [low, high], or None where absent."""
        return self.integer(key, low=low, high=high) if self.has(key) else None

    def integer_or_null(self, key: str, default: int | None) -> int | None:
        """As ``optional_integer``, but only an absent field means ``default``: a null means none."""
        return self.optional_integer(key) if key in self.config else default

    def number_or_null(self, key: str, default: float | None) -> float | None:
        """As ``optional_number``, but only an absent field means ``default``: a null means none."""
        return self.optional_number(key) if key in self.config else default

    def flag(self, key: str, default: bool) -> bool:
        """True or false; ``default`` where absent."""
        value = self.value(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def optional_number(self, key: str, *, low: float = 0.0, high: float = 1e9) -> float | None:
        """A number in (low, high], or None where absent."""
        value = self.value(key)
        if value is None:
            return None
        # Comparing is exact where a float of a whole number would overflow, and false of a NaN.
        valid = isinstance(value, int | float) and not isinstance(value, bool)
        if not valid or not low < value <= high:  # type: ignore[operator]
            raise self._wrong(key, value, f"a number above {low:g} and up to {high:g}")
        return float(value)  # type: ignore[arg-type]

    def text(self, key: str) -> str:
        """A string that must be there."""
        value = self.value(key)
        if value is None:
            raise InputError(
                f"{self.where}: field '{self._name(key)}' is missing; it must be a string"
            )
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def sequence(self, key: str) -> Sequence[object] | None:
        """A list of at most ``MAX_LAYERS`` entries, or None where absent."""
        value = self.value(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or len(value) > MAX_LAYERS:
            raise self._wrong(key, value, f"a list of at most {MAX_LAYERS} entries")
        return value

    def section(self, key: str) -> "Fields | None":
        """A nested object, or None where absent."""
        value = self.value(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "an object")
        return Fields(value, f"{self.where}: in '{key}'")

    def _name(self, key: str) -> str:
        """What the file calls the field, or would call it."""
        return self.names.get(key, key) if self.config.get(key) is None else key

    def _wrong(self, key: str, value: object, expected: str) -> InputError:
        shown = repr(value)
        shown = shown if len(shown) <= 40 else shown[:37] + "..."
        return InputError(
            f"{self.where}: field '{self._name(key)}' is {shown}; it must be {expected}"
        )
