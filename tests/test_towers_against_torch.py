"""Vision and audio towers against transformers: FLOP, features, and text that sees an image.

The cases are those of ``cases_multimodal``, how torch is asked in ``tower_counts``.
"""

import numpy as np
import pytest
from cases_multimodal import CASES, SHOWN
from family_cases import Case
from step_builders import prefill

from energymodel.deployment import Deployment
from energymodel.media import total
from energymodel.ops import lower
from energymodel.towers import Tower

# What comes out is without the features of padding, and with the ends of rows.
PACKED = ("llava_next", "llava_onevision")

counts = pytest.importorskip("torch_counts", reason="needs torch and transformers")
towers = pytest.importorskip("tower_counts", reason="needs torch and transformers")


def every_tower() -> list[tuple[Case, Tower]]:
    """Each tower of each case."""
    return [(case, tower) for case in CASES for tower in counts.spec(case.full).towers]


@pytest.mark.parametrize(
    ("case", "tower"), every_tower(), ids=lambda x: getattr(x, "name", getattr(x, "component", ""))
)
def test_tower_flop_and_features_are_those_of_torch(case: Case, tower: Tower) -> None:
    shown = SHOWN[case.name]
    flop, features = towers.torch_flop(case, shown, tower)
    assert towers.our_flop(towers.our_ops(case, shown, tower)) == flop
    layout = tower.layout(shown)
    expected = layout.tokens if case.family in PACKED else total(layout.rows["features"])
    assert features == expected


def test_every_case_has_a_tower() -> None:
    assert {case.name for case, _ in every_tower()} == set(SHOWN)


def test_layers_that_attend_to_an_image_run_where_there_is_one() -> None:
    (case,) = (c for c in CASES if c.family == "mllama")
    shown = SHOWN[case.name]
    tokens, spec = shown.input_tokens + 1, counts.spec(case.full)
    ops = lower(spec, Deployment(), prefill(tokens), np.array([tokens]), [shown])
    text = [op for op in ops if op.component != "vision"]
    linear = sum(op.count * op.flop.item() for op in text if op.kind == "gemm")
    (head,) = (op for op in text if op.name == "lm_head")
    cross = sum(op.count * op.flop.item() for op in text if op.name == "cross_attention_prefill")
    assert cross == 2 * 4 * 32 * tokens * 68  # layers, FLOP for each value of a head, pairs
    own = 2 * 4 * 32 * tokens**2  # torch counts pairs behind the mask
    flop = towers.torch_text_flop(case, shown)
    assert flop == counts.Flop(linear + (tokens - 1) * head.flop.item(), cross + own)
