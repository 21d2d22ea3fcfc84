"""Decoders that route tokens to experts, with softmax or latent attention."""

from family_cases import Case, tiny

EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
ROUTED = {
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
}
LATENT = {
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "num_key_value_heads": 4,
    "head_dim": 4,
}
DEEPSEEK = {**LATENT, **ROUTED, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1}
INDEXER = {"index_n_heads": 3, "index_head_dim": 8, "index_topk": 4}
LLAMA4 = {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size_mlp": 40}
DBRX = {
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 2,
    "vocab_size": 64,
    "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 6, "moe_top_k": 2},
}

CASES = (
    tiny("mixtral", num_local_experts=6, num_experts_per_tok=2),
    tiny("olmoe", num_experts=6, num_experts_per_tok=3),
    tiny("qwen2_moe", **EXPERTS, shared_expert_intermediate_size=28, mlp_only_layers=[1]),
    tiny("qwen3_moe", **EXPERTS, decoder_sparse_step=2, use_sliding_window=False),
    tiny("gpt_oss", num_local_experts=6, num_experts_per_tok=2, sliding_window=4),
    tiny("granitemoe", num_local_experts=6, num_experts_per_tok=2, attention_bias=True),
    tiny("flex_olmo", num_experts=6, num_experts_per_tok=3),
    tiny("minimax_m2", num_local_experts=6, num_experts_per_tok=2, rotary_dim=4),
    tiny("phimoe", num_local_experts=6, num_experts_per_tok=2, lm_head_bias=True),
    tiny("phimoe", "biased", num_local_experts=6, num_experts_per_tok=2, attention_bias=True),
    Case(
        family="dbrx",
        config={**DBRX, "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8}},
    ),
    tiny("granitemoeshared", num_local_experts=6, num_experts_per_tok=2),
    tiny(
        "granitemoeshared",
        "shared",
        num_local_experts=6,
        num_experts_per_tok=2,
        shared_intermediate_size=12,
    ),
    tiny("llama4_text", **LLAMA4, attention_chunk_size=4, num_hidden_layers=5),
    tiny(
        "llama4_text",
        "interleaved",
        **LLAMA4,
        layer_types=["full_attention"] * 3,
        interleave_moe_layer_step=2,
        use_qk_norm=False,
    ),
    tiny(
        "llama4_text",
        "listed",
        **LLAMA4,
        moe_layers=[0],
        no_rope_layers=[0, 1, 1],
        attention_bias=True,
    ),
    tiny("glm4_moe", **ROUTED, use_qk_norm=True, attention_bias=True),
    tiny("glm4_moe", "later", **ROUTED, first_k_dense_replace=2),
    tiny("solar_open", **ROUTED),
    tiny("dots1", **ROUTED, first_k_dense_replace=1, sliding_window=4, max_window_layers=1),
    tiny("exaone_moe", **EXPERTS, num_shared_experts=2, sliding_window=4, num_hidden_layers=5),
    tiny("afmoe", **EXPERTS, num_shared_experts=2, sliding_window=4, num_hidden_layers=5),
    tiny("hy_v3", **EXPERTS, attention_bias=True, mlp_bias=True),
    tiny(
        "cohere2_moe",
        num_experts=6,
        num_experts_per_tok=2,
        num_shared_experts=2,
        sliding_window=4,
        num_hidden_layers=5,
    ),
    tiny(
        "cohere2_moe",
        "prefix",
        num_experts=6,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        prefix_dense_intermediate_size=40,
        rms_norm_eps=1e-5,
    ),
    tiny(
        "ernie4_5_moe", moe_num_experts=6, moe_k=2, moe_intermediate_size=20, moe_layer_end_index=1
    ),
    tiny(
        "ernie4_5_moe",
        "biased",
        moe_num_experts=6,
        moe_k=2,
        moe_num_shared_experts=0,
        moe_intermediate_size=20,
        moe_layer_interval=2,
        use_bias=True,
    ),
    tiny("hunyuan_v1_moe", num_experts=6, moe_topk=2),
    tiny("hunyuan_v1_moe", "by-layer", num_experts=6, moe_topk=[1, 2, 3]),
    tiny("deepseek_v2", **DEEPSEEK, topk_method="group_limited_greedy"),
    tiny(
        "deepseek_v2",
        "lite",
        **{**DEEPSEEK, "q_lora_rank": None},
        attention_bias=True,
        mlp_bias=True,
    ),
    tiny("deepseek_v3", **DEEPSEEK),
    tiny("deepseek_v3", "biased", **{**DEEPSEEK, "q_lora_rank": None}, attention_bias=True),
    tiny("glm4_moe_lite", **LATENT, **ROUTED),
    tiny("deepseek_v32", **DEEPSEEK, **INDEXER),
    tiny("glm_moe_dsa", **DEEPSEEK, **INDEXER),
    tiny(
        "glm_moe_dsa",
        "shared-indexers",
        **DEEPSEEK,
        **INDEXER,
        indexer_types=["full", "shared", "full"],
    ),
    tiny("youtu", **LATENT),
    tiny("minicpm3", **LATENT),
)
