"""Write the tables of docs/architectures.md: what was checked, and which models are in the zoo.

    python tests/family_table.py

The first table says of each family which comparisons with transformers hold exactly; the tests of
``test_families_against_torch`` make them, case by case. A comparison that is left out has a reason.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from family_cases import Case, cases

import models_zoo
from energymodel.families import FAMILIES
from energymodel.find_model import find_any

DOCS = Path(__file__).resolve().parent.parent / "docs" / "architectures.md"
COMPARED = ("parameters", "prefill", "decode", "cache")


def families() -> str:
    """One row for each ``model_type``, and a footnote for each comparison that is left out."""
    notes: dict[str, int] = {}
    rows = []
    by_family = itertools.groupby(sorted(cases(), key=lambda c: c.family), key=lambda c: c.family)
    for family, group in by_family:
        of_family = list(group)
        cells = [_cell(of_family, what, notes) for what in COMPARED]
        labels = ", ".join(c.label for c in of_family if c.label)
        rows.append((f"`{family}`", labels, *cells))
    head = ("`model_type`", "settings beside the plain one", *COMPARED)
    listed = [f"{number}. {reason}" for reason, number in notes.items()]
    others = sorted(set(FAMILIES) - {case.family for case in cases()})
    also = f"Read by a reader of the above, without a case: {', '.join(f'`{o}`' for o in others)}."
    return "\n".join([*_table(head, rows), "", *listed, "", also])


def _cell(group: list[Case], what: str, notes: dict[str, int]) -> str:
    """ "exact", with the numbers of the footnotes of the cases in which it is not compared."""
    left_out = [case.skip[what] for case in group if what in case.skip]
    numbers = sorted({notes.setdefault(reason, len(notes) + 1) for reason in left_out})
    exact = ["exact"] if len(left_out) < len(group) else []
    return " ".join([*exact, *(f"({n})" for n in numbers)])


def zoo() -> str:
    """One row for each model, with how far its facts are confirmed."""
    rows = []
    for name in (*models_zoo.names(), *models_zoo.pipelines()):
        config = models_zoo.find(name) or {}
        spec, _ = find_any(name)
        kind = str(config.get("model_type") or config.get("_class_name"))
        rows.append((name, f"`{kind}`", f"{spec.param_count:,}", _confirmed(config)))
    return "\n".join(_table(("model", "type", "parameters", "facts"), rows))


def _confirmed(config: dict[str, object]) -> str:
    """``_confirmed`` of a file in one or two words."""
    said = str(config["_confirmed"])
    known = {
        "NOT CONFIRMED": "general knowledge",
        "INFERRED": "inferred",
        "PARTLY": "partly its own file",
        "defaults of the class": "defaults of its class",
    }
    return next((short for start, short in known.items() if said.startswith(start)), "read")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


TABLES = {"families": families, "zoo": zoo}


def filled(text: str) -> str:
    """The document with both tables made anew, each between its two markers."""
    for name, table in TABLES.items():
        block = re.compile(rf"(<!-- {name} -->).*?(<!-- end -->)", re.DOTALL)
        made = f"\n\n{table()}\n\n"
        text, found = block.subn(lambda m, made=made: m[1] + made + m[2], text)
        if found != 1:
            raise ValueError(f"docs/architectures.md must have one <!-- {name} --> and its end")
    return text


if __name__ == "__main__":
    DOCS.write_text(filled(DOCS.read_text(encoding="utf-8")), encoding="utf-8")
