"""What a byte costs in the memory of this very board, which differs between boards of one GPU.

The memory's own power sensor is read while a copy streams all the time and a part of the time; the
slope of watts over bytes per second is joules per byte.
"""

from collections.abc import Callable, Iterator

from calibration.doctor.facts import GpuFacts
from calibration.doctor.finding import NOTE, OK, Finding, finding
from calibration.doctor.load import Stream
from calibration.doctor.phases import Bedside
from energymodel import profile
from energymodel.deployment import LEAST_BYTE_J, MOST_BYTE_J
from energymodel.profile import MemoryKind

SHARES = (1.0, 0.4)
# The sensor is a mean over a second, which has to forget what was before.
SETTLE_S, DURATION_S = 1.6, 2.0
# Streams that differ less than this say nothing of a slope.
LEAST_DIFFERENCE = 0.2
# A memory is of a known kind if a byte costs within this share of what it costs there.
ALIKE = 0.2


def memory_byte_j(bedside: Bedside, stream_of: Callable[[float], Stream]) -> float | None:
    """Joules per byte in the memory; None without a sensor of its power.

    Args:
        bedside: the GPU.
        stream_of: a copy that streams for a share of the time.

    Raises:
        WorkError: the copy failed.
    """
    (fast, high_w), (slow, low_w) = (
        bedside.stream(stream_of(share), settle_s=SETTLE_S, duration_s=DURATION_S)
        for share in SHARES
    )
    if high_w is None or low_w is None or fast - slow < LEAST_DIFFERENCE * fast:
        return None
    byte_j = (high_w - low_w) / (fast - slow)
    # No memory costs less or more: the sensor did not follow the copy.
    return byte_j if LEAST_BYTE_J <= byte_j <= MOST_BYTE_J else None


def of_memory(facts: GpuFacts, byte_j: float | None) -> Iterator[Finding]:
    """What it means for predictions with the shipped profile."""
    if byte_j is None:
        return
    cost = f"a byte costs {byte_j * 1e12:.0f} pJ in the memory"
    kinds = _known(facts.gpu)
    if not kinds:
        yield finding(OK, cost, "no shipped profile knows other boards to compare it with")
        return
    boards = sum(len(kind.boards) for kind in kinds)
    for i, kind in enumerate(kinds):
        if abs(byte_j / kind.byte_j.value - 1) <= ALIKE:
            like = f"like {len(kind.boards)} of the {boards} boards of the shipped profile"
            remedy = f"predict with --hbm-byte-j {byte_j:.2g}" if i else None
            yield finding(NOTE if i else OK, cost, like, remedy)
            return
    known = " and ".join(f"{kind.byte_j.value * 1e12:.0f}" for kind in kinds)
    yield finding(
        NOTE,
        cost,
        f"boards of the shipped profile had {known} pJ",
        f"predict with --hbm-byte-j {byte_j:.2g}, or calibrate this board",
    )


def _known(gpu: str | None) -> tuple[MemoryKind, ...]:
    kinds = profile.load(gpu).memory if gpu in profile.available() else ()
    return tuple(kind for kind in kinds if kind.byte_j.value)
