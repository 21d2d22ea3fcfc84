"""Seconds of sound to frames, positions and tokens, family by family, as transformers 5 does it.

All of them hear 100 mel frames a second. Each class holds the settings of one kind of encoder;
``layout(seconds)`` applies them to one clip.
"""

from dataclasses import dataclass

from energymodel.media import Layout, Runs

FRAMES_PER_S = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedWindows:
    """Clips are padded to windows of ``positions``, two frames each, as Whisper does (30 s: 1500).

    ``pooled`` positions become one feature. ``several``: a longer clip takes more windows (Voxtral),
    and all features enter the prompt; else it is cut at one window, and those of the padding are
    left out (Qwen2-Audio).
    """

    positions: int
    pooled: int
    several: bool

    def layout(self, seconds: float) -> Layout:
        """Every window is one sequence."""
        frames = _frames(seconds)
        windows = -(-frames // (2 * self.positions)) if self.several else 1
        features = windows * (self.positions // self.pooled)
        heard = _halved(min(frames, 2 * self.positions))
        return Layout(
            tokens=features if self.several else max((heard - 2) // 2 + 1, 1),
            rows={
                "conv1": ((windows, 2 * self.positions),),
                "positions": ((windows, self.positions),),
                "features": ((1, features),),
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameChunks:
    """Chunks of ``chunk`` frames, each of which attends within itself (Qwen2.5-Omni).

    Two frames are one position, two positions one feature. The convolutions see the last chunk
    padded.
    """

    chunk: int

    def layout(self, seconds: float) -> Layout:
        """Full chunks and what is left over."""
        frames = _frames(seconds)
        full, rest = divmod(frames, self.chunk)
        chunks, longest = full + (rest > 0), min(frames, self.chunk)
        runs = (full, _halved(self.chunk)), (1 if rest else 0, _halved(rest))
        features = max((_halved(frames) - 2) // 2 + 1, 1)
        return Layout(
            tokens=features,
            rows={
                "conv1": ((chunks, longest),),
                "conv2": ((chunks, _halved(longest)),),
                "positions": _without_empty(runs),
                "features": ((1, features),),
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectrogramChunks:
    """Chunks of ``chunk`` frames halved three times over time and mel bins (Qwen3-Omni).

    The positions of ``window`` frames attend to one another. Every position is a feature.
    """

    chunk: int
    window: int
    mel_bins: int

    @property
    def mel_rows(self) -> int:
        """Rows of mel bins that the convolutions leave."""
        return _thrice(self.mel_bins)

    def layout(self, seconds: float) -> Layout:
        """Convolutions run over every point of the shrinking spectrograms of padded chunks."""
        frames = _frames(seconds)
        full, rest = divmod(frames, self.chunk)
        chunks, time, mel = full + (rest > 0), min(frames, self.chunk), self.mel_bins
        rows: dict[str, Runs] = {}
        for name in ("conv1", "conv2", "conv3"):
            time, mel = _halved(time), _halved(mel)
            rows[name] = ((chunks, time * mel),)
        rows["padded"] = ((chunks, time),)
        positions = full * _thrice(self.chunk) + (_thrice(rest) if rest else 0)
        together = time * (self.window // self.chunk)
        many, left = divmod(positions, together)
        rows["positions"] = _without_empty(((many, together), (1 if left else 0, left)))
        rows["features"] = ((1, positions),)
        return Layout(tokens=positions, rows=rows)


AudioSizing = FixedWindows | FrameChunks | SpectrogramChunks


def _frames(seconds: float) -> int:
    return max(round(seconds * FRAMES_PER_S), 1)


def _halved(length: int) -> int:
    """Outputs of a convolution with stride 2."""
    return (length - 1) // 2 + 1


def _thrice(length: int) -> int:
    return _halved(_halved(_halved(length)))


def _without_empty(runs: Runs) -> Runs:
    return tuple((number, each) for number, each in runs if number)
