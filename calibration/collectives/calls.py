"""The calls of one rank: collectives of torch.distributed, vLLM's custom all-reduce, a late GPU.

Operands are normal(0, 1). The all-reduce of NCCL takes the largest instead of the sum: it moves and
combines the same bytes, and values that are reduced in place again and again stay finite. Nothing
rotates against the L2 cache: what is reduced in a model has just been written.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from calibration.collectives.grid import Point
from calibration.device_time import timed
from calibration.window import Work
from energymodel.fabric import CUSTOM_BYTES

CHUNK_S = 4e-3
MAX_CALLS = 500
WARM_CALLS = 5
TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Custom:
    """vLLM's all-reduce for small messages, and the buffer that its graphs reduce.

    The buffer lives as long as the communicator, which keeps it mapped into the other GPUs.
    """

    communicator: Any
    buffer: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a rank runs: its number, how many there are, its device, and their agreement.

    ``largest`` gives every rank the largest of what they pass; ``max_clock_hz`` is the clock that a
    late GPU counts by.
    """

    rank: int
    gpus: int
    device: torch.device
    largest: Callable[[float], float]
    max_clock_hz: float
    custom: Custom | str = "not asked for"


def custom(group: dist.ProcessGroup, device: torch.device) -> Custom | str:
    """The custom all-reduce of vLLM, or why these GPUs cannot take it.

    Args:
        group: the ranks, on a backend of the CPU, which is how vLLM exchanges handles.
        device: the CUDA GPU of this rank.
    """
    try:
        from vllm.distributed.device_communicators.custom_all_reduce import CustomAllreduce

        communicator = CustomAllreduce(group=group, device=device)
    except Exception as error:  # noqa: BLE001 - vLLM's own, on every rank alike
        return str(error) or type(error).__name__
    if communicator.disabled:
        return "vLLM turns it off on these GPUs"
    return Custom(communicator=communicator, buffer=_normal(CUSTOM_BYTES, torch.bfloat16, device))


def work(point: Point, place: Place) -> tuple[Work, str]:
    """A point as chunks, and the name of the code that it exercises.

    On a GPU a chunk is a CUDA graph of about 4 ms; all ranks capture as many calls.
    """
    call, stack = _call(point, place)
    if place.device.type != "cuda":
        calls = _agreed_calls(place, _host_s(call))
        return Work(submit=lambda: lambda: _run(call, calls), calls_per_chunk=calls), stack
    for _ in range(WARM_CALLS):
        call()
    torch.cuda.synchronize()

    def few() -> None:
        for _ in range(WARM_CALLS):
            call()

    calls = _agreed_calls(place, timed(few)() / WARM_CALLS)
    graph = torch.cuda.CUDAGraph()
    # NCCL's watchdog is another thread: it may go on asking the device.
    with (
        _registered(point, place),
        torch.cuda.graph(graph, capture_error_mode="thread_local"),
    ):
        for _ in range(calls):
            call()
    timed(graph.replay)()
    return Work(submit=lambda: timed(graph.replay), calls_per_chunk=calls), stack


def _agreed_calls(place: Place, call_s: float) -> int:
    return max(1, min(round(CHUNK_S / place.largest(max(call_s, 1e-6))), MAX_CALLS))


def _registered(point: Point, place: Place) -> AbstractContextManager[Any]:
    """What vLLM's all-reduce needs around a capture: its buffers are made known to the others."""
    if point.library == "vllm" and isinstance(place.custom, Custom):
        context: AbstractContextManager[Any] = place.custom.communicator.capture()
        return context
    return nullcontext()


def _run(call: Call, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def _host_s(call: Call) -> float:
    call()
    return _run(call, WARM_CALLS) / WARM_CALLS


def _call(point: Point, place: Place) -> tuple[Call, str]:
    if point.op == "product":
        return _product(point, place), f"torch {torch.__version__} mm"
    collective, stack = _collective(point, place)
    if point.op == "overlap":
        return _beside(_product(point, place), collective, place), stack
    if point.skew_us and place.rank == 0:
        return _late(collective, point.skew_us * 1e-6, place), stack
    return collective, stack


def _collective(point: Point, place: Place) -> tuple[Call, str]:
    if point.library == "vllm":
        if isinstance(place.custom, str):
            raise ValueError(f"vLLM's custom all-reduce: {place.custom}")
        dtype = TYPES[point.dtype]
        small = place.custom.buffer.view(dtype)[: point.message_bytes // dtype.itemsize]
        reduce = place.custom.communicator.custom_all_reduce
        return lambda: reduce(small), "vllm custom all-reduce"
    return _of_torch(point, place), _stack()


def _of_torch(point: Point, place: Place) -> Call:
    dtype, gpus = TYPES[point.dtype], place.gpus
    whole = _normal(point.message_bytes, dtype, place.device, multiple=gpus)
    share = whole[: whole.numel() // gpus]
    match point.op:
        case "all_reduce" | "overlap":
            return lambda: dist.all_reduce(whole, op=dist.ReduceOp.MAX)
        case "all_gather":
            own = share.clone()
            return lambda: dist.all_gather_into_tensor(whole, own)
        case "reduce_scatter":
            own = share.clone()
            return lambda: dist.reduce_scatter_tensor(own, whole)
        case "all_to_all":
            received = torch.empty_like(whole)
            return lambda: dist.all_to_all_single(received, whole)
        case "send_recv":
            return _paired(whole, place)
    raise ValueError(f"{point.op} is not a collective")


def _paired(message: torch.Tensor, place: Place) -> Call:
    """Every even rank sends to the odd one after it, as a stage of a pipeline does."""
    even = place.rank % 2 == 0
    if even and place.rank + 1 == place.gpus:
        return lambda: None
    peer = place.rank + 1 if even else place.rank - 1
    operation = dist.isend if even else dist.irecv

    def call() -> None:
        for request in dist.batch_isend_irecv([dist.P2POp(operation, message, peer)]):
            request.wait()

    return call


def _product(point: Point, place: Place) -> Call:
    dtype, device = TYPES[point.dtype], place.device
    a = torch.empty(point.m, point.k, dtype=dtype, device=device).normal_()
    b = torch.empty(point.k, point.n, dtype=dtype, device=device).normal_(0.0, 0.02)
    out = torch.empty(point.m, point.n, dtype=dtype, device=device)
    return lambda: torch.mm(a, b, out=out)


def _beside(product: Call, collective: Call, place: Place) -> Call:
    """Both at once, each on a stream of its own."""
    if place.device.type != "cuda":
        return lambda: (product(), collective())
    side = torch.cuda.Stream()

    def call() -> None:
        here = torch.cuda.current_stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            product()
        collective()
        here.wait_stream(side)

    return call


def _late(collective: Call, skew_s: float, place: Place) -> Call:
    """The collective after a pause on this GPU; the others are in theirs already."""
    if place.device.type != "cuda":

        def on_host() -> None:
            time.sleep(skew_s)
            collective()

        return on_host
    cycles = round(skew_s * place.max_clock_hz)

    def call() -> None:
        torch.cuda._sleep(cycles)
        collective()

    return call


def _normal(
    size_bytes: int, dtype: torch.dtype, device: torch.device, *, multiple: int = 1
) -> torch.Tensor:
    """Normal(0, 1) of about ``size_bytes``, a multiple of ``multiple`` values."""
    count = max(1, size_bytes // dtype.itemsize // multiple) * multiple
    return torch.empty(count, dtype=dtype, device=device).normal_()


def _stack() -> str:
    if dist.get_backend() == "nccl":
        return "NCCL " + ".".join(map(str, torch.cuda.nccl.version()))
    return f"torch {torch.__version__} {dist.get_backend()}"
