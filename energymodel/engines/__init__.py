"""The engines that predictions know, by the name that ``--engine`` takes."""

from collections.abc import Mapping

from energymodel.deployment import Deployment
from energymodel.engines import transformers, vllm
from energymodel.engines.engine import Engine, EngineTime
from energymodel.errors import InputError

ENGINES: Mapping[str, Engine] = {"vllm": vllm.ENGINE, "transformers": transformers.ENGINE}

__all__ = ["ENGINES", "Engine", "EngineTime", "engine_of"]


def engine_of(deployment: Deployment) -> Engine:
    """The engine that a deployment names.

    Raises:
        InputError: there is no such engine.
    """
    if deployment.engine not in ENGINES:
        raise InputError(f"engine '{deployment.engine}' is not one of: {', '.join(ENGINES)}.")
    return ENGINES[deployment.engine]
