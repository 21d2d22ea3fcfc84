"""Images and sound in prompts: which step they run in, what they cost, and who pays for it."""

from dataclasses import replace

import numpy as np
import pytest
from cases_multimodal import CASES, SHOWN
from hypothesis import given, settings
from hypothesis import strategies as st
from step_builders import steps_of

from energymodel.deployment import Deployment
from energymodel.engines.vllm import cache_room
from energymodel.errors import InputError
from energymodel.hardware import load as load_gpu
from energymodel.media import total
from energymodel.model import ModelSpec, model_from_config
from energymodel.ops import Op, lower
from energymodel.predict import predict
from energymodel.profile import load
from energymodel.reading import media_tokens, served_workload
from energymodel.towers import TOWERS, layers_run
from energymodel.workload import Bin, Workload

# One chunk of images of 16 tokens each, 5 tokens of text behind them.
TEXT = 5
SPECS = {case.name: model_from_config(case.full, "test")[0] for case in CASES}
LLAVA = SPECS["llava"]
names = st.sampled_from(sorted(SPECS))


def seeing(images: int, **changes: object) -> Bin:
    return replace(
        Bin(
            input_tokens=TEXT,
            output_tokens=1,
            count=1,
            images=images,
            image_width=70,
            image_height=56,
        ),
        **changes,
    )


def in_towers(ops: tuple[Op, ...]) -> list[Op]:
    return [op for op in ops if op.component in TOWERS]


def flop_by_step(ops: list[Op]) -> np.ndarray:
    return np.sum([op.count * op.flop for op in ops], axis=0)


def test_an_image_runs_in_the_step_of_its_first_token() -> None:
    # Three images of 16 tokens: 10 + 10 tokens hold the first and begin the second, then the rest.
    steps = steps_of(([(10, 0, 1, 0)], []), ([(10, 10, 1, 0)], []), ([(33, 20, 1, 1)], []))
    flop = flop_by_step(in_towers(lower(LLAVA, Deployment(), steps, bins=[seeing(3)])))
    once = flop[0]
    assert once > 0
    assert flop == pytest.approx([once, once, once])
    whole = lower(LLAVA, Deployment(), steps_of(([(53, 0, 1, 1)], [])), bins=[seeing(3)])
    assert flop_by_step(in_towers(whole)) == pytest.approx(3 * once)


def test_each_operation_of_a_tower_by_hand() -> None:
    # LLaVA with CLIP: 17 rows of 24 values in 2 of 3 layers, 16 features of 32 values; two requests.
    steps = steps_of(([(21, 0, 2, 1)], []))
    ops = in_towers(lower(LLAVA, Deployment(), steps, bins=[seeing(1)]))
    found = {op.name: (op.count, op.flop.item(), op.hbm_bytes.item()) for op in ops}
    rows, patches, wide = 34, 32, 2
    assert found["vision_patch_embedding"] == (
        1,
        2 * 147 * 24 * patches,
        wide * (147 * 24 + patches * (147 + 24)),
    )
    assert found["vision_qkv_proj"] == (
        2,
        2 * 72 * 24 * rows,
        wide * (72 * 24 + 72 + rows * (24 + 72)),
    )
    # Queries, keys, values and outputs of 17 rows attend to one another, twice.
    assert found["vision_attention_prefill"] == (2, 4 * 24 * 2 * 17**2, wide * 4 * 24 * rows)
    assert found["vision_projector_2"][1] == 2 * 32 * 32 * patches
    assert found["vision_merge"][2] == wide * 2 * 32 * patches


def test_images_come_before_sound() -> None:
    omni = SPECS["qwen2_5_omni_thinker"]
    shown = seeing(1, audio_s=2.0)
    seen, heard = (tower.tokens(shown) for tower in omni.towers)
    assert (seen, heard) == (20, 50)
    steps = steps_of(([(seen, 0, 1, 0)], []), ([(heard + TEXT, seen, 1, 1)], []))
    ops = lower(omni, Deployment(), steps, bins=[shown])
    vision = flop_by_step([op for op in ops if op.component == "vision"])
    audio = flop_by_step([op for op in ops if op.component == "audio"])
    assert (vision > 0).tolist() == [True, False]
    assert (audio > 0).tolist() == [False, True]


def test_layers_of_a_tower_are_launched_where_it_runs() -> None:
    steps = steps_of(([(21, 0, 1, 1)], []), ([(5, 0, 1, 1)], [(9, 1)]))
    shown = [seeing(1), seeing(0)]
    mixed = replace(steps, chunks=replace(steps.chunks, bin=np.array([0, 1])))
    assert layers_run(LLAVA.towers, mixed, shown).tolist() == [2.0, 0.0]
    assert layers_run(LLAVA.towers, mixed, ()).tolist() == [0.0, 0.0]


@settings(deadline=None, max_examples=30)
@given(names, st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 3))
def test_towers_cost_the_same_however_a_prompt_is_split(
    name: str, pieces: list[int], images: int
) -> None:
    spec, shown = SPECS[name], replace(SHOWN[name], input_tokens=1)
    shown = replace(shown, images=images if shown.images else 0)
    tokens = 1 + sum(tower.tokens(shown) for tower in spec.towers)
    ends = [min(end, tokens) for end in [*np.cumsum(pieces).tolist(), tokens]]
    starts = [0, *ends[:-1]]
    rows = [
        ([(end - start, start, 1, int(end == tokens))], [])
        for start, end in zip(starts, ends, strict=True)
        if end > start
    ]
    chunked = in_towers(lower(spec, Deployment(), steps_of(*rows), bins=[shown]))
    whole = in_towers(lower(spec, Deployment(), steps_of(([(tokens, 0, 1, 1)], [])), bins=[shown]))
    assert float(flop_by_step(chunked).sum()) == pytest.approx(float(flop_by_step(whole).sum()))
    for op in chunked:
        assert op.asked is not None
        assert op.asked[0].sum() > 0


@settings(deadline=None, max_examples=20)
@given(names)
def test_text_alone_is_the_text_decoder(name: str) -> None:
    spec = SPECS[name]
    plain = replace(spec, towers=())
    text = Bin(input_tokens=20, output_tokens=3, count=4)
    steps = steps_of(([(20, 0, 4, 1)], []), ([], [(20, 4)]))
    ours, theirs = (lower(m, Deployment(), steps, bins=[text]) for m in (spec, plain))
    assert [(op.name, op.count, *op.flop, *op.hbm_bytes) for op in ours] == [
        (op.name, op.count, *op.flop, *op.hbm_bytes) for op in theirs
    ]
    assert spec.active_param_count == plain.active_param_count
    assert spec.kv_bytes_per_token() == plain.kv_bytes_per_token()
    assert spec.param_count > plain.param_count


# --- predictions ----------------------------------------------------------------------------------

QWEN = model_from_config(
    {
        "model_type": "qwen2_5_vl",
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
        "vision_config": {
            "hidden_size": 1280,
            "out_hidden_size": 2048,
            "spatial_patch_size": 14,
        },
    },
    "Qwen2.5-VL-3B",
)[0]
H200 = load("h200")


def asked(*bins: Bin) -> Workload:
    return Workload(bins=bins)


def test_published_sizes() -> None:
    assert QWEN.param_count == 3_754_622_976  # Qwen/Qwen2.5-VL-3B-Instruct on Hugging Face


def test_the_prompt_grows_by_the_image() -> None:
    shown = seeing(2, image_width=1024, image_height=768)
    (served,) = served_workload(QWEN, asked(shown)).bins
    assert served.input_tokens == TEXT + 2 * 37 * 27
    assert media_tokens(QWEN, 0, shown) == 2 * 37 * 27


def test_a_prediction_conserves_what_it_splits() -> None:
    big = seeing(2, image_width=1024, image_height=768, count=8, output_tokens=20)
    small = replace(big, images=1, image_width=224, image_height=224)
    none = replace(big, images=0, image_width=None, image_height=None)
    found = predict(QWEN, Deployment(), asked(big, small, none), H200)
    assert sum(b.energy_j for b in found.bins) == pytest.approx(found.energy_j)
    assert sum(c.energy_j for c in found.components.values()) == pytest.approx(found.energy_j)
    assert sum(p.energy_j for p in found.phases.values()) == pytest.approx(found.energy_j)
    assert found.components["vision"].energy_j > 0
    assert [b.media_tokens for b in found.bins] == [2 * 37 * 27, 64, 0]
    assert [b.input_tokens for b in found.bins] == [TEXT] * 3
    assert found.input_tokens == 24 * TEXT
    first, second, third = (b.prefill_j for b in found.bins)
    assert first > 10 * second > 10 * third
    assert any("preparing images" in w for w in found.warnings)


def test_the_tower_is_paid_by_those_who_show_images() -> None:
    shown = seeing(1, image_width=1024, image_height=768, count=4)
    # As many tokens in the prompt, all of them text.
    text = Bin(input_tokens=TEXT + 37 * 27, output_tokens=1, count=4)
    found = predict(QWEN, Deployment(), asked(shown, text), H200)
    vision_j = found.components["vision"].energy_j
    first, second = (b.energy_j for b in found.bins)
    # What the host waits and leaves outside goes by requests.
    assert first - second == pytest.approx(vision_j, rel=0.02)


def test_more_and_larger_images_cost_more() -> None:
    def energy_j(images: int, side: int) -> float:
        shown = seeing(images, image_width=side, image_height=side, count=2)
        return predict(QWEN, Deployment(), asked(shown), H200).energy_j

    assert energy_j(1, 500) < energy_j(2, 500) < energy_j(2, 1000)


def test_towers_take_memory() -> None:
    gpu = load_gpu("h200")
    with_tower = cache_room(QWEN, Deployment(), gpu).tokens_within_windows
    without = cache_room(replace(QWEN, towers=()), Deployment(), gpu).tokens_within_windows
    tower_bytes = 2 * (QWEN.param_count - replace(QWEN, towers=()).param_count)
    assert (without - with_tower) * QWEN.kv_bytes_per_token() > tower_bytes


def refusal(model: ModelSpec, b: Bin) -> str:
    with pytest.raises(InputError) as error:
        served_workload(model, asked(b))
    return str(error.value)


def test_what_a_model_cannot_see_or_hear_is_refused() -> None:
    blind = replace(QWEN, towers=())
    assert refusal(blind, seeing(2)) == (
        "bins[0]: images is 2, but 'Qwen2.5-VL-3B' looks at none; it must be 0."
    )
    assert "hears nothing" in refusal(QWEN, Bin(input_tokens=1, output_tokens=1, audio_s=1.5))
    assert "images: say how many" in refusal(QWEN, seeing(0))
    assert refusal(QWEN, seeing(1, image_width=5000, image_height=5)).startswith(
        "bins[0]: an image of 5,000 x 5 pixels is refused"
    )


def test_every_tower_runs_on_rows_that_its_layout_has() -> None:
    for name, spec in SPECS.items():
        for tower in spec.towers:
            layout = tower.layout(SHOWN[name])
            assert {part.rows for part in tower.parts} <= set(layout.rows)
            assert all(total(layout.rows[part.rows]) > 0 for part in tower.parts)
