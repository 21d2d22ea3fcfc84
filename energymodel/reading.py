"""What a model makes of a workload: encoders read, towers turn images and sound into tokens."""

from dataclasses import replace

from energymodel.errors import InputError
from energymodel.model import ModelSpec
from energymodel.workload import Bin, Workload

# Model types with an encoder that vLLM 0.24 has an implementation of
# (vllm/model_executor/models/registry.py).
VLLM_SERVES = (
    "bert", "roberta", "xlm-roberta", "modernbert", "nomic_bert", "gte", "gemma3_text", "whisper",
)  # fmt: skip

# Decoders that it has none of; others of their kind it has.
VLLM_LACKS = ("bamba", "minimax", "mllama", "recurrent_gemma", "rwkv", "zamba")

# Seconds of sound that become one position: two spectra, one every 10 ms (Whisper).
HEARD_S = 0.02


def served_workload(model: ModelSpec, workload: Workload) -> Workload:
    """The requests as the model sees them.

    An encoder generates nothing. One that hears sound sees as many positions as it always does.
    Images and sound become tokens of the prompt, which come on top of ``input_tokens``.

    Raises:
        InputError: the model cannot do what a bin asks for.
    """
    return replace(workload, bins=tuple(_served(model, i, b) for i, b in enumerate(workload.bins)))


def _served(model: ModelSpec, index: int, b: Bin) -> Bin:
    for field in ("num_frames", "num_inference_steps", "guidance_scale"):
        if getattr(b, field) is not None:
            raise InputError(
                f"bins[{index}]: {field} is for pipelines that make images or videos, and "
                f"'{model.name}' makes text."
            )
    if model.kind == "encoder" and b.output_tokens:
        raise InputError(
            f"bins[{index}]: output_tokens is {b.output_tokens:,}, but '{model.name}' is an encoder "
            "and generates nothing; it must be 0."
        )
    always = model.encoder_tokens
    if always is None:
        return replace(b, input_tokens=b.input_tokens + media_tokens(model, index, b))
    if b.images:
        raise InputError(
            f"bins[{index}]: images is {b.images:g}, but '{model.name}' looks at none; it must be 0."
        )
    for field, wanted, most in (
        ("input_tokens", b.input_tokens, always),
        ("audio_s", b.audio_s, always * HEARD_S),
    ):
        if wanted > most:
            raise InputError(
                f"bins[{index}]: {field} is {wanted:,g}, but the encoder of '{model.name}' hears "
                f"{most:,g} at a time; ask for several requests instead."
            )
    return replace(b, input_tokens=always)


def media_tokens(model: ModelSpec, index: int, b: Bin) -> int:
    """Tokens of the prompt that the images and the sound of a request become.

    Raises:
        InputError: the model has no tower for them, or refuses images of that shape.
    """
    for field, wanted, component, verb in (
        ("images", b.images, "vision", "looks at none"),
        ("audio_s", b.audio_s, "audio", "hears nothing"),
    ):
        if wanted and all(tower.component != component for tower in model.towers):
            raise InputError(
                f"bins[{index}]: {field} is {wanted:g}, but '{model.name}' {verb}; it must be 0."
            )
    if (b.image_width or b.image_height) and not b.images:
        raise InputError(f"bins[{index}] has the size of an image but no images: say how many.")
    try:
        return sum(tower.tokens(b) for tower in model.towers)
    except InputError as error:
        raise InputError(f"bins[{index}]: {error}.") from error


def warnings(model: ModelSpec, workload: Workload, engine: str = "vllm") -> list[str]:
    """What is assumed of a model of a kind of which none was measured under an engine."""
    if engine != "vllm":
        return []  # it refuses what it was not calibrated for
    found = []
    if model.kind != "decoder":
        found.append(
            f"no {model.kind} was measured: its layers are predicted with coefficients and host "
            "times of decoders."
        )
    if model.state_bytes():
        found.append(
            "no model with recurrent layers was measured whole: the host times are those of models "
            "with attention alone."
        )
    if not vllm_serves(model):
        found.append(
            f"vLLM has no implementation of model type '{model.model_type}': predicted as if its "
            "scheduler and kernels served it."
        )
    always = model.encoder_tokens
    if always is not None and any(b.input_tokens < always for b in workload.bins):
        found.append(f"input_tokens count as {always:,}: the encoder pads every input to that.")
    if any(b.images or b.audio_s for b in workload.bins):
        found.append(
            "no vision or audio tower was measured: towers are predicted with coefficients and host "
            "times of decoders, and preparing images and sound on the host is not counted."
        )
    return found


def vllm_serves(model: ModelSpec) -> bool:
    """Whether vLLM runs such a model; most decoders that it lacks are like others that it has."""
    if model.kind == "decoder":
        return model.model_type not in VLLM_LACKS
    return model.model_type in VLLM_SERVES
