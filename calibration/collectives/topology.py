"""How the GPUs of this host are connected, and what was set for the libraries that connect them."""

import os
from collections.abc import Mapping
from typing import Any

# Variables of NCCL, and those that keep multicast off in what goes beside it.
PREFIXES = ("NCCL_", "TORCH_NCCL_", "TORCH_SYMM_MEM_", "NVSHMEM_", "VLLM_ALLREDUCE_")
MOST_LINKS = 36
# NVML counts versions (nvml.h, NVML_NVLINK_VERSION_*).
VERSIONS = {1: "1.0", 2: "2.0", 3: "2.2", 4: "3.0", 5: "3.1", 6: "4.0", 7: "5.0"}


def environment() -> Mapping[str, str]:
    """What is set for NCCL and its like, by name."""
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith(PREFIXES)}


def link(nvml: Any, uuid: str, peer_uuids: list[str]) -> str:
    """How a GPU reaches its peers: ``18 NVLinks of version 4.0``, ``PCIe``, or ``unknown``.

    Args:
        nvml: the module ``pynvml``, initialised.
        uuid: of this GPU, as NVML spells it.
        peer_uuids: of the others.
    """
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        peers = [nvml.nvmlDeviceGetHandleByUUID(u) for u in peer_uuids]
        joined = all(
            nvml.nvmlDeviceGetP2PStatus(handle, peer, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
            == nvml.NVML_P2P_STATUS_OK
            for peer in peers
        )
    except nvml.NVMLError:
        return "unknown"
    if not joined:
        return "PCIe"
    count, version = _links(nvml, handle)
    return f"{count} NVLinks of version {VERSIONS.get(version, 'unknown')}" if count else "NVLink"


def _links(nvml: Any, handle: Any) -> tuple[int, int]:
    """Active NVLinks of a GPU, and NVML's number of their version; 0 where it does not tell."""
    count = version = 0
    for number in range(MOST_LINKS):
        try:
            if nvml.nvmlDeviceGetNvLinkState(handle, number):
                count += 1
                version = int(nvml.nvmlDeviceGetNvLinkVersion(handle, number))
        except nvml.NVMLError:
            break
    return count, version
