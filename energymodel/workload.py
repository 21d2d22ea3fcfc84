"""What is asked of a replica: bins of requests of equal length."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Requests of one length. ``output_tokens=0`` is encoder or scoring work.

    Exactly one of ``count`` (a number of requests, all there at the start) and
    ``requests_per_s`` (the rate of Poisson arrivals) is given. Each request shows ``images`` of
    ``image_width`` x ``image_height`` pixels, and ``audio_s`` seconds of sound; the tokens that
    they become are not among ``input_tokens`` (``reading.served_workload`` adds them).
    A pipeline that generates makes one image of that size, or a video of ``num_frames``, for each
    request, in ``num_inference_steps``; None is the pipeline's default.
    The first ``prefix_tokens`` of the prompt were those of an earlier request, too: with prefix
    caching they are not computed again.
    """

    input_tokens: int
    output_tokens: int
    count: int | None = None
    requests_per_s: float | None = None
    images: int = 0
    image_width: int | None = None
    image_height: int | None = None
    audio_s: float = 0.0
    num_frames: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    prefix_tokens: int = 0

    @property
    def amount(self) -> float:
        """Requests, or requests per second where the bin has a rate."""
        return (self.requests_per_s or 0.0) if self.count is None else self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Bins in the order of submission, all with ``count`` or all with ``requests_per_s``.

    The totals are per run when the bins have counts and per second when they have rates.
    """

    bins: tuple[Bin, ...]

    @property
    def online(self) -> bool:
        """Whether requests arrive at a rate instead of all at the start."""
        return any(b.requests_per_s is not None for b in self.bins)

    @property
    def requests(self) -> float:
        """Requests of all bins."""
        return sum(b.amount for b in self.bins)

    @property
    def input_tokens(self) -> float:
        """Prompt tokens of all requests."""
        return sum(b.amount * b.input_tokens for b in self.bins)

    @property
    def output_tokens(self) -> float:
        """Generated tokens of all requests."""
        return sum(b.amount * b.output_tokens for b in self.bins)
