"""What a checkpoint stores in narrow formats, read from its ``quantization_config``."""

from dataclasses import replace

from energymodel.errors import InputError
from energymodel.families.parts import shared, with_expert_format
from energymodel.fields import Fields
from energymodel.model import ModelSpec


def stored_formats(spec: ModelSpec, f: Fields) -> ModelSpec:
    """The model with the formats of its checkpoint.

    Raises:
        InputError: a method that is not known.
    """
    quantization = f.section("quantization_config")
    if quantization is None:
        return spec
    method = quantization.text("quant_method")
    if method != "mxfp4":
        raise InputError(
            f"{quantization.where}: field 'quant_method' is '{method}'; only 'mxfp4' is supported"
        )
    layers = shared(with_expert_format(spec.layers, "mxfp4"))
    return replace(spec, text=replace(spec.text, layers=layers))
