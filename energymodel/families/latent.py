"""Decoders with latent attention: DeepSeek V2 and V3, Kimi K2, GLM 4.7 Flash and 5, MiniCPM 3."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from energymodel.blocks import Block, LatentAttention, Mlp, SparseLatentAttention
from energymodel.errors import InputError
from energymodel.families.parts import (
    Reader,
    depth,
    feed_forwards,
    model_spec,
    paired_layers,
    read_mlp,
    read_moe,
    with_next_tokens,
)
from energymodel.fields import Fields
from energymodel.model import ModelSpec


def read_latent(
    f: Fields,
    *,
    q_rank: int | None = 1536,
    kv_rank: int = 512,
    nope: int = 128,
    rope: int = 64,
    v_head_dim: int = 128,
) -> LatentAttention:
    """Heads and latents; the sizes are the defaults of the family.

    A null ``q_lora_rank`` means that queries are projected at once; only an absent one means the
    default.
    """
    return LatentAttention(
        num_attention_heads=f.integer("num_attention_heads", high=100_000),
        q_lora_rank=f.integer_or_null("q_lora_rank", q_rank),
        kv_lora_rank=f.integer("kv_lora_rank", kv_rank),
        qk_nope_head_dim=f.integer("qk_nope_head_dim", nope, high=100_000),
        qk_rope_head_dim=f.integer("qk_rope_head_dim", rope, high=100_000),
        v_head_dim=f.integer("v_head_dim", v_head_dim, high=100_000),
        bias=f.flag("attention_bias", default=False),
    )


def _routed(
    f: Fields,
    name: str,
    attentions: Sequence[Block],
    mlp: Mlp,
    *,
    dense: int,
    shared: int,
) -> ModelSpec:
    """``dense`` layers with ``mlp``, then experts, of which every token visits ``shared``."""
    f = f.named(num_experts="n_routed_experts")
    inner = f.integer("moe_intermediate_size")
    experts = read_moe(f, inner, inner * f.integer("n_shared_experts", shared, low=0, high=10_000))
    if mlp.bias and experts.shared_expert is not None:
        experts = replace(experts, shared_expert=replace(experts.shared_expert, bias=True))
    mlps = feed_forwards(f, dense, mlp, experts)
    layers = paired_layers(attentions, mlps)
    return with_next_tokens(f, model_spec(f, name, layers))


def _dense(f: Fields, name: str, attention: LatentAttention, mlp: Mlp) -> ModelSpec:
    layers = depth(f)
    pairs = paired_layers([attention] * layers, [mlp] * layers)
    return model_spec(f, name, pairs, tied=True)


def _deepseek_v2(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    dense = f.integer("first_k_dense_replace", 0, low=0)
    mlp = read_mlp(f, bias=f.flag("mlp_bias", default=False))
    return _routed(f, name, [read_latent(f)] * depth(f), mlp, dense=dense, shared=2), []


def _deepseek_v3(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    dense = f.integer("first_k_dense_replace", 3, low=0)
    return _routed(f, name, [read_latent(f)] * depth(f), read_mlp(f), dense=dense, shared=1), []


def _glm4_moe_lite(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    attention = read_latent(f, q_rank=768, nope=192, v_head_dim=256)
    return _routed(f, name, [attention] * depth(f), read_mlp(f), dense=1, shared=1), []


def _deepseek_v32(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    dense = f.integer("first_k_dense_replace", 3, low=0)
    indexed = _indexed(f, read_latent(f), heads=64)
    return _routed(f, name, [indexed] * depth(f), read_mlp(f), dense=dense, shared=1), []


def _glm_moe_dsa(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    dense = f.integer("first_k_dense_replace", 3, low=0)
    indexed = _indexed(f, read_latent(f, q_rank=2048, nope=192, v_head_dim=256), heads=32)
    attentions = [replace(indexed, indexes=own) for own in _indexing(f)]
    return _routed(f, name, attentions, read_mlp(f), dense=dense, shared=1), []


def _indexed(f: Fields, latent: LatentAttention, heads: int) -> SparseLatentAttention:
    """The latent attention behind an indexer, which reads the narrow layer of the queries."""
    if latent.q_lora_rank is None:
        raise InputError(f"{f.where}: field 'q_lora_rank' is null; the indexer needs a number")
    return SparseLatentAttention(
        latent=latent,
        index_n_heads=f.integer("index_n_heads", heads, high=100_000),
        index_head_dim=f.integer("index_head_dim", 128, high=100_000),
        index_topk=f.integer("index_topk", 2048),
    )


def _indexing(f: Fields) -> list[bool]:
    """Layers with an indexer of their own; the others see the keys of the last one before them.

    ``indexer_types`` says so for each layer, ``index_topk_pattern`` with a letter for each; else
    it is every ``index_topk_freq``-th after the first ``index_skip_topk_offset``.
    """
    layers, pattern = depth(f), f.value("index_topk_pattern")
    types = f.sequence("indexer_types")
    if types is None and isinstance(pattern, str):
        types = [{"F": "full", "S": "shared"}.get(letter) for letter in pattern[: layers + 1]]
    if types is None:
        every = f.integer("index_topk_freq", 1)
        offset = f.integer("index_skip_topk_offset", 2, low=0)
        return [max(i - offset + 1, 0) % every == 0 for i in range(layers)]
    if len(types) != layers or not all(kind in ("full", "shared") for kind in types):
        raise InputError(
            f"{f.where}: field 'indexer_types' must hold {layers} entries ('num_hidden_layers'), "
            "each 'full' or 'shared'"
        )
    return [kind == "full" for kind in types]


def _youtu(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    return _dense(f, name, read_latent(f), read_mlp(f)), []


def _minicpm3(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    even = max(f.integer("hidden_size") // f.integer("num_attention_heads"), 1)
    attention = read_latent(f, q_rank=768, kv_rank=256, nope=64, rope=32, v_head_dim=even)
    mlp = read_mlp(f, bias=f.flag("mlp_bias", default=False))
    return _dense(f, name, attention, mlp), []


FAMILIES: Mapping[str, Reader] = {
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
    "kimi_k2": _deepseek_v3,
    "deepseek_v32": _deepseek_v32,
    "glm_moe_dsa": _glm_moe_dsa,
    "glm4_moe_lite": _glm4_moe_lite,
    "youtu": _youtu,
    "minicpm3": _minicpm3,
}
