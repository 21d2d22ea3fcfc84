"""Quantised checkpoints: which weights are narrow, in which format, and how many bytes that is."""

import contextlib
import time
from collections.abc import Mapping, Sequence

import pytest
from family_cases import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from step_builders import prefill

import models_zoo
from energymodel.commands_common import _QUANTIZATIONS
from energymodel.deployment import Deployment
from energymodel.dtypes import DTYPE_BYTES, UNPACKED
from energymodel.errors import InputError
from energymodel.families.quantization import METHODS
from energymodel.model import ModelSpec, model_from_config
from energymodel.ops import lower

Json = Mapping[str, object]

LLAMA: Json = {**TINY, "model_type": "llama"}
EXPERTS: Json = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
MOE: Json = {**TINY, **EXPERTS, "model_type": "qwen3_moe"}
DENSE_NAMES = ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]


def read(quantization: Json, config: Json = LLAMA) -> ModelSpec:
    return model_from_config({**config, "quantization_config": quantization}, "x")[0]


def formats(quantization: Json, config: Json = LLAMA, layer: int = 0) -> dict[str, str]:
    return dict(read(quantization, config).layers[layer].formats)


def compressed(weights: Json, inputs: Json | None, **more: object) -> Json:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    groups = {"config_groups": {"group_0": group}, "ignore": ["lm_head"]}
    return {"quant_method": "compressed-tensors", **groups, **more}


def in_groups(number: int, targets: Sequence[str] = ("nothing",)) -> Json:
    group = {"targets": list(targets), "weights": integer(8, strategy="channel")}
    groups = {f"group_{i}": group for i in range(number)}
    return {"quant_method": "compressed-tensors", "config_groups": groups}


def integer(bits: int, **more: object) -> Json:
    return {"type": "int", "num_bits": bits, **more}


def floating(bits: int, **more: object) -> Json:
    return {"type": "float", "num_bits": bits, **more}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
FORMATS: list[tuple[Json, str]] = [
    ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8"),
    (BLOCKS, "fp8_block"),
    ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, "fp8"),
    (GPTQ, "int4"),
    ({**GPTQ, "group_size": 32}, "int4_g32"),
    ({**GPTQ, "group_size": -1}, "int4_channel"),
    ({**GPTQ, "sym": False}, "uint4"),
    ({**GPTQ, "bits": 8, "group_size": 64}, "w8a16_g64"),
    ({"quant_method": "awq", "group_size": 64, "bits": 4}, "uint4_g64"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "nf4"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "llm_int8"),
    ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}, "fp8"),
    ({"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4"}}, "nvfp4"),
    (compressed(integer(4, strategy="group", group_size=128), None), "int4"),
    (compressed(integer(4, strategy="group", group_size=32, symmetric=False), None), "uint4_g32"),
    (compressed(integer(8, strategy="channel"), None), "w8a16_channel"),
    (compressed(integer(8, strategy="channel"), integer(8, dynamic=True)), "int8"),
    (compressed(floating(8, strategy="channel"), floating(8, dynamic=True)), "fp8"),
    (
        compressed(floating(8, strategy="block", block_structure=[128, 128]), floating(8)),
        "fp8_block",
    ),
    (compressed(floating(8, strategy="channel"), None), "w8a16_channel"),
    (compressed(floating(4, strategy="tensor_group", group_size=16), floating(4)), "nvfp4"),
    (compressed(floating(4, strategy="group", group_size=32), None), "mxfp4"),
]


@pytest.mark.parametrize(("quantization", "stored"), FORMATS, ids=lambda x: str(x)[:60])
def test_every_method_is_read(quantization: Json, stored: str) -> None:
    assert formats(quantization) == dict.fromkeys(DENSE_NAMES, stored)
    assert formats(quantization, MOE)["experts"] == stored
    assert "router" not in formats(quantization, MOE)


@pytest.mark.parametrize(("quantization", "stored"), FORMATS, ids=lambda x: str(x)[:60])
def test_operations_read_what_the_checkpoint_stores(quantization: Json, stored: str) -> None:
    step = prefill(16)
    by_name = {op.name: op for op in lower(read(quantization), Deployment(), step)}
    for name in DENSE_NAMES:
        if stored in UNPACKED:  # widened by a call of its own, then multiplied in 16 bits
            assert by_name[f"{name}_unpack"].hbm_bytes > 0
            assert by_name[name].law == "gemm"
            continue
        assert by_name[name].stored == stored
        assert by_name[name].shape["weight_element_bytes"] == DTYPE_BYTES[stored]
        assert by_name[name].law == f"gemm.{stored}"
    assert by_name["lm_head"].law == "gemm"


def test_bytes_of_packed_groups_by_hand() -> None:
    # A projection of 4096 to 4096 as AWQ packs it: eight values in an int32, a float16 scale and a
    # four-bit zero point (eight in an int32) for each group of 128 inputs and each output.
    packed, scales, zeros = 4 * 512 * 4096, 2 * 32 * 4096, 4 * 32 * 512
    assert 4096**2 * DTYPE_BYTES["uint4"] == packed + scales + zeros
    assert 4096**2 * DTYPE_BYTES["int4"] == packed + scales
    # bitsandbytes: two values in a byte, a float32 for each 64.
    assert 4096**2 * DTYPE_BYTES["nf4"] == 4096**2 // 2 + 4 * 4096**2 // 64
    # NVFP4: two values in a byte, an fp8 scale for each 16.
    assert 4096**2 * DTYPE_BYTES["nvfp4"] == 4096**2 // 2 + 4096**2 // 16


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "deepseek_v3"])
def test_bytes_of_blocks_are_those_of_the_modules_of_transformers(family: str) -> None:
    counts = pytest.importorskip("torch_counts", reason="needs torch and transformers")
    quantizers = pytest.importorskip("transformers.quantizers")
    # All widths are multiples of the blocks of 128, so that no scale is of a part of one.
    sizes = {"hidden_size": 256, "intermediate_size": 384, "head_dim": 64, "vocab_size": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
    config = {"model_type": family, **sizes, **heads, **experts}
    if family == "deepseek_v3":
        latent = {"kv_lora_rank": 128, "q_lora_rank": 128, "qk_nope_head_dim": 64, "v_head_dim": 64}
        config |= {**latent, "n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1}
        config |= {"num_key_value_heads": 4, "topk_group": 1, "qk_rope_head_dim": 128}
        config |= {"num_nextn_predict_layers": 0}
    kept = ["lm_head", "model.layers.1.self_attn", "model.layers.0.mlp.gate"]
    quantization = {**BLOCKS, "modules_to_not_convert": [*kept, "model.layers.1.mlp.gate"]}
    model = counts.build(config, "meta").bfloat16()
    with counts.torch.device("meta"):
        made = quantizers.AutoHfQuantizer.from_config(dict(quantization), pre_quantized=True)
        made._process_model_before_weight_loading(model)
    assert read(quantization, config).weight_bytes() == sum(p.nbytes for p in model.parameters())


# --- which modules --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "narrow"),
    [
        ("lm_head", DENSE_NAMES),
        ("model.layers.1.self_attn", ["down_proj", "gate_up_proj"]),
        ("model.layers.11.self_attn", DENSE_NAMES),
        ("model.layers.*.self_attn", ["down_proj", "gate_up_proj"]),
        ("model.layers.1.mlp.down_proj", ["gate_up_proj", "o_proj", "qkv_proj"]),
        ("model.layers.1", []),
        ("model.layers.1.*", []),
        ("model.layers.1*", []),
        ("language_model.model.layers.1.mlp", ["o_proj", "qkv_proj"]),
        ("visual.blocks.1.mlp", DENSE_NAMES),
        ("vision_tower", DENSE_NAMES),
        ("down_proj", ["gate_up_proj", "o_proj", "qkv_proj"]),
        ("proj", DENSE_NAMES),
        ("*down_proj*", ["gate_up_proj", "o_proj", "qkv_proj"]),
        ("mlp.down", DENSE_NAMES),
        ("q_proj", ["down_proj", "gate_up_proj", "o_proj"]),  # fused with k and v: all wide
        ("re:.*mlp.*", ["o_proj", "qkv_proj"]),
        (r"re:.*\.(up|gate)_proj$", ["down_proj", "o_proj", "qkv_proj"]),
        (r"re:model\.layers\.(0|2)\..*", DENSE_NAMES),
        (r"re:model\.layers\.[0-1]\.mlp\..*", ["o_proj", "qkv_proj"]),
        (r"re:^lm_head$", DENSE_NAMES),
        ("re:vision_model.*", DENSE_NAMES),
        ("re:mlp", DENSE_NAMES),  # an expression starts where the name does
    ],
)
def test_modules_that_stay_wide(pattern: str, narrow: list[str]) -> None:
    quantization = {"quant_method": "fp8", "modules_to_not_convert": [pattern]}
    assert sorted(formats(quantization, layer=1)) == narrow


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("model.layers.0.mlp.experts", True),
        ("model.layers.0.mlp.experts.0.up_proj", True),
        ("model.layers.0.mlp.gate", False),
        ("re:.*experts.*", True),
        ("mlp", True),
    ],
)
def test_experts_that_stay_wide(pattern: str, kept: bool) -> None:
    quantization = {"quant_method": "fp8", "modules_to_not_convert": [pattern]}
    assert ("experts" not in formats(quantization, MOE)) == kept


def test_groups_of_modules_have_formats_of_their_own() -> None:
    wide = {"targets": ["Linear"], "weights": integer(8, strategy="channel")}
    some = {"targets": ["re:.*self_attn.*"], "weights": integer(4, strategy="channel")}
    groups = {"group_0": wide, "group_1": some}
    found = formats({"quant_method": "compressed-tensors", "config_groups": groups})
    assert {found["qkv_proj"], found["o_proj"]} == {"int4_channel"}
    assert {found["gate_up_proj"], found["down_proj"]} == {"w8a16_channel"}
    only = {"quant_method": "compressed-tensors", "config_groups": {"group_1": some}}
    assert sorted(formats(only)) == ["o_proj", "qkv_proj"]
    chosen = [["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj"]]
    assert sorted(formats({**GPTQ, "modules_in_block_to_quantize": chosen})) == ["qkv_proj"]
    left_out = {**GPTQ, "dynamic": {"-:.*down_proj.*": {}}}
    assert "down_proj" not in formats(left_out)


def test_layers_for_further_tokens_are_numbered_behind_the_others() -> None:
    config = models_zoo.find("DeepSeek-R1-0528")
    assert config is not None
    kept = {**BLOCKS, "modules_to_not_convert": ["model.layers.61.self_attn"]}
    spec = read(kept, config)
    assert spec.mtp is not None
    assert "o_proj" not in dict(spec.mtp.layers[0].formats)
    assert all("o_proj" in dict(layer.formats) for layer in spec.layers)


# --- published sizes ------------------------------------------------------------------------------


def zoo(name: str) -> ModelSpec:
    config = models_zoo.find(name)
    assert config is not None
    return model_from_config(config, name)[0]


def test_deepseek_has_the_size_of_its_files() -> None:
    # 688,586,727,753 bytes in 163 files, each with a header (github.com: artifact_bytes of
    # deepseek-ai/DeepSeek-V3 as its repository lists them).
    model = zoo("DeepSeek-R1-0528")
    assert model.mtp is not None
    further = sum(
        count * weight.params * DTYPE_BYTES[stored.get(weight.name, "bfloat16")]
        for weight, count, stored in model.mtp.weights()
    )
    assert model.weight_bytes() + further == pytest.approx(688_586_727_753, rel=2e-5)


def test_only_the_routed_experts_of_maverick_are_narrow() -> None:
    formats = {
        f for layer in zoo("Llama-4-Maverick-17B-128E-Instruct-FP8").layers for f in layer.formats
    }
    assert formats == {("experts", "fp8")}


def test_the_ends_and_the_attention_of_llama_405b_are_wide() -> None:
    layers = zoo("Llama-3.1-405B-Instruct-FP8").layers
    assert layers[0].formats == layers[-1].formats == ()
    narrow = (("gate_up_proj", "fp8"), ("down_proj", "fp8"))
    assert {layer.formats for layer in layers[1:-1]} == {narrow}


# --- deployment -----------------------------------------------------------------------------------


def test_a_cache_that_the_checkpoint_has_scales_for_is_narrow() -> None:
    scheme = compressed(floating(8), floating(8), kv_cache_scheme=floating(8))
    model, plain = read(scheme), read(compressed(floating(8), floating(8)))
    step = prefill(16)

    def cached(model: ModelSpec, dtype: str) -> str:
        ops = {op.name: op for op in lower(model, Deployment(kv_cache_dtype=dtype), step)}
        return ops["attention_decode"].stored

    assert cached(model, "auto") == "fp8"
    assert cached(model, "bfloat16") == cached(plain, "auto") == "bfloat16"


def test_the_method_of_the_checkpoint_may_be_named() -> None:
    awq = read({"quant_method": "awq", "bits": 4, "group_size": 128})
    wide, size = model_from_config(LLAMA, "x")[0], awq.weight_bytes()
    assert (
        awq.weight_bytes(quantization="awq") == awq.weight_bytes(quantization="awq_marlin") == size
    )
    assert wide.weight_bytes(quantization="bitsandbytes") < wide.weight_bytes(quantization="fp8")
    for model, asked, reason in ((awq, "fp8", "already awq"), (wide, "awq", "known: fp8")):
        with pytest.raises(InputError, match=reason):
            model.weight_bytes(quantization=asked)


def test_every_method_that_is_read_can_be_named_on_the_command_line() -> None:
    assert {name.removesuffix("_marlin") for name in _QUANTIZATIONS} == set(METHODS)


# --- hostile and unknown --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantization", "named"),
    [
        ({"quant_method": "hqq"}, "'quant_method' is 'hqq'"),
        ({"quant_method": "a\nb"}, "'quant_method'"),
        ({}, "'quant_method' is missing"),
        ({"quant_method": "gptq"}, "'bits' is missing"),
        ({"quant_method": "gptq", "bits": 3}, "3 bits"),
        ({**GPTQ, "group_size": 7}, "groups of 7"),
        ({**GPTQ, "dynamic": {"+:.*": {"bits": 8}}}, "'dynamic'"),
        ({**BLOCKS, "weight_block_size": [64, 64]}, "128, 128"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED"}, "'quant_algo'"),
        ({"quant_method": "compressed-tensors"}, "'config_groups'"),
        (compressed(integer(4), integer(8)), "weights of 4 bits"),
        (compressed(floating(8), floating(8), kv_cache_scheme=integer(4)), "kv_cache_scheme"),
        (compressed(floating(8), floating(8), sparsity_config={"format": "x"}), "'format'"),
        ({"quant_method": "fp8", "modules_to_not_convert": [3]}, "names of modules"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["x" * 201]}, "names of modules"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["re:(a+)+$"]}, "expression"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["re:.*a.*b.*c"]}, "expression"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["re:(?!x).*"]}, "expression"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["re:[a"]}, "expression"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["re:[z-a]"]}, "expression"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["re:a.*"] * 5000}, "expressions"),
        # Of repeated classes, and of alternatives that one text can match, every way is tried.
        (
            {"quant_method": "fp8", "modules_to_not_convert": ["re:" + "[--z]*" * 8 + "Q"]},
            "repeats",
        ),
        ({"quant_method": "fp8", "modules_to_not_convert": [r"re:\d+.*\d*Q"]}, "repeats"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["re:" + "(.|.)" * 30]}, "alternatives"),
        (
            {"quant_method": "fp8", "modules_to_not_convert": ["re:" + "(m|mo)" * 30]},
            "alternatives",
        ),
        (in_groups(65), "'config_groups' has 65 groups"),
        (in_groups(2, ["x"] * 6000), "targets"),
        (in_groups(2, ["re:x"] * 2000), "too many expressions"),
    ],
)
def test_what_is_not_understood_is_refused_in_one_sentence(quantization: Json, named: str) -> None:
    with pytest.raises(InputError, match=named) as error:
        read(quantization)
    assert str(error.value).startswith("x: in 'quantization_config'")
    assert "\n" not in str(error.value)


def test_alternatives_of_which_one_at_most_fits_are_read_however_many() -> None:
    numbers = "|".join(f"{i}" for i in range(2, 10))
    listed = [rf"re:model.layers.({numbers}|1)\.(mlp|self_attn)\.(down|o|gate|up)_proj"] * 1000
    quantization = {"quant_method": "fp8", "modules_to_not_convert": listed}
    assert sorted(formats(quantization, layer=1)) == ["qkv_proj"]


def test_a_class_may_repeat_at_the_end_beside_two_repeats_before() -> None:
    quantization = {"quant_method": "fp8", "modules_to_not_convert": [r"re:.*\d+\.mlp[--z]+"]}
    assert sorted(formats(quantization)) == ["o_proj", "qkv_proj"]


def test_many_groups_of_many_layers_are_refused_soon() -> None:
    deep = {**LLAMA, "num_hidden_layers": 5000}
    started = time.monotonic()
    with pytest.raises(InputError, match="3 groups of modules for 5000 layers; at most 2"):
        read(in_groups(3), deep)
    assert time.monotonic() - started < 2
    assert read(in_groups(64)).layers[0].formats == ()


@settings(deadline=None, max_examples=300)
@given(st.lists(st.text("re:.*+?()[]|^$\\d0ab{}l_-", max_size=40).map("re:{}".format), max_size=4))
def test_any_pattern_is_read_or_refused_soon(patterns: list[str]) -> None:
    started = time.monotonic()
    with contextlib.suppress(InputError):
        formats({"quant_method": "fp8", "modules_to_not_convert": patterns})
    assert time.monotonic() - started < 2


def test_a_model_of_very_many_layers_is_read_soon() -> None:
    names = [f"model.layers.{i}.mlp" for i in range(10_000)]
    started = time.monotonic()
    deep = {**LLAMA, "num_hidden_layers": 10_000}
    spec = read({"quant_method": "fp8", "modules_to_not_convert": names}, deep)
    assert time.monotonic() - started < 30
    assert len(spec.layer_groups()) == 1
