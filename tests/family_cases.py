"""Tiny configurations of every family that is read, as transformers would be given them.

Each file ``cases_*.py`` beside this one holds the ``CASES`` of a group of families; to check a new
family, add a line there. ``test_families_against_torch`` builds each with transformers and compares
parameters, FLOP, weight and cache bytes; ``family_table`` writes what was checked to
docs/architectures.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

Json = Mapping[str, object]

# Some classes have no head_dim of their own and take hidden_size / heads, which is also 8.
TINY: Json = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One tiny model; hashed by identity.

    ``auto`` is the class of transformers that builds it. ``skip`` names comparisons that do not
    hold, each with the reason, which the table in the docs shows: "parameters", "prefill", "decode"
    or "cache".
    """

    family: str
    config: Json
    label: str = ""
    auto: str = "AutoModelForCausalLM"
    skip: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the test is called."""
        return f"{self.family}-{self.label}" if self.label else self.family

    @property
    def full(self) -> dict[str, object]:
        """The configuration with its ``model_type``."""
        return {"model_type": self.family, **self.config}


def tiny(
    family: str, label: str = "", auto: str = "AutoModelForCausalLM", **changes: object
) -> Case:
    """A case with the sizes of ``TINY`` and some of its own."""
    return Case(family=family, label=label, auto=auto, config={**TINY, **changes})


def cases() -> tuple[Case, ...]:
    """All of them."""
    import importlib
    from pathlib import Path

    files = sorted(Path(__file__).parent.glob("cases_*.py"))
    found = tuple(c for file in files for c in importlib.import_module(file.stem).CASES)
    names = [c.name for c in found]
    assert len(set(names)) == len(names), "two cases have one name"
    return found
