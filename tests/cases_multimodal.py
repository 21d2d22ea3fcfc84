"""Models with vision and audio towers. Comparisons of ``Case`` are of text alone; what a tower does
with ``SHOWN`` is compared in ``test_towers_against_torch``.
"""

from collections.abc import Mapping

from family_cases import TINY, Case

from energymodel.workload import Bin

AUTO = "AutoModelForMultimodalLM"
TEXT = {key: value for key, value in TINY.items() if key != "pad_token_id"}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 28,
    "patch_size": 7,
}
CLIP = {**VISION, "model_type": "clip_vision_model"}
SIGLIP = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
PIXTRAL = {**VISION, "model_type": "pixtral", "head_dim": 8}

EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
LLAMA4 = {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size_mlp": 40}
NATIVE = {"depth": 3, "num_heads": 3, "patch_size": 7, "in_channels": 3}
QWEN3 = {
    **NATIVE,
    "hidden_size": 24,
    "intermediate_size": 40,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
}
QWEN35 = {
    **TEXT,
    "num_hidden_layers": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 6,
}
QWEN25 = {
    **NATIVE,
    "hidden_size": 24,
    "intermediate_size": 40,
    "out_hidden_size": 32,
    "window_size": 28,
    "fullatt_block_indexes": [1],
}
GLM = {
    **NATIVE,
    "hidden_size": 24,
    "out_hidden_size": 40,
    "intermediate_size": 44,
    "image_size": 28,
}
# Rotary parameters of positions in time, height and width.
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
EARS = {
    "num_mel_bins": 16,
    "encoder_layers": 3,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 48,
    "d_model": 24,
    "max_source_positions": 20,
    "output_dim": 32,
}


def sensing(family: str, text: str, label: str = "", **changes: object) -> Case:
    """The same with the rotary parameters of text, images and sound together."""
    more = changes.pop("section", {})
    assert isinstance(more, dict)
    section = {**TEXT, "model_type": text, "rope_parameters": ROPE, **more}
    return seeing(family, text, label, text_config=section, **changes)


def seeing(family: str, text: str, label: str = "", **changes: object) -> Case:
    """A case whose text decoder is of type ``text`` and has the sizes of ``TINY``."""
    section = {**TEXT, "model_type": text}
    config = {"text_config": section, "tie_word_embeddings": False, **changes}
    return Case(family=family, label=label, auto=AUTO, config=config)


CASES = (
    seeing("llava", "llama", vision_config=CLIP),
    seeing(
        "llava",
        "mistral",
        "siglip",
        vision_config=SIGLIP,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        multimodal_projector_bias=False,
    ),
    seeing(
        "llava",
        "llama",
        "pixtral",
        vision_config=PIXTRAL,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    ),
    seeing("llava_next", "mistral", vision_config=CLIP, image_grid_pinpoints=[[28, 56], [56, 56]]),
    seeing("llava_onevision", "qwen2", vision_config=SIGLIP, image_grid_pinpoints=[[28, 56]]),
    seeing("gemma3", "gemma3_text", vision_config=SIGLIP, mm_tokens_per_image=4),
    seeing("paligemma", "gemma", vision_config=SIGLIP, projection_dim=32),
    seeing("mistral3", "mistral", vision_config=PIXTRAL),
    seeing("internvl", "qwen2", vision_config={**VISION, "model_type": "internvl_vision"}),
    seeing(
        "internvl",
        "qwen3",
        "rms",
        vision_config={
            **VISION,
            "model_type": "internvl_vision",
            "norm_type": "rms_norm",
            "use_qk_norm": True,
            "attention_bias": True,
            "use_mean_pooling": False,
        },
    ),
    seeing("idefics3", "llama", vision_config={**VISION, "model_type": "idefics3_vision"}),
    seeing("smolvlm", "llama", vision_config={**VISION, "model_type": "smolvlm_vision"}),
    seeing("aya_vision", "cohere2", vision_config=SIGLIP),
    seeing("cohere2_vision", "cohere2", vision_config=SIGLIP, alignment_intermediate_size=20),
    sensing(
        "qwen2_vl",
        "qwen2_vl_text",
        vision_config={**NATIVE, "embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2},
    ),
    sensing("qwen2_5_vl", "qwen2_5_vl_text", vision_config=QWEN25),
    sensing("qwen3_vl", "qwen3_vl_text", vision_config=QWEN3),
    sensing("qwen3_vl_moe", "qwen3_vl_moe_text", section=EXPERTS, vision_config=QWEN3),
    seeing("qwen3_5", "qwen3_5_text", text_config=QWEN35, vision_config=QWEN3),
    seeing(
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        text_config={**QWEN35, **EXPERTS, "shared_expert_intermediate_size": 28},
        vision_config=QWEN3,
    ),
    sensing(
        "qwen2_5_omni_thinker",
        "qwen2_5_omni_text",
        vision_config=QWEN25,
        audio_config={**EARS, "n_window": 4},
    ),
    sensing(
        "qwen3_omni_moe_thinker",
        "qwen3_omni_moe_text",
        section=EXPERTS,
        vision_config=QWEN3,
        audio_config={**EARS, "n_window_infer": 200, "downsample_hidden_size": 6},
    ),
    sensing("glm4v", "glm4v_text", vision_config=GLM),
    seeing(
        "llama4",
        "llama4_text",
        text_config={**TEXT, **LLAMA4, "model_type": "llama4_text"},
        vision_config={
            **VISION,
            "model_type": "llama4_vision_model",
            "intermediate_size": 96,
            "projector_input_dim": 36,
            "projector_output_dim": 36,
            "vision_output_dim": 36,
        },
    ),
    seeing(
        "mllama",
        "mllama_text_model",
        text_config={
            **TEXT,
            "model_type": "mllama_text_model",
            "pad_token_id": 0,
            "num_hidden_layers": 4,
            "cross_attention_layers": [1, 3],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_global_layers": 2,
            "attention_heads": 3,
            "image_size": 28,
            "patch_size": 7,
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 72,
        },
    ),
    sensing(
        "glm4v_moe",
        "glm4v_moe_text",
        section={
            "n_routed_experts": 6,
            "n_shared_experts": 2,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 20,
            "rope_parameters": {**ROPE, "mrope_section": [1, 1, 0]},
        },
        vision_config=GLM,
    ),
    seeing("qwen2_audio", "qwen2", audio_config=EARS),
    seeing(
        "voxtral",
        "llama",
        audio_config={
            "num_mel_bins": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "intermediate_size": 48,
            "hidden_size": 24,
            "max_source_positions": 20,
        },
    ),
)

# Images that the processors leave as they are: whole patches, and neither too small nor too large.
SIZES = {
    "llava-pixtral": (28, 21),
    "mistral3": (28, 14),
    "qwen3_vl": (280, 252),
    "qwen3_vl_moe": (280, 252),
    "qwen3_5": (280, 252),
    "qwen3_5_moe": (280, 252),
    "glm4v_moe": (112, 84),
    "glm4v": (112, 84),
}
OTHER = (70, 56)


def _shown(case: Case) -> Bin:
    width, height = SIZES.get(case.name, OTHER)
    return Bin(
        input_tokens=5,
        output_tokens=1,
        count=1,
        images=1 if "vision_config" in case.config else 0,
        image_width=width,
        image_height=height,
        audio_s=2.58 if "audio_config" in case.config else 0.0,
    )


SHOWN: Mapping[str, Bin] = {case.name: _shown(case) for case in CASES}
"""What each of them is shown, and hears."""
