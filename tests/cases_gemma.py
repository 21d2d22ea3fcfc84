"""Gemma 3n and 4: inputs of each layer's own, shared caches, global layers with wider heads."""

from family_cases import Json, tiny

SMALL: Json = {"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 6}
TYPES = ["sliding_attention", "full_attention"] * 3

CASES = (
    tiny(
        "gemma3n_text",
        **SMALL,
        num_hidden_layers=6,
        layer_types=TYPES,
        num_kv_shared_layers=2,
        sliding_window=4,
        laurel_rank=5,
        altup_num_inputs=3,
    ),
    tiny(
        "gemma3n_text",
        "widths",
        **SMALL,
        intermediate_size=[40, 44, 48],
        activation_sparsity_pattern=[0.9, 0.0, 0.0],
        layer_types=["full_attention"] * 3,
        num_kv_shared_layers=1,
    ),
    tiny(
        "gemma4_text",
        **SMALL,
        num_hidden_layers=6,
        layer_types=TYPES,
        num_kv_shared_layers=2,
        sliding_window=4,
        global_head_dim=16,
        use_double_wide_mlp=True,
    ),
    tiny(
        "gemma4_text",
        "experts",
        hidden_size_per_layer_input=0,
        num_hidden_layers=6,
        sliding_window=4,
        global_head_dim=16,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        enable_moe_block=True,
        num_experts=6,
        top_k_experts=2,
        moe_intermediate_size=20,
    ),
)
