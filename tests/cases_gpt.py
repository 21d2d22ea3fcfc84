"""GPT-2 and what followed it: learnt positions or ALiBi, parallel blocks, own field names."""

from family_cases import Case, tiny

GPT = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": 64}
MPT = {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 64}
FALCON = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
NO_CACHE = "the class of transformers keeps no cache"
EXPANDED = "transformers caches the keys and values of each query head, an engine those of KV heads"

CASES = (
    Case(family="openai-gpt", config=GPT, skip={"decode": NO_CACHE, "cache": NO_CACHE}),
    Case(family="gpt2", config=GPT),
    Case(family="gpt2", label="narrow", config={**GPT, "n_inner": 40}),
    Case(family="gpt_bigcode", config=GPT),
    Case(family="gpt_bigcode", label="multi-head", config={**GPT, "multi_query": False}),
    Case(family="gptj", config={**GPT, "rotary_dim": 4}),
    Case(family="codegen", config={**GPT, "rotary_dim": 4}),
    Case(
        family="gpt_neo",
        config={
            "hidden_size": 32,
            "num_heads": 4,
            "num_layers": 4,
            "attention_types": [[["global", "local"], 2]],
            "max_position_embeddings": 64,
            "vocab_size": 64,
        },
    ),
    tiny("gpt_neox"),
    tiny("gpt_neox", "serial", use_parallel_residual=False, attention_bias=False, rotary_pct=1.0),
    tiny("opt", ffn_dim=40),
    tiny("opt", "projected", ffn_dim=40, word_embed_proj_dim=16, do_layer_norm_before=False),
    tiny("opt", "bare", ffn_dim=40, enable_bias=False, layer_norm_elementwise_affine=False),
    Case(
        family="bloom",
        config={"hidden_size": 32, "n_head": 4, "n_layer": 2, "vocab_size": 64},
    ),
    Case(family="mpt", config=MPT),
    Case(family="mpt", label="clipped", config={**MPT, "attn_config": {"clip_qkv": 8.0}}),
    Case(family="falcon", label="7b", config=FALCON),
    Case(
        family="falcon",
        label="40b",
        config={**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
        skip={"cache": EXPANDED},
    ),
    Case(
        family="falcon",
        label="11b",
        config={
            **FALCON,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
            "ffn_hidden_size": 72,
            "bias": True,
        },
        skip={"cache": EXPANDED},
    ),
    Case(
        family="falcon",
        label="rw",
        config={
            **FALCON,
            "alibi": True,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
        },
    ),
    tiny("biogpt"),
    Case(
        family="xglm",
        config={
            "d_model": 32,
            "attention_heads": 4,
            "num_layers": 2,
            "ffn_dim": 48,
            "vocab_size": 64,
        },
    ),
)
