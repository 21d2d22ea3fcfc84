"""A replica in steady state: what it serves, how fast tokens come, what a request takes of it.

Requests of a mix arrive at random and are served as they come (continuous batching). With p_b the
share of bin b, I_b its prompt tokens and D_b = O_b - 1 the decode steps of a request, Little's law
for a replica that runs n decoding sequences in steps of t seconds on average gives

    rate = n / (t E[D]),    kappa = n / E[D]  prompts that begin in a step, on average.

Prompts begin at random, so a share exp(-kappa) of the steps has none and takes t_0(n); the others
hold kappa / (1 - exp(-kappa)) of them on average. What a prompt adds to the step that computes it is
priced bin by bin, x_b = t(n, I_b) - t_0(n). A request then takes of the replica

    s_b = D_b (a + c (I_b + D_b / 2)) + x_b,    t_0(n) = n (a + c E[context]),

which adds up exactly: sum_b p_b s_b = 1 / rate. The same holds of joules. The number of sequences in
a replica that never queues varies like a Poisson number around its mean (M/G/infinity), and with it
the time between tokens, so percentiles are taken over that variation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from energymodel.steps import Floats

# (decoding sequences, their mean context, prompts, tokens of each prompt) -> (seconds, joules) of
# one step; arrays of one shape.
Price = Callable[[Floats, Floats, Floats, Floats], tuple[Floats, Floats]]

# Contexts at which a step is priced to tell what depends on them: the mean, and this much longer.
LONGER = 1.5
# Deviations of the number of sequences that are looked at, either way, and points among them.
DEVIATIONS, LEVELS = 3.5, 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Requests of one kind of traffic; arrays over bins. ``share`` sums to 1."""

    share: Floats
    input_tokens: Floats
    output_tokens: Floats

    @property
    def decode_steps(self) -> Floats:
        """Steps behind the one that computes the prompt and its first token."""
        return np.maximum(self.output_tokens - 1.0, 0.0)

    @property
    def mean_steps(self) -> float:
        """Decode steps of a request."""
        return float(self.share @ self.decode_steps)

    @property
    def context(self) -> Floats:
        """Mean context of a request while it decodes, by bin."""
        return self.input_tokens + 0.5 * self.decode_steps

    @property
    def mean_context(self) -> float:
        """Mean context over decoding sequences: those that decode longer are there more often."""
        steps = self.share * self.decode_steps
        return float(steps @ self.context / steps.sum()) if steps.sum() else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A replica at a number of decoding sequences.

    ``rate`` in requests per second of the mix; ``seconds`` and ``joules`` [n_bins] of the replica
    that a request takes, gross; ``power_w`` its mean power, ``most_w`` that of its hungriest kind of
    step. ``itl_s`` and ``ttft_s`` at the percentile asked for; ``ttft_s`` without waiting for a place.
    """

    sequences: float
    rate: float
    seconds: Floats
    joules: Floats
    power_w: float
    most_w: float
    itl_s: float
    ttft_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The steps that tell how a replica does at each of ``sequences`` [n]; flat arrays, as of Price.

    For each number come, in this order: pure decode, the same with contexts ``LONGER``, the prompt of
    each bin beside it, and for the latencies ``LEVELS`` numbers around it x (no prompt, each bin).
    """

    sequences: Floats
    decoding: Floats
    context: Floats
    prompts: Floats
    tokens: Floats


def asked(mix: Mix, sequences: Floats) -> Asked:
    """The steps to price for ``points_at``.

    Args:
        mix: Requests; some must decode.
        sequences: Numbers of decoding sequences to look at, at least 1; shape [n].
    """
    bins = mix.input_tokens.size
    around = np.repeat(_levels(sequences)[0], bins + 1, axis=1)  # [n, levels x (1 + bins)]
    decoding = np.concatenate([np.repeat(sequences[:, None], 2 + bins, axis=1), around], axis=1)
    context = np.full_like(decoding, mix.mean_context)
    context[:, 1] *= LONGER
    of_step = np.append(0.0, mix.input_tokens)
    tokens = np.concatenate([[0.0, 0.0], mix.input_tokens, np.tile(of_step, LEVELS)])
    tokens = np.broadcast_to(tokens, decoding.shape)
    prompts = np.sign(tokens)
    kappa = sequences / mix.mean_steps
    prompts[:, 2 + bins :] *= (kappa / (1.0 - np.exp(-kappa)))[:, None]
    return Asked(
        sequences=sequences,
        decoding=decoding.ravel(),
        context=context.ravel(),
        prompts=prompts.ravel(),
        tokens=tokens.ravel(),
    )


def points(price: Price, mix: Mix, sequences: Floats, percentile: float) -> list[Point]:
    """The replica at each number of decoding sequences; ``price`` gives what a step takes."""
    steps = asked(mix, sequences)
    seconds, joules = price(steps.decoding, steps.context, steps.prompts, steps.tokens)
    return points_at(mix, steps, (seconds, joules), percentile)


def points_at(
    mix: Mix, steps: Asked, priced: tuple[Floats, Floats], percentile: float
) -> list[Point]:
    """The replica at each number of decoding sequences.

    Args:
        mix: Requests; some must decode.
        steps: What was asked of them.
        priced: Seconds and joules of these steps.
        percentile: Of the latencies, between 0 and 1.
    """
    n, bins = steps.sequences.size, mix.input_tokens.size
    table = np.stack(priced).reshape(2, n, -1)
    decode, longer, beside = table[:, :, 0], table[:, :, 1], table[:, :, 2 : 2 + bins]
    prompt = np.maximum(beside - decode[:, :, None], 0.0)
    each, slope = _per_sequence(mix, steps.sequences, decode, longer)
    taken = prompt + mix.decode_steps * (each[:, :, None] + slope[:, :, None] * mix.context)
    rate = 1.0 / (taken[0] @ mix.share)
    power_w = rate * (taken[1] @ mix.share)
    most_w = np.max(table[1, :, : 2 + bins] / table[0, :, : 2 + bins], axis=1)
    late = table[0, :, 2 + bins :].reshape(n, LEVELS, 1 + bins)
    itl_s, ttft_s = _latency(mix, steps.sequences, late, percentile)
    return [
        Point(
            sequences=float(steps.sequences[i]),
            rate=float(rate[i]),
            seconds=taken[0, i],
            joules=taken[1, i],
            power_w=float(power_w[i]),
            most_w=float(most_w[i]),
            itl_s=float(itl_s[i]),
            ttft_s=float(ttft_s[i]),
        )
        for i in range(n)
    ]


def _per_sequence(
    mix: Mix, sequences: Floats, decode: Floats, longer: Floats
) -> tuple[Floats, Floats]:
    """(what a sequence takes of a step of decode, and a token of its context), each [2, n]."""
    context = max(mix.mean_context, 1.0)
    slope = np.maximum(longer - decode, 0.0) / (sequences * (LONGER - 1.0) * context)
    # What is left of a step when its contexts are taken away is shared by sequences.
    slope = np.minimum(slope, decode / (sequences * context))
    return decode / sequences - slope * mix.mean_context, slope


def _latency(
    mix: Mix, sequences: Floats, seconds: Floats, percentile: float
) -> tuple[Floats, Floats]:
    """(time between tokens, time to the first token) at the percentile, each [n].

    ``seconds`` [n, levels, 1 + bins] of steps that are told apart by how many sequences decode and by
    which prompt they compute; a token is as late as its step. A first token waits for the rest of the
    step under way and for the next, which is scheduled already (vLLM works ahead of the GPU), and takes
    its own.
    """
    n = len(sequences)
    levels, weight = _levels(sequences)
    busy = 1.0 - np.exp(-sequences / mix.mean_steps)
    of_step = np.concatenate([1.0 - busy[:, None], np.outer(busy, mix.share)], axis=1)
    chance = weight[:, None] * of_step[:, None, :]
    # Steps with more sequences bear more tokens.
    tokens = levels[:, :, None] * chance
    itl_s = quantile(seconds.reshape(n, -1), tokens.reshape(n, -1), percentile)
    mean_s = (chance * seconds).sum(axis=(1, 2)) / chance.sum(axis=(1, 2))
    prompts, likely = (x[:, :, 1:].reshape(n, -1) for x in (seconds, chance))
    return itl_s, 1.5 * mean_s + quantile(prompts, likely, percentile)


def _levels(sequences: Floats) -> tuple[Floats, Floats]:
    """(numbers around each [n, LEVELS], how likely they are [LEVELS]): Poisson, as a normal."""
    spread = np.linspace(-DEVIATIONS, DEVIATIONS, LEVELS)
    levels = np.maximum(sequences[:, None] + spread * np.sqrt(sequences)[:, None], 1.0)
    weight = np.exp(-0.5 * spread**2)
    return levels, weight / weight.sum()


def quantile(values: Floats, weight: Floats, percentile: float) -> Floats:
    """The smallest of each row that covers a share ``percentile`` of its weight; [n, k] -> [n]."""
    order = np.argsort(values, axis=1)
    reached = np.cumsum(np.take_along_axis(weight, order, axis=1), axis=1)
    covers = reached >= (percentile - 1e-12) * reached[:, -1:]
    at = np.argmax(covers, axis=1)[:, None]
    return np.asarray(
        np.take_along_axis(np.take_along_axis(values, order, axis=1), at, axis=1)[:, 0]
    )


def best_point(
    found: Sequence[Point], *, itl_s: float | None, ttft_s: float | None
) -> tuple[Point | None, str]:
    """(the point that serves most within the objective, what it misses where none does).

    Args:
        found: The replica at numbers of sequences, ascending.
        itl_s: Longest time between tokens; None: does not matter.
        ttft_s: Longest time to the first token, likewise.
    """

    def misses(point: Point) -> str:
        if itl_s is not None and point.itl_s > itl_s:
            return "itl_s"
        return "ttft_s" if ttft_s is not None and point.ttft_s > ttft_s else ""

    meet = [point for point in found if not misses(point)]
    if not meet:
        return None, misses(found[0])
    return max(meet, key=lambda point: point.rate), ""
