"""What a trace costs by its bins, against what it costs when its requests are replayed.

The replay serves every request at its own time with its own lengths. Bins lose both: rates keep how
many come in a second and not when, counts submit all at once, and a bin has one length. So the
error of counts is taken apart: against the replay, and against all requests at once with their
own lengths, which is what the bins alone change.
"""

from energymodel.deployment import Deployment
from energymodel.errors import InputError
from energymodel.model import ModelSpec
from energymodel.predict import predict
from energymodel.predict_online import predict_online, predict_trace
from energymodel.prediction import Prediction
from energymodel.profile import Profile
from energymodel.traces.binning import Binned, bin_lengths
from energymodel.traces.lengths import Lengths
from energymodel.traces.report import Comparison, Estimate
from energymodel.traces.trace import Trace
from energymodel.workload import Bin, Workload


def compare(
    trace: Trace,
    lengths: Lengths,
    binned: Binned,
    *,
    model: ModelSpec,
    deployment: Deployment,
    profile: Profile,
) -> Comparison:
    """Predict the trace in each way.

    Args:
        trace: The requests that ``lengths`` counts, and no others.
        lengths: What the bins were made of.
        binned: The bins.
        model: As of ``predict``, like the other two.
        deployment: One replica.
        profile: Of its GPU.

    Raises:
        InputError: the model cannot serve the requests.
    """
    longest = int((lengths.input_tokens + lengths.output_tokens).max())
    most = model.max_position_embeddings
    if most is not None and longest > most:
        raise InputError(
            f"{trace.name} has requests of {longest:,} tokens and '{model.name}' knows {most:,}: "
            f"leave longer ones out with --max-tokens {most}."
        )
    counts = predict(model, deployment, _workload(binned, 1.0, online=False), profile)
    exact = _workload(bin_lengths(lengths, "exact"), 1.0, online=False)
    at_once = predict(model, deployment, exact, profile)
    replay = rates = None
    span_s = lengths.span_s
    if trace.arrival_s is not None and span_s:
        replay = predict_trace(model, deployment, trace, profile)
        rates = predict_online(
            model, deployment, _workload(binned, 1.0 / span_s, online=True), profile
        )
    base = at_once if replay is None else replay
    warnings = [w for p in (replay, rates) if p is not None for w in p.warnings]
    return Comparison(
        model=model.name,
        gpu=profile.gpu.name,
        replay=None if replay is None else _estimate(replay, base, lengths),
        rates=None if rates is None else _estimate(rates, base, lengths),
        counts=_estimate(counts, base, lengths),
        at_once=_estimate(at_once, base, lengths),
        binning_error=counts.energy_j / at_once.energy_j - 1.0,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _workload(binned: Binned, scale: float, *, online: bool) -> Workload:
    columns = (binned.input_tokens, binned.output_tokens, binned.count)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return Workload(
        bins=tuple(
            Bin(
                input_tokens=i,
                output_tokens=o,
                count=None if online else n,
                requests_per_s=n * scale if online else None,
            )
            for i, o, n in rows
        )
    )


def _estimate(p: Prediction, base: Prediction, lengths: Lengths) -> Estimate:
    """A prediction as energy of all requests of the trace; tokens are those of the trace."""
    energy_j = p.energy_per_request_j * lengths.requests
    tokens = int((lengths.output_tokens * lengths.count).sum())
    return Estimate(
        energy_j=energy_j,
        energy_per_request_j=p.energy_per_request_j,
        energy_per_output_token_j=energy_j / tokens if tokens else None,
        ttft_mean_s=None if p.ttft_s is None else p.ttft_s.mean,
        saturated=None if p.online is None else p.online.saturated,
        error=p.energy_per_request_j / base.energy_per_request_j - 1.0,
    )
