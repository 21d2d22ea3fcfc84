"""Audio towers: encoders like Whisper's in front of a language model."""

from collections.abc import Mapping
from dataclasses import replace

from energymodel.audio import FixedWindows, FrameChunks, SpectrogramChunks
from energymodel.blocks import Mlp
from energymodel.blocks.ends import Convolution, EndNorm, Lookup, Projection
from energymodel.blocks.tower import Move
from energymodel.errors import InputError
from energymodel.families.parts import Reader
from energymodel.families.text_sections import sighted
from energymodel.families.vision import layers, vision_attention, with_tower
from energymodel.fields import MAX_LAYERS, Fields
from energymodel.model import ModelSpec
from energymodel.towers import Part
from energymodel.weights import table

WIDTH, LAYERS, HEADS, INNER = 1280, 32, 20, 5120
"""Sizes of the encoder of Whisper large, which all classes default to."""


def _audio(f: Fields) -> Fields:
    section = f.section("audio_config") or Fields({}, f.where)
    # Voxtral calls the sizes as language models do.
    return section.named(
        d_model="hidden_size",
        encoder_layers="num_hidden_layers",
        encoder_attention_heads="num_attention_heads",
        encoder_ffn_dim="intermediate_size",
    )


def _layers(a: Fields, width: int, *, k_bias: bool = False) -> Part:
    """Whisper's layers; keys have no bias there."""
    attention = vision_attention(a, width, a.integer("encoder_attention_heads", HEADS))
    inner = a.integer("encoder_ffn_dim", INNER)
    return layers(
        a.integer("encoder_layers", LAYERS, high=MAX_LAYERS),
        replace(attention, k_bias=k_bias),
        Mlp(intermediate_size=inner, gated=False, bias=True),
    )


def _ears(a: Fields, width: int, second: str) -> list[Part]:
    """Two convolutions over time, the second of which keeps every other row."""
    bins = a.integer("num_mel_bins", 128, high=100_000)
    sizes = (("conv1", bins, "conv1"), ("conv2", width, second))
    return [
        Part(
            rows=rows,
            work=(
                Convolution(
                    name=name,
                    component="audio",
                    channels_in=inputs,
                    channels_out=width,
                    kernel_size=3,
                ),
            ),
        )
        for name, inputs, rows in sizes
    ]


def _whisper(f: Fields) -> tuple[Fields, int, int, list[Part]]:
    """Parts up to the layers, of an encoder with learnt positions: (fields, width, rows, parts)."""
    a = _audio(f)
    width = a.integer("d_model", WIDTH)
    rows = a.integer("max_source_positions", 1500, low=2, high=100_000)
    positions = Lookup(name="positions", rows=rows, width=width)
    parts = [
        *_ears(a, width, "positions"),
        Part(rows="positions", work=(positions,)),
        _layers(a, width),
    ]
    return a, width, rows, parts


def _qwen2_audio(f: Fields, spec: ModelSpec) -> ModelSpec:
    _, width, rows, parts = _whisper(f)
    pool = Move(name="pooling", values=2 * width)
    project = (
        EndNorm(name="final_norm", vectors=2, width=width),
        Projection(name="projector", component="audio", n=spec.hidden_size, k=width, bias=True),
    )
    parts += [Part(rows="positions", work=(pool,)), Part(rows="features", work=project)]
    sizing = FixedWindows(positions=rows, pooled=2, several=False)
    return with_tower(spec, parts, audio=sizing)


def _voxtral(f: Fields, name: str) -> tuple[ModelSpec, list[str]]:
    # The class fills in what the section leaves out.
    ministral = {
        "vocab_size": 131_072,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 30,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "head_dim": 128,
    }
    section = f.section("text_config")
    text = {**ministral, **(section.config if section else {})}
    filled = Fields({**f.config, "text_config": text}, f.where)
    return sighted("llama", _voxtral_ears, "audio_config")(filled, name)


def _voxtral_ears(f: Fields, spec: ModelSpec) -> ModelSpec:
    """Positions side by side become one feature."""
    a, width, rows, parts = _whisper(f)
    inputs, hidden = a.integer("encoder_ffn_dim", INNER), spec.hidden_size
    if inputs % width or rows * width % inputs:
        raise InputError(
            f"{a.where}: field 'intermediate_size' is {inputs}; positions of {width} values, "
            "side by side, must fill it"
        )
    project = (
        Projection(name="projector_1", component="audio", n=hidden, k=inputs),
        Move(name="projector_activation", values=2 * hidden),
        Projection(name="projector_2", component="audio", n=hidden, k=hidden),
    )
    norm = EndNorm(name="final_norm", vectors=2, width=width)
    parts += [Part(rows="positions", work=(norm,)), Part(rows="features", work=project)]
    sizing = FixedWindows(positions=rows, pooled=inputs // width, several=True)
    return with_tower(spec, parts, audio=sizing)


def omni_ears(f: Fields, spec: ModelSpec) -> ModelSpec:
    """The model with the ears of Qwen2.5-Omni: positions are not learnt."""
    a = _audio(f)
    width, outputs = a.integer("d_model", WIDTH), a.integer("output_dim", 3584)
    pool = Move(name="pooling", values=2 * width)
    project = (
        EndNorm(name="final_norm", vectors=2, width=width),
        Projection(name="projector", component="audio", n=outputs, k=width, bias=True),
    )
    parts = [
        *_ears(a, width, "conv2"),
        Part(rows="positions", work=(Move(name="positions", values=3 * width),)),
        _layers(a, width),
        Part(rows="positions", work=(pool,)),
        Part(rows="features", work=project),
    ]
    chunk = 2 * a.integer("n_window", 100, high=1_000_000)
    markers = table("audio_markers", 2 * outputs)
    return with_tower(spec, parts, audio=FrameChunks(chunk=chunk), unused=(markers,))


def qwen3_omni_ears(f: Fields, spec: ModelSpec) -> ModelSpec:
    """The model with the ears of Qwen3-Omni: three convolutions over the spectrogram."""
    a = _audio(f)
    width, outputs = a.integer("d_model", WIDTH), a.integer("output_dim", 3584)
    channels, mel = a.integer("downsample_hidden_size", 480), a.integer("num_mel_bins", 128)
    chunk = 2 * a.integer("n_window", 50, high=1_000_000)
    window = a.integer("n_window_infer", 800, low=chunk)
    sizing = SpectrogramChunks(chunk=chunk, window=window, mel_bins=mel)
    convolutions = [
        Part(
            rows=name,
            work=(
                Convolution(
                    name=name,
                    component="audio",
                    channels_in=inputs,
                    channels_out=channels,
                    kernel_size=9,
                ),
            ),
        )
        for name, inputs in (("conv1", 1), ("conv2", channels), ("conv3", channels))
    ]
    gather = Projection(name="conv_out", component="audio", n=width, k=channels * sizing.mel_rows)
    project = (
        EndNorm(name="final_norm", vectors=2, width=width),
        Projection(name="projector_1", component="audio", n=width, k=width, bias=True),
        Move(name="projector_activation", values=2 * width),
        Projection(name="projector_2", component="audio", n=outputs, k=width, bias=True),
    )
    parts = [
        *convolutions,
        Part(rows="padded", work=(gather, Move(name="positions", values=3 * width))),
        _layers(a, width, k_bias=True),
        Part(rows="features", work=project),
    ]
    return with_tower(spec, parts, audio=sizing)


FAMILIES: Mapping[str, Reader] = {
    "qwen2_audio": sighted("qwen2", _qwen2_audio, "audio_config"),
    "voxtral": _voxtral,
}
