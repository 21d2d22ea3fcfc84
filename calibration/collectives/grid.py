"""What is measured of a fabric: collectives, sizes and modes, most informative first."""

from collections.abc import Sequence
from dataclasses import dataclass

from calibration.collectives.observations import Dtype, Library, Mode, Op, point_key
from energymodel.fabric import CUSTOM_BYTES

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
# How late rank 0 comes to a call where waiting is measured.
SKEW_US = 2000
# A product that takes about as long as the all-reduce beside it.
PRODUCT = (4096, 4096, 8192)
OVERLAP_BYTES = 64 * MIB
# So that a burst and a window of every size exist: doublings by 4 from 1 KiB to 1 GiB.
SIZES = tuple(KIB << shift for shift in range(0, 21, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One collective of one size; ``energy``: windows are taken, not bursts alone."""

    op: Op
    library: Library = "nccl"
    message_bytes: int = 0
    dtype: Dtype = "bfloat16"
    skew_us: int = 0
    m: int = 0
    n: int = 0
    k: int = 0
    energy: bool = False

    def key(self, gpus: int) -> str:
        """Its name among the observations of ``gpus`` GPUs."""
        how = (self.op, self.library, self.dtype)
        return point_key(how, gpus, self.message_bytes, self.skew_us)

    @property
    def mode(self) -> Mode:
        """Mode of its windows."""
        if self.op == "idle":
            return "idle"
        return "wait" if self.skew_us else "sustained"

    @property
    def title(self) -> str:
        """A few words for people."""
        size = f" {self.message_bytes / MIB:.4g} MiB" if self.message_bytes else ""
        late = f", {self.skew_us} us late" if self.skew_us else ""
        return f"{self.op}{size} {self.dtype} {self.library}{late}"


# Energy is taken at these sizes, time at all.
QUICK_SIZES = (16 * KIB, MIB, 64 * MIB)
ALL_REDUCE_ENERGY = (16 * KIB, 256 * KIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB, GIB)
CUSTOM_ENERGY = (16 * KIB, 256 * KIB, 4 * MIB)
OTHER_ENERGY: dict[Op, tuple[int, ...]] = {
    "all_gather": (256 * KIB, 16 * MIB, 256 * MIB),
    "reduce_scatter": (256 * KIB, 16 * MIB, 256 * MIB),
    "all_to_all": (16 * MIB, 256 * MIB),
    "send_recv": (16 * MIB, 256 * MIB),
}


def full(*, custom: bool) -> list[Point]:
    """Collectives of NCCL and, with ``custom``, vLLM's own all-reduce; windows and bursts."""
    points = [Point(op="idle", energy=True)]
    points += _sizes("all_reduce", "nccl", ALL_REDUCE_ENERGY)
    if custom:
        points += [
            p for p in _sizes("all_reduce", "vllm", CUSTOM_ENERGY) if p.message_bytes < CUSTOM_BYTES
        ]
    points += _waits(custom=custom)
    points += _overlaps()
    for op, energy in OTHER_ENERGY.items():
        points += _sizes(op, "nccl", energy)
    points += [
        Point(op="all_reduce", message_bytes=size, dtype="float32", energy=size == 64 * MIB)
        for size in (64 * KIB, 4 * MIB, 64 * MIB, 256 * MIB)
    ]
    return points


def quick(*, custom: bool) -> list[Point]:
    """Half a minute's worth that shows that everything runs: three sizes of each collective."""
    points = [Point(op="idle", energy=True)]
    ops: tuple[Op, ...] = ("all_reduce", *OTHER_ENERGY)
    points += [
        Point(op=op, message_bytes=size, energy=op == "all_reduce")
        for op in ops
        for size in QUICK_SIZES
    ]
    if custom:
        points += [
            Point(op="all_reduce", library="vllm", message_bytes=size, energy=True)
            for size in CUSTOM_ENERGY
        ]
    points.append(Point(op="all_reduce", message_bytes=16 * KIB, skew_us=SKEW_US, energy=True))
    return points + _overlaps()


def _sizes(op: Op, library: Library, energy: Sequence[int]) -> list[Point]:
    """Every size of one collective, in ``energy`` with windows."""
    sizes = sorted({*SIZES, *energy})
    return [
        Point(op=op, library=library, message_bytes=size, energy=size in energy) for size in sizes
    ]


def _waits(*, custom: bool) -> list[Point]:
    """A GPU that is late, and others that wait for it: few and many channels, custom kernel."""
    points = [
        Point(op="all_reduce", message_bytes=size, skew_us=SKEW_US, energy=True)
        for size in (16 * KIB, 16 * MIB)
    ]
    if custom:
        points.append(
            Point(
                op="all_reduce",
                library="vllm",
                message_bytes=16 * KIB,
                skew_us=SKEW_US,
                energy=True,
            )
        )
    return points


def _overlaps() -> list[Point]:
    """A product alone, and beside the all-reduce that is also measured alone."""
    m, n, k = PRODUCT
    return [
        Point(op="product", m=m, n=n, k=k, energy=True),
        Point(op="overlap", message_bytes=OVERLAP_BYTES, m=m, n=n, k=k, energy=True),
    ]


GRIDS = {"quick": quick, "full": full}


def on_gloo() -> list[Point]:
    """What CPU processes can do in seconds: every operation, each in a small size."""
    collectives: tuple[Op, ...] = ("all_reduce", *OTHER_ENERGY)
    return [
        Point(op="idle", library="gloo", energy=True),
        *(
            Point(op=op, library="gloo", message_bytes=64 * KIB, energy=op == "all_reduce")
            for op in collectives
        ),
        Point(op="all_reduce", library="gloo", message_bytes=KIB, skew_us=SKEW_US, energy=True),
        Point(op="product", library="gloo", m=64, n=64, k=64),
        Point(op="overlap", library="gloo", message_bytes=KIB, m=64, n=64, k=64),
    ]
