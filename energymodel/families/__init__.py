"""Readers of Hugging Face configurations, one small function for each family.

To add a family, write its reader in one of the files beside this one and enter it in the
``FAMILIES`` of that file. Defaults are those of the configuration class of that family in
``transformers`` 5, which is what an engine applies where a published ``config.json`` leaves a field
out.
"""

from collections.abc import Mapping

from energymodel.errors import InputError
from energymodel.families import (
    dense,
    dense_norms,
    encoder_decoders,
    encoders,
    experts,
    gemma,
    gemma_small,
    gpt,
    hearing,
    hybrid,
    image_text,
    latent,
    linear_attention,
    llama_vision,
    native_vision,
    own_code,
    recurrent,
    shared_experts,
)
from energymodel.families.parts import Reader
from energymodel.families.quantization import stored_formats
from energymodel.families.text_sections import section_reader
from energymodel.families.unknown import read_unknown, text_part
from energymodel.fields import Fields
from energymodel.model import ModelSpec

FAMILIES: Mapping[str, Reader] = {
    **dense.FAMILIES,
    **dense_norms.FAMILIES,
    **gemma.FAMILIES,
    **gemma_small.FAMILIES,
    **gpt.FAMILIES,
    **image_text.FAMILIES,
    **native_vision.FAMILIES,
    **llama_vision.FAMILIES,
    **hearing.FAMILIES,
    **experts.FAMILIES,
    **shared_experts.FAMILIES,
    **latent.FAMILIES,
    **own_code.FAMILIES,
    **encoders.FAMILIES,
    **encoder_decoders.FAMILIES,
    **recurrent.FAMILIES,
    **hybrid.FAMILIES,
    **linear_attention.FAMILIES,
}


def read_family(config: Mapping[str, object], name: str) -> tuple[ModelSpec, list[str]]:
    """Find the family by ``model_type`` and read it; returns the model and warnings."""
    if not isinstance(config, Mapping):
        raise InputError(f"{name}: a model configuration must be a JSON object")
    fields = Fields(config, name)
    model_type = fields.text("model_type")
    reader = FAMILIES.get(model_type)
    text = text_part(fields) if reader is None else None
    if reader is not None:
        spec, warnings = reader(fields, name)
    elif text is None:
        spec, warnings = (section_reader(model_type) or read_unknown)(fields, name)
    else:
        text_type = text.text("model_type")
        reader = section_reader(text_type) or FAMILIES.get(text_type, read_unknown)
        spec, warnings = reader(text, name)
        only = "is not known: only its text decoder is counted"
        warnings = [f"{name}: field 'model_type' is {model_type[:40]!r}, which {only}", *warnings]
    spec, more = stored_formats(spec, fields)
    return spec, [*warnings, *more]
