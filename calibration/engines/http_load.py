"""Load on an OpenAI-compatible server: streamed completions, each token's arrival timed.

Several processes send, so that reading tens of thousands of events a second does not wait for one
interpreter. Standard library only: a connection of its own for each request, HTTP/1.1.
"""

import asyncio
import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

# Processes that send.
SENDERS = 8
_EVENT = b"data: {"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request: its JSON body and when it is sent, in seconds after the start."""

    body: Mapping[str, Any]
    at_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """When a request was sent and its events came, by the host's monotonic clock."""

    sent_s: float
    event_s: tuple[float, ...]


class Load:
    """A pool of senders, kept between loads as starting them costs seconds."""

    def __init__(self, port: int, senders: int = SENDERS) -> None:
        self._port, self._senders = port, senders
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(senders, mp_context=spawn)
        list(self._pool.map(time.sleep, [0.5] * senders))  # all are there

    def close(self) -> None:
        """End the senders."""
        self._pool.shutdown()

    def run(self, calls: Sequence[Call], *, lead_s: float = 0.02) -> list[Answer]:
        """Send all calls at their times, counted from ``lead_s`` from now; wait for every answer.

        Raises:
            RuntimeError: the server refused a request, or its answer broke off.
        """
        start_s = time.monotonic() + lead_s
        shares = [list(calls[i :: self._senders]) for i in range(self._senders)]
        jobs = [self._pool.submit(send, self._port, share, start_s) for share in shares if share]
        return [answer for job in jobs for answer in job.result()]


def send(port: int, calls: Sequence[Call], start_s: float) -> list[Answer]:
    """Send calls at their times after ``start_s`` (monotonic) from this process; their answers."""

    async def everything() -> list[Answer]:
        return list(await asyncio.gather(*(_one(port, call, start_s) for call in calls)))

    return asyncio.run(everything())


async def _one(port: int, call: Call, start_s: float) -> Answer:
    body = json.dumps(call.body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    await asyncio.sleep(max(0.0, start_s + call.at_s - time.monotonic()))
    sent_s = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + body)
        await writer.drain()
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"the server answered {status.decode(errors='replace').strip()}")
        event_s = await _events(reader)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    if not event_s:
        raise RuntimeError("the server sent no token")
    return Answer(sent_s=sent_s, event_s=tuple(event_s))


async def _events(reader: asyncio.StreamReader) -> list[float]:
    """When each event of an answer came."""
    event_s: list[float] = []
    rest = b""
    while data := await reader.read(65536):
        now_s = time.monotonic()
        rest += data
        event_s += [now_s] * rest.count(_EVENT)
        rest = rest[-len(_EVENT) + 1 :]  # may hold the beginning of the next event
    return event_s
