"""Text encoders of diffusion pipelines, as stacks of the language-model side of this package."""

from dataclasses import replace

from energymodel.blocks import Mlp, SoftmaxAttention
from energymodel.blocks.ends import End, Lookup, Projection
from energymodel.errors import InputError
from energymodel.fields import MAX_LAYERS, Fields
from energymodel.model import LayerSpec, ModelSpec, Stack, model_from_config


def read_text_encoder(f: Fields, name: str) -> ModelSpec:
    """CLIP's text model, the encoder of T5 and its relatives, or a language model without its head.

    Raises:
        InputError: a field is missing or out of bounds, or the model type is not known.
    """
    if f.text("model_type") in ("clip_text_model", "clip"):
        return _clip(f, name)
    spec, _ = model_from_config(f.config, name)
    text = spec.text if spec.encoder is None else spec.encoder
    if spec.encoder_tokens is not None:
        raise InputError(f"{f.where}: field 'model_type' is of a model that reads no text")
    return replace(
        spec,
        text=text,
        encoder=None,
        has_head=False,
        lm_head_bias=False,
        tie_word_embeddings=True,
        towers=(),
        mtp=None,
    )


def _clip(f: Fields, name: str) -> ModelSpec:
    """``CLIPTextModel``, and ``CLIPTextModelWithProjection`` where ``architectures`` says so."""
    width, heads = f.integer("hidden_size", 512), f.integer("num_attention_heads", 8, high=1024)
    if width % heads:
        raise InputError(
            f"{f.where}: field 'num_attention_heads' is {heads}; it must divide 'hidden_size' ({width})"
        )
    attention = SoftmaxAttention(
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        rotary_dim=0,
        qkv_bias=True,
        o_bias=True,
    )
    mlp = Mlp(intermediate_size=f.integer("intermediate_size", 2048), gated=False, bias=True)
    layer = LayerSpec(blocks=(attention, mlp), norm="layer")
    layers = f.integer("num_hidden_layers", 12, high=MAX_LAYERS)
    positions = f.integer("max_position_embeddings", 77)
    after: tuple[End, ...] = ()
    if "CLIPTextModelWithProjection" in (f.sequence("architectures") or ()):
        out = f.integer("projection_dim", 512)
        after = (
            Projection(
                name="text_projection", component="pooler", n=out, k=width, rows="sequences"
            ),
        )
    return ModelSpec(
        name=name,
        model_type="clip_text_model",
        vocab_size=f.integer("vocab_size", 49408),
        tie_word_embeddings=True,
        text=Stack(
            hidden_size=width,
            layers=(layer,) * layers,
            final_norm="layer",
            before=(Lookup(name="position_embedding", rows=positions),),
            after=after,
        ),
        has_head=False,
        max_position_embeddings=positions,
    )
