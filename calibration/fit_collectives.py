"""Measured collectives -> the laws of ``energymodel.fabric``.

For each collective, library and number of GPUs: latency and bus rate by robust least squares in log
time, what the law leaves over at each size, and joules for each second and each byte on the wire by
non-negative least squares on what all energy counters saw above static power. What a GPU spends that
waits inside a collective comes from windows in which one GPU is late to every call. Sizes are held out
one at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from calibration.collectives import observations as file
from calibration.collectives.observations import CollectiveObservation, RankWindow
from calibration.files import write_whole
from calibration.fit_workers import with_whole_runs
from calibration.gpu import datasheet
from calibration.robust import deviations, robust_fit
from energymodel import io
from energymodel import profile as profiles
from energymodel.collectives import KINDS, wire_share
from energymodel.errors import InputError
from energymodel.fabric import collective_seconds
from energymodel.find_model import find_model
from energymodel.io import read_runs
from energymodel.profile import CollectiveProfile, Estimate, FabricProfile, Profile

Array = NDArray[np.float64]

LEAST_SIZES = 3
OUTLIER_AT = 0.1
# Where to begin: a few microseconds, and half of what NVLink of the fourth generation carries.
START_S, START_BYTES_PER_S = 10e-6, 3e11
# Of a fit that leaves one value at its bound: nothing is known of it but its size.
UNKNOWN = 1.0
DTYPE = "bfloat16"
SMALL_BYTES = 64 * 1024
# Whole runs on several GPUs, beside those of one.
RUNS = "parallel_runs.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """One collective of one library on so many GPUs, [n] observations each.

    ``net_j``: of one call on one GPU above static power, mean over the GPUs; nan of bursts.
    """

    kind: str
    library: str
    gpus: int
    message: Array
    seconds: Array
    net_j: Array
    stack: str

    @property
    def wire(self) -> Array:
        """Bytes on the links of each GPU."""
        return wire_share(self.kind, self.gpus) * self.message


def fit_fabric(path: Path, gpu: str) -> FabricProfile:
    """Everything that is known of the links of a host with GPUs of the datasheet ``gpu``.

    Raises:
        InputError: there are too few observations, or they are of another GPU, or of links or
            environments that differ.
    """
    seen = [o for o in file.read(path) if o.library in ("nccl", "vllm")]
    _check_alike(seen, path, gpu)
    groups = [_sizes(group) for group in _grouped(seen).values()]
    enough = [sizes for sizes in groups if np.unique(sizes.message).size >= LEAST_SIZES]
    if not enough:
        raise InputError(f"{path}: no collective was measured at {LEAST_SIZES} sizes or more.")
    wait_w = _waiting(seen, path)
    fitted = [_fit(sizes, groups, wait_w) for sizes in enough]
    first = seen[0]
    return FabricProfile(
        collectives=tuple(_judged(law, fitted) for law in fitted),
        wait_w=wait_w,
        link=first.link,
        environment=dict(first.environment),
        boards=tuple(sorted({r.board for o in seen for r in o.ranks})),
    )


def _check_alike(seen: Sequence[CollectiveObservation], path: Path, gpu: str) -> None:
    """One kind of GPU, one kind of link and one environment: a fit of several is of none."""
    for number, o in enumerate(seen, start=1):
        if datasheet(o.gpu) != gpu:
            raise InputError(f"{path} is of '{o.gpu}', not {gpu}: choose another file or --gpu.")
        for field in ("link", "environment"):
            first, other = (getattr(one, field) for one in (seen[0], o))
            if first != other:
                raise InputError(
                    f"{path}: {field} of collective {number} must be that of the first, "
                    f"{_differing(first, other)}: fit them apart."
                )


def _differing(first: str | Mapping[str, str], other: str | Mapping[str, str]) -> str:
    """What two values are, of mappings the first key that differs."""
    if isinstance(first, str) or isinstance(other, str):
        return f"{first!r}, got {other!r}"
    key = min(k for k in {*first, *other} if first.get(k) != other.get(k))
    return f"{key} {first.get(key)!r}, got {other.get(key)!r}"


def _grouped(
    seen: Sequence[CollectiveObservation],
) -> dict[tuple[str, str, int], list[CollectiveObservation]]:
    groups: dict[tuple[str, str, int], list[CollectiveObservation]] = {}
    for o in seen:
        late = o.mode not in ("burst", "sustained") or o.skew_us > 0
        if o.op in KINDS and o.dtype == DTYPE and not late:
            groups.setdefault((o.op, o.library, o.gpus), []).append(o)
    return groups


def _sizes(group: Sequence[CollectiveObservation]) -> Sizes:
    first = group[0]
    return Sizes(
        kind=first.op,
        library=first.library,
        gpus=first.gpus,
        message=np.array([float(o.message_bytes) for o in group]),
        seconds=np.array([o.call_s for o in group]),
        net_j=np.array([_net_j(o.ranks) for o in group]),
        stack=", ".join(sorted({o.stack for o in group})),
    )


def _net_j(ranks: Sequence[RankWindow]) -> float:
    """Energy of one call above static power, mean over GPUs; nan of a burst."""
    return float(np.mean([_net_of(r) for r in ranks]))


def _net_of(r: RankWindow) -> float:
    return r.net_j / r.calls if r.net_j is not None and r.calls else np.nan


# --- time and energy ------------------------------------------------------------------------------


def _fit(sizes: Sizes, every: Sequence[Sizes], wait_w: Estimate) -> CollectiveProfile:
    fitted = _with_energy(_law(sizes), sizes, every, wait_w)
    time_errors, energy_errors = [], []
    for size in np.unique(sizes.message):
        held = sizes.message == size
        if np.unique(sizes.message[~held]).size < LEAST_SIZES:
            continue
        rest = _chosen(sizes, ~held)
        other = _with_energy(_law(rest), rest, every, wait_w)
        seconds = collective_seconds(other, sizes.message[held])
        time_errors.append(np.median(np.abs(np.log(seconds / sizes.seconds[held]))))
        known = held & np.isfinite(sizes.net_j)
        if known.any() and np.isfinite(rest.net_j).any():
            joules = _joules(other, sizes.seconds[known], sizes.wire[known])
            energy_errors.append(np.median(np.abs(joules / sizes.net_j[known] - 1.0)))
    return replace(
        fitted,
        time_error=float(np.median(time_errors)) if time_errors else UNKNOWN,
        energy_error=float(np.median(energy_errors)) if energy_errors else UNKNOWN,
    )


def _judged(law: CollectiveProfile, every: Sequence[CollectiveProfile]) -> CollectiveProfile:
    """Where no energy could be held out, it is judged by what else is known of the kind, the worst."""
    if law.energy_error != UNKNOWN:
        return law
    known = [c.energy_error for c in every if c.kind == law.kind and c.energy_error != UNKNOWN]
    return replace(law, energy_error=max(known, default=UNKNOWN))


def _chosen(sizes: Sizes, mask: NDArray[np.bool_]) -> Sizes:
    return replace(
        sizes, message=sizes.message[mask], seconds=sizes.seconds[mask], net_j=sizes.net_j[mask]
    )


def _law(sizes: Sizes) -> CollectiveProfile:
    """Latency, bus rate, and what they leave over at each size."""
    wire, logs = sizes.wire, np.log(sizes.seconds)

    def residuals(values: Array) -> Array:
        law = np.log(START_S * np.exp(values[0]) + wire / (START_BYTES_PER_S * np.exp(values[1])))
        return np.asarray(law - logs)

    repeats = logs.size / np.unique(sizes.message).size
    found, covariance = robust_fit(
        residuals, np.zeros(2), data=logs.size, outlier_at=OUTLIER_AT, repeats=repeats
    )
    relative = deviations(covariance)
    latency_s, rate = START_S * np.exp(found[0]), START_BYTES_PER_S * np.exp(found[1])
    left = -residuals(found)
    unknown = Estimate(value=0.0, stderr=0.0, unit="")
    return CollectiveProfile(
        kind=sizes.kind,
        library=sizes.library,
        gpus=sizes.gpus,
        latency_s=Estimate(value=float(latency_s), stderr=float(latency_s * relative[0]), unit="s"),
        bus_bytes_per_s=Estimate(value=float(rate), stderr=float(rate * relative[1]), unit="B/s"),
        wire_byte_j=unknown,
        busy_w=unknown,
        left_over=tuple(
            (float(size), float(np.median(left[sizes.message == size])))
            for size in np.unique(sizes.message)
        ),
        time_error=UNKNOWN,
        energy_error=UNKNOWN,
        stack=sizes.stack,
    )


def _with_energy(
    law: CollectiveProfile, sizes: Sizes, every: Sequence[Sizes], wait_w: Estimate
) -> CollectiveProfile:
    """Joules a second and a byte.

    With windows at few sizes, a second costs what waiting does, whose kernel polls likewise; with
    none, both are those of NCCL's all-reduce.
    """
    named = ("all_reduce", "nccl", sizes.gpus)
    others = [s for s in every if (s.kind, s.library, s.gpus) == named]
    chosen = next((s for s in (sizes, *others) if np.isfinite(s.net_j).any()), None)
    if chosen is None:
        raise InputError(f"no energy was measured of {sizes.kind} on {sizes.gpus} GPUs.")
    known = np.isfinite(chosen.net_j)
    joules, seconds, wire = chosen.net_j[known], chosen.seconds[known], chosen.wire[known]
    if np.unique(chosen.message[known]).size < LEAST_SIZES:
        # Least squares in relative errors, one value free.
        moved, left = wire / joules, 1.0 - wait_w.value * seconds / joules
        byte_j = max(float(moved @ left / (moved @ moved)), 0.0)
        spread = float(np.std(byte_j * moved - left)) / np.sqrt(float(moved @ moved))
        return replace(
            law,
            busy_w=wait_w,
            wire_byte_j=Estimate(value=byte_j, stderr=spread, unit="J/B"),
        )
    design = np.stack([seconds, wire], axis=1) / joules[:, None]
    unit = np.linalg.norm(design, axis=0)
    values = nnls(design / unit, np.ones(joules.size))[0] / unit
    misses = design @ values - 1.0
    free = values > 0
    scale = float(misses @ misses) / max(joules.size - int(free.sum()), 1)
    errors = np.sqrt(scale / (design**2).sum(axis=0))
    active = design[:, free]
    errors[free] = np.sqrt(scale * np.diag(np.linalg.inv(active.T @ active)))
    return replace(
        law,
        busy_w=Estimate(value=float(values[0]), stderr=float(errors[0]), unit="W"),
        wire_byte_j=Estimate(value=float(values[1]), stderr=float(errors[1]), unit="J/B"),
    )


def _joules(law: CollectiveProfile, seconds: Array, wire: Array) -> Array:
    return law.busy_w.value * seconds + law.wire_byte_j.value * wire


# --- waiting --------------------------------------------------------------------------------------


def _waiting(seen: Sequence[CollectiveObservation], path: Path) -> Estimate:
    """Watts above static power of a GPU that waits inside a collective for a late one.

    Taken from small messages, whose own time is next to nothing of the wait.
    """
    watts = [
        _net_of(r) / r.call_s
        for o in seen
        if o.mode == "wait" and o.message_bytes <= SMALL_BYTES
        for r in o.ranks[1:]
        if np.isfinite(_net_of(r))
    ]
    if not watts:
        raise InputError(f"{path}: no window in which a GPU waits for a late one.")
    spread = float(np.std(watts, ddof=1)) / np.sqrt(len(watts)) if len(watts) > 1 else watts[0]
    return Estimate(value=float(np.mean(watts)), stderr=float(spread), unit="W")


# --- profile --------------------------------------------------------------------------------------


def with_fabric(profile: Profile, measured: Path, gpu: str, *, simulated: bool) -> Profile:
    """The profile with the links as measured beside ``measured``, else as shipped, if at all."""
    own = measured.with_name(file.FILE)
    links = own if own.is_file() else None if simulated else shipped(gpu, file.FILE)
    if links is None:
        return profile
    return _with_workers(replace(profile, fabric=fit_fabric(links, gpu)), gpu, simulated=simulated)


def _with_workers(profile: Profile, gpu: str, *, simulated: bool) -> Profile:
    """What worker processes add, from the shipped runs on several GPUs, if there are any."""
    runs = None if simulated else shipped(gpu, RUNS)
    if runs is None:
        return profile
    measured = [(run, find_model(run.model)[0]) for run in read_runs(runs)]
    return replace(profile, fabric=with_whole_runs(profile, measured))


def shipped(gpu: str, name: str) -> Path | None:
    """A file of the data that come with this package for a GPU, if it is there."""
    found = resources.files("calibration").joinpath("data", gpu, name)
    return Path(str(found)) if found.is_file() else None


def conclude(measured: Path, folder: Path, gpu: str, *, simulated: bool = False) -> Path:
    """Fit the links and write them into the profile of ``folder``; needs no GPU.

    Args:
        measured: collectives.jsonl.
        folder: holds ``<gpu>.json``; the shipped profile is taken where it does not.
        gpu: name of the datasheet.
        simulated: the file came from a simulated host, and so does what is predicted with it.

    Raises:
        InputError: too little was measured, or on another GPU or several kinds of link, or there
            is no profile to add it to.
    """
    target = folder / f"{gpu}.json"
    known = profiles.load(gpu, target if target.is_file() else None)
    changed = replace(known, fabric=fit_fabric(measured, gpu))
    changed = _with_workers(changed, gpu, simulated=simulated)
    if simulated:
        changed = replace(changed, kind="simulated")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(target, io.dumps(changed, indent=None) + "\n")
    return target
