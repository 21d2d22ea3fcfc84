"""A transformers model with random weights, and the passes of it whose components are measured.

A pass can be repeated without end at the same cost: its inputs and its KV cache stay as they are.
Nothing comes from the network and no code from a model repository is ever executed.
"""

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from inspect import signature
from typing import Any

import torch

from energymodel.errors import InputError, WorkError
from energymodel.find_model import FoundConfig, find_config

DECODER, ENCODER, ENCODER_DECODER = "decoder", "encoder", "encoder-decoder"

# One forward pass of the model, or of its encoder.
Run = Callable[[], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model on a device; ``stack`` names the software and the implementations that it runs."""

    name: str
    kind: str
    model: Any
    stack: str

    @property
    def architecture(self) -> str:
        """Its kind, and whether it is a mixture of experts."""
        return f"MoE {self.kind}" if has_experts(self.model) else self.kind


def component_config(name: str) -> FoundConfig:
    """The configuration of a model: one kept here, else as ``find_config`` finds it.

    Those kept here are encoders and encoder-decoders, which the zoo does not hold.

    Raises:
        InputError: No such model, or its configuration is no JSON object.
    """
    wanted = name.strip().lower()
    folder = resources.files("calibration") / "data" / "component_models"
    for file in folder.iterdir():
        model_id = file.name.removesuffix(".json").replace("__", "/", 1)
        if wanted in (model_id.lower(), model_id.lower().partition("/")[2]):
            config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return FoundConfig(name=model_id, where=model_id, config=config)
    return find_config(name)


def load(found: FoundConfig, *, device: str, seed: int = 0) -> Loaded:
    """The model of a configuration in bfloat16 with random weights, ready to run.

    Raises:
        InputError: transformers does not know the model or cannot read its configuration.
        WorkError: the model does not fit on the device.
    """
    try:
        config = hf_config(found.config)
        kind = model_kind(found.config, config)
        torch.manual_seed(seed)
        model = _instantiate(config, kind, device)
    except torch.OutOfMemoryError as error:
        raise WorkError(f"{found.name} does not fit into this GPU's memory.") from error
    except ImportError:
        raise
    except Exception as error:  # whatever its configuration class thinks of the values
        raise InputError(
            f"{found.where} must be a configuration that transformers can build: {_line(error)}."
        ) from error
    draw_weights(model)
    return Loaded(name=found.name, kind=kind, model=model, stack=_stack(model))


def hf_config(facts: Mapping[str, Any]) -> Any:
    """The configuration class of transformers, filled from the keys of a ``config.json``.

    Of a multi-modal model it is that of the language model. Weights are drawn in bfloat16, so
    the format of a quantised checkpoint is left out.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    fields = copy.deepcopy({k: v for k, v in facts.items() if not k.startswith("_")})
    fields = fields.get("text_config", fields)
    fields.pop("quantization_config", None)
    family = fields.pop("model_type", None)
    if family not in CONFIG_MAPPING:
        raise InputError(f"model_type {family!r} is not known to this transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoConfig.for_model(family, **fields)


def model_kind(facts: Mapping[str, Any], config: Any) -> str:
    """Decoder, encoder or encoder-decoder, by the class that was published, else by the family."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    if config.is_encoder_decoder:
        return ENCODER_DECODER
    published = " ".join(facts.get("architectures") or ())
    if "CausalLM" in published or "LMHead" in published or "text_config" in facts:
        return DECODER
    family = type(config)
    encodes = family in MODEL_FOR_MASKED_LM_MAPPING or family not in MODEL_FOR_CAUSAL_LM_MAPPING
    return ENCODER if encodes else DECODER


def _instantiate(config: Any, kind: str, device: str) -> Any:
    """The class from its configuration, with SDPA attention where it has that, else eager."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    classes = {
        DECODER: AutoModelForCausalLM,
        ENCODER: AutoModel,
        ENCODER_DECODER: AutoModelForSeq2SeqLM,
    }
    # Capped logits exist in the eager code only.
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
    with torch.device(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = classes[kind].from_config(
                config, dtype=torch.bfloat16, attn_implementation=attention
            )
        except ValueError:
            model = classes[kind].from_config(
                config, dtype=torch.bfloat16, attn_implementation="eager"
            )
    return model.eval().requires_grad_(requires_grad=False)


def draw_weights(model: Any) -> None:
    """Weights normal(0, 0.02), norms at 1 with no bias, from torch's generator."""
    with torch.no_grad():
        for module in model.modules():
            is_norm = "Norm" in type(module).__name__
            for name, parameter in module.named_parameters(recurse=False):
                if is_norm and parameter.dim() == 1:
                    parameter.fill_(0.0 if name == "bias" else 1.0)
                else:
                    parameter.normal_(0.0, 0.02)


def passes(loaded: Loaded, *, batch: int, prompt: int, device: str) -> dict[str, Run]:
    """The phases of a model and a pass for each, over ``batch`` sequences of ``prompt`` tokens.

    A decoder has ``prefill`` (the prompts, logits of their last token, as ``generate`` asks) and
    ``decode`` (one token a sequence against ``prompt`` cached ones), an encoder ``encode``, an
    encoder-decoder ``encode`` and ``decode`` (``prompt`` tokens cached and as many encoded).

    Raises:
        InputError: the model has no room for so many tokens.
    """
    model, kind = loaded.model, loaded.kind
    config = model.config.get_text_config()
    _check_length(config, prompt + (kind == DECODER))
    ids = torch.randint(0, config.vocab_size, (batch, prompt), device=device)
    token = ids[:, :1].clone()
    if kind == ENCODER:
        return {"encode": lambda: model(input_ids=ids)}
    with torch.no_grad():
        if kind == ENCODER_DECODER:
            encoder = model.get_encoder()
            encoded = encoder(input_ids=ids)
            filled = frozen(model(encoder_outputs=encoded, decoder_input_ids=ids, use_cache=True))
            return {
                "encode": lambda: encoder(input_ids=ids),
                "decode": lambda: model(
                    encoder_outputs=encoded,
                    decoder_input_ids=token,
                    past_key_values=filled,
                    use_cache=True,
                ),
            }
        last = (
            {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
        )
        filled = frozen(model(input_ids=ids, use_cache=True, **last))
    empty = frozen(_empty_cache(model))
    return {
        "prefill": lambda: model(input_ids=ids, past_key_values=empty, use_cache=True, **last),
        "decode": lambda: model(input_ids=token, past_key_values=filled, use_cache=True, **last),
    }


def _check_length(config: Any, tokens: int) -> None:
    # T5 has relative positions and no limit, whatever its n_positions says.
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and tokens > most:
        raise InputError(f"prompt must leave room in the {most:,} positions of the model.")


def _empty_cache(model: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def frozen(source: Any) -> Any:
    """A dynamic KV cache, or that of a model's output, which forgets what is added to it.

    Each update does its work, which copies the keys and values that it returns as a dynamic
    cache always does, and then puts the layer back, so that a pass can be repeated.

    Raises:
        InputError: a layer keeps something else than keys and values.
    """
    cache = getattr(source, "past_key_values", source)
    parts = (getattr(cache, f"{k}_attention_cache", None) for k in ("self", "cross"))
    for part in [p for p in parts if p is not None] or [cache]:
        layers = getattr(part, "layers", [None])
        if not all(hasattr(layer, "update") for layer in layers):
            raise InputError(
                "model must be one of attention alone: a recurrent state cannot be held still."
            )
        for layer in layers:
            layer.update = _forgetting(layer)
    return cache


def _forgetting(layer: Any) -> Callable[..., Any]:
    add = layer.update

    def update(keys: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
        if not layer.is_initialized:
            # Its small constants move to the device once and not in each pass.
            layer.lazy_initialization(keys, values)
        before = dict(vars(layer))
        added = add(keys, values, *args, **kwargs)
        vars(layer).update(before)
        return added

    return update


def _stack(model: Any) -> str:
    """Versions and implementations that decide time and energy, in one line."""
    config = model.config
    names = [f"{package} {metadata.version(package)}" for package in ("transformers", "torch")]
    names.append(f"{config._attn_implementation} attention")
    if has_experts(model):
        names.append(f"{getattr(config, '_experts_implementation', None) or 'own'} experts")
    return ", ".join(names)


def has_experts(model: Any) -> bool:
    """Whether any part of a model is a mixture of experts."""
    return any(hasattr(module, "experts") for module in model.modules())


def _line(error: Exception) -> str:
    lines = str(error).strip().rstrip(".").splitlines() or [type(error).__name__]
    return lines[0]
