"""Configurations with towers: what is read of them, what is said, and what is refused."""

import copy
from collections.abc import Mapping

import pytest
from cases_multimodal import CASES

from energymodel.errors import InputError
from energymodel.families import FAMILIES, hearing, image_text, llama_vision, native_vision
from energymodel.families.text_sections import TEXT
from energymodel.images import AnyResolution, NativeGrid, RowGrid
from energymodel.model import ModelSpec, model_from_config

CONFIGS = {case.name: case.full for case in CASES}


def read(name: str, **changes: object) -> tuple[ModelSpec, list[str]]:
    return model_from_config({**CONFIGS[name], **changes}, "m")


def nested(name: str, section: str, **changes: object) -> dict[str, object]:
    config = copy.deepcopy(dict(CONFIGS[name]))
    inner = config[section]
    assert isinstance(inner, dict)
    inner.update(changes)
    return config


def refusal(config: Mapping[str, object]) -> str:
    with pytest.raises(InputError) as error:
        model_from_config(config, "m")
    message = str(error.value)
    assert message.startswith("m: ")
    assert "\n" not in message
    return message


def test_every_reader_has_a_case() -> None:
    files = (image_text, native_vision, llama_vision, hearing)
    readers = {name for file in files for name in file.FAMILIES}
    # Those of whole files wrap those of their thinkers.
    wrapped = {"qwen2_5_omni", "qwen3_omni_moe"}
    assert readers - wrapped == {case.family for case in CASES}


def test_every_text_type_has_a_reader() -> None:
    assert {family for family, _ in TEXT.values()} <= set(FAMILIES)


def test_what_sections_leave_out_is_as_their_classes_have_it() -> None:
    clip = {"model_type": "clip_vision_model", "num_hidden_layers": 24}
    config = {"model_type": "llava", "text_config": {}, "vision_config": clip}
    spec, warnings = model_from_config(config, "m")
    assert not warnings
    assert (spec.num_hidden_layers, spec.hidden_size) == (32, 4096)
    assert spec.towers[0].num_hidden_layers == 23  # the last one is not used


def test_qwen2_vl_holds_its_decoder_beside_the_tower() -> None:
    config = dict(CONFIGS["qwen2_vl"])
    text = config.pop("text_config")
    assert isinstance(text, dict)
    flat = {**text, **config, "tie_word_embeddings": True}
    spec, _ = model_from_config(flat, "m")
    assert spec.tie_word_embeddings
    head = spec.embedding_param_count
    assert spec.param_count + head == read("qwen2_vl")[0].param_count


def test_only_the_thinker_of_an_omni_model_is_counted() -> None:
    for whole, thinker in (
        ("qwen2_5_omni", "qwen2_5_omni_thinker"),
        ("qwen3_omni_moe", "qwen3_omni_moe_thinker"),
    ):
        config = {"model_type": whole, "thinker_config": CONFIGS[thinker], "talker_config": {}}
        spec, warnings = model_from_config(config, "m")
        assert spec.param_count == read(thinker)[0].param_count
        assert [w for w in warnings if "only the thinker" in w]
        assert spec.model_type == whole


def test_a_missing_tower_is_said() -> None:
    deaf = {k: v for k, v in CONFIGS["qwen3_omni_moe_thinker"].items() if k != "audio_config"}
    spec, warnings = model_from_config({**deaf, "model_type": "qwen3_omni_moe"}, "m")
    assert [tower.component for tower in spec.towers] == ["vision"]
    assert [w for w in warnings if "'audio_config' is missing" in w]
    for name in ("llava", "gemma3", "qwen2_vl", "llama4", "mllama"):
        blind = {k: v for k, v in CONFIGS[name].items() if k != "vision_config"}
        spec, warnings = model_from_config(blind, "m")
        assert not spec.towers
        assert warnings == [
            "m: field 'vision_config' is missing: what it would tell of is not counted"
        ]


def test_sizes_of_images_are_read() -> None:
    (tower,) = read("llava_onevision", vision_aspect_ratio="anyres_max_4")[0].towers
    assert isinstance(tower.images, AnyResolution)
    assert (tower.images.max_tiles, tower.images.resolutions) == (4, ((28, 56),))
    (tower,) = read("llava-pixtral")[0].towers
    assert tower.images == RowGrid(patch=7, merge=1, longest=28)
    (tower,) = read("qwen2_5_vl")[0].towers
    assert tower.images == NativeGrid(
        patch=7, merge=2, min_pixels=3136, max_pixels=12_845_056, window=28
    )


def test_a_head_for_pooling_is_stored_and_not_run() -> None:
    (plain,) = read("gemma3")[0].towers
    headed = nested("gemma3", "vision_config", vision_use_head=True)
    spec, _ = model_from_config(headed, "m")
    (tower,) = spec.towers
    assert tower.parts == plain.parts
    # Four projections and a block of 24 x 40, with biases, a probe and a normalisation.
    extra = 4 * (24 * 24 + 24) + 2 * 24 * 40 + 40 + 24 + 3 * 24
    assert spec.param_count - read("gemma3")[0].param_count == extra


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "llava"}, "'text_config' is missing"),
        ({"model_type": "mllama"}, "'text_config' is missing"),
        (nested("llava", "vision_config", model_type="resnet"), "'model_type' is 'resnet'"),
        (nested("llava", "text_config", model_type="llava"), "'model_type' is 'llava'"),
        (nested("llava", "vision_config", patch_size=[7, 14]), "'patch_size'"),
        (nested("llava", "vision_config", patch_size=0), "'patch_size'"),
        (nested("llava", "vision_config", image_size="big"), "'image_size'"),
        (nested("llava", "vision_config", num_attention_heads=7), "must divide"),
        (nested("llava", "vision_config", num_hidden_layers=10**9), "'num_hidden_layers'"),
        ({**CONFIGS["llava"], "vision_feature_layer": -9}, "'vision_feature_layer'"),
        ({**CONFIGS["llava"], "vision_feature_layer": []}, "'vision_feature_layer'"),
        ({**CONFIGS["llava"], "vision_feature_layer": "last"}, "'vision_feature_layer'"),
        ({**CONFIGS["llava"], "vision_config": 3}, "'vision_config'"),
        ({**CONFIGS["llava_next"], "image_grid_pinpoints": [[28, 29]]}, "multiples of 28"),
        ({**CONFIGS["llava_next"], "image_grid_pinpoints": [28]}, "multiples of 28"),
        ({**CONFIGS["llava_onevision"], "vision_aspect_ratio": "pad"}, "'vision_aspect_ratio'"),
        (nested("qwen2_5_vl", "vision_config", fullatt_block_indexes=["a"]), "layer numbers"),
        (nested("mllama", "text_config", cross_attention_layers=[True]), "layer numbers"),
        (nested("voxtral", "audio_config", intermediate_size=50), "'intermediate_size' is 50"),
        (nested("qwen3_omni_moe_thinker", "audio_config", n_window_infer=3), "'n_window_infer'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(
    config: Mapping[str, object], said: str
) -> None:
    assert said in refusal(config)


def test_patches_larger_than_the_image_are_refused() -> None:
    for name in ("llava", "gemma3", "mistral3", "internvl", "idefics3"):
        assert "'patch_size'" in refusal(nested(name, "vision_config", patch_size=29))
