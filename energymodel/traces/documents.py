"""JSON values that hold requests otherwise than as flat rows.

- A result of ``vllm bench serve --save-detailed`` (``vllm/benchmarks/serve.py`` of vLLM 0.24) has
  lists with one entry for each request.
- A conversation in the manner of ShareGPT has messages. Each answer is one request, whose prompt
  is everything said before it; what the prompt of the answer before held is a shared prefix.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from energymodel import io
from energymodel.errors import InputError
from energymodel.steps import Floats, Ints
from energymodel.traces.columns import MAX_TOKENS

_Length = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
_MESSAGES = ("conversations", "conversation", "messages")
_ANSWERS = ("assistant", "gpt", "chatgpt", "bing", "bard", "model")
_COUNTS = ("tokens", "num_tokens", "token_count")


class BenchResult(Struct, frozen=True):
    """What is read of a result of ``vllm bench``; pooling models have no ``output_lens``."""

    input_lens: tuple[_Length, ...]
    output_lens: tuple[_Length, ...] | None = None
    start_times: tuple[Annotated[float, Meta(ge=0)], ...] | None = None
    errors: tuple[str | None, ...] | None = None


def is_bench(value: object) -> bool:
    """Whether a JSON value is a result of ``vllm bench serve``."""
    return isinstance(value, dict) and "request_throughput" in value


def is_conversation(value: object) -> bool:
    """Whether a JSON value is a conversation."""
    return isinstance(value, dict) and any(isinstance(value.get(k), list) for k in _MESSAGES)


def bench_requests(value: Mapping[str, Any], where: str) -> tuple[Floats | None, Ints, Ints, int]:
    """(start times in seconds or None, input tokens, output tokens, failures left out) of a result.

    Raises:
        InputError: It was saved without the lengths, or its lists do not match.
    """
    if "input_lens" not in value:
        raise InputError(
            f"{where} has no input_lens: `vllm bench serve` keeps the lengths with --save-detailed."
        )
    result = io.convert(value, BenchResult, where)
    n = len(result.input_lens)
    for name in ("output_lens", "start_times", "errors"):
        column = getattr(result, name)
        if column is not None and len(column) != n:
            raise InputError(
                f"{where}: {name} must have {n:,} entries, as input_lens has, got {len(column):,}."
            )
    failed = np.array([bool(error) for error in result.errors or [""] * n], dtype=bool)
    inputs = np.array(result.input_lens, dtype=np.int64)
    outputs = np.array(result.output_lens or [0] * n, dtype=np.int64)
    starts = None if result.start_times is None else np.array(result.start_times)[~failed]
    return starts, inputs[~failed], outputs[~failed], int(failed.sum())


def conversation_requests(
    values: Iterable[tuple[int, Any]], where: str, chars_per_token: float | None
) -> Iterator[tuple[int, int, int]]:
    """(input tokens, output tokens, prefix tokens) of each answer of each conversation.

    Raises:
        InputError: A value is no conversation; or there are no numbers of tokens and
            ``chars_per_token`` is None.
    """
    for place, value in values:
        here = f"{where} {place}"
        if not is_conversation(value):
            raise InputError(f"{here}: it must have a list of messages ({', '.join(_MESSAGES)}).")
        messages = next(value[k] for k in _MESSAGES if isinstance(value.get(k), list))
        said = prefix = 0
        for message in messages:
            answer, length = _message(message, here, chars_per_token)
            if answer:
                yield said, length, prefix
                prefix = said
            said += length


def _message(message: object, where: str, chars_per_token: float | None) -> tuple[bool, int]:
    """(whether it is an answer of the model, its length in tokens)."""
    if not isinstance(message, dict):
        raise InputError(f"{where}: each message must be an object.")
    role = message.get("from", message.get("role"))
    count = next((message[k] for k in _COUNTS if k in message), None)
    if count is None:
        text = message.get("value", message.get("content"))
        if not isinstance(text, str):
            raise InputError(f"{where}: a message must have its text in `value` or `content`.")
        if chars_per_token is None:
            raise InputError(
                f"{where} holds text and no numbers of tokens: say with --chars-per-token how many "
                "characters make a token (about 4 in English)."
            )
        count = math.ceil(len(text) / chars_per_token)
    if type(count) is not int or not 0 <= count <= MAX_TOKENS:
        raise InputError(f"{where}: a message must have from 0 to {MAX_TOKENS:,} tokens.")
    return role in _ANSWERS, count
