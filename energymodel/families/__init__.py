"""Readers of Hugging Face configurations, one small function for each family.

To add a family, write its reader in one of the files beside this one and enter it in the
``FAMILIES`` of that file. Defaults are those of the configuration class of that family in
``transformers`` 5, which is what an engine applies where a published ``config.json`` leaves a field
out.
"""

from collections.abc import Mapping

from energymodel.errors import InputError
from energymodel.families import dense, experts
from energymodel.families.parts import Reader
from energymodel.families.quantization import stored_formats
from energymodel.fields import Fields
from energymodel.model import ModelSpec

FAMILIES: Mapping[str, Reader] = {**dense.FAMILIES, **experts.FAMILIES}


def read_family(config: Mapping[str, object], name: str) -> tuple[ModelSpec, list[str]]:
    """Find the family by ``model_type`` and read it; returns the model and warnings."""
    if not isinstance(config, Mapping):
        raise InputError(f"{name}: a model configuration must be a JSON object")
    fields = Fields(config, name)
    model_type = fields.text("model_type")
    reader = FAMILIES.get(model_type)
    if reader is None:
        raise InputError(
            f"{name}: field 'model_type' is '{model_type}', which is not supported; "
            f"supported are {', '.join(sorted(FAMILIES))}"
        )
    spec, warnings = reader(fields, name)
    return stored_formats(spec, fields), warnings
