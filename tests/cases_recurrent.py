"""Recurrent and hybrid models: state spaces, delta rules, short convolutions, RWKV."""

from family_cases import TINY, Case, tiny

MIXERS = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 10, "mamba_n_groups": 2}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 10,
}
EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 28,
}
KIMI = {
    "num_key_value_heads": 4,
    "linear_head_dim": 6,
    "linear_num_heads": 4,
    "num_experts": 6,
    "num_experts_per_token": 2,
    "moe_intermediate_size": 20,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
EVERY_KIND = ["linear_attention", "full_attention", "linear_attention"]
NEMOTRON = {
    "mamba_num_heads": 4,
    "mamba_head_dim": 12,
    "ssm_state_size": 10,
    "n_groups": 2,
    "num_hidden_layers": None,
}
NEMOTRON_EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "moe_shared_expert_intermediate_size": 28,
}
ZAMBA = {"num_hidden_layers": 6, "num_key_value_heads": 4}
HYBRID = ["linear_attention", "hybrid", "linear_attention", "hybrid", "hybrid", "linear_attention"]


def mamba(family: str, label: str = "", **changes: object) -> Case:
    """A model of state spaces alone."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "state_size": 6}
    return Case(family=family, label=label, config={**sizes, "pad_token_id": 0, **changes})


def headless(family: str, label: str = "", **changes: object) -> Case:
    """A model whose class derives the size of a head."""
    sizes = {name: value for name, value in TINY.items() if name != "head_dim"}
    return Case(family=family, label=label, config={**sizes, **changes})


CASES = (
    mamba("mamba"),
    mamba("mamba", "biased", use_bias=True, use_conv_bias=False, time_step_rank=5, expand=3),
    mamba("mamba", "untied", tie_word_embeddings=False, conv_kernel=3),
    mamba("falcon_mamba"),
    mamba("falcon_mamba", "sized", expand=16, intermediate_size=48, tie_word_embeddings=False),
    mamba("mamba2", num_heads=4, head_dim=16, n_groups=2),
    mamba(
        "mamba2",
        "biased",
        num_heads=8,
        head_dim=8,
        n_groups=1,
        use_bias=True,
        use_conv_bias=False,
        conv_kernel=3,
        tie_word_embeddings=True,
    ),
    mamba("rwkv"),
    mamba("rwkv", "sized", intermediate_size=40, tie_word_embeddings=True),
    tiny("recurrent_gemma", attention_window_size=4),
    tiny("recurrent_gemma", "biased", attention_bias=True, num_hidden_layers=4),
    tiny("bamba", **MIXERS, attn_layer_indices=[1]),
    tiny(
        "bamba",
        "biased",
        **MIXERS,
        attn_layer_indices=[0],
        attention_bias=True,
        mlp_bias=True,
        mamba_proj_bias=True,
        mamba_conv_bias=False,
    ),
    tiny(
        "granitemoehybrid",
        **MIXERS,
        layer_types=EVERY_KIND,
        shared_intermediate_size=28,
        num_local_experts=6,
        num_experts_per_tok=2,
    ),
    tiny(
        "granitemoehybrid",
        "dense",
        **MIXERS,
        layer_types=["mamba", "attention", "mamba"],
        num_local_experts=0,
        position_embedding_type="rope",
        attention_bias=True,
    ),
    tiny("falcon_h1", **MIXERS, mamba_d_ssm=64),
    tiny("falcon_h1", "expanded", **MIXERS, mamba_d_ssm=None, mamba_conv_bias=False),
    tiny(
        "falcon_h1",
        "other-biases",
        **{**MIXERS, "mamba_d_head": 6},
        mamba_d_ssm=24,
        mamba_rms_norm=True,
        projectors_bias=True,
        mamba_proj_bias=True,
        attention_bias=True,
    ),
    tiny("nemotron_h", **NEMOTRON, hybrid_override_pattern="M-M*-"),
    tiny("nemotron_h", "biased", **NEMOTRON, hybrid_override_pattern="M*-", use_bias=True),
    tiny(
        "nemotron_h",
        "experts",
        **NEMOTRON,
        **NEMOTRON_EXPERTS,
        layers_block_type=["mamba", "moe", "attention", "moe"],
    ),
    tiny(
        "nemotron_h",
        "latent-experts",
        **NEMOTRON,
        **NEMOTRON_EXPERTS,
        hybrid_override_pattern="ME*E",
        moe_latent_size=12,
    ),
    tiny(
        "jamba",
        num_experts=4,
        num_experts_per_tok=2,
        attn_layer_period=3,
        attn_layer_offset=1,
        mamba_d_state=6,
    ),
    tiny("jamba", "dense", num_experts=1, attn_layer_period=2, attn_layer_offset=0),
    headless("zamba", **ZAMBA, layers_block_type=HYBRID),
    headless("zamba", "period", **{**ZAMBA, "num_hidden_layers": 9}, mamba_proj_bias=True),
    headless("zamba2", **ZAMBA, n_mamba_heads=4, layers_block_type=HYBRID, adapter_rank=3),
    headless(
        "zamba2",
        "adapters",
        **ZAMBA,
        n_mamba_heads=4,
        mamba_ngroups=2,
        layers_block_type=HYBRID,
        adapter_rank=3,
        num_mem_blocks=2,
        use_mem_rope=True,
        use_shared_attention_adapter=True,
        add_bias_linear=True,
    ),
    tiny("qwen3_next", **DELTA, **EXPERTS, num_hidden_layers=4),
    tiny(
        "qwen3_next",
        "dense",
        **DELTA,
        **EXPERTS,
        layer_types=EVERY_KIND,
        mlp_only_layers=[1],
        attention_bias=True,
    ),
    tiny("qwen3_5_text", **DELTA, num_hidden_layers=4),
    tiny("qwen3_5_moe_text", **DELTA, **EXPERTS, full_attention_interval=2),
    headless("kimi_linear", **KIMI, num_hidden_layers=5),
    headless(
        "kimi_linear",
        "published",
        **{k: v for k, v in KIMI.items() if not k.startswith("linear")},
        linear_attn_config={
            "head_dim": 6,
            "num_heads": 4,
            "short_conv_kernel_size": 3,
            "full_attn_layers": [2],
            "kda_layers": [1, 3],
        },
        first_k_dense_replace=2,
        q_lora_rank=14,
    ),
    tiny("olmo_hybrid", **DELTA, num_hidden_layers=4),
    headless("olmo_hybrid", "few"),
    tiny("minimax", num_local_experts=6, num_experts_per_tok=2),
    tiny("lfm2", full_attn_idxs=[1], block_multiple_of=4),
    tiny(
        "lfm2",
        "unadjusted",
        layer_types=["conv", "full_attention", "conv"],
        block_auto_adjust_ff_dim=False,
        conv_bias=True,
        tie_embedding=False,
    ),
    tiny(
        "lfm2_moe",
        layer_types=["conv", "full_attention", "conv"],
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=20,
        num_dense_layers=1,
    ),
)
