"""The zoo: sources that are named, sizes that are published, and the models that studies measured."""

import re

import pytest

import models_zoo
from energymodel.find_model import find_any, find_model

EVERY = (*models_zoo.names(), *models_zoo.pipelines())
OURS = {"_model_id", "_source", "_confirmed", "_derived"}
UNIT = {"": 1, "M": 1e6, "B": 1e9}

# Language models of the ML.ENERGY v2 and v3 measurements (arXiv 2601.22076 and its predecessor) whose
# architecture is in transformers, and of the measurements at Argonne (Llama 2 and 3, Mistral 7B).
MEASURED = [
    "bigcode/starcoder2-15b",
    "bigcode/starcoder2-3b",
    "bigcode/starcoder2-7b",
    "codellama/CodeLlama-13b-hf",
    "codellama/CodeLlama-34b-hf",
    "codellama/CodeLlama-70b-hf",
    "codellama/CodeLlama-7b-hf",
    "google/codegemma-1.1-2b",
    "google/codegemma-7b",
    "google/gemma-2-27b-it",
    "google/gemma-2-2b-it",
    "google/gemma-2-9b-it",
    "google/gemma-3-27b-it",
    "llava-hf/llama3-llava-next-8b-hf",
    "llava-hf/llava-1.5-13b-hf",
    "llava-hf/llava-1.5-7b-hf",
    "meta-llama/Llama-2-7b-hf",
    "meta-llama/Meta-Llama-3-8B",
    "meta-llama/Llama-3.1-405B-Instruct",
    "meta-llama/Llama-3.1-405B-Instruct-FP8",
    "meta-llama/Llama-3.1-70B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8",
    "microsoft/Phi-3-medium-4k-instruct",
    "microsoft/Phi-3-mini-4k-instruct",
    "mistralai/Mistral-7B-Instruct-v0.3",
    "mistralai/Mistral-7B-v0.1",
    "mistralai/Mistral-Large-Instruct-2407",
    "mistralai/Mistral-Nemo-Instruct-2407",
    "mistralai/Mixtral-8x22B-Instruct-v0.1",
    "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "nvidia/NVIDIA-Nemotron-Nano-12B-v2",
    "nvidia/NVIDIA-Nemotron-Nano-12B-v2-VL-BF16",
    "openai/gpt-oss-120b",
    "openai/gpt-oss-20b",
    "Qwen/Qwen3-235B-A22B-Instruct-2507",
    "Qwen/Qwen3-235B-A22B-Thinking-2507",
    "Qwen/Qwen3-235B-A22B-Thinking-2507-FP8",
    "Qwen/Qwen3-30B-A3B-Instruct-2507",
    "Qwen/Qwen3-32B",
    "Qwen/Qwen3-8B",
    "Qwen/Qwen3-14B",
    "Qwen/Qwen3-Coder-30B-A3B-Instruct",
    "Qwen/Qwen3-Coder-480B-A35B-Instruct",
    "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8",
    "Qwen/Qwen3-Omni-30B-A3B-Instruct",
    "Qwen/Qwen3-VL-235B-A22B-Instruct",
    "Qwen/Qwen3-VL-235B-A22B-Instruct-FP8",
    "Qwen/Qwen3-VL-30B-A3B-Instruct",
    "Qwen/Qwen3-VL-8B-Instruct",
    "deepseek-ai/DeepSeek-R1-0528",
    "deepseek-ai/DeepSeek-V3.1",
    "bigscience/bloom",
    "meta-llama/Llama-2-70b-hf",
    "google-bert/bert-base-uncased",
    "google-bert/bert-large-uncased",
    "albert/albert-base-v2",
    "distilbert/distilbert-base-uncased",
    "FacebookAI/roberta-base",
    "FacebookAI/roberta-large",
]


@pytest.mark.parametrize("name", EVERY)
def test_every_file_names_its_source(name: str) -> None:
    config = models_zoo.find(name)
    assert config is not None
    assert config["_model_id"] == name
    assert {key for key in config if key.startswith("_")} - OURS <= {"_class_name", "_name_or_path"}
    for key in ("_source", "_confirmed"):
        assert isinstance(config[key], str)
        assert len(config[key]) > 8


def stated() -> dict[str, tuple[str, str]]:
    """The number of parameters that files state: digits and unit, by model."""
    said = {
        name: re.search(
            r"gives? ([\d.,]+)(?: ([MB]))? parameters",
            str((models_zoo.find(name) or {})["_confirmed"]),
        )
        for name in EVERY
    }
    return {name: (m[1].replace(",", ""), m[2] or "") for name, m in said.items() if m}


@pytest.mark.parametrize(("name", "number"), stated().items())
def test_the_number_of_parameters_that_a_file_states_is_counted(
    name: str, number: tuple[str, str]
) -> None:
    digits, unit = number
    last_digit = UNIT[unit] * 10.0 ** -len(digits.partition(".")[2])
    counted = find_any(name)[0].param_count
    assert abs(counted - float(digits) * UNIT[unit]) < last_digit


def test_measured_models_are_in_it() -> None:
    assert set(MEASURED) <= set(models_zoo.names())


def test_it_holds_more_than_sixty_architectures() -> None:
    facts = [models_zoo.find(name) or {} for name in models_zoo.names()]
    plain = {repr({k: v for k, v in f.items() if k[0] != "_"}) for f in facts}
    assert len(plain) > 60
    assert len({f["model_type"] for f in facts}) > 40


def test_quantised_models_take_less_than_the_wide_ones_that_they_were_made_from() -> None:
    pairs = {
        "Qwen3-30B-A3B-NVFP4": "Qwen3-30B-A3B",
        "Qwen2.5-7B-Instruct-GPTQ-Int4": "Qwen2.5-7B-Instruct",
        "Meta-Llama-3.1-8B-Instruct-AWQ-INT4": "Llama-3.1-8B-Instruct",
        "Meta-Llama-3.1-8B-Instruct-FP8": "Llama-3.1-8B-Instruct",
        "Llama-3.1-405B-Instruct-FP8": "Llama-3.1-405B-Instruct",
    }
    for narrow, wide in pairs.items():
        a, b = find_model(narrow)[0], find_model(wide)[0]
        assert a.param_count == b.param_count
        assert a.weight_bytes() < 0.7 * b.weight_bytes()
