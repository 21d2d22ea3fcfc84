"""Text encoders of pipelines against transformers: parameters, and FLOP of the projections."""

import warnings
from typing import Any

import numpy as np
import pytest
from step_builders import prefill

import models_zoo
from energymodel.deployment import Deployment
from energymodel.diffusion.pipeline import read_pipeline
from energymodel.diffusion.text import read_text_encoder
from energymodel.errors import InputError
from energymodel.fields import Fields
from energymodel.ops import lower

torch = pytest.importorskip("torch", reason="needs torch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
CLIP = {
    "model_type": "clip_text_model", "hidden_size": 32, "intermediate_size": 48,
    "projection_dim": 20, "bos_token_id": 1, "eos_token_id": 2, **SIZES,
}  # fmt: skip
T5 = {
    "d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2, "vocab_size": 99,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
DECODER = {
    "hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, **SIZES
}  # fmt: skip

CASES: tuple[dict[str, Any], ...] = (
    {**CLIP, "architectures": ["CLIPTextModel"]},
    {**CLIP, "architectures": ["CLIPTextModelWithProjection"]},
    {**T5, "model_type": "t5", "architectures": ["T5EncoderModel"]},
    {**T5, "model_type": "mt5", "architectures": ["MT5EncoderModel"]},
    {**T5, "model_type": "umt5", "architectures": ["UMT5EncoderModel"]},
    {**SIZES, "model_type": "bert", "hidden_size": 32, "intermediate_size": 48,
     "architectures": ["BertModel"]},
    {**DECODER, "model_type": "gemma2", "architectures": ["Gemma2Model"]},
    {**DECODER, "model_type": "llama", "architectures": ["LlamaModel"]},
)  # fmt: skip


def build(config: dict[str, Any]) -> Any:
    fields = {k: v for k, v in config.items() if k not in ("model_type", "architectures")}
    class_name = config["architectures"][0]
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if config["model_type"] == "clip_text_model":
            made = transformers.CLIPTextConfig(**fields)
        else:
            made = transformers.AutoConfig.for_model(config["model_type"], **fields)
        model = getattr(transformers, class_name)._from_config(made, attn_implementation="eager")
    return model.eval()


@pytest.mark.parametrize("config", CASES, ids=lambda c: c["architectures"][0])
def test_parameters_are_those_of_the_class(config: dict[str, Any]) -> None:
    spec = read_text_encoder(Fields(config, "text"), "text")
    assert spec.param_count == sum(p.numel() for p in build(config).parameters())
    assert spec.kind == "encoder"


@pytest.mark.parametrize("config", CASES, ids=lambda c: c["architectures"][0])
def test_projection_flop_are_those_of_torch(config: dict[str, Any]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    tokens, counter = 9, FlopCounterMode(display=False)
    model = build(config)
    with counter, torch.no_grad(), torch.device("meta"):
        model(torch.zeros(1, tokens, dtype=torch.long))
    found = counter.get_flop_counts()["Global"]
    expected = sum(n for op, n in found.items() if "bmm" not in str(op))
    spec = read_text_encoder(Fields(config, "text"), "text")
    ops = lower(spec, Deployment(), prefill(tokens), np.array([tokens]))
    assert sum(op.count * op.flop.item() for op in ops if op.kind == "gemm") == expected


@pytest.mark.parametrize("name", models_zoo.pipelines())
def test_zoo_parameters_are_those_of_the_classes(name: str) -> None:
    config: dict[str, Any] = dict(models_zoo.find(name) or {})
    pipeline, _ = read_pipeline(config, name)
    parts = [config[key] for key in pipeline.plan.texts]
    for (spec, _), part in zip(pipeline.texts, parts, strict=True):
        assert spec.param_count == sum(p.numel() for p in build(part).parameters())


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(InputError, match="'num_attention_heads' is 5; it must divide"):
        read_text_encoder(Fields({**CLIP, "num_attention_heads": 5}, "text"), "text")


def test_whisper_reads_no_text() -> None:
    config = {
        "model_type": "whisper", "vocab_size": 64, "d_model": 32, "encoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_layers": 2, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_mel_bins": 8,
    }  # fmt: skip
    with pytest.raises(InputError, match="reads no text"):
        read_text_encoder(Fields(config, "text"), "text")
