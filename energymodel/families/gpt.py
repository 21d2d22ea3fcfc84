"""GPT-2 and what followed it: learnt positions or ALiBi, biases, parallel blocks, own field names."""

from collections.abc import Mapping
from dataclasses import replace

from energymodel.blocks import Mlp, SoftmaxAttention
from energymodel.blocks.ends import End, EndNorm, Lookup, Projection
from energymodel.errors import InputError
from energymodel.families.parts import (
    Reader,
    Windows,
    dense_model,
    depth,
    read_attention,
    read_mlp,
)
from energymodel.fields import MAX_LAYERS, Fields
from energymodel.model import Layout, ModelSpec, Norm


def _gpt2(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = _gpt_names(f)
    attention = _plain_heads(f, bias=True)
    spec = dense_model(f, name, attention, _four_times(f, "n_inner"), norm="layer", tied=True)
    return _beginning(spec, _positions(f.integer("max_position_embeddings", 1024))), []


def _gpt_bigcode(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = _gpt_names(f)
    attention = _plain_heads(f, bias=True)
    if f.flag("multi_query", default=True):
        attention = replace(attention, num_key_value_heads=1)
    spec = dense_model(f, name, attention, _four_times(f, "n_inner"), norm="layer", tied=True)
    return _beginning(spec, _positions(f.integer("max_position_embeddings", 1024))), []


def _openai_gpt(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = _gpt_names(f)
    mlp = Mlp(intermediate_size=4 * f.integer("hidden_size"), gated=False, bias=True)
    spec = dense_model(
        f, name, _plain_heads(f, bias=True), mlp, norm="layer", layout="post_sum", tied=True
    )
    spec = replace(spec, text=replace(spec.text, final_norm=None))
    return _beginning(spec, _positions(f.integer("max_position_embeddings", 512))), []


def _gptj(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = _gpt_names(f)
    attention = _plain_heads(f, bias=False)
    rotary = f.integer("rotary_dim", 64, high=attention.head_dim)
    spec = dense_model(
        f,
        name,
        replace(attention, rotary_dim=rotary),
        _four_times(f, "n_inner"),
        norm="layer",
        layout="parallel",
    )
    return replace(spec, lm_head_bias=True), []


def _gpt_neo(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = f.named(num_attention_heads="num_heads", num_hidden_layers="num_layers")
    attention = replace(_plain_heads(f, bias=False), o_bias=True)
    mlp = _four_times(f, "intermediate_size")
    windows = _alternating(f, f.integer("window_size", 256))
    spec = dense_model(f, name, attention, mlp, windows, norm="layer", tied=True)
    return _beginning(spec, _positions(f.integer("max_position_embeddings", 2048))), []


def _alternating(f: Fields, window: int) -> Windows:
    """Windows of ``attention_types``: patterns of "global" and "local", and how often each repeats."""
    layers, windows = depth(f), list[int | None]()
    for item in f.sequence("attention_types") or ([["global", "local"], 12],):
        windows += [window if kind == "local" else None for kind in _repeated(f, item)]
        if len(windows) > layers:
            break
    if len(windows) != layers:
        found = f"{len(windows)} layers" + (" or more" if len(windows) > layers else "")
        raise InputError(
            f"{f.where}: field 'attention_types' gives {found}; "
            f"it must give {layers} ('num_layers')"
        )
    return windows


def _repeated(f: Fields, item: object) -> list[object]:
    if isinstance(item, list | tuple) and len(item) == 2:
        pattern, times = item
        if isinstance(pattern, list | tuple) and isinstance(times, int):
            known = all(kind in ("global", "local") for kind in pattern)
            if known and 0 <= times * len(pattern) <= MAX_LAYERS:
                return list(pattern) * times
    raise InputError(
        f"{f.where}: field 'attention_types' must be a list of pairs, each a pattern of "
        "'global' and 'local' and how often it repeats"
    )


def _gpt_neox(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = f.named(partial_rotary_factor="rotary_pct")
    bias = f.flag("attention_bias", default=True)
    attention = read_attention(f, qkv_bias=bias, o_bias=bias, rotary_factor=0.25, grouped=False)
    parallel = f.flag("use_parallel_residual", default=True)
    mlp = read_mlp(f, gated=False, bias=True)
    layout: Layout = "parallel_two" if parallel else "pre"
    return dense_model(f, name, attention, mlp, norm="layer", layout=layout), []


def _opt(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    hidden_size, bias = f.integer("hidden_size"), f.flag("enable_bias", default=True)
    before = f.flag("do_layer_norm_before", default=True)
    learnt = f.flag("layer_norm_elementwise_affine", default=True)
    norm: Norm = "layer" if learnt else "plain"
    spec = dense_model(
        f,
        name,
        _plain_heads(f, bias=bias),
        Mlp(intermediate_size=f.integer("ffn_dim"), gated=False, bias=bias),
        norm=norm,
        layout="pre" if before else "post_sum",
        tied=True,
    )
    ended = before and not f.flag("_remove_final_layer_norm", default=False)
    spec = replace(spec, text=replace(spec.text, final_norm=norm if ended else None))
    # The first two rows of the table are for padding.
    positions = _positions(f.integer("max_position_embeddings", 2048) + 2)
    width = f.integer("word_embed_proj_dim", hidden_size)
    if width == hidden_size:
        return _beginning(spec, positions), []
    into = Projection(name="project_in", component="embedding", n=hidden_size, k=width)
    out = Projection(name="project_out", component="lm_head", n=width, k=hidden_size)
    spec = _beginning(replace(spec, embedding_size=width), into, positions)
    return replace(spec, text=replace(spec.text, after=(out,))), []


def _bloom(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = f.named(hidden_size="n_embed", num_attention_heads="n_head", num_hidden_layers="n_layer")
    mlp = Mlp(intermediate_size=4 * f.integer("hidden_size"), gated=False, bias=True)
    attention = replace(_plain_heads(f, bias=True), alibi=True)
    spec = dense_model(f, name, attention, mlp, norm="layer", tied=True)
    return _beginning(spec, EndNorm(name="embedding_norm", vectors=2)), []


def _mpt(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = f.named(
        hidden_size="d_model",
        num_attention_heads="n_heads",
        num_hidden_layers="n_layers",
        max_position_embeddings="max_seq_len",
    )
    details = f.section("attn_config") or Fields({}, f.where)
    attention = replace(
        _plain_heads(f, bias=False),
        clip_qkv=details.has("clip_qkv"),
        alibi=details.flag("alibi", default=True),
    )
    mlp = Mlp(intermediate_size=4 * f.integer("hidden_size"), gated=False)
    return dense_model(f, name, attention, mlp, norm="scale", tied=True), []


def _falcon(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = f.named(num_key_value_heads="num_kv_heads")
    bias, new = f.flag("bias", default=False), f.flag("new_decoder_architecture", default=False)
    alibi = f.flag("alibi", default=False)
    attention = read_attention(
        f, qkv_bias=bias, o_bias=bias, rotary_factor=0.0 if alibi else 1.0, grouped=new
    )
    attention = replace(attention, alibi=alibi)
    if not new and f.flag("multi_query", default=True):
        attention = replace(attention, num_key_value_heads=1)
    inner = f.integer("ffn_hidden_size", 4 * f.integer("hidden_size"))
    layout: Layout = "pre"
    if f.flag("parallel_attn", default=True):
        norms = f.integer("num_ln_in_parallel_attn", 2 if new else 1, high=2)
        layout = "parallel" if norms == 1 else "parallel_two"
    mlp = Mlp(intermediate_size=inner, gated=False, bias=bias)
    return dense_model(f, name, attention, mlp, norm="layer", layout=layout, tied=True), []


def _biogpt(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    mlp = read_mlp(f, gated=False, bias=True)
    spec = dense_model(f, name, _plain_heads(f, bias=True), mlp, norm="layer", tied=True)
    return _beginning(spec, _positions(f.integer("max_position_embeddings", 1024) + 2)), []


def _xglm(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    f = f.named(
        hidden_size="d_model", num_attention_heads="attention_heads", num_hidden_layers="num_layers"
    )
    mlp = Mlp(intermediate_size=f.integer("ffn_dim"), gated=False, bias=True)
    spec = dense_model(f, name, _plain_heads(f, bias=True), mlp, norm="layer", tied=True)
    return _beginning(spec, _positions(0)), []  # sine waves, which are no parameters


def _gpt_names(f: Fields) -> Fields:
    return f.named(
        hidden_size="n_embd",
        num_attention_heads="n_head",
        num_hidden_layers="n_layer",
        max_position_embeddings="n_positions",
    )


def _plain_heads(f: Fields, *, bias: bool) -> SoftmaxAttention:
    """As many KV heads as heads, and nothing rotated."""
    return read_attention(f, qkv_bias=bias, o_bias=bias, rotary_factor=0.0, grouped=False)


def _four_times(f: Fields, key: str) -> Mlp:
    """A block four times as wide as the hidden state, unless ``key`` gives another width."""
    inner = f.integer(key, 4 * f.integer("hidden_size"))
    return Mlp(intermediate_size=inner, gated=False, bias=True)


def _positions(rows: int) -> Lookup:
    return Lookup(name="position_embedding", rows=rows)


def _beginning(spec: ModelSpec, *ends: End) -> ModelSpec:
    """The model with ``ends`` between its embedding and its first layer."""
    return replace(spec, text=replace(spec.text, before=ends))


FAMILIES: Mapping[str, Reader] = {
    "openai-gpt": _openai_gpt,
    "gpt2": _gpt2,
    "gpt_bigcode": _gpt_bigcode,
    "gpt_neo": _gpt_neo,
    "gptj": _gptj,
    "codegen": _gptj,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "bloom": _bloom,
    "mpt": _mpt,
    "falcon": _falcon,
    "biogpt": _biogpt,
    "xglm": _xglm,
}
