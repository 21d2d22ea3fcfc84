"""One request trace in memory."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energymodel.steps import Floats, Ints

NO_INPUT, NO_OUTPUT, TOO_LONG, FAILED = "no_input", "no_output", "too_long", "failed"
"""Why a request is excluded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in the order of their arrival. Shapes [n].

    ``arrival_s`` is in seconds since the first request, None where the trace gives no times (then
    the order is that of the file). ``prefix_tokens``, if known, is how many tokens at the head of
    the prompt an earlier request of the trace had as well: what a prefix cache without limit would
    hold. ``failed`` requests are not among them. ``notes`` say what was assumed, a sentence each.
    """

    name: str
    format: str
    arrival_s: Floats | None
    input_tokens: Ints
    output_tokens: Ints
    prefix_tokens: Ints | None = None
    failed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def requests(self) -> int:
        """Number of requests."""
        return len(self.input_tokens)

    def where(self, chosen: Any) -> "Trace":
        """The requests that ``chosen`` (a mask or indices) picks."""
        arrival_s, prefix_tokens = self.arrival_s, self.prefix_tokens
        return replace(
            self,
            arrival_s=None if arrival_s is None else arrival_s[chosen],
            input_tokens=self.input_tokens[chosen],
            output_tokens=self.output_tokens[chosen],
            prefix_tokens=None if prefix_tokens is None else prefix_tokens[chosen],
        )

    def within(self, start_s: float, end_s: float | None) -> "Trace":
        """The requests that arrive from ``start_s`` until before ``end_s`` (None: the end)."""
        if self.arrival_s is None:
            return self
        last_s = np.inf if end_s is None else end_s
        return self.where((self.arrival_s >= start_s) & (self.arrival_s < last_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an engine would serve: most tokens of a request, and whether answers may be empty.

    A request without an answer failed, in traces of models that generate, unless
    ``keep_zero_output`` says that it is encoder or scoring work.
    """

    max_tokens: int | None = None
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    keep_zero_output: bool = False


def served(trace: Trace, limits: Limits | None = None) -> tuple[Trace, dict[str, int]]:
    """The requests that an engine would serve, and how many are excluded for each reason."""
    why = exclusions(trace.input_tokens, trace.output_tokens, limits or Limits())
    excluded = {reason: int(mask.sum()) for reason, mask in why.items()} | {FAILED: trace.failed}
    kept = ~np.logical_or.reduce(list(why.values()))
    return trace.where(kept), {reason: n for reason, n in excluded.items() if n}


def exclusions(inputs: Ints, outputs: Ints, limits: Limits) -> dict[str, NDArray[np.bool_]]:
    """Masks of what is excluded, by reason; no request has two. Shapes as of ``inputs``."""
    no_input = inputs < 1
    no_output = ~no_input & (outputs < 1) & (not limits.keep_zero_output)
    too_long = np.zeros(inputs.shape, dtype=np.bool_)
    for tokens_, most in (
        (inputs + outputs, limits.max_tokens),
        (inputs, limits.max_input_tokens),
        (outputs, limits.max_output_tokens),
    ):
        if most is not None:
            too_long |= tokens_ > most
    return {NO_INPUT: no_input, NO_OUTPUT: no_output, TOO_LONG: too_long & ~no_input & ~no_output}
