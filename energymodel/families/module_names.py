"""Which modules of a checkpoint a quantisation names, by patterns that are data.

A pattern is a module or a part of its name ("lm_head", "mlp.gate", "model.layers.3.self_attn"), a
name with stars ("model.layers.*.self_attn"), or behind "re:" a regular expression. Of expressions
only a subset is read, on which a matcher cannot be made to stall: literals, ``.``, classes, groups
of alternatives without repeats, and few ``.*`` and repeated classes.
"""

import contextlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from energymodel.blocks import Block, Mlp, Moe, leaves
from energymodel.blocks.feed_forward import EXPERTS
from energymodel.errors import InputError
from energymodel.weights import Weight

Name = tuple[str, ...]
"""A module's name, split at its dots."""

# Before the number of a layer, in the names of text layers; anything else is a vision or audio tower.
_STEMS = frozenset(
    {"model", "language_model", "text_model", "decoder", "transformer", "backbone", "gpt_neox"}
    | {"thinker", "llm"}
)
_LAYERS = frozenset({"layers", "h", "blocks", "block"})
_EXPRESSION_STEMS = (
    "model.layers.",
    "model.language_model.layers.",
    "language_model.model.layers.",
)

# What families call the modules that hold the projections.
_MIXERS = (
    *("self_attn", "attn", "attention", "self_attention", "linear_attn"),
    *("mixer", "mamba", "conv", "time_mix"),
)
_FEED_FORWARDS = ("mlp", "feed_forward", "block_sparse_moe", "ffn", "mixer")
_SHARED = ("shared_expert", "shared_experts")

_CLASS = r"(?:\\d|\[[\w\-]{1,20}\])"
_ONE = r"(?:[\w\-./]|\\[.\-_/])"
_REPEAT = rf"(?:{_CLASS}|\.)[+*]"
_SAFE = re.compile(
    rf"\^?(?:\((?:\?:)?(?:{_CLASS}|{_ONE}|[|$])*\)|{_REPEAT}|{_CLASS}|{_ONE})*\$?", re.ASCII
)
_LONGEST = 200
# A match costs at most (characters of a name) ** (repeats before the last literal) steps.
_MOST_REPEATS = 2
# Expressions, each as often as its alternatives can be tried, times layers.
_MOST_MATCHES = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Patterns ready to be looked up: names of any layer, names within one layer, expressions.

    ``tries``: how often a name is matched with an expression, at worst.
    """

    anywhere: frozenset[Name] = frozenset()
    within: Mapping[int, frozenset[Name]]
    everywhere: frozenset[Name] = frozenset()
    expressions: tuple[re.Pattern[str], ...] = ()
    tries: int = 0

    def match(self, layer: int, name: Name) -> bool:
        """Whether a pattern names this module of a layer, or a module that holds it."""
        own = self.within.get(layer, frozenset())
        heads = [name[:i] for i in range(len(name) + 1)]
        pieces = (name[i:j] for i in range(len(name)) for j in range(i + 1, len(name) + 1))
        return (
            not (own.isdisjoint(heads) and self.everywhere.isdisjoint(heads))
            or not self.anywhere.isdisjoint(pieces)
            or self._expressed(f"{layer}.{'.'.join(name)}")
        )

    def _expressed(self, name: str) -> bool:
        return any(e.match(stem + name) for e in self.expressions for stem in _EXPRESSION_STEMS)


def read_names(patterns: Sequence[object] | None, where: str, layers: int) -> Names:
    """The patterns of a list in a configuration of a model with so many ``layers``.

    Raises:
        InputError: an entry is no string, an expression is beyond the subset that is read, or there
            are too many expressions for so many layers.
    """
    anywhere, everywhere = set(), set()
    within: dict[int, set[Name]] = {}
    expressions, tries = [], 0
    for pattern in patterns or ():
        if not isinstance(pattern, str) or len(pattern) > _LONGEST:
            raise InputError(
                f"{where} must list names of modules, each of at most {_LONGEST} characters"
            )
        # "layers.3.mlp*" and "layers.3.mlp.*" name that module and what it holds.
        literal = pattern.rstrip("*").removesuffix(".")
        number, rest = _in_layer(tuple(literal.split(".")))
        if pattern.startswith("re:") or "*" in ".".join(rest):
            expression = pattern[3:] if pattern.startswith("re:") else _starred(literal)
            tries += _tries(expression)
            check_tries(tries, where, layers)
            expressions.append(_expression(expression, where))
        elif number is None:
            anywhere.add(rest)
        elif number == "*":
            everywhere.add(rest)
        elif number.isdecimal():
            within.setdefault(int(number), set()).add(rest)
    return Names(
        anywhere=frozenset(anywhere),
        within={number: frozenset(names) for number, names in within.items()},
        everywhere=frozenset(everywhere),
        expressions=tuple(expressions),
        tries=tries,
    )


def check_tries(tries: int, where: str, layers: int) -> None:
    """Refuse expressions that take long to match with the names of so many layers."""
    if tries * layers > _MOST_MATCHES:
        raise InputError(
            f"{where} holds too many expressions or alternatives for {layers} layers; "
            f"at most {_MOST_MATCHES // layers} are read"
        )


def _in_layer(name: Name) -> tuple[str | None, Name]:
    """(number of the layer, name within it); None where no number is given, "" in a tower."""
    for i, part in enumerate(name[:-1]):
        if part in _LAYERS and (name[i + 1].isdecimal() or name[i + 1] == "*"):
            return (name[i + 1] if _STEMS.issuperset(name[:i]) else ""), name[i + 2 :]
    return None, name


def _starred(pattern: str) -> str:
    """A name with stars as an expression for it and for what it holds."""
    return ".*".join(re.escape(piece) for piece in pattern.split("*")) + r"(\.|$)"


def _expression(pattern: str, where: str) -> re.Pattern[str]:
    """A compiled expression, if it lies within the subset that is safe."""
    # A repeat at the very end takes what it can and never tries again.
    repeats = len(re.findall(_REPEAT, re.sub(rf"{_REPEAT}$", "", pattern)))
    if repeats <= _MOST_REPEATS and _SAFE.fullmatch(pattern):
        with contextlib.suppress(re.error):  # a class such as [z-a]
            return re.compile(pattern, re.ASCII)
    raise InputError(
        f"{where} holds the expression {pattern[:40]!r}; only names, '.', classes, groups of "
        f"alternatives and up to {_MOST_REPEATS} repeats before the last name are read"
    )


def _tries(expression: str) -> int:
    """How often the rest of an expression may be tried over, by the alternatives of its groups."""
    tries = 1
    for group in re.findall(r"\((?:\?:)?([^)]*)\)", expression):
        alternatives = group.split("|")
        tries *= 1 if _exclusive(alternatives) else len(alternatives)
    return tries


def _exclusive(alternatives: Sequence[str]) -> bool:
    """Whether no text begins with two of them, going by their letters before any '.' or class."""
    heads = sorted(re.split(r"(?<!\\)\.|\[|\\d", a)[0] for a in alternatives)
    return not any(b.startswith(a) for a, b in itertools.pairwise(heads))


def module_names(block: Block, weight: Weight) -> set[Name]:
    """What checkpoints may call the modules in a weight, within their layer."""
    kinds = {isinstance(leaf, Mlp | Moe) for leaf in leaves(block)}
    holders = (*(_FEED_FORWARDS if True in kinds else ()), *(_MIXERS if False in kinds else ()))
    inner: Sequence[Name] = ((),)
    if weight.name == EXPERTS:
        inner = (("experts", "0"),)
    elif weight.name.startswith("shared_"):
        inner = tuple((name,) for name in _SHARED)
    modules = {part.removeprefix("shared_") for part in (weight.name, *weight.parts)}
    return {(holder, *i, module) for holder in holders for i in inner for module in modules}
