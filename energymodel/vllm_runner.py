"""vLLM 0.24 has two programs that run a model on a GPU; which of them runs which model."""

from energymodel.model import ModelSpec

NEW_RUNNER = ("qwen3", "deepseek_v2", "qwen2_moe", "granitemoe", "llama", "mistral")
"""``model_type`` of the architectures that the newer model runner takes by default
(``DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES`` in ``vllm/config/vllm.py``)."""


def by_new_runner(model: ModelSpec) -> bool:
    """Whether the newer one does; a model that is read as a Llama is taken to be run like one."""
    return model.assumed or model.model_type in NEW_RUNNER
