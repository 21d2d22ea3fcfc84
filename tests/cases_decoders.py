"""Decoders with softmax attention."""

from family_cases import tiny

EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20}

CASES = (
    tiny("llama", attention_bias=True, mlp_bias=True),
    tiny("llama", "tied", tie_word_embeddings=True),
    tiny("mistral", sliding_window=4),
    tiny("qwen2"),
    tiny("qwen3"),
    tiny("gemma"),
    tiny("gemma2", sliding_window=4),
    tiny("gemma3_text", sliding_window=4),
    tiny("phi", partial_rotary_factor=0.5),
    tiny("phi3", sliding_window=None),
    tiny("olmo", clip_qkv=None),
    tiny("olmo2"),
    tiny("mixtral", num_local_experts=6, num_experts_per_tok=2),
    tiny("olmoe", num_experts=6, num_experts_per_tok=3),
    tiny("qwen2_moe", **EXPERTS, shared_expert_intermediate_size=28, mlp_only_layers=[1]),
    tiny("qwen3_moe", **EXPERTS, decoder_sparse_step=2, use_sliding_window=False),
    tiny("gpt_oss", num_local_experts=6, num_experts_per_tok=2, sliding_window=4),
)
