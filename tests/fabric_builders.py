"""A made-up fabric: round numbers that can be worked out by hand."""

from dataclasses import replace

from energymodel.profile import CollectiveProfile, Estimate, FabricProfile, Profile

LATENCY_S, BYTES_PER_S, WIRE_BYTE_J, BUSY_W, WAIT_W = 1e-5, 4e11, 2e-11, 100.0, 60.0


def estimate(value: float, unit: str = "1") -> Estimate:
    return Estimate(value=value, stderr=0.01 * value, unit=unit)


def collective(
    kind: str, library: str, gpus: int, latency_s: float = LATENCY_S
) -> CollectiveProfile:
    return CollectiveProfile(
        kind=kind,
        library=library,
        gpus=gpus,
        latency_s=estimate(latency_s, "s"),
        bus_bytes_per_s=estimate(BYTES_PER_S, "B/s"),
        wire_byte_j=estimate(WIRE_BYTE_J, "J/B"),
        busy_w=estimate(BUSY_W, "W"),
        time_error=0.02,
        energy_error=0.03,
    )


def fabric() -> FabricProfile:
    """2 and 4 GPUs; vLLM's own all-reduce takes half the latency of NCCL's."""
    kinds = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
    nccl = [collective(kind, "nccl", n) for kind in kinds for n in (2, 4)]
    own = [collective("all_reduce", "vllm", n, LATENCY_S / 2) for n in (2, 4)]
    return FabricProfile(
        collectives=(*nccl, *own, collective("send_recv", "nccl", 2)),
        wait_w=estimate(WAIT_W, "W"),
        link="NVLink",
        environment={},
    )


def with_fabric(profile: Profile) -> Profile:
    """The profile, with these links between its GPUs."""
    return replace(profile, fabric=fabric())
