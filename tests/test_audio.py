"""Seconds of sound to positions and tokens: by hand, and as transformers counts them."""

import pytest

from energymodel.audio import FixedWindows, FrameChunks, SpectrogramChunks
from energymodel.media import total

QWEN2_AUDIO = FixedWindows(positions=1500, pooled=2, several=False)
VOXTRAL = FixedWindows(positions=1500, pooled=4, several=True)
OMNI = FrameChunks(chunk=200)
OMNI3 = SpectrogramChunks(chunk=100, window=800, mel_bins=128)


def test_qwen2_audio_hears_one_padded_window() -> None:
    layout = QWEN2_AUDIO.layout(10.0)
    # 1000 frames, 500 positions, 250 features; the rest of the window is padding.
    assert layout.tokens == 250
    assert layout.rows["positions"] == ((1, 1500),)
    assert total(layout.rows["features"]) == 750
    assert QWEN2_AUDIO.layout(100.0) == QWEN2_AUDIO.layout(30.0)


def test_voxtral_takes_as_many_windows_as_it_needs() -> None:
    assert VOXTRAL.layout(30.0).tokens == 375
    layout = VOXTRAL.layout(30.01)
    assert layout.tokens == 750
    assert layout.rows["conv1"] == ((2, 3000),)


def test_omni_attends_within_two_seconds() -> None:
    layout = OMNI.layout(5.0)
    assert layout.rows["positions"] == ((2, 100), (1, 50))
    assert layout.rows["conv1"] == ((3, 200),)  # the last one is padded
    assert layout.tokens == 125
    assert OMNI.layout(0.5).rows["conv1"] == ((1, 50),)  # a lone one is not


def test_qwen3_omni_halves_the_spectrogram_three_times() -> None:
    layout = OMNI3.layout(10.3)
    # 10 chunks of 13 positions, and 30 frames: 15, 8, 4.
    assert layout.tokens == 134
    assert layout.rows["conv1"] == ((11, 50 * 64),)
    assert layout.rows["conv3"] == ((11, 13 * 16),)
    assert layout.rows["positions"] == ((1, 104), (1, 30))
    assert OMNI3.mel_rows == 16


@pytest.mark.parametrize("seconds", [0.03, 0.5, 1.0, 1.99, 2.0, 7.77, 31.4])
def test_tokens_are_those_of_transformers(seconds: float) -> None:
    omni = pytest.importorskip("transformers.models.qwen2_5_omni.processing_qwen2_5_omni")
    omni3 = pytest.importorskip("transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe")
    frames = round(100 * seconds)
    assert OMNI.layout(seconds).tokens == omni._get_feat_extract_output_lengths(frames)
    assert OMNI3.layout(seconds).tokens == omni3._get_feat_extract_output_lengths(frames)
