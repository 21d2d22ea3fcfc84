"""What collectives take and cost over the links of a GPU, as calibrated.

With the wire bytes of ``collectives.wire_share`` a collective of n GPUs takes

    seconds = (latency_s + wire bytes / bus_bytes_per_s) e^r (1 + skew)

where skew is 0 back to back and r, what the law leaves over at the measured sizes, is interpolated in log message bytes, and each
GPU spends

    joules = (static power + busy_w) seconds + wire_byte_j wire bytes .

vLLM adds messages below 8 MiB up with a kernel of its own and larger ones with NCCL
(``CustomAllreduce.should_custom_ar`` in
``vllm/distributed/device_communicators/custom_all_reduce.py`` of 0.24, where NVLink multicast is
off); everything else is NCCL.

For a number of GPUs that was not measured, latency and the two costs follow log2 n through the
nearest measured numbers, and the bus rate stays that of the nearest. Between nodes only a declared
rate is known.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from energymodel.collectives import BUBBLE, COMPONENT, DISPATCH, KINDS, wire_share
from energymodel.deployment import Deployment
from energymodel.errors import InputError
from energymodel.op_kinds import Op
from energymodel.profile import CollectiveProfile, Estimate, FabricProfile, Profile
from energymodel.steps import Floats

CUSTOM_BYTES = 8 * 1024 * 1024
"""vLLM's own all-reduce takes messages below this (``max_size``) ..."""
CUSTOM_GPUS = (2, 4, 6, 8)
"""... of so many GPUs (``_SUPPORTED_WORLD_SIZES``)."""
ASSUMED_LATENCY_S = 20e-6
"""What a collective takes longer between nodes than in one: assumed, not measured.

NCCL's own model of its latency (``hwLat[NCCL_HW_NET]`` in ``src/graph/tuning.cc``) has 2.7, 4.0 and
9.6 us (later 14 us) for a step of a ring over the network with its protocols LL, LL128 and Simple,
and an all-reduce of two nodes has two such steps: 5 to 28 us.
"""
UNKNOWN_LINK = 0.5
"""Relative error of a collective over a link whose rate was declared, or on a number of GPUs other
than the only one measured: assumed, for nothing was measured that would tell it."""


def is_collective(op: Op) -> bool:
    """Whether the links carry it."""
    return op.component == COMPONENT and op.kind in KINDS


def seconds_of(op: Op, profile: Profile, padded: Callable[[Floats], Floats]) -> Floats:
    """Seconds of one call of a collective at full clock, 0 where it does not happen; [n_steps].

    Raises:
        InputError: the profile knows no such collective.
    """
    message = _message(op, padded)
    found = np.zeros_like(message)
    for law, small in _laws(op, profile, message):
        chosen = small & (message > 0)
        found[chosen] = collective_seconds(law, message[chosen])
    return found * (1.0 + fabric_of(profile).skew.value)


def energy_j(
    op: Op, seconds: Floats, profile: Profile, padded: Callable[[Floats], Floats]
) -> tuple[Floats, Floats]:
    """Joules of one call on one GPU above static power: (with the SM clock, on the wire); [n_steps]."""
    message = _message(op, padded)
    core, wire = np.zeros_like(message), np.zeros_like(message)
    for law, chosen in _laws(op, profile, message):
        share = wire_share(law.kind, law.gpus)
        core[chosen] = law.busy_w.value * seconds[chosen]
        wire[chosen] = law.wire_byte_j.value * share * message[chosen]
    return core, wire


def _message(op: Op, padded: Callable[[Floats], Floats]) -> Floats:
    """Bytes of the message, of the rows that are really sent; [n_steps]."""
    rows = np.asarray(op.shape["rows"], dtype=np.float64)
    return np.asarray((padded(rows) if op.shape["graph"] else rows) * op.shape["row_bytes"])


def _laws(
    op: Op, profile: Profile, message: Floats
) -> list[tuple[CollectiveProfile, NDArray[np.bool_]]]:
    """The laws that hold, and for which steps."""
    gpus, link = int(op.shape["gpus"]), float(op.shape["node_link_bytes_per_s"])
    everywhere = np.ones(message.shape, dtype=np.bool_)
    if link:
        return [(between_nodes(profile, op.kind, gpus, link), everywhere)]
    usual = collective_of(profile, op.kind, "nccl", gpus)
    if op.kind != "all_reduce" or gpus not in CUSTOM_GPUS:
        return [(usual, everywhere)]
    small = message < CUSTOM_BYTES
    return [(collective_of(profile, op.kind, "vllm", gpus), small), (usual, ~small)]


def collective_seconds(law: CollectiveProfile, message: Floats) -> Floats:
    """Seconds of one call of ``message`` bytes (above 0); [n]."""
    wire = wire_share(law.kind, law.gpus) * message
    seconds = law.latency_s.value + wire / law.bus_bytes_per_s.value
    if not law.left_over:
        return seconds
    sizes, logs = np.array(law.left_over).T
    return np.asarray(
        seconds * np.exp(np.interp(np.log(np.maximum(message, 1.0)), np.log(sizes), logs))
    )


def fabric_of(profile: Profile) -> FabricProfile:
    """What is known of the links.

    Raises:
        InputError: nothing is.
    """
    if profile.fabric is None:
        raise InputError(
            f"profile '{profile.name}' has no calibration of collectives, which more than one GPU "
            "needs: `energymodel calibrate --collectives` measures them."
        )
    return profile.fabric


def measured_gpus(profile: Profile, kind: str, library: str) -> tuple[int, ...]:
    """Numbers of GPUs that a collective was measured on, in order."""
    known = fabric_of(profile).collectives
    return tuple(sorted(c.gpus for c in known if (c.kind, c.library) == (kind, library)))


def collective_of(profile: Profile, kind: str, library: str, gpus: int) -> CollectiveProfile:
    """The law of a collective on ``gpus`` GPUs, drawn through the nearest measured numbers.

    vLLM's own all-reduce is taken to be NCCL's where it was not measured. A send has two ends.

    Raises:
        InputError: nothing like it was measured.
    """
    known = {
        c.gpus: c for c in fabric_of(profile).collectives if (c.kind, c.library) == (kind, library)
    }
    if kind == "send_recv" and known:
        return known[min(known)]
    if gpus in known:
        return known[gpus]
    if not known and library != "nccl":
        return collective_of(profile, kind, "nccl", gpus)
    if not known:
        raise InputError(
            f"profile '{profile.name}' has no calibration of {kind}: `energymodel calibrate "
            "--collectives` measures it."
        )
    return _drawn(known, gpus)


def _drawn(known: dict[int, CollectiveProfile], gpus: int) -> CollectiveProfile:
    """The law of a number of GPUs that was not measured."""
    nearest = known[min(known, key=lambda n: abs(np.log2(n / gpus)))]
    others = [c for c in known.values() if c.gpus != nearest.gpus]
    if not others:  # one number says nothing of how it grows
        time, energy = (
            float(np.hypot(error, UNKNOWN_LINK))
            for error in (nearest.time_error, nearest.energy_error)
        )
        return replace(nearest, gpus=gpus, time_error=time, energy_error=energy)
    other = min(others, key=lambda c: abs(np.log2(c.gpus / gpus)))
    share = float(np.log2(gpus / nearest.gpus) / np.log2(other.gpus / nearest.gpus))

    def along(a: Estimate, b: Estimate) -> Estimate:
        """On the line through both in log2 n, never below the smaller of them by a half."""
        value = a.value + share * (b.value - a.value)
        least = 0.5 * min(a.value, b.value)
        stderr = float(np.hypot((1.0 - share) * a.stderr, share * b.stderr))
        # Nobody measured whether the line goes on: as uncertain as its step is long.
        off = abs(share) * abs(b.value - a.value)
        return replace(a, value=max(value, least), stderr=float(np.hypot(stderr, off)))

    latency_s = along(nearest.latency_s, other.latency_s)
    busy_w = along(nearest.busy_w, other.busy_w)
    wire_byte_j = along(nearest.wire_byte_j, other.wire_byte_j)
    joules = max(_relative(busy_w), _relative(wire_byte_j))
    return replace(
        nearest,
        gpus=gpus,
        latency_s=latency_s,
        busy_w=busy_w,
        wire_byte_j=wire_byte_j,
        time_error=float(np.hypot(nearest.time_error, _relative(latency_s))),
        energy_error=float(np.hypot(nearest.energy_error, joules)),
    )


def _relative(estimate: Estimate) -> float:
    return estimate.stderr / estimate.value if estimate.value else 0.0


def between_nodes(profile: Profile, kind: str, gpus: int, bytes_per_s: float) -> CollectiveProfile:
    """The law of a collective over a link between nodes whose rate was declared."""
    inside = collective_of(profile, kind, "nccl", gpus)
    slower = min(bytes_per_s, inside.bus_bytes_per_s.value)
    return replace(
        inside,
        gpus=gpus,
        latency_s=replace(inside.latency_s, value=inside.latency_s.value + ASSUMED_LATENCY_S),
        bus_bytes_per_s=replace(inside.bus_bytes_per_s, value=slower),
        left_over=(),
    )


def errors(op: Op, profile: Profile) -> tuple[float, float]:
    """Relative errors of (energy, time) of a collective on sizes held out, the worst of its laws.

    0 of a bubble, whose waiting is counted, not timed.
    """
    if not is_collective(op):
        return 0.0, 0.0
    gpus, link = int(op.shape["gpus"]), float(op.shape["node_link_bytes_per_s"])
    if link:
        return UNKNOWN_LINK, UNKNOWN_LINK
    libraries = ("nccl", "vllm") if op.kind == "all_reduce" else ("nccl",)
    laws = [collective_of(profile, op.kind, library, gpus) for library in libraries]
    return max(law.energy_error for law in laws), max(law.time_error for law in laws)


def origin(ops: Sequence[Op], profile: Profile) -> str | None:
    """Where the collectives of a run come from, the weakest of them: None where there are none."""
    origins = {_origin(op, profile) for op in ops if is_collective(op)}
    return next((kind for kind in ("assumed", "extrapolated", "measured") if kind in origins), None)


def _origin(op: Op, profile: Profile) -> str:
    if op.shape["node_link_bytes_per_s"]:
        return "assumed"
    known = measured_gpus(profile, op.kind, "nccl")
    return "measured" if int(op.shape["gpus"]) in known else "extrapolated"


def warnings(ops: Sequence[Op], deployment: Deployment, profile: Profile) -> list[str]:
    """Where a replica of several GPUs reaches beyond what was measured, a sentence each."""
    found = []
    if deployment.enable_expert_parallel and any(op.kind == "moe" for op in ops):
        found.append("enable_expert_parallel: no run was measured; routing is taken to be random.")
    for op in ops:
        gpus, link = op.shape.get("gpus"), op.shape.get("node_link_bytes_per_s")
        if op.name == DISPATCH:
            found.append("data_parallel_size: no run was measured whose copies share experts.")
        if op.kind == BUBBLE:
            found.append(
                "pipeline_parallel_size: bubbles follow vLLM's scheduler; no run was measured."
            )
        elif is_collective(op) and link:
            found.append(
                f"the link between nodes ({float(link):.3g} bytes/s for each GPU) is assumed as "
                f"declared, with {ASSUMED_LATENCY_S * 1e6:g} us more for each collective and an error "
                f"of {UNKNOWN_LINK:.0%}: none was measured."
            )
        elif is_collective(op) and _origin(op, profile) == "extrapolated":
            known = ", ".join(map(str, measured_gpus(profile, op.kind, "nccl")))
            found.append(
                f"{op.kind} of {int(gpus or 0)} GPUs was not measured: extrapolated from {known}."
            )
    return list(dict.fromkeys(found))
