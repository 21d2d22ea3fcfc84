"""From recorded passes to what is measured: the whole of each phase and its components."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from calibration.components.find import (
    ATTENTION,
    OTHER,
    PROJECTIONS,
    RESIDUAL,
    WHOLE,
    Call,
    Piece,
    layer_of,
    record,
    replay,
)
from calibration.components.flop import flop_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One phase: the whole first, then its components; ``obstacle`` to a CUDA graph, if any."""

    name: str
    pieces: tuple[Piece, ...]
    obstacle: str | None


def phases_of(model: Any, runs: Mapping[str, Callable[[], Any]]) -> list[Phase]:
    """Each pass recorded and taken apart."""
    return [_phase(name, model, run) for name, run in runs.items()]


def _phase(name: str, model: Any, run: Callable[[], Any]) -> Phase:
    recording = record(model, run)
    calls = dict(recording.calls)
    if len(calls.get(PROJECTIONS, [])) == len(calls.get(ATTENTION, [])):
        calls.pop(PROJECTIONS, None)  # there is nothing else in attention, or no attention
    layers = len({layer_of(c.name) for some in calls.values() for c in some} - {None})
    whole = Piece(phase=name, component=WHOLE, call=run, layers=layers, flop=flop_of(run))
    parts = [_piece(name, component, some, layers) for component, some in calls.items()]
    obstacle = recording.obstacles[0] if recording.obstacles else None
    return Phase(name=name, pieces=(whole, *parts), obstacle=obstacle)


def _piece(phase: str, component: str, calls: list[Call], model_layers: int) -> Piece:
    if component in (RESIDUAL, OTHER):  # operations carry no layer
        layers = model_layers if len(calls) >= model_layers else 0
        kinds = Counter(c.name for c in calls)
    else:
        layers = len({layer_of(c.name) for c in calls} - {None})
        kinds = Counter(type(c.function).__name__ for c in calls)
    call = replay(calls)
    return Piece(
        phase=phase,
        component=component,
        call=call,
        layers=max(1, layers),
        flop=flop_of(call),
        parts=tuple(f"{count} {kind}" for kind, count in kinds.most_common()),
        part_of=ATTENTION if component == PROJECTIONS else None,
    )
