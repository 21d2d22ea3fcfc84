"""What vLLM is asked in a measured run, its tokenizer, and load on a server."""

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import models_zoo
from calibration import measure
from calibration.engines import vllm_requests
from calibration.engines.http_load import Answer, Call, send
from calibration.engines.vllm_server import latency_facts
from calibration.simulation.gpu import SimulatedGpu, SimulatedSensor
from energymodel.deployment import Deployment
from energymodel.workload import Bin, Workload

TWO_BINS = Workload(
    bins=(
        Bin(input_tokens=64, output_tokens=4, count=2),
        Bin(input_tokens=32, output_tokens=1, count=1),
    )
)
CACHING = Deployment(enable_prefix_caching=True, prefix_cache_hit_rate=0.5)


def test_sampling_is_what_the_deployment_says() -> None:
    greedy = vllm_requests.sampling(Deployment(), 7)
    assert greedy == {"max_tokens": 7, "ignore_eos": True, "temperature": 0.0}
    drawn = vllm_requests.sampling(Deployment(sampling="random", penalties=True), 0)
    assert drawn["max_tokens"] == 1
    assert drawn["temperature"] > 0
    assert drawn["repetition_penalty"] != 1.0
    assert "top_k" not in drawn
    filtered = vllm_requests.sampling(Deployment(sampling="filtered"), 1)
    assert filtered.keys() >= {"top_k", "top_p"}
    assert "repetition_penalty" not in filtered


def test_requests_of_a_bin_share_their_prefix_and_nothing_else() -> None:
    first, second, other = vllm_requests.prompts(TWO_BINS, CACHING, 1000, seed=1)
    assert (len(first), len(second), len(other)) == (64, 64, 32)
    assert first[:32] == second[:32]
    assert first[32:] != second[32:]
    again = vllm_requests.prompts(TWO_BINS, CACHING, 1000, seed=2)[0]
    assert again[:32] == first[:32]
    assert again[32:] != first[32:]
    plain = vllm_requests.prompts(TWO_BINS, Deployment(), 1000, seed=1)
    assert plain[0][:32] != plain[1][:32]


def test_a_pass_finds_only_the_prefix() -> None:
    tokens = vllm_requests.prompts(TWO_BINS, CACHING, 1000, seed=1)
    before = [list(prompt) for prompt in tokens]
    places = vllm_requests.own_tokens(TWO_BINS, CACHING)
    assert places == [32, 32, 16]
    vllm_requests.freshen(tokens, places, itertools.count(2000))
    for old, new, place in zip(before, tokens, places, strict=True):
        assert [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b] == [place]
    # Even a prompt that is known to its end has one token of its own: the last is computed.
    everything = replace(CACHING, prefix_cache_hit_rate=1.0)
    assert vllm_requests.own_tokens(TWO_BINS, everything) == [63, 63, 31]


def test_every_token_of_the_tokenizer_has_a_text(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vllm_requests.write_tokenizer(tmp_path, 400)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 400
    assert tokenizer.is_fast
    assert tokenizer.decode([300, 399]) == " w44 w143"


def test_a_server_is_measured_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class StartedError(Exception):
        """The engine of the server was asked for."""

    def engine(*_: object, **__: object) -> None:
        raise StartedError

    monkeypatch.setattr(measure, "find_spec", lambda _: True)
    monkeypatch.setattr(measure.vllm_server, "Engine", engine)
    with pytest.raises(StartedError):
        measure.measure(
            "Qwen/Qwen3-8B",
            models_zoo.find("Qwen/Qwen3-8B") or {},
            TWO_BINS,
            deployment=Deployment(server=True),
            sensor=SimulatedSensor(SimulatedGpu(name="NVIDIA H200")),
            out=tmp_path / "runs.jsonl",
        )


def test_latency_by_hand() -> None:
    answers = [
        Answer(sent_s=0.0, event_s=(1.0, 1.5, 1.75)),
        Answer(sent_s=1.0, event_s=(4.0,)),
    ]
    facts = latency_facts(answers)
    assert facts["ttft_mean_s"] == 2.0
    assert facts["itl_mean_s"] == 0.375
    assert latency_facts(answers[1:]).keys() == {"ttft_mean_s", "ttft_p90_s"}


class Server:
    """Streams as many events as tokens were asked for, the last one in two pieces."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, int]] = []
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(5)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._ending = asyncio.Event()
        async with await asyncio.start_server(self._answer, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._ending.wait()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(h for h in head.split(b"\r\n") if h.lower().startswith(b"content-length"))
        body = json.loads(await reader.readexactly(int(length.split(b":")[1])))
        self.bodies.append(body)
        ok = body["max_tokens"] > 0
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" if ok else b"HTTP/1.1 400 Bad Request\r\n\r\n")
        for _ in range(body["max_tokens"]):
            writer.write(b"da")
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.write(b'ta: {"text": "w"}\n\n')
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


def test_every_token_is_timed_where_it_arrives_in_pieces(server: Server) -> None:
    calls = [Call(body={"max_tokens": 3}), Call(body={"max_tokens": 2}, at_s=0.1)]
    start_s = time.monotonic()
    first, second = send(server.port, calls, start_s)
    assert (len(first.event_s), len(second.event_s)) == (3, 2)
    assert second.sent_s >= start_s + 0.1
    assert list(first.event_s) == sorted(first.event_s)
    assert {body["max_tokens"] for body in server.bodies} == {2, 3}


def test_a_refused_request_is_an_error(server: Server) -> None:
    with pytest.raises(RuntimeError, match="400 Bad Request"):
        send(server.port, [Call(body={"max_tokens": 0})], time.monotonic())
