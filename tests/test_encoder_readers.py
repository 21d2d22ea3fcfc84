"""Readers of encoders and encoder-decoders: what files say in other words, and what is refused."""

from collections.abc import Mapping

import pytest
from cases_encoders import BART, DEBERTA, SMALL, T5

from energymodel.errors import InputError
from energymodel.model import ModelSpec, model_from_config


def read(family: str, *configs: Mapping[str, object], **changes: object) -> ModelSpec:
    fields: dict[str, object] = {"model_type": family}
    for config in configs:
        fields |= config
    return model_from_config({**fields, **changes}, "m")[0]


def warnings(config: Mapping[str, object], **changes: object) -> list[str]:
    return model_from_config({**config, **changes}, "m")[1]


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("bert", {**SMALL, "is_decoder": True}, "'is_decoder' is true; it must be false"),
        ("deberta-v2", {**SMALL, "conv_kernel_size": 3}, "'conv_kernel_size' is 3; only DeBERTa"),
        ("nomic_bert", {**SMALL, "moe_every_n_layers": 2}, "'moe_every_n_layers' is 2; only Nomic"),
        ("albert", {**SMALL, "inner_group_num": 9999}, "'inner_group_num' is 9999"),
        ("roberta", {**SMALL, "max_position_embeddings": 2}, "'max_position_embeddings' is 2"),
        ("albert", {**SMALL, "num_hidden_groups": 4}, r"must not exceed 'num_hidden_layers' \(3\)"),
        (
            "marian",
            {**BART, "share_encoder_decoder_embeddings": False},
            "'share_encoder_decoder_embeddings' is false; it must be true",
        ),
        ("t5", {**T5, "feed_forward_proj": 3}, "'feed_forward_proj' is 3; it must be a string"),
        ("t5", {**T5, "num_heads": None}, "'num_heads' is missing"),
        ("t5", {**T5, "num_layers": 10**9}, "'num_layers' is 1000000000"),
        ("whisper", {**BART, "encoder_layers": 10**9}, "'encoder_layers' is 1000000000"),
        ("bart", {**BART, "decoder_attention_heads": 5}, "'head_dim' is missing"),
        ("distilbert", {"vocab_size": 64, "dim": 32, "n_heads": 0}, "'n_heads' is 0"),
        ("deberta-v2", {**SMALL, **DEBERTA, "pos_att_type": 3}, "'pos_att_type' is 3"),
    ],
)
def test_what_cannot_be_read_is_refused(
    family: str, config: Mapping[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(family, config)
    assert str(caught.value).startswith("m: ")


def test_names_of_another_code_are_understood() -> None:
    sizes = {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_inner": 48, "n_positions": 128}
    nomic = read("nomic_bert", sizes, vocab_size=64)
    assert nomic.param_count == read("nomic_bert", SMALL).param_count
    assert nomic.max_position_embeddings == 128


def test_terms_of_position_may_be_joined_by_bars() -> None:
    joined = read("deberta-v2", SMALL, DEBERTA, pos_att_type="p2c|c2p")
    assert joined == read("deberta-v2", SMALL, DEBERTA, pos_att_type=["p2c", "c2p"])


def test_an_xlm_r_that_rotates_has_no_table_of_positions() -> None:
    table = 128 * 32
    plain = read("xlm-roberta", SMALL, type_vocab_size=1)
    rotating = read("xlm-roberta", SMALL, type_vocab_size=1, position_embedding_type="rotary")
    assert plain.param_count - rotating.param_count == table


def test_rows_before_the_first_position_are_no_length() -> None:
    assert read("roberta", SMALL, max_position_embeddings=514).max_position_embeddings == 512
    assert read("bert", SMALL, max_position_embeddings=512).max_position_embeddings == 512


def test_a_gate_is_read_from_the_activation() -> None:
    assert read("t5", T5, feed_forward_proj="gated-silu") == read(
        "t5", T5, feed_forward_proj="gated-gelu"
    )
    assert read("t5", T5).param_count < read("t5", T5, feed_forward_proj="gated-gelu").param_count


def test_decoders_are_as_deep_as_encoders_unless_said() -> None:
    one = {k: v for k, v in T5.items() if k != "num_decoder_layers"}
    assert read("t5", one, num_layers=4).num_hidden_layers == 4


def test_what_is_left_out_is_said() -> None:
    bert = {"model_type": "bert", **SMALL}
    assert not warnings(bert)
    assert not warnings(bert, architectures=["BertModel"])
    (said,) = warnings(bert, architectures=["BertForMaskedLM"])
    assert said == "m: counted as an embedding model, without the head of BertForMaskedLM"
    jina = {**bert, "model_type": "xlm-roberta", "position_embedding_type": "rotary"}
    (said,) = warnings(jina, lora_adaptations=["retrieval.query"])
    assert said == "m: the adapters for its tasks are not counted"


def test_kinds() -> None:
    assert read("bert", SMALL).kind == "encoder"
    assert read("t5", T5).kind == "encoder-decoder"
    assert read("llama", SMALL).kind == "decoder"
    assert [read(*args).reads_whole for args in (("bert", SMALL), ("t5", T5))] == [True, True]
    assert read("deberta-v2", SMALL, DEBERTA).reads_whole
    assert not read("llama", SMALL).reads_whole
