"""Encoders, and encoder-decoders with their cross attention."""

from collections.abc import Mapping

from family_cases import TINY, Case

NOTHING = {"decode": "an encoder generates nothing"}
# The defaults of their classes are what is checked, not the sizes of decoders.
SMALL = {k: v for k, v in TINY.items() if k not in ("num_key_value_heads", "head_dim")}


def encoder(family: str, label: str = "", **changes: object) -> Case:
    """A tiny encoder, without a head."""
    config = {**SMALL, **changes}
    return Case(family=family, label=label, auto="AutoModel", config=config, skip=NOTHING)


DISTIL = {
    "dim": 32,
    "n_heads": 4,
    "n_layers": 3,
    "hidden_dim": 48,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
DEBERTA = {
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 6,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "type_vocab_size": 0,
    "max_relative_positions": -1,
}

T5 = {
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "vocab_size": 64,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "forced_eos_token_id": 2,
    "decoder_start_token_id": 2,
}
WHISPER = {k: v for k, v in BART.items() if k != "max_position_embeddings"} | {
    "num_mel_bins": 10,
    "max_source_positions": 14,
    "max_target_positions": 20,
    "begin_suppress_tokens": None,
}


OWN_HEAD = {
    "parameters": "the class ties its head until it loads a checkpoint whose head differs, as that "
    "of T5 1.1 does; the head that the file announces is counted"
}


def translator(
    family: str,
    sizes: Mapping[str, object],
    label: str = "",
    skip: Mapping[str, str] | None = None,
    **changes: object,
) -> Case:
    """A tiny encoder-decoder with a head."""
    auto, config = "AutoModelForSeq2SeqLM", {**sizes, **changes}
    return Case(family=family, label=label, auto=auto, config=config, skip=skip or {})


CASES = (
    encoder("bert"),
    encoder("bert", "types", type_vocab_size=5),
    encoder("ernie", use_task_id=True),
    encoder("roberta"),
    encoder("camembert"),
    encoder("xlm-roberta", type_vocab_size=1),
    encoder("megatron-bert"),
    encoder("roberta-prelayernorm"),
    encoder("xlm-roberta-xl", type_vocab_size=1),
    Case(family="distilbert", config=DISTIL, auto="AutoModel", skip=NOTHING),
    Case(
        family="distilbert",
        label="computed-positions",
        config={**DISTIL, "sinusoidal_pos_embds": True},
        auto="AutoModel",
        skip=NOTHING,
    ),
    encoder("albert", embedding_size=12),
    encoder(
        "albert",
        "groups",
        embedding_size=12,
        num_hidden_layers=6,
        num_hidden_groups=3,
        inner_group_num=2,
    ),
    encoder("electra", embedding_size=12),
    encoder("electra", "wide", embedding_size=32),
    encoder("mpnet"),
    encoder("deberta-v2", **DEBERTA),
    encoder(
        "deberta-v2",
        "unshared",
        **{
            **DEBERTA,
            "share_att_key": False,
            "pos_att_type": ["c2p"],
            "position_buckets": -1,
            "max_relative_positions": 7,
            "norm_rel_ebd": "none",
            "type_vocab_size": 2,
            "position_biased_input": True,
            "embedding_size": 12,
        },
    ),
    encoder("deberta-v2", "absolute", type_vocab_size=0),
    encoder("jina_embeddings_v3", head_dim=8),
    encoder("nomic_bert"),
    encoder("gte"),
    encoder("eurobert", num_key_value_heads=2, head_dim=8),
    encoder("modernbert", local_attention=4, num_hidden_layers=4),
    encoder(
        "modernbert",
        "biases",
        attention_bias=True,
        mlp_bias=True,
        norm_bias=True,
        local_attention=4,
    ),
    Case(
        family="gemma3_text",
        label="both-ways",
        config={**TINY, "use_bidirectional_attention": True, "sliding_window": 4},
        auto="AutoModel",
        skip=NOTHING | {"cache": "the class fills a cache that an encoder never reads"},
    ),
    translator("t5", T5, feed_forward_proj="relu"),
    translator("t5", T5, "gated", feed_forward_proj="gated-gelu"),
    translator(
        "t5", T5, "flan", OWN_HEAD, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    ),
    translator("mt5", T5),
    translator("umt5", T5, feed_forward_proj="gated-gelu"),
    translator("bart", BART),
    translator("plbart", BART),
    translator("mbart", BART),
    translator("pegasus", BART),
    translator("m2m_100", BART),
    translator("marian", BART, decoder_vocab_size=64),
    translator("blenderbot", BART),
    translator("blenderbot-small", BART),
    Case(family="whisper", config=WHISPER, auto="AutoModelForSpeechSeq2Seq"),
    Case(
        family="whisper",
        label="many-languages",
        config={**WHISPER, "vocab_size": 51_865},
        auto="AutoModelForSpeechSeq2Seq",
    ),
)
