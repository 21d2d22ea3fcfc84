"""Families that transformers does not have, against a class of it that has the same tensors."""

import pytest
from family_cases import TINY, Json

from energymodel.model import model_from_config

counts = pytest.importorskip("torch_counts", reason="needs torch and transformers")

CHATGLM = {
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_layers": 3,
    "num_attention_heads": 4,
    "kv_channels": 8,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "padded_vocab_size": 64,
    "seq_length": 128,
    "add_qkv_bias": True,
}
EXPERTS = {
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "first_k_dense_replace": 1,
}
EXAONE = {key: value for key, value in TINY.items() if key != "num_hidden_layers"}


@pytest.mark.parametrize(
    ("ours", "alike"),
    [
        ({**EXAONE, "num_layers": 3, "model_type": "exaone"}, {**TINY, "model_type": "llama"}),
        (
            {**TINY, "model_type": "minicpm"},
            {**TINY, "model_type": "llama", "tie_word_embeddings": True},
        ),
        ({**TINY, "model_type": "mimo"}, {**TINY, "model_type": "qwen2"}),
        (
            {**TINY, "model_type": "baichuan"},
            {**TINY, "model_type": "llama", "num_key_value_heads": 4},
        ),
        ({**CHATGLM, "model_type": "chatglm"}, {**TINY, "model_type": "glm"}),
        (
            {**TINY, **EXPERTS, "model_type": "deepseek"},
            {**TINY, **EXPERTS, "model_type": "glm4_moe"},
        ),
    ],
    ids=lambda config: config["model_type"],
)
def test_tensors_are_those_of_a_class_like_it(ours: Json, alike: Json) -> None:
    spec, warnings = model_from_config(ours, "test")
    twin = counts.spec(alike)
    assert not warnings
    assert spec.param_count == counts.param_count(alike)
    assert spec.kv_bytes_per_token() == twin.kv_bytes_per_token()
    assert spec.max_position_embeddings == twin.max_position_embeddings == 128


def test_positions_of_baichuan_depend_on_its_width() -> None:
    small, large = (
        counts.spec({**TINY, "model_type": "baichuan", "hidden_size": size, "head_dim": None})
        for size in (4096, 5120)
    )
    found = [
        (m.layers[0].blocks[0].rotary_dim, m.layers[0].blocks[0].alibi) for m in (small, large)
    ]
    assert found == [(1024, False), (0, True)]
