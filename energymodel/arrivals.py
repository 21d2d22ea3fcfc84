"""Requests that come in time: from a trace as they came, or drawn at random at given rates."""

import math
from dataclasses import dataclass

import numpy as np

from energymodel.errors import InputError
from energymodel.steps import Floats, Ints
from energymodel.traces.trace import Trace
from energymodel.workload import Bin, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """When each request arrives, ascending from 0 on, and which of ``bins`` it is of; [n_requests].

    ``end_s``: until when arrivals were looked at; the last one unless there is more to know.
    """

    time_s: Floats
    bin: Ints
    bins: tuple[Bin, ...]
    end_s: float

    @property
    def requests_per_s(self) -> float:
        """Mean rate; a single request has none."""
        return len(self.time_s) / self.end_s if self.end_s > 0 else 0.0

    def first(self, requests: int) -> "Arrivals":
        """The first so many of them, and their bins."""
        time_s = self.time_s[:requests]
        used, index = np.unique(self.bin[:requests], return_inverse=True)
        return Arrivals(
            time_s=time_s,
            bin=index.astype(np.int64),
            bins=tuple(self.bins[i] for i in used.tolist()),
            end_s=float(time_s[-1]),
        )


def poisson(workload: Workload, requests: int, seed: int) -> Arrivals:
    """So many requests of independent Poisson processes with the rates of the bins.

    Drawn on the condition that as many arrive as do in the mean: then the times of a Poisson process
    are uniform over the span (W. Feller, An Introduction to Probability Theory and Its
    Applications II, 1971, section III.3), and a simulation has the rates asked for and not those
    of its sample. The same seed gives the same requests at any rate, in units of the mean gap.

    Raises:
        InputError: a rate is none.
    """
    _check_rates(workload)
    random = np.random.default_rng(seed)
    end_s = requests / workload.requests
    gaps = random.exponential(size=requests + 1)
    each = _each(workload, requests)
    return Arrivals(
        time_s=np.cumsum(gaps)[:-1] / gaps.sum() * end_s,
        bin=random.permutation(np.repeat(np.arange(len(each)), each)),
        bins=workload.bins,
        end_s=end_s,
    )


def _check_rates(workload: Workload) -> None:
    for index, b in enumerate(workload.bins):
        rate = b.requests_per_s
        if rate is None or not 0.0 < rate < math.inf:
            got = "none" if rate is None else f"{rate:g}"
            raise InputError(
                f"bins[{index}].requests_per_s must be a finite number above 0, got {got}."
            )


def at_once(workload: Workload, requests: int, seed: int) -> Arrivals:
    """The requests of ``poisson``, in their order, all there at the start."""
    drawn = poisson(workload, requests, seed)
    return Arrivals(time_s=np.zeros(requests), bin=drawn.bin, bins=drawn.bins, end_s=0.0)


def _each(workload: Workload, requests: int) -> Ints:
    """Requests of each bin, in proportion to the rates; shape [n_bins]."""
    rates = np.array([b.requests_per_s or 0.0 for b in workload.bins])
    ends: Ints = np.round(np.cumsum(rates) / rates.sum() * requests).astype(np.int64)
    each: Ints = np.diff(ends, prepend=0)
    return each


def of_trace(trace: Trace) -> Arrivals:
    """The requests of a trace as they came; a bin for each kind of request.

    Raises:
        InputError: the trace gives no times.
    """
    if trace.arrival_s is None:
        raise InputError(
            f"{trace.name} gives no times of arrival, so it cannot be replayed; make bins of it "
            "(energymodel bins) and use --workload."
        )
    if not trace.requests:
        raise InputError(f"{trace.name} has no request that the model could serve.")
    prefix = np.zeros_like(trace.input_tokens)
    if trace.prefix_tokens is not None:
        prefix = trace.prefix_tokens
    table = np.stack([trace.input_tokens, trace.output_tokens, prefix])
    kinds, index = np.unique(table, axis=1, return_inverse=True)
    arrival_s = trace.arrival_s - trace.arrival_s[0]
    return Arrivals(
        time_s=arrival_s,
        bin=index.reshape(-1).astype(np.int64),
        bins=tuple(
            Bin(input_tokens=i, output_tokens=o, prefix_tokens=p) for i, o, p in kinds.T.tolist()
        ),
        end_s=float(arrival_s[-1]),
    )
