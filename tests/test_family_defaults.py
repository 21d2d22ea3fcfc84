"""What a published configuration may leave out is filled in as the class of transformers does.

Each family is read from as few fields as its reader asks for, at the sizes of the class; parameters
must then be those of the class, which fills in the rest, and so must the windows of its layers.
"""

import re

import pytest

from energymodel.blocks import SoftmaxAttention
from energymodel.errors import InputError
from energymodel.families import (
    dense,
    dense_norms,
    experts,
    gemma,
    gemma_small,
    gpt,
    latent,
    shared_experts,
)
from energymodel.model import ModelSpec, model_from_config

counts = pytest.importorskip("torch_counts", reason="needs torch and transformers")

Json = dict[str, object]
GROUPS = (dense, dense_norms, gemma, gemma_small, gpt, experts, shared_experts, latent)
# Named as in a published file, though transformers builds it as another class or not by this class.
ELSEWHERE = ("gemma3", "kimi_k2")
FAMILIES = sorted({name for group in GROUPS for name in group.FAMILIES} - {*ELSEWHERE})
# Fields whose absence the class itself does not survive, or the reader refuses; files give them.
GIVEN: dict[str, Json] = {
    "dbrx": {
        "attn_config": {"kv_n_heads": 8, "rope_theta": 1e4},
        "ffn_config": {"moe_num_experts": 4, "moe_top_k": 1},
    },
    "gemma3n_text": {"intermediate_size": 64, "num_kv_shared_layers": 2},
    "glm4_moe": {"head_dim": 128},
    "gpt_neo": {"attention_types": [[["global", "local"], 4]]},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "moe_topk": 2, "num_experts": 8},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
}
NAMES = {"n_embed": "hidden_size", "num_experts": "num_local_experts"}
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# Enough to see every pattern of layers once.
DEPTH = 8


def smallest(family: str) -> Json:
    """The fields that the reader asks for, with the values of the class and few layers."""
    defaults = counts.hf_config({"model_type": family}).to_dict()
    config: Json = {"model_type": family, **GIVEN.get(family, {})}
    while True:
        try:
            model_from_config(config, "test")
        except InputError as error:
            missing = re.search(r"'(\w+)' is missing", str(error))
            if missing is None or missing[1] in config:
                raise
            name = missing[1]
            config[name] = DEPTH if name in LAYERS else own(defaults, name)
        else:
            return config


def own(defaults: Json, name: str) -> object:
    """The class's value of a field; some have none, and every published file gives them."""
    needed: Json = {"num_experts_per_tok": 2, "n_routed_experts": 8, "n_shared_experts": 1}
    value = defaults.get(name, defaults.get(NAMES.get(name, name)))
    return needed[name] if value is None else value


def windows(spec: ModelSpec) -> list[int | None]:
    """Window of each layer, or the piece of the context that it stays in."""
    found = (layer.find(SoftmaxAttention) for layer in spec.layers)
    return [a.sliding_window or a.chunk_size if a else None for a in found]


@pytest.mark.parametrize("family", FAMILIES)
def test_absent_fields_mean_what_they_mean_to_the_class(family: str) -> None:
    config = smallest(family)
    spec = model_from_config(config, "test")[0]
    assert spec.param_count == counts.param_count(config)
    theirs = counts.hf_config(config)
    types = getattr(theirs, "layer_types", None)
    if types is not None:
        size = {
            "full_attention": None,
            "sliding_attention": getattr(theirs, "sliding_window", None),
            "indexed_attention": None,
            "chunked_attention": getattr(theirs, "attention_chunk_size", None),
        }
        assert windows(spec) == [size[kind] for kind in types]
